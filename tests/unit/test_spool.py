"""Events that come while the log is away: durable in the spool or refused, never lost, in the log once it is back."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services import intake, wire
from services.bus.embedded import EmbeddedBus
from services.bus.spool import Spool
from services.domain import TOPIC_EVENTS, Coordinate, Event, Outgoing, SettingsInvalid, StageUnavailable
from services.memory import MemoryBus

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
ROOT = Path(__file__).resolve().parents[2]


def click(n: int, user: str = "ann") -> Outgoing:
    return wire.encode_event(Event(f"e{n:04}", user, f"item-{n}", "click", NOW - timedelta(minutes=1), NOW))


def eventually(reached: Callable[[], bool], within_s: float = 10.0) -> None:
    until = time.monotonic() + within_s
    while not reached():
        assert time.monotonic() < until, "it was not reached in time"
        time.sleep(0.01)


class Log(MemoryBus):
    """A log that is away, or hangs, as it is told."""

    def __init__(self) -> None:
        super().__init__(2, lambda: NOW + timedelta(hours=1))
        self.away = False
        self.refuses = False
        self.hangs = threading.Event()
        self.hangs.set()
        self.calls = 0
        self.breaks = False
        self.broken = 0

    def publish(self, messages: Sequence[Outgoing]) -> tuple[Coordinate, ...]:
        self.calls += 1
        self.hangs.wait(30)
        if self.breaks:
            self.broken += 1
            raise ZeroDivisionError
        if self.refuses:
            raise SettingsInvalid("the log refuses to take messages: not authorised")
        if self.away:
            raise StageUnavailable("the log is away")
        return super().publish(messages)

    def ids(self, user: str = "ann") -> list[str]:
        """The events of a user, in the order they stand."""
        found = [message for log in self.logs.values() for message in log]
        return [event.event_id for _, event in intake.read(found).events if event.user_id == user]


class World:
    """A log, and a spool in a folder that outlives a life of the process."""

    def __init__(self, home: Path, bytes_max: int = 10_000_000) -> None:
        self.log = Log()
        self.path = home / "spool.db"
        self.bytes_max = bytes_max
        self.spools: list[tuple[Spool, EmbeddedBus]] = []

    def open(self) -> Spool:
        kept = EmbeddedBus(self.path, 1, 500, 0, now=lambda: NOW, bytes_max=self.bytes_max)
        spool = Spool(kept, self.log, 0.3, lambda: NOW + timedelta(hours=1))
        spool.start()
        self.spools.append((spool, kept))
        return spool

    def close(self) -> None:
        self.log.hangs.set()
        while self.spools:
            spool, kept = self.spools.pop()
            spool.close()
            kept.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def test_while_the_log_answers_nothing_is_spooled(world: World) -> None:
    spool = world.open()
    taken = spool.take([click(1), click(2)])
    assert (len(taken.coordinates), taken.spooled, len(taken)) == (2, 0, 2)
    assert spool.waiting() == 0


def test_what_a_log_refuses_that_took_events_before_waits_until_it_takes_them_again(world: World) -> None:
    """As Kafka does when rights are changed, or not loaded yet after its start."""
    spool = world.open()
    spool.take([click(0)])
    world.log.refuses = True
    assert [spool.take([click(n)]).spooled for n in range(1, 4)] == [1] * 3
    world.log.refuses = False
    eventually(lambda: world.log.ids() == [f"e{n:04}" for n in range(4)])
    eventually(lambda: spool.waiting() == 0)


def test_what_comes_while_the_log_is_away_follows_it_in_its_order_as_accepted_then(world: World) -> None:
    spool = world.open()
    spool.take([click(0)])
    world.log.away = True
    assert [spool.take([click(n)]).spooled for n in range(1, 6)] == [1] * 5
    assert world.log.ids() == ["e0000"]
    assert spool.waiting() == 5
    world.log.away = False
    eventually(lambda: spool.waiting() == 0)
    assert world.log.ids() == [f"e{n:04}" for n in range(6)]
    found = [event for _, event in intake.read(m for log in world.log.logs.values() for m in log).events]
    assert {event.accepted_at for event in found if event.event_id != "e0000"} == {NOW}
    eventually(lambda: spool.take([click(6)]).spooled == 0)


def test_a_log_that_is_away_is_asked_by_the_drain_alone_not_by_every_request(world: World) -> None:
    spool = world.open()
    world.log.away = True
    started = time.monotonic()
    for n in range(200):
        spool.take([click(n)])
    assert world.log.calls < 3 + 40 * (time.monotonic() - started)  # the drain's own tries, with their backoff


def test_a_log_that_hangs_holds_nobody_longer_than_it_may(world: World) -> None:
    spool = world.open()
    world.log.hangs.clear()
    seconds = []
    for n in range(10):
        started = time.monotonic()
        assert spool.take([click(n)]).spooled == 1
        seconds.append(time.monotonic() - started)
    assert max(seconds) < 2
    assert sum(second > 0.25 for second in seconds) == 1  # the first waited its 0.3 s, nobody after it
    world.log.hangs.set()
    eventually(lambda: spool.waiting() == 0)
    assert set(world.log.ids()) == {f"e{n:04}" for n in range(10)}  # the first one may stand there twice: one event


def test_what_was_spooled_survives_the_process(world: World) -> None:
    first = world.open()
    world.log.away = True
    for n in range(3):
        first.take([click(n)])
    world.close()
    world.log.away = False
    second = world.open()
    eventually(lambda: second.waiting() == 0)
    assert world.log.ids() == ["e0000", "e0001", "e0002"]


KILLED = """
import os, sys
from datetime import UTC, datetime
from pathlib import Path
from services import wire
from services.bus.embedded import EmbeddedBus
from services.bus.spool import Spool
from services.domain import Event, StageUnavailable
class Away:
    def publish(self, messages):
        raise StageUnavailable("away")
    def flush(self):
        pass
now = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
spool = Spool(EmbeddedBus(Path(sys.argv[1]), 1, 500, 0, now=lambda: now), Away(), 0.3, lambda: now)
spool.start()
for n in range(20):
    spool.take([wire.encode_event(Event(f"e{n:04}", "ann", "i", "click", now, now))])
    print("took", n, file=sys.stderr, flush=True)  # the log's lines go to stdout, from another thread
os.kill(os.getpid(), 9)
"""


def test_what_was_answered_survives_a_kill(world: World) -> None:
    told = subprocess.run(
        [sys.executable, "-c", KILLED, str(world.path)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    answered = [line for line in told.stderr.splitlines() if line.startswith("took")]
    assert (told.returncode, answered) == (-9, [f"took {n}" for n in range(20)]), told.stderr
    spool = world.open()
    eventually(lambda: spool.waiting() == 0)
    assert world.log.ids() == [f"e{n:04}" for n in range(20)]


def test_a_full_spool_refuses_and_what_it_took_is_still_delivered(tmp_path: Path) -> None:
    world = World(tmp_path, bytes_max=400_000)
    try:
        spool = world.open()
        world.log.away = True
        taken = []
        large = "x" * 200
        for n in range(3000):
            message = wire.encode_event(Event(f"e{n:04}", "ann", large, "click", NOW, NOW))
            try:
                spool.take([message])
            except StageUnavailable:
                break
            taken.append(f"e{n:04}")
        assert 300 < len(taken) < 3000
        assert not spool.has_room
        assert world.path.stat().st_size <= 400_000
        world.log.away = False
        eventually(lambda: spool.waiting() == 0)
        assert world.log.ids() == taken
        eventually(lambda: spool.has_room)
        assert spool.take([click(9999)]).spooled == 0
        world.log.away = True  # the room is there again
        assert sum(spool.take([click(n)]).spooled for n in range(300)) == 300
    finally:
        world.close()


def test_a_spool_that_cannot_be_written_is_a_refusal_never_a_false_yes(world: World) -> None:
    spool = world.open()
    world.log.away = True
    with sqlite3.connect(world.path, isolation_level=None) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StageUnavailable, match="the spool could not take it either"):
            spool.take([click(1)])
        lock.execute("ROLLBACK")
    lock.close()
    world.log.away = False
    eventually(lambda: spool.take([click(2)]).spooled == 0)
    assert set(world.log.ids()) == {"e0002"}


def test_a_log_that_fails_in_a_way_nobody_thought_of_ends_no_drain(world: World) -> None:
    spool = world.open()
    world.log.away = True
    spool.take([click(1)])
    world.log.breaks = True
    eventually(lambda: world.log.broken > 0)
    world.log.away = world.log.breaks = False
    eventually(lambda: spool.waiting() == 0)
    assert world.log.ids() == ["e0001"]


def test_without_a_spool_the_log_alone_decides() -> None:
    log = Log()
    spool = Spool(None, log, 0.3, lambda: NOW)
    spool.start()
    assert spool.take([click(1)]).coordinates
    log.away = True
    with pytest.raises(StageUnavailable):
        spool.take([click(2)])
    spool.close()


def test_a_message_that_became_unreadable_in_the_spool_holds_up_nobody(world: World) -> None:
    first = world.open()
    world.log.away = True
    for n in range(3):
        first.take([click(n)])
    world.close()
    with sqlite3.connect(world.path) as file:
        file.execute("UPDATE messages SET value = x'00' WHERE offset = 1")
    file.close()
    world.log.away = False
    second = world.open()
    eventually(lambda: second.waiting() == 0)
    assert world.log.ids() == ["e0000", "e0002"]
    assert sum(end for end in world.log.ends(TOPIC_EVENTS).values()) == 3  # it goes on as it is, for the quarantine
