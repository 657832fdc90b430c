"""The embedded log beyond its port: survival of crashes, full disks and locks, retention, and several processes.

Processes are real ones; a crash is a kill; a full disk is SQLite's own page limit.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.bus.embedded import EmbeddedBus
from services.domain import Outgoing, Partition, StageUnavailable
from services.ports import EventSource

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
EVENTS = "freshrank.events"
SLATES = "freshrank.slates"
Open = Callable[..., EmbeddedBus]


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened(tmp_path: Path, clock: Clock) -> Iterator[Open]:
    buses: list[EmbeddedBus] = []

    def open_bus(partitions: int = 4, busy_timeout_ms: int = 5000, bytes_max: int | None = None) -> EmbeddedBus:
        path = tmp_path / "bus.db"
        buses.append(EmbeddedBus(path, partitions, busy_timeout_ms, 24, now=clock, bytes_max=bytes_max).open())
        return buses[-1]

    yield open_bus
    for bus in buses:
        bus.close()


def outgoing(count: int, size: int = 10) -> list[Outgoing]:
    return [Outgoing(EVENTS, f"user-{n}", b"x" * size) for n in range(count)]


def read_all(source: EventSource) -> int:
    """Poll until nothing comes, commit all; how many messages."""
    count = 0
    source.poll(0, 0)
    while messages := (batch := source.poll(1000, 0)).messages:
        source.commit(batch.next_offsets())
        count += len(messages)
    return count


def test_what_was_published_is_there_after_reopening_under_the_same_identity(opened: Open) -> None:
    bus = opened()
    identity = bus.view().log_id("freshrank.events")
    bus.sink().publish(outgoing(10))
    bus.close()
    again = opened()
    assert again.view().log_id("freshrank.events") == identity
    assert read_all(again.source("features", [EVENTS])) == 10


def test_a_log_made_anew_has_another_identity(opened: Open, tmp_path: Path) -> None:
    bus = opened()
    identity = bus.view().log_id("freshrank.events")
    bus.close()
    for path in tmp_path.glob("bus.db*"):
        path.unlink()
    assert opened().view().log_id("freshrank.events") != identity


def test_a_log_keeps_the_number_of_partitions_it_was_made_with(opened: Open) -> None:
    opened(partitions=4).close()
    again = opened(partitions=9)
    assert again.partitions == 4
    assert len(again.view().ends(EVENTS)) == 4


def test_a_full_disk_refuses_the_whole_publish_and_the_next_one_works_when_there_is_room(opened: Open) -> None:
    bus = opened(bytes_max=400_000)
    bus.sink().publish(outgoing(5))
    with pytest.raises(StageUnavailable, match=r"bus\.db could not take 2000 messages: database or disk is full"):
        bus.sink().publish(outgoing(2000, size=1000))
    assert sum(bus.view().ends(EVENTS).values()) == 5
    bus.sink().publish(outgoing(5))
    assert read_all(bus.source("features", [EVENTS])) == 10


def test_a_locked_file_refuses_the_publish_after_the_busy_timeout_and_loses_nothing(
    opened: Open, tmp_path: Path
) -> None:
    bus = opened(busy_timeout_ms=50)
    locker = sqlite3.connect(tmp_path / "bus.db", isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    with pytest.raises(StageUnavailable, match="database is locked"):
        bus.sink().publish(outgoing(5))
    locker.execute("ROLLBACK")
    locker.close()
    bus.sink().publish(outgoing(3))
    assert sum(bus.view().ends(EVENTS).values()) == 3


def test_a_commit_that_meets_a_lock_is_refused_and_can_be_repeated(opened: Open, tmp_path: Path) -> None:
    bus = opened(busy_timeout_ms=50)
    bus.sink().publish(outgoing(5))
    source = bus.source("features", [EVENTS])
    source.poll(0, 0)
    offsets = source.poll(10, 0).next_offsets()
    locker = sqlite3.connect(tmp_path / "bus.db", isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    with pytest.raises(StageUnavailable, match="take a commit of features"):
        source.commit(offsets)
    locker.execute("ROLLBACK")
    locker.close()
    source.commit(offsets)
    assert sum(bus.view().committed("features", EVENTS).values()) == 5


def test_a_damaged_file_is_refused_with_its_path(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "bus.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(StageUnavailable, match=r"bus\.db could not be opened: file is not a database"):
        EmbeddedBus(tmp_path / "bus.db", 4, 100, 24, now=clock).open()


def test_retention_deletes_what_is_old_and_committed_by_every_group(opened: Open, clock: Clock) -> None:
    bus = opened()
    bus.sink().publish(outgoing(30))
    clock.now += timedelta(hours=20)
    bus.sink().publish(outgoing(7))
    for group in ("features", "archive"):
        read_all(bus.source(group, [EVENTS]))
    assert bus.trim(NOW + timedelta(hours=24, seconds=1)) == {}
    assert read_all(bus.source("late group", [EVENTS])) == 7
    assert sum(bus.view().ends(EVENTS).values()) == 37


def test_retention_never_deletes_what_a_known_group_has_not_committed(opened: Open, clock: Clock) -> None:
    bus = opened(partitions=1)
    bus.sink().publish(outgoing(30))
    read_all(bus.source("features", [EVENTS]))
    slow = bus.source("archive", [EVENTS])
    slow.poll(0, 0)
    slow.poll(10, 0)
    slow.commit({Partition(EVENTS, 0): 10})
    assert bus.trim(NOW + timedelta(days=2)) == {Partition(EVENTS, 0): 20}
    assert slow.lag() == {Partition(EVENTS, 0): 20}
    assert len(slow.poll(100, 0).messages) == 20


def test_a_forgotten_group_holds_nothing_back(opened: Open) -> None:
    bus = opened(partitions=1)
    bus.sink().publish(outgoing(30))
    gone = bus.source("experiment", [EVENTS])
    gone.poll(0, 0)
    gone.close()
    read_all(bus.source("features", [EVENTS]))
    assert bus.trim(NOW + timedelta(days=2)) == {Partition(EVENTS, 0): 30}
    bus.forget("experiment")
    assert bus.trim(NOW + timedelta(days=2)) == {}


def test_a_group_that_reads_a_topic_no_longer_holds_nothing_of_it_back(opened: Open, clock: Clock) -> None:
    """As trends does when impressions no longer come from slates."""
    bus = opened()
    trends = bus.source("trends", [EVENTS, SLATES])
    read_all(trends)
    bus.sink().publish([Outgoing(SLATES, "user-1", b"x")])
    trends.close()
    clock.now = NOW + timedelta(hours=25)
    assert sum(bus.trim(clock.now).values()) == 1
    assert bus.view().topics("trends") == (EVENTS, SLATES)  # between two runs a group keeps what it reads
    read_all(bus.source("trends", [EVENTS]))
    assert bus.view().topics("trends") == (EVENTS,)
    read_all(bus.source("archive", [EVENTS, SLATES]))
    assert bus.trim(clock.now) == {}


def test_a_topic_stays_subscribed_for_as_long_as_one_member_reads_it(opened: Open) -> None:
    bus = opened()
    old, new = bus.source("trends", [EVENTS, SLATES]), bus.source("trends", [EVENTS])
    old.poll(0, 0)
    new.poll(0, 0)
    assert bus.view().topics("trends") == (EVENTS, SLATES)
    old.close()
    assert bus.view().topics("trends") == (EVENTS,)


def test_without_any_group_nothing_is_deleted(opened: Open) -> None:
    bus = opened(partitions=1)
    bus.sink().publish(outgoing(3))
    assert bus.trim(NOW + timedelta(days=99)) == {Partition(EVENTS, 0): 3}


def test_a_group_that_comes_after_the_trim_starts_at_what_is_left_and_its_lag_says_so(
    opened: Open, clock: Clock
) -> None:
    bus = opened(partitions=1)
    bus.sink().publish(outgoing(30))
    read_all(bus.source("features", [EVENTS]))
    bus.trim(NOW + timedelta(days=2))
    assert bus.view().begins(EVENTS) == {Partition(EVENTS, 0): 30}
    bus.sink().publish(outgoing(2))
    assert bus.view().begins(EVENTS) == {Partition(EVENTS, 0): 30}
    late = bus.source("late", [EVENTS])
    late.poll(0, 0)
    assert late.lag() == {Partition(EVENTS, 0): 2}
    assert [m.coordinate.offset for m in late.poll(10, 0).messages] == [30, 31]


def test_a_member_that_is_silent_too_long_loses_its_partitions_and_its_commits(opened: Open, clock: Clock) -> None:
    bus = opened()
    bus.sink().publish(outgoing(40))
    stuck = bus.source("features", [EVENTS])
    stuck.poll(0, 0)
    offsets = stuck.poll(100, 0).next_offsets()
    clock.now += timedelta(seconds=31)
    other = bus.source("features", [EVENTS])
    assert len(other.poll(0, 0).gained) == 4
    stuck.commit(offsets)
    assert sum(bus.view().committed("features", EVENTS).values()) == 0
    assert read_all(other) == 40
    assert len(stuck.poll(0, 0).lost) == 4


def test_a_busy_partition_does_not_starve_the_others(opened: Open) -> None:
    bus = opened()
    sink = bus.sink()
    for _ in range(10):
        sink.publish([Outgoing(EVENTS, "busy", b"x") for _ in range(100)])
    sink.publish([Outgoing(EVENTS, f"user-{n}", b"y") for n in range(20)])
    source = bus.source("features", [EVENTS])
    source.poll(0, 0)
    first = source.poll(200, 0).messages
    assert len(first) == 200
    assert len({message.coordinate.partition for message in first}) == 4


# ------------------------------------------------------------------------------------ several processes

CHILD = """
import sys, time
from datetime import UTC, datetime
from pathlib import Path
from services.bus.embedded import EmbeddedBus
from services.domain import Outgoing

