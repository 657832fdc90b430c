"""A part is away for a while: the API answers all along, and afterwards every accepted event has its effect once.

The embedded instance, its consumers in threads of this process, faults made from outside: a locked file, a database
whose statements fail, a store that raises, a disk that is full.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from outage_world import World, running
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from services import wire
from services.domain import Event
from services.processes import run_consumer
from services.settings import Settings
from services.wiring import now, open_home

ROOT = Path(__file__).resolve().parents[2]
AWAY_S = 2.0
LONGEST_S = 2.0
"""No answer may take longer, on a machine that does other things, too; the deadlines below are 0.2 to 0.3 s."""


def settings_at(home: Path) -> Settings:
    return Settings(
        home=home, text_encoder="hashing", bus_busy_timeout_ms=300, spool_after_ms=200, store_deadline_ms=200,
        trends_flush_s=0.5, retrain_every_hours=0,
    )  # fmt: skip


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with running(settings_at(tmp_path / "home")) as world:
        yield world


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else writes into this database."""
    connection = sqlite3.connect(path, timeout=10, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


@contextmanager
def failing(engine: Any) -> Iterator[None]:
    """Every statement of this process on this database fails."""

    def fail(*_arguments: object) -> None:
        raise OperationalError("any statement", {}, Exception("the database is away"))

    event.listen(engine, "before_cursor_execute", fail)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", fail)


def test_a_locked_log(world: World) -> None:
    with locked(world.home.settings.home / "bus.db"):
        world.live(AWAY_S)
        refused = world.client.put("/v1/items", json={"item_id": "x", "title": "X"})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert world.client.get("/health/ready").status_code == 200
    assert world.spooled > 5
    world.live(0.5)
    world.settled()
    assert set(world.told) == {("events", 202), ("lists", 200)}
    assert world.slowest_s < LONGEST_S


def test_a_feature_store_that_is_away(world: World) -> None:
    before = world.told["lists", 200]
    world.store.away = True
    world.live(AWAY_S)
    lists = world.told["lists", 200] - before
    assert world.degraded["features"] > 5
    assert world.client.get("/v1/users/user-1").status_code == 503
    ready = world.client.get("/health/ready")
    assert (ready.status_code, ready.json()["parts"]["features"]["state"]) == (200, "yellow")
    assert lists > 2 * AWAY_S / 0.2  # were each to wait for its deadline, it would be half of this at most
    world.store.away = False
    until = time.monotonic() + 10
    while world.client.get("/v1/users/user-1/recommendations").json()["degraded"]:
        assert time.monotonic() < until
        time.sleep(0.05)
    world.settled()
    assert set(world.told) == {("events", 202), ("lists", 200)}
    assert world.slowest_s < LONGEST_S


def test_a_metadata_database_that_is_away(world: World) -> None:
    settings = world.home.settings
    with locked(settings.home / "meta.db"), failing(world.home.engine):
        world.live(AWAY_S)
        ready = world.client.get("/health/ready")
        assert (ready.status_code, ready.json()["parts"]["database"]["state"]) == (200, "yellow")
        answer = world.client.get("/v1/items/lamp-1")
        assert (answer.status_code, answer.json()["degraded"]) == (200, ["catalogue"])
        for path in ("/v1/releases", "/v1/rejected"):
            answer = world.client.get(path)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1"), path
        bad = world._timed("bad", lambda: world.client.post("/v1/events", json=[{"user_id": "u"}, {"item_id": "i"}]))
        assert bad.status_code == 422  # the sender hears why, though nobody can keep it
        assert world.client.put("/v1/items/late", json={"title": "Late"}).status_code == 202
    world.live(0.5)
    world.settled()
    assert {key: n for key, n in world.told.items() if key[0] != "bad"}.keys() == {("events", 202), ("lists", 200)}
    assert world.slowest_s < LONGEST_S
    until = time.monotonic() + 10
    while world.client.get("/v1/items/late").status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.1)


def test_consumers_that_start_while_the_log_is_locked_wait_for_it(tmp_path: Path) -> None:
    settings = settings_at(tmp_path / "home")
    with open_home(settings) as home:
        at = now()
        home.sink.publish([wire.encode_event(Event("e1", "ann", "lamp", "click", at, at))])
        with locked(settings.home / "bus.db"):
            work = threading.Thread(
                target=run_consumer, args=(settings, ("archive",), lambda: False), kwargs={"until_caught_up": True}
            )
            work.start()
            time.sleep(1.0)  # three times as long as anything waits for a lock
            assert work.is_alive()
        work.join(30)
        assert not work.is_alive()
        assert [e.event_id for e in home.archive.events(at - timedelta(days=1), now())] == ["e1"]


FULL_DISK = """
import json, resource, sys, threading, time
from pathlib import Path
from structlog.testing import capture_logs
from services.processes import run_consumer
from services.settings import Settings
from services.wiring import open_home
settings = Settings(home=Path(sys.argv[1]))
def committed():
    with open_home(settings) as home:
        return sum(home.view.committed("archive", "freshrank.events").values())
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
stopping = threading.Event()
work = threading.Thread(target=run_consumer, args=(settings, ("archive",), stopping.is_set))
until = time.monotonic() + 60
with capture_logs() as lines:
    work.start()
    while not (waits := [each["error"] for each in lines if each["event"] == "waiting"]) and time.monotonic() < until:
        time.sleep(0.05)
print(json.dumps({"while_full": committed(), "waits": waits[0]}), flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
until = time.monotonic() + 30
while committed() < int(sys.argv[2]) and time.monotonic() < until:
    time.sleep(0.1)
stopping.set()
work.join()
"""


def test_a_full_disk_under_the_archive(tmp_path: Path) -> None:
    """No file may grow beyond 200 KB: the part of 20,000 events cannot be written, is waited for, and then it can."""
    settings, count = settings_at(tmp_path / "home"), 20_000
    with open_home(settings) as home:
        at = now()
        home.sink.publish(
            [
                wire.encode_event(Event(f"e{n * 7919 % 1_000_003:07}", f"u{n % 97}", f"i{n}", "click", at, at))
                for n in range(count)
            ]
        )
    told = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(settings.home), str(count)],
        capture_output=True, text=True, cwd=ROOT, check=False, timeout=100,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    while_full = json.loads(next(line for line in told.stdout.splitlines() if line.startswith("{")))
    assert while_full["while_full"] == 0
    assert "File too large" in while_full["waits"]
    with open_home(settings) as home:
        found = [e.event_id for e in home.archive.events(at - timedelta(days=1), at + timedelta(days=1))]
        assert (len(found), len(set(found))) == (count, count)
        assert sum(home.view.committed("archive", "freshrank.events").values()) == count
