"""Folding: a join at the kept time or later answers as before, older rows are gone but for each key's newest, and a
crash at any step changes nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast_home import feast_at

from feature_repo.stores.folding import FOLDED_LEVEL, fold_old
from feature_repo.stores.parts_io import append_part, live_parts, merge_levels, read_manifest
from services.domain import DAY_US, SECOND_US, from_us, to_us
from services.features.store import FeastFeatureStore, FeastHistory
from services.ports import LIVE_ITEMS_KEPT
from services.signals import COUNTS_WIDTH

TIME = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema([("item", pa.string()), ("clicks", pa.int64()), ("at", TIME), ("made", TIME)])
DAY = datetime(2026, 11, 1, tzinfo=UTC)
ORDER = ("at", "made")


def append(folder: Path, day: int, **clicks: int) -> None:
    """Rows of one day, made on that day."""
    at = DAY + timedelta(days=day)
    rows = [{"item": item, "clicks": count, "at": at, "made": at} for item, count in clicks.items()]
    append_part(folder, pa.Table.from_pylist(rows, SCHEMA), SCHEMA)


def rows(folder: Path) -> list[tuple[str, int]]:
    tables = [pq.read_table(path) for path in live_parts(folder)]
    return [(row["item"], row["clicks"]) for table in tables for row in table.to_pylist()]


def filled(folder: Path) -> Path:
    append(folder, 1, a=1, b=2, c=3)
    append(folder, 2, a=4)
    append(folder, 3, b=5)
    append(folder, 9, a=6)
    return folder


def test_of_what_is_older_only_each_key_s_newest_row_stays(tmp_path: Path) -> None:
    folder = filled(tmp_path / "told")
    assert fold_old(folder, SCHEMA, "item", ORDER, DAY + timedelta(days=5)) == 2
    assert sorted(rows(folder)[:3]) == [("a", 4), ("b", 5), ("c", 3)]
    assert rows(folder)[3:] == [("a", 6)]
    assert [part.level for part in read_manifest(folder).parts] == [FOLDED_LEVEL, 0]
    assert fold_old(folder, SCHEMA, "item", ORDER, DAY + timedelta(days=5)) == 0  # nothing is left to fold
    append(folder, 10, c=7)
    assert fold_old(folder, SCHEMA, "item", ORDER, DAY + timedelta(days=9, hours=1)) == 1
    assert sorted(rows(folder)) == [("a", 6), ("b", 5), ("c", 3), ("c", 7)]


def test_a_part_that_reaches_into_the_kept_time_is_left_whole(tmp_path: Path) -> None:
    folder = filled(tmp_path / "told")
    merge_levels(folder, SCHEMA, width=4)
    assert fold_old(folder, SCHEMA, "item", ORDER, DAY + timedelta(days=5)) == 0
    assert len(rows(folder)) == 6
    assert fold_old(tmp_path / "nothing", SCHEMA, "item", ORDER, DAY) == 0


@pytest.mark.parametrize("step", ["written", "renamed", "listed"])
def test_a_crash_while_folding_leaves_all_rows_or_the_folded_ones(tmp_path: Path, step: str) -> None:
    class Crash(Exception):
        pass

    def reached(now: str) -> None:
        if now == step:
            raise Crash

    folder = filled(tmp_path / "told")
    with pytest.raises(Crash):
        fold_old(folder, SCHEMA, "item", ORDER, DAY + timedelta(days=5), reached=reached)
    assert len(rows(folder)) == (4 if step == "listed" else 6)
    fold_old(folder, SCHEMA, "item", ORDER, DAY + timedelta(days=5))
    assert sorted(rows(folder)) == [("a", 4), ("a", 6), ("b", 5), ("c", 3)]


def test_what_servers_were_told_is_exact_for_as_long_as_it_is_kept_and_bounded_beyond(tmp_path: Path) -> None:
    """70 days of a writing a day, of two items in turn, tidied every 5 days: what is asked of the kept time answers as
    it was written; of the time before two rows are left."""
    store_of = feast_at(tmp_path / "home")
    store, history = FeastFeatureStore(store_of), FeastHistory(store_of)
    start_us, days, kept = to_us(DAY), 70, LIVE_ITEMS_KEPT.days
    for day in range(days):
        counts = np.full((1, COUNTS_WIDTH), day, dtype=np.float32)
        at_us = start_us + day * DAY_US
        store.append_item_live(["xy"[day % 2]], counts, np.array([at_us - 1]), at_us, from_us(at_us))
        if day % 5 == 4:
            store._merge("item_live")
    store.close()
    asked = np.arange(days - kept, days)
    counts, _, written = history.live_items_at(["x"] * kept, start_us + asked * DAY_US + SECOND_US)
    assert counts[:, 0].tolist() == [day - day % 2 for day in asked.tolist()]
    assert written.tolist() == [start_us + (day - day % 2) * DAY_US for day in asked.tolist()]
    left = sum(part.rows for part in read_manifest(tmp_path / "home" / "offline" / "item_live").parts)
    assert left == (days - 39) + 2  # days 39 to 69 are kept; of 0 to 38 the newest of x and of y
