"""The schedule: children of its own, niced, with a thread limit; times that survive a restart. Real processes."""

from __future__ import annotations

import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from services.domain import BadRequest
from services.learning import run_scheduler
from services.migrations.revisions import VERSION_TABLE
from services.postgresql import Waits, engine_of
from services.settings import load_settings
from services.sqlite import open_database
from services.training.schedule import NICENESS, ChildCommand, RetrainSchedule, WhileRunning, start_child, stop_children

TELL = "import os, sys, time; time.sleep(0.3); open(sys.argv[1], 'a').write(f'{os.nice(0)} {os.environ[\"OMP_NUM_THREADS\"]} {os.environ[\"WHERE\"]}\\n')"  # noqa: E501


def until(holds: Callable[[], bool], wait_s: float = 20.0) -> None:
    end = time.monotonic() + wait_s
    while not holds():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


def child(told: Path) -> ChildCommand:
    return ChildCommand((sys.executable, "-c", TELL, str(told)), {"WHERE": "here"}, threads=1)


def test_over_a_database_that_it_may_not_use_the_scheduler_ends_with_a_line_in_the_log(tmp_path: Path) -> None:
    """Nobody waits for its thread: what it raised would be a traceback among the lines."""
    database = open_database(tmp_path / "meta.db")
    with database.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    database.dispose()
    with capture_logs() as logs:
        run_scheduler(load_settings(home=tmp_path), lambda: True)
    assert [(line["event"], line["error"][:41]) for line in logs] == [
        ("no_schedule", "the database was made by a newer freshran")
    ]


def test_a_run_is_a_process_of_its_own_niced_with_a_thread_limit(engine: Engine, tmp_path: Path) -> None:
    told = tmp_path / "told"
    schedule = RetrainSchedule(engine, timedelta(hours=1), child(told))
    before = datetime.now(UTC)
    schedule.start(first_at=before)
    try:
        until(lambda: told.exists() and told.read_text().endswith("\n"))  # opened is not yet written
        niceness, threads, where = told.read_text().split()
        assert int(niceness) >= NICENESS
        assert (threads, where) == ("1", "here")
        following = schedule.next_at()
        assert following is not None
        assert timedelta(minutes=59) < following - before < timedelta(minutes=61)
    finally:
        schedule.stop()
    assert schedule.next_at() is None


def test_what_repeats_while_running_starts_after_a_period_never_twice_at_once_and_tells_when_it_ended(
    tmp_path: Path,
) -> None:
    told, ended = tmp_path / "told", []
    repeated = WhileRunning(60.0, child(told), lambda: ended.append(1))
    for now_s in (1000.0, 1059.9, 1060.0, 1121.0):  # the last one is due while the first still sleeps
        repeated.look(now_s)
    until(lambda: bool(ended))
    assert len(told.read_text().splitlines()) == 1
    repeated.look(1181.0)
    until(lambda: len(ended) == 2)
    repeated.stop()
    never = WhileRunning(0.0, child(told), lambda: ended.append(1))
    never.look(0.0)
    never.look(1e9)
    failing = WhileRunning(
        1.0, ChildCommand((sys.executable, "-c", "raise SystemExit(3)"), {}), lambda: ended.append(3)
    )
    failing.look(0.0)
    failing.look(1.0)
    failing.stop()
    assert ended == [1, 1]


def test_the_next_time_survives_a_restart_and_a_changed_period_sets_it_anew(engine: Engine, tmp_path: Path) -> None:
    told = tmp_path / "told"
    first = datetime.now(UTC) + timedelta(hours=5)
    later = first + timedelta(hours=1)
    for every, asked, expected in (
        (timedelta(hours=24), first, first),
        (timedelta(hours=24), later, first),  # the stored time holds
        (timedelta(hours=12), later, later),
    ):
        schedule = RetrainSchedule(engine, every, child(told))
        schedule.start(first_at=asked)
        assert schedule.next_at() == expected
        schedule.stop()
    assert not told.exists()


def test_a_run_can_be_asked_for_now_and_ends_with_the_schedule(engine: Engine, tmp_path: Path) -> None:
    told = tmp_path / "told"
    sleeper = ChildCommand((sys.executable, "-c", f"open({str(told)!r}, 'w'); import time; time.sleep(60)"), {})
    schedule = RetrainSchedule(engine, timedelta(hours=1), sleeper)
    with pytest.raises(BadRequest, match="does not run"):
        schedule.run_now(datetime.now(UTC))
    schedule.start(first_at=datetime.now(UTC) + timedelta(hours=1))
    schedule.run_now(datetime.now(UTC))
    until(told.exists)
    started = time.monotonic()
    schedule.stop()
    assert time.monotonic() - started < 15


def test_the_status_of_a_child_is_told_and_without_children_there_is_nothing_to_stop() -> None:
    assert start_child([sys.executable, "-c", "raise SystemExit(3)"], {}, 1) == 3
    stop_children()


def test_a_schedule_whose_database_is_away_can_be_started_again_later(engine: Engine, tmp_path: Path) -> None:
    away = engine_of("postgresql://nobody@127.0.0.1:1/nothing", Waits(connect_ms=1000))
    with pytest.raises(OperationalError):
        RetrainSchedule(away, timedelta(hours=1), child(tmp_path / "told")).start(datetime.now(UTC))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("APScheduler")]
    schedule = RetrainSchedule(engine, timedelta(hours=1), child(tmp_path / "told"))
    schedule.start(datetime.now(UTC))
    until((tmp_path / "told").exists)
    schedule.stop()


def test_a_machine_starts_its_own_command_whoever_wrote_the_job_last(engine: Engine, tmp_path: Path) -> None:
    """Two machines share the database; what stands there says when, not what."""
    first = RetrainSchedule(engine, timedelta(hours=1), child(tmp_path / "theirs"))
    first.start(datetime.now(UTC) + timedelta(hours=1))
    first.stop()
    second = RetrainSchedule(engine, timedelta(hours=1), child(tmp_path / "ours"))
    second.start(datetime.now(UTC) + timedelta(hours=1))
    second.run_now(datetime.now(UTC))
    until((tmp_path / "ours").exists)
    second.stop()
    assert not (tmp_path / "theirs").exists()


def test_a_database_that_refuses_one_write_does_not_end_the_schedule(tmp_path: Path) -> None:
    path, told = tmp_path / "meta.db", tmp_path / "told"
    counting = ChildCommand((sys.executable, "-c", f"open({str(told)!r}, 'a').write('x')"), {}, 1)
    schedule = RetrainSchedule(open_database(path, busy_timeout_ms=50), timedelta(seconds=1), counting)
    schedule.start(first_at=datetime.now(UTC) + timedelta(hours=1))
    assert schedule._scheduler is not None
    schedule._scheduler.jobstore_retry_interval = 0.2
    locked = sqlite3.connect(path, isolation_level=None)
    with capture_logs() as logs:
        schedule.run_now(datetime.now(UTC) + timedelta(seconds=0.5))
        locked.execute("BEGIN IMMEDIATE")
        until(lambda: any(line["event"] == "schedule_waits" for line in logs))
    locked.execute("ROLLBACK")
    locked.close()
    before = len(told.read_text()) if told.exists() else 0
    try:
        until(lambda: told.exists() and len(told.read_text()) >= before + 2)
    finally:
        schedule.stop()


def test_what_a_child_prints_is_not_printed_by_the_process_that_started_it(capfd: pytest.CaptureFixture[str]) -> None:
    assert start_child([sys.executable, "-c", "print('a document'); print(repr(input()))"], {}, 1) == 1  # no stdin
    assert "a document" not in capfd.readouterr().out
