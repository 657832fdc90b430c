"""A part is away for a while: the API answers all along, and afterwards every accepted event has its effect once.

The embedded instance, its consumers in threads of this process, faults made from outside: a locked file, a database
whose statements fail, a store that raises, a disk that is full.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from services import wire
from services.api.app import create_app
from services.domain import Event, ItemChange, StageUnavailable, UserState
from services.processes import Instance, run_consumer
from services.settings import Settings
from services.wiring import Home, now, open_home

ROOT = Path(__file__).resolve().parents[2]
USERS = 5
AWAY_S = 2.0
LONGEST_S = 2.0
"""No answer may take longer, on a machine that does other things, too; the deadlines below are 0.2 to 0.3 s."""


def settings_at(home: Path) -> Settings:
    return Settings(
        home=home, text_encoder="hashing", bus_busy_timeout_ms=300, spool_after_ms=200, store_deadline_ms=200,
        trends_flush_s=0.5, retrain_every_hours=0,
    )  # fmt: skip


class Store:
    """The feature store of the home, away while it is told so; every read then takes its whole deadline."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.away = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def _ask(self) -> None:
        if self.away:
            time.sleep(0.2)
            raise StageUnavailable("the store did not answer within 200 ms")

    def read(self, user_id: str) -> UserState:
        self._ask()
        return self._store.read(user_id)

    def read_many(self, user_ids: Sequence[str]) -> tuple[UserState, ...]:
        self._ask()
        return self._store.read_many(user_ids)


class World:
    """An instance with its API and consumers, a client that asks and sends all the time, and what it was told."""

    def __init__(self, home: Home, client: TestClient, store: Store) -> None:
        self.home = home
        self.client = client
        self.store = store
        self.sent: list[str] = []
        self.told: Counter[tuple[str, int]] = Counter()
        self.degraded: Counter[str] = Counter()
        self.slowest_s = 0.0
        self.spooled = 0

    def click(self) -> None:
        """One event of one user; noted where it was accepted."""
        number = len(self.sent)
        body = {
            "event_id": f"e{number:05}", "user_id": f"user-{number % USERS}", "item_id": f"lamp-{number % 12}",
            "occurred_at": now().isoformat(),
        }  # fmt: skip
        answer = self._timed("events", lambda: self.client.post("/v1/events", json=body))
        if answer.status_code == 202:
            self.sent.append(body["event_id"])
            self.spooled += answer.json()["spooled"]
        else:
            assert answer.headers["retry-after"]

    def ask(self) -> None:
        """One list."""
        answer = self._timed("lists", lambda: self.client.get("/v1/users/user-1/recommendations?limit=5"))
        if answer.status_code == 200:
            assert answer.json()["items"]
            self.degraded.update(answer.json()["degraded"])

    def live(self, seconds: float) -> None:
        """Click and ask for so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.click()
            self.ask()

    def settled(self) -> None:
        """Everything has arrived exactly once: in the archive, and in the rows."""
        until = time.monotonic() + 30
        while (found := self._archived()) != self.sent or self._in_rows() != self.sent:
            assert time.monotonic() < until, (len(found), len(self._in_rows()), len(self.sent))
            time.sleep(0.2)

    def _archived(self) -> list[str]:
        at = now()
        found = self.home.archive.events(at - timedelta(days=1), at + timedelta(days=1))
        return sorted(each.event_id for each in found if each.event_id.startswith("e"))

    def _in_rows(self) -> list[str]:
        """The ids whose events are in the rows, as far as rows go back (64 events of a user)."""
        from services.domain import hash64

        keys = {hash64(event_id): event_id for event_id in self.sent}
        rows = [self.home.features.read(f"user-{number}") for number in range(USERS)]
        in_rows = [keys[each.event_key] for row in rows for each in row.events]
        newest = {e for number in range(USERS) for e in self.sent[number::USERS][-64:]}
        return sorted([e for e in self.sent if e not in newest] + in_rows)

    def _timed(self, what: str, call: Callable[[], Any]) -> Any:
        started = time.monotonic()
        answer = call()
        self.slowest_s = max(self.slowest_s, time.monotonic() - started)
        self.told[what, answer.status_code] += 1
        return answer


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    settings, stopping = settings_at(tmp_path / "home"), threading.Event()
    with open_home(settings) as home:
        at = now()
        home.sink.publish(
            [wire.encode_item(ItemChange(f"lamp-{n}", "put", {"title": f"Lamp {n}"}, at, at)) for n in range(40)]
        )
        work = threading.Thread(
            target=run_consumer, args=(settings, ("features", "trends", "archive", "catalogue"), stopping.is_set)
        )
        store = Store(home.features)
        home.__dict__["features"] = store
        work.start()
        try:
            with TestClient(create_app(Instance(home))) as client:
                world = World(home, client, store)
                until = time.monotonic() + 30
                while len(client.get("/v1/users/user-1/recommendations?limit=5").json()["items"]) < 5:
                    assert time.monotonic() < until
                    time.sleep(0.1)
                world.live(0.5)
                yield world
        finally:
            stopping.set()
            work.join(30)


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
work.start()
time.sleep(3)
print(json.dumps({"while_full": committed()}), flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
until = time.monotonic() + 30
while committed() < int(sys.argv[2]) and time.monotonic() < until:
    time.sleep(0.1)
stopping.set()
work.join()
"""


def test_a_full_disk_under_the_archive(tmp_path: Path) -> None:
    """No file may grow beyond 200 KB for 3 s: the part of 20,000 events cannot be written, then it can."""
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
    assert '{"while_full": 0}' in told.stdout, told.stdout[-2000:] + told.stderr[-2000:]
    assert "File too large" in told.stdout + told.stderr
    with open_home(settings) as home:
        found = [e.event_id for e in home.archive.events(at - timedelta(days=1), at + timedelta(days=1))]
        assert (len(found), len(set(found))) == (count, count)
        assert sum(home.view.committed("archive", "freshrank.events").values()) == count
