"""Text vectors of item cards: a thread embeds what is waiting, newest first, and writes it to the change feed.

The queue is the `items` table itself: a card waits while the text it was last embedded from, and the encoder, are not
today's. So a restart loses nothing, and another encoder embeds everything anew.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import numpy as np
import structlog
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Engine, and_, func, literal, select, update
from sqlalchemy.exc import OperationalError

from services.catalogue.cards import LOCK, WriteParts, card_of, card_text
from services.domain import from_us
from services.freshness import arrived
from services.items import Payload, VectorPart
from services.tables import among, items, next_number
from services.telemetry import TEXT_QUEUE

CACHE_MAX = 4096
AHEAD_MAX = 2048
"""Cards read ahead from the queue; a card that comes meanwhile ends the round after the running batch."""
IDLE_S = 5.0
NICE = 10
"""A backlog of texts is minutes of arithmetic: events that come meanwhile go first. On Linux a thread has a
niceness of its own."""
RETRY_S = 2.0
_log = structlog.get_logger()


class TextEncoder(Protocol):
    """Turns texts into vectors; `name` changes whenever equal texts would get other vectors."""

    @property
    def name(self) -> str:
        """What it is, in a word; stored beside each vector."""

    @property
    def width(self) -> int:
        """Length of a vector."""

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        """float32 [n, width], rows of length 1."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    item_id: str
    text: str
    text_hash: str
    accepted_us: int
    is_news: bool


class TextVectors:
    """Embeds waiting cards. `open` starts its thread, `close` ends it after the running batch."""

    def __init__(
        self,
        engine: Engine,
        encoder: TextEncoder,
        write_parts: WriteParts,
        batch_max: int = 64,
        retry_s: float = RETRY_S,
    ) -> None:
        self._engine = engine
        self._encoder = encoder
        self._write_parts = write_parts
        self._batch_max = batch_max
        self._retry_s = retry_s
        self._tag = hashlib.blake2b(encoder.name.encode(), digest_size=4).hexdigest()
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._woken = threading.Event()
        self._closing = threading.Event()
        self._one_round = threading.Lock()
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Start the thread; harmless when it runs."""
        if self._thread is None:
            self._closing.clear()
            self._thread = threading.Thread(target=self._work, name="text-vectors", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread after its batch; what waits still waits."""
        self._closing.set()
        self._woken.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wake(self) -> None:
        """Cards have changed."""
        self._woken.set()

    def pending(self) -> int:
        """How many cards wait for their vector."""
        with self._engine.connect() as connection:
            return int(connection.execute(select(func.count()).select_from(items).where(self._waits())).scalar_one())

    def drain(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Embed everything that waits, here and now; `progress` gets (done, total). Returns how many were embedded."""
        done, total = 0, self.pending()

        def batch_done(size: int) -> bool:
            nonlocal done
            done += size
            if progress:
                progress(min(done, total), total)
            return True

        while self._round(batch_done):
            pass
        return done

    # ------------------------------------------------------------------------------------------- inside

    def _work(self) -> None:
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while not self._closing.is_set():
            self._woken.clear()
            try:
                if not self._round(self._undisturbed):
                    TEXT_QUEUE.set(0)
                    self._woken.wait(IDLE_S)
            except OperationalError as error:
                _log.warning("text_vectors_wait", error=str(error.orig))
                self._closing.wait(self._retry_s)
            except Exception:  # the thread outlives a failing encoder: cards wait, and it tries again
                _log.exception("text_vectors_failed", encoder=self._encoder.name)
                self._closing.wait(self._retry_s)

    def _undisturbed(self, _size: int) -> bool:
        return not self._closing.is_set() and not self._woken.is_set()

    def _round(self, go_on: Callable[[int], bool]) -> int:
        """Embed what is read ahead in batches, while `go_on(size of the batch)` says so; returns how many were."""
        with self._one_round:
            waiting = self._next()
            TEXT_QUEUE.set(len(waiting))
            done = 0
            for start in range(0, len(waiting), self._batch_max):
                batch = waiting[start : start + self._batch_max]
                self._store(batch, self._embedded(batch))
                done += len(batch)
                if not go_on(len(batch)):
                    break
            return done

    def _next(self) -> list[_Waiting]:
        query = select(
            items.c.item_id, items.c.card, items.c.text_hash, items.c.vector_hash, items.c.accepted_us
        ).where(self._waits())
        query = query.order_by(items.c.accepted_us.desc(), items.c.item_id).limit(AHEAD_MAX)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [
            _Waiting(
                r.item_id, card_text(card_of(r.item_id, r.card)), r.text_hash, r.accepted_us,
                not r.vector_hash.endswith(r.text_hash),  # else only the encoder is another one
            )
            for r in rows
        ]  # fmt: skip

    def _embedded(self, batch: Sequence[_Waiting]) -> list[bytes]:
        """The vector of each card as float16 bytes; equal texts are embedded once."""
        unknown = {each.text_hash: each.text for each in batch if each.text_hash not in self._cache}
        if unknown:
            vectors = self._encoder.embed(list(unknown.values()))
            assert vectors.shape == (len(unknown), self._encoder.width), f"{vectors.shape} for {len(unknown)} texts"
            self._cache |= {h: vector.astype("<f2").tobytes() for h, vector in zip(unknown, vectors, strict=True)}
        found = [self._cache[each.text_hash] for each in batch]
        while len(self._cache) > CACHE_MAX:
            self._cache.popitem(last=False)
        return found

    def _store(self, batch: Sequence[_Waiting], vectors: Sequence[bytes]) -> None:
        """Write the vectors whose card still has the text that was embedded."""
        with self._engine.begin() as connection:
            next_number(connection, LOCK)  # the writer of the cards stands in the same line: no card changes meanwhile
            ids = [each.item_id for each in batch]
            texts = {
                r.item_id: r.text_hash
                for r in connection.execute(_hashes.where(among(connection, items.c.item_id, ids)))
            }
            parts: list[tuple[str, Payload]] = []
            moments: list[tuple[datetime, bool]] = []
            for each, vector in zip(batch, vectors, strict=True):
                if texts.get(each.item_id) == each.text_hash:
                    parts.append((each.item_id, VectorPart(self._encoder.name, vector)))
                    moments += [(from_us(each.accepted_us), True)] * each.is_news
            if parts:
                self._write_parts(connection, parts, arrived("vector", moments))
                current = among(connection, items.c.item_id, [item_id for item_id, _ in parts])
                connection.execute(update(items).where(current).values(vector_hash=self._wanted()))

    def _waits(self) -> ColumnElement[bool]:
        return and_(items.c.text_hash != "", items.c.vector_hash != self._wanted())

    def _wanted(self) -> ColumnElement[str]:
        return literal(self._tag) + items.c.text_hash


_hashes = select(items.c.item_id, items.c.text_hash)