bus = EmbeddedBus(Path(sys.argv[1]), 4, 5000, 24, now=lambda: datetime.now(UTC)).open()
if sys.argv[2] == "publish":
    for batch in range(20):
        bus.sink().publish([Outgoing("freshrank.events", f"user-{n}", sys.argv[3].encode()) for n in range(25)])
    bus.close()
else:
    source = bus.source("features", ["freshrank.events"])
    source.poll(0, 0)
    print(len(source.poll(1000, 0).messages), flush=True)
    time.sleep(60)
"""


def child(path: Path, *arguments: str) -> subprocess.Popen[str]:
    """Another process on the same file."""
    folder = Path(__file__).parents[2]
    command = [sys.executable, "-c", CHILD, str(path / "bus.db"), *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)


@pytest.mark.timeout(60)
def test_processes_that_publish_at_once_lose_and_repeat_nothing(opened: Open, tmp_path: Path) -> None:
    bus = opened()
    running = [child(tmp_path, "publish", name) for name in ("one", "two")]
    assert [process.wait(40) for process in running] == [0, 0]
    source = bus.source("features", [EVENTS])
    source.poll(0, 0)
    messages = source.poll(5000, 0).messages
    assert len({message.coordinate for message in messages}) == 1000
    assert [sum(m.value == name for m in messages) for name in (b"one", b"two")] == [500, 500]


@pytest.mark.timeout(60)
def test_what_a_killed_process_had_polled_comes_again_at_once(opened: Open, tmp_path: Path) -> None:
    bus = opened()
    bus.sink().publish(outgoing(40))
    victim = child(tmp_path, "consume")
    assert victim.stdout is not None
    assert victim.stdout.readline() == "40\n"
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait(10)
    victim.stdout.close()
    began = time.monotonic()
    assert read_all(bus.source("features", [EVENTS])) == 40
    assert time.monotonic() - began < 2
