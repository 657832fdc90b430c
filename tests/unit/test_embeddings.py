"""The cache of text vectors: what is not worked out twice, what is let go, what a damaged or locked file does."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from structlog.testing import capture_logs

from services.catalogue.embeddings import CachedEncoder, EmbeddingCache
from services.catalogue.encoders import user_cache
from services.settings import Settings

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


class Lengths:
    """An encoder: (length, 1), not scaled. Keeps what it was asked."""

    def __init__(self, name: str = "lengths", width: int = 2) -> None:
        self.name = name
        self.width = width
        self.asked: list[list[str]] = []

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.asked.append(list(texts))
        return np.array([[len(text)] + [1] * (self.width - 1) for text in texts], dtype=np.float32)


def cache_at(path: Path, bytes_max: int = 10**7, days: int = 0) -> EmbeddingCache:
    return EmbeddingCache(path, bytes_max, lambda: NOW + timedelta(days=days))


def test_no_text_is_worked_out_twice_also_by_another_process(tmp_path: Path) -> None:
    path, first, second = tmp_path / "e.db", Lengths(), Lengths()
    made = CachedEncoder(first, cache_at(path)).embed(["aa", "b", "aa"])
    assert made.tolist() == [[2, 1], [1, 1], [2, 1]]
    assert first.asked == [["aa", "b"]]
    assert CachedEncoder(second, cache_at(path)).embed(["ccc", "b"]).tolist() == [[3, 1], [1, 1]]
    assert second.asked == [["ccc"]]


def test_another_encoder_or_version_shares_nothing(tmp_path: Path) -> None:
    cache, other = cache_at(tmp_path / "e.db"), Lengths("lengths@2")
    CachedEncoder(Lengths(), cache).embed(["a"])
    CachedEncoder(other, cache).embed(["a"])
    assert other.asked == [["a"]]


def test_a_hit_is_what_was_made(tmp_path: Path) -> None:
    class Thirds(Lengths):
        def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
            return super().embed(texts) / np.float32(3)

    encoder = CachedEncoder(Thirds(), cache_at(tmp_path / "e.db"))
    assert np.array_equal(encoder.embed(["a"]), encoder.embed(["a"]))


def test_the_share_of_hits_is_logged(tmp_path: Path) -> None:
    encoder = CachedEncoder(Lengths(), cache_at(tmp_path / "e.db"))
    encoder.embed(["a", "b"])
    with capture_logs() as lines:
        encoder.embed(["a", "b", "c"])
    assert [(each["texts"], each["cached"], each["made"]) for each in lines] == [(3, 2, 1)]


def test_it_stays_within_its_bytes_and_lets_go_what_was_not_asked_for_the_longest(tmp_path: Path) -> None:
    path, bound = tmp_path / "e.db", 400_000
    wide = Lengths(width=384)
    old, kept = [f"old {n}" for n in range(150)], [f"kept {n}" for n in range(150)]
    CachedEncoder(wide, cache_at(path, bound)).embed(old)
    CachedEncoder(wide, cache_at(path, bound)).embed(kept)
    CachedEncoder(wide, cache_at(path, bound, days=1)).embed(kept)
    CachedEncoder(wide, cache_at(path, bound, days=1)).embed([f"new {n}" for n in range(150)])
    assert path.stat().st_size < 2 * bound
    wide.asked.clear()
    CachedEncoder(wide, cache_at(path, bound, days=1)).embed(kept)
    assert wide.asked == []
    CachedEncoder(wide, cache_at(path, bound, days=1)).embed(old)
    assert len(wide.asked[0]) == 46  # a tenth of 450, and one


@pytest.mark.parametrize("damage", [b"this is no database at all" * 400, b""])
def test_a_damaged_file_is_begun_anew(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "e.db"
    CachedEncoder(Lengths(), cache_at(path)).embed(["a"])
    for name in ("e.db", "e.db-wal", "e.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    path.write_bytes(damage)
    encoder = Lengths()
    for _ in range(3):
        assert CachedEncoder(encoder, cache_at(path)).embed(["a"]).tolist() == [[1, 1]]
    assert len(encoder.asked) <= 2


def test_a_locked_file_and_a_folder_that_is_none_hold_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.catalogue.embeddings.WAIT_S", 0.01)
    path = tmp_path / "e.db"
    CachedEncoder(Lengths(), cache_at(path)).embed(["a"])
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    assert CachedEncoder(Lengths(), cache_at(path)).embed(["b"]).tolist() == [[1, 1]]
    holder.close()
    (tmp_path / "file").write_text("")
    assert CachedEncoder(Lengths(), cache_at(tmp_path / "file" / "e.db")).embed(["b"]).tolist() == [[1, 1]]


KILLED = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
connection.execute("DELETE FROM vectors")
connection.execute("INSERT INTO vectors VALUES (1, x'00', x'00', 0)")
os._exit(9)
"""


def test_a_process_killed_while_it_writes_leaves_what_was_there(tmp_path: Path) -> None:
    path, encoder = tmp_path / "e.db", Lengths()
    CachedEncoder(encoder, cache_at(path)).embed(["a"])
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False).returncode == 9
    CachedEncoder(encoder, cache_at(path)).embed(["a"])
    assert encoder.asked == [["a"]]


def test_a_person_has_a_cache_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    CachedEncoder(Lengths(), user_cache(Settings(home=tmp_path / "home"), lambda: NOW)).embed(["a"])
    assert (tmp_path / "freshrank" / "embeddings.db").is_file()
