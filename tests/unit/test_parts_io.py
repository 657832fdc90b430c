"""Parquet parts: what a reader sees after appends, merges, sweeps and crashes at every step, on real folders."""

from __future__ import annotations

import os
import resource
import signal
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.stores.parts_io import (
    MANIFEST,
    append_part,
    live_parts,
    merge_due,
    merge_levels,
    read_manifest,
    sweep,
)

SCHEMA = pa.schema([("name", pa.string()), ("number", pa.int64())])


class Crash(Exception):
    """The process dies here."""


def crash_at(step: str):
    def reached(now: str) -> None:
        if now == step:
            raise Crash

    return reached


def table(*numbers: int) -> pa.Table:
    return pa.table({"number": pa.array(numbers, pa.int32()), "name": [f"n{each}" for each in numbers]})


def numbers(folder: Path) -> list[int]:
    return [n for path in live_parts(folder) for n in pq.read_table(path)["number"].to_pylist()]


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*part-*")}


def test_an_empty_folder_has_no_parts(tmp_path: Path) -> None:
    assert live_parts(tmp_path / "none") == ()
    assert sweep(tmp_path / "none") == 0
    assert merge_levels(tmp_path / "none", SCHEMA) == 0


def test_rows_come_back_in_append_order_and_in_the_declared_schema(tmp_path: Path) -> None:
    append_part(tmp_path / "a", table(3, 1), SCHEMA)
    append_part(tmp_path / "a", table(2), SCHEMA)
    assert numbers(tmp_path / "a") == [3, 1, 2]
    assert pq.read_schema(live_parts(tmp_path / "a")[0]).equals(SCHEMA)


def test_no_rows_append_nothing(tmp_path: Path) -> None:
    assert append_part(tmp_path / "a", table(), SCHEMA) is None
    assert live_parts(tmp_path / "a") == ()


@pytest.mark.parametrize("step", ["written", "renamed"])
def test_an_append_that_crashed_before_its_manifest_left_nothing_to_read(tmp_path: Path, step: str) -> None:
    append_part(tmp_path, table(1), SCHEMA)
    with pytest.raises(Crash):
        append_part(tmp_path, table(2), SCHEMA, reached=crash_at(step))
    assert numbers(tmp_path) == [1]
    append_part(tmp_path, table(2), SCHEMA)  # the repeated batch
    assert numbers(tmp_path) == [1, 2]


def test_an_append_that_crashed_after_its_manifest_is_there(tmp_path: Path) -> None:
    with pytest.raises(Crash):
        append_part(tmp_path, table(2), SCHEMA, reached=crash_at("listed"))
    assert numbers(tmp_path) == [2]


def test_what_a_crash_left_behind_is_swept_and_nothing_else(tmp_path: Path) -> None:
    append_part(tmp_path, table(1), SCHEMA)
    for step in ("written", "renamed"):
        with pytest.raises(Crash):
            append_part(tmp_path, table(2), SCHEMA, reached=crash_at(step))
    assert len(files(tmp_path)) == 3
    last = max(path.stat().st_mtime for path in tmp_path.glob("*part-*"))
    assert sweep(tmp_path, 600, now=lambda: last + 599) == 0
    assert sweep(tmp_path, 600, now=lambda: last + 601) == 2
    assert files(tmp_path) == {live_parts(tmp_path)[0].name}
    assert numbers(tmp_path) == [1]


def test_sixty_four_parts_of_a_level_become_one_of_the_next(tmp_path: Path) -> None:
    for number in range(64):
        append_part(tmp_path, table(number), SCHEMA, fsync=False)
    append_part(tmp_path, table(64), SCHEMA, fsync=False)
    assert merge_due(tmp_path)
    assert merge_levels(tmp_path, SCHEMA, fsync=False) == 1
    assert not merge_due(tmp_path)
    assert [(part.level, part.rows) for part in read_manifest(tmp_path).parts] == [(1, 64), (0, 1)]
    assert numbers(tmp_path) == list(range(65))


def test_levels_rise_and_keep_every_row_in_order(tmp_path: Path) -> None:
    for number in range(9):  # width 2: 9 = 8 + 1, so one part of level 3 and one of level 0
        append_part(tmp_path, table(number), SCHEMA, fsync=False)
        merge_levels(tmp_path, SCHEMA, width=2, fsync=False)
    assert [(part.level, part.rows) for part in read_manifest(tmp_path).parts] == [(3, 8), (0, 1)]
    assert numbers(tmp_path) == list(range(9))


def test_replaced_parts_stay_readable_until_they_are_swept(tmp_path: Path) -> None:
    for number in range(2):
        append_part(tmp_path, table(number), SCHEMA, fsync=False)
    before = live_parts(tmp_path)
    merge_levels(tmp_path, SCHEMA, width=2, fsync=False, now=lambda: 1000.0)
    assert sweep(tmp_path, 600, now=lambda: 1599.0) == 0
    assert [pq.read_table(path).num_rows for path in before] == [1, 1]
    assert sweep(tmp_path, 600, now=lambda: 1600.0) == 2
    assert not any(path.exists() for path in before)
    assert numbers(tmp_path) == [0, 1]


