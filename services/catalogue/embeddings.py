"""Text vectors that were worked out once, in one SQLite file: by the content of the text and the encoder's name.

A cache, nothing else: whoever finds it locked, full or damaged goes on without it (a damaged one is begun anew). A
killed process leaves whole entries or none. What was not asked for the longest goes first when it outgrows its bound.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from models.text import TextEncoder
from services.telemetry import TEXT_CACHE

CACHE_FILE = "embeddings.db"
ASKED_AT_ONCE = 500
WAIT_S = 5.0
GONE_SHARE = 10
"""One part in so many is let go at once."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS vectors (
    number INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, vector BLOB NOT NULL, used_day INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS vectors_used ON vectors (used_day);
"""
log = structlog.get_logger()


class EmbeddingCache:
    """Bytes by key in a file, at most `bytes_max` of it. Several processes may share one."""

    def __init__(self, path: Path, bytes_max: int, now: Callable[[], datetime]) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._now = now

    def found(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """What is there of some keys."""
        there: dict[bytes, bytes] = {}
        with self._patient("read"), closing(self._open()) as connection:
            today = self._today()
            for some in _portions(keys):
                marks = ",".join("?" * len(some))
                query = f"SELECT key, vector, used_day FROM vectors WHERE key IN ({marks})"
                rows = connection.execute(query, some).fetchall()
                there |= {key: vector for key, vector, _ in rows}
                old = [(today, key) for key, _, day in rows if day != today]
                if old:
                    with connection:
                        connection.executemany("UPDATE vectors SET used_day = ? WHERE key = ?", old)
        return there

    def keep(self, vectors: Mapping[bytes, bytes]) -> None:
        """Add some, all or none of them, and let go what has no room."""
        with self._patient("write"), closing(self._open()) as connection:
            today = self._today()
            with connection:
                rows = [(key, vector, today) for key, vector in vectors.items()]
                connection.executemany("INSERT OR REPLACE INTO vectors (key, vector, used_day) VALUES (?, ?, ?)", rows)
            while self._bytes(connection) > self._bytes_max:
                with connection:
                    count = connection.execute("SELECT count(*) FROM vectors").fetchone()[0]
                    oldest = "SELECT number FROM vectors ORDER BY used_day, number LIMIT ?"
                    gone = connection.execute(
                        f"DELETE FROM vectors WHERE number IN ({oldest})", (count // GONE_SHARE + 1,)
                    ).rowcount
                if gone <= 0:
                    break

    def _bytes(self, connection: sqlite3.Connection) -> int:
        pages, free, size = (
            int(connection.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._path, timeout=WAIT_S)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.executescript(_SCHEMA)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _patient(self, doing: str) -> Iterator[None]:
        """Nothing that befalls a cache is worth an error."""
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:  # locked, full, no folder to write to
            log.warning("embeddings_not_cached", doing=doing, path=str(self._path), error=str(error))
        except sqlite3.DatabaseError as error:
            log.warning("embeddings_begun_anew", path=str(self._path), error=str(error))
            for name in (self._path.name, f"{self._path.name}-wal", f"{self._path.name}-shm"):
                self._path.with_name(name).unlink(missing_ok=True)

    def _today(self) -> int:
        return int(self._now().timestamp() // 86_400)


class CachedEncoder:
    """A TextEncoder in front of another one: what the cache knows is not worked out again. Vectors are what half
    precision keeps of them, found or made, so a hit changes nothing."""

    def __init__(self, encoder: TextEncoder, cache: EmbeddingCache) -> None:
        self._encoder = encoder
        self._cache = cache

    @property
    def name(self) -> str:
        """TextEncoder."""
        return self._encoder.name

    @property
    def width(self) -> int:
        """TextEncoder."""
        return self._encoder.width

    @property
    def inner(self) -> TextEncoder:
        """The encoder behind the cache."""
        return self._encoder

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """TextEncoder. Equal texts are worked out once."""
        started = time.monotonic()
        keys = [self._key(text) for text in texts]
        there = self._cache.found(list(dict.fromkeys(keys)))
        there = {key: vector for key, vector in there.items() if len(vector) == 2 * self.width}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in there}
        if missing:
            made = self._encoder.embed(list(missing.values())).astype("<f2")
            fresh = {key: vector.tobytes() for key, vector in zip(missing, made, strict=True)}
            self._cache.keep(fresh)
            there |= fresh
        hits = sum(key not in missing for key in keys)
        TEXT_CACHE.labels(result="hit").inc(hits)
        TEXT_CACHE.labels(result="miss").inc(len(keys) - hits)
        log.info(
            "texts_embedded", encoder=self.name, texts=len(texts), cached=hits, made=len(missing),
            ms=round((time.monotonic() - started) * 1000),
        )  # fmt: skip
        if not texts:
            return np.zeros((0, self.width), dtype=np.float32)
        return np.stack([np.frombuffer(there[key], dtype="<f2") for key in keys]).astype(np.float32)

    def _key(self, text: str) -> bytes:
        return hashlib.blake2b(f"{self.name}\n{text}".encode(), digest_size=16).digest()


def _portions(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(keys), ASKED_AT_ONCE):
        yield keys[start : start + ASKED_AT_ONCE]