def test_an_append_costs_the_same_however_many_parts_were_replaced(tmp_path: Path) -> None:
    for number in range(40):
        append_part(tmp_path, table(number), SCHEMA, fsync=False)
        merge_levels(tmp_path, SCHEMA, width=2, fsync=False)
    assert len(files(tmp_path)) > 40  # none is swept yet
    assert (tmp_path / MANIFEST).stat().st_size < 400  # 40 = 32 + 8: two parts


def test_a_part_that_was_replaced_is_not_swept_by_its_age(tmp_path: Path) -> None:
    for number in range(2):
        append_part(tmp_path, table(number), SCHEMA, fsync=False)
    before = live_parts(tmp_path)
    for path in before:
        os.utime(path, (1.0, 1.0))
    with pytest.raises(Crash):  # the manifest has changed, and nothing after it was done
        merge_levels(tmp_path, SCHEMA, width=2, fsync=False, now=lambda: 1000.0, reached=crash_at("listed"))
    assert sweep(tmp_path, 600, now=lambda: 1599.0) == 0
    assert [pq.read_table(path).num_rows for path in before] == [1, 1]


@pytest.mark.parametrize("step", ["written", "renamed", "listed"])
def test_a_merge_that_crashed_at_any_step_loses_and_doubles_nothing(tmp_path: Path, step: str) -> None:
    for number in range(2):
        append_part(tmp_path, table(number), SCHEMA, fsync=False)
    with pytest.raises(Crash):
        merge_levels(tmp_path, SCHEMA, width=2, fsync=False, reached=crash_at(step))
    assert numbers(tmp_path) == [0, 1]
    merge_levels(tmp_path, SCHEMA, width=2, fsync=False)
    assert numbers(tmp_path) == [0, 1]


def test_a_part_appended_during_a_merge_is_kept(tmp_path: Path) -> None:
    for number in range(2):
        append_part(tmp_path, table(number), SCHEMA, fsync=False)

    def appended_meanwhile(step: str) -> None:
        if step == "written":
            append_part(tmp_path, table(7), SCHEMA, fsync=False)

    merge_levels(tmp_path, SCHEMA, width=2, fsync=False, reached=appended_meanwhile)
    assert numbers(tmp_path) == [0, 1, 7]


def test_only_one_merges_a_folder_at_a_time(tmp_path: Path) -> None:
    for number in range(2):
        append_part(tmp_path, table(number), SCHEMA, fsync=False)
    inner: list[int] = []

    def second(step: str) -> None:
        if step == "written":
            inner.append(merge_levels(tmp_path, SCHEMA, width=2, fsync=False))

    assert merge_levels(tmp_path, SCHEMA, width=2, fsync=False, reached=second) == 1
    assert inner == [0]
    assert numbers(tmp_path) == [0, 1]


def test_a_merge_may_drop_rows(tmp_path: Path) -> None:
    for number in range(2):
        append_part(tmp_path, table(number), SCHEMA, fsync=False)
    merge_levels(tmp_path, SCHEMA, width=2, fsync=False, rewrite=lambda rows: rows.slice(1))
    assert numbers(tmp_path) == [1]


def test_threads_that_append_and_merge_together_lose_nothing(tmp_path: Path) -> None:
    def work(first: int) -> None:
        for number in range(first, first + 20):
            append_part(tmp_path, table(number), SCHEMA, fsync=False)
            merge_levels(tmp_path, SCHEMA, width=4, fsync=False)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers(tmp_path)) == [*range(20), *range(100, 120), *range(200, 220)]


def test_a_process_killed_between_any_two_steps_leaves_a_folder_that_reads(tmp_path: Path) -> None:
    for count, step in enumerate(("written", "renamed", "listed")):
        child = os.fork()
        if child == 0:
            append_part(
                tmp_path, table(count), SCHEMA, reached=lambda now, step=step: os._exit(9) if now == step else None
            )
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert numbers(tmp_path) == [2]  # only the third was listed; the locks of the dead are free
    append_part(tmp_path, table(5), SCHEMA)
    assert numbers(tmp_path) == [2, 5]


def test_a_write_that_fails_leaves_no_file(tmp_path: Path) -> None:
    append_part(tmp_path, table(1), SCHEMA)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))  # every write past 64 bytes fails, as on a full disk
    try:
        with pytest.raises(OSError, match="large"):
            append_part(tmp_path, table(*range(1000)), SCHEMA)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert len(files(tmp_path)) == 1
    assert numbers(tmp_path) == [1]
