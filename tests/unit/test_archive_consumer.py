"""The archive consumer over the embedded log: what it writes, when it says done, and a crash between any two steps.

A crash is an exception out of a wrapped step, after which bus and archive are closed and opened anew from their files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from services import wire
from services.archive.consumer import ArchiveConsumer
from services.archive.parts import FOR_EVER, ParquetArchive
from services.archive.rejected import SqlQuarantine
from services.bus.embedded import EmbeddedBus
from services.consume import consume
from services.domain import (
    TOPICS,
    Batch,
    Coordinate,
    Event,
    ItemChange,
    Message,
    Outgoing,
    Partition,
    Slate,
    StageUnavailable,
)
from services.memory import MemoryArchive, MemoryBus, MemoryQuarantine
from services.ports import Archive, EventSource, Quarantine
from services.quarantine import Rejected
from services.sqlite import open_database

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
EVENTS, ITEMS, SLATES = "freshrank.events", "freshrank.items", "freshrank.slates"


def click(n: int) -> Event:
    return Event(f"e{n:03}", f"user-{n % 7}", "film", "click", NOW - timedelta(minutes=n), NOW)


def everything() -> list[Outgoing]:
    """30 clicks, two of them sent twice, 3 items, 4 slates and 5 messages that cannot be read, one in each topic."""
    slates = [Slate(f"r{n}", "ann", None, 0, 0, (), (), (), NOW - timedelta(minutes=n)) for n in range(4)]
    items = [ItemChange(f"film-{n}", "put", {"title": "x"}, NOW, NOW) for n in range(3)]
    bad = [(EVENTS, b"{oops"), (EVENTS, b"{}"), (EVENTS, b'{"v":9}'), (ITEMS, b"[]"), (SLATES, b"1")]
    return [
        *[wire.encode_event(click(n)) for n in (*range(30), 3, 4)],
        *[wire.encode_item(change) for change in items],
        *[wire.encode_slate(slate) for slate in slates],
        *[Outgoing(topic, f"bad-{n}", value) for n, (topic, value) in enumerate(bad)],
    ]


class Crash(Exception):
    """The process dies here."""


class Steps:
    """Counts the durable steps and crashes before or after one of them."""

    def __init__(self, crash_at: int) -> None:
        self.crash_at = crash_at
        self.passed = 0

    def gap(self) -> None:
        """A place between two steps."""
        self.passed += 1
        if self.passed == self.crash_at:
            raise Crash


class CrashingSource:
    """A source with a gap before and after everything it does."""

    def __init__(self, source: EventSource, steps: Steps) -> None:
        self._source = source
        self._steps = steps

    def poll(self, records_max: int, wait_s: float) -> Batch:
        batch = self._source.poll(records_max, wait_s)
        self._steps.gap()
        return batch

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        self._steps.gap()
        self._source.commit(offsets)
        self._steps.gap()

    def seek(self, offsets: Mapping[Partition, int]) -> None:
        self._source.seek(offsets)

    def lag(self) -> Mapping[Partition, int]:
        return self._source.lag()


class CrashingArchive(ParquetArchive):
    """An archive with a gap before, between and after the three kinds of records."""

    steps: Steps

    def _append(self, *arguments: Any) -> None:
        self.steps.gap()
        super()._append(*arguments)
        self.steps.gap()


class CrashingQuarantine(SqlQuarantine):
    """A quarantine with a gap before and after."""

    steps: Steps

    def add(self, rejected: Sequence[Rejected]) -> None:
        self.steps.gap()
        super().add(rejected)
        self.steps.gap()


def live_once(home: Path, steps: Steps) -> None:
    """One life of the consumer: until it has caught up, or crashes."""
    bus = EmbeddedBus(home / "bus.db", 2, 5000, 24, now=lambda: NOW).open()
    engine = open_database(home / "meta.db")
    archive, quarantine = CrashingArchive(home / "archive"), CrashingQuarantine(engine)
    archive.steps = quarantine.steps = steps
    source = bus.source("archive", TOPICS)
    polls_left = iter(range(40))

    def caught_up() -> bool:
        return next(polls_left, None) is None or (steps.passed > 3 and not any(source.lag().values()))

    try:
        consumer = ArchiveConsumer(archive, quarantine, rows_max=16)
        consume(CrashingSource(source, steps), consumer, caught_up, records_max=8, wait_s=0)
    finally:
        bus.close()
        engine.dispose()


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A home whose log holds `everything`."""
    bus = EmbeddedBus(tmp_path / "bus.db", 2, 5000, 24, now=lambda: NOW).open()
    bus.sink().publish(everything())
    bus.close()
    return tmp_path


def outcome(home: Path) -> tuple[list[str], list[str], list[str], list[tuple[str, bytes]], int]:
    """What an outsider finds in a home: event ids, requests, items, rejected bytes, and what is left to do."""
    archive = ParquetArchive(home / "archive")
    engine = open_database(home / "meta.db")
    rejected = sorted((e.rejected.coordinate.topic, e.rejected.value) for e in SqlQuarantine(engine).list(100))
    engine.dispose()
    bus = EmbeddedBus(home / "bus.db", 2, 5000, 24, now=lambda: NOW).open()
    view = bus.view()
    lag = sum(sum(view.ends(t).values()) - sum(view.committed("archive", t).values()) for t in TOPICS)
    bus.close()
    return (
        [event.event_id for event in archive.events(*FOR_EVER)],
        [slate.request_id for slate in archive.slates(*FOR_EVER)],
        [change.item_id for _, change in archive.item_changes(*FOR_EVER)],
        rejected,
        lag,
    )


WANTED = (
    [f"e{n:03}" for n in reversed(range(30))],
    ["r3", "r2", "r1", "r0"],
    [(EVENTS, b"{oops"), (EVENTS, b'{"v":9}'), (EVENTS, b"{}"), (ITEMS, b"[]"), (SLATES, b"1")],
    0,
)


GAPS = 17
"""Two polls that only fill the buffer (a poll, two around the commit), then one that writes it (eight more)."""


def test_everything_is_archived_or_quarantined_once(filled: Path) -> None:
    live_once(filled, Steps(crash_at=0))
    events, slates, items, rejected, lag = outcome(filled)
    assert (events, slates, rejected, lag) == (WANTED[0], WANTED[1], sorted(WANTED[2]), 0)
    assert sorted(items) == ["film-0", "film-1", "film-2"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("crash_at", range(1, GAPS + 1))
def test_a_crash_between_any_two_steps_changes_nothing(filled: Path, crash_at: int) -> None:
    with suppress(Crash):
        live_once(filled, Steps(crash_at))
    live_once(filled, Steps(crash_at=0))
    events, slates, items, rejected, lag = outcome(filled)
    assert (events, slates, rejected, lag) == (WANTED[0], WANTED[1], sorted(WANTED[2]), 0)
    assert sorted(items) == ["film-0", "film-1", "film-2"]


def test_the_gaps_above_hold_a_whole_round_of_every_step(filled: Path) -> None:
    steps = Steps(crash_at=0)
    live_once(filled, steps)
    assert steps.passed > GAPS


# ----------------------------------------------------------------------------------- when it says done


class Failing(MemoryArchive):
    """An archive whose disk is full until `room`."""

    room = False
    appended = 0

    def append(self, *arguments: Any) -> None:
        if not self.room:
            raise StageUnavailable("no space left")
        self.appended += len(arguments[0])
        super().append(*arguments)


def batch(*offsets: int) -> Batch:
    value = wire.encode_event(click(1)).value
    return Batch(tuple(Message(Coordinate("log", EVENTS, 0, offset), "user-1", value, NOW) for offset in offsets))


def held(archive: Archive, rows_max: int = 100, clock: Callable[[], float] = lambda: 0.0) -> ArchiveConsumer:
    quarantine: Quarantine = MemoryQuarantine()
    return ArchiveConsumer(archive, quarantine, rows_max=rows_max, wait_s=1.0, monotonic=clock)


def test_nothing_is_done_before_it_is_written() -> None:
    archive = MemoryArchive()
    consumer = held(archive)
    assert consumer.apply(batch(0, 1)) == {}
    assert archive.bounds() is None
    assert consumer.apply(Batch(())) == {Partition(EVENTS, 0): 2}
    assert archive.bounds() is not None


def test_a_full_buffer_is_written_at_once() -> None:
    consumer = held(MemoryArchive(), rows_max=3)
    assert consumer.apply(batch(0, 1)) == {}
    assert consumer.apply(batch(2)) == {Partition(EVENTS, 0): 3}


def test_a_trickle_is_written_every_second() -> None:
    moments: Iterator[float] = iter([0.0, 0.0, 0.5, 1.0])
    consumer = held(MemoryArchive(), clock=lambda: next(moments))
    assert consumer.apply(batch(0)) == {}
    assert consumer.apply(batch(1)) == {}
    assert consumer.apply(batch(2)) == {Partition(EVENTS, 0): 3}


def test_losing_partitions_writes_what_is_held() -> None:
    consumer = held(MemoryArchive())
    consumer.apply(batch(0, 1))
    assert consumer.stop((Partition(EVENTS, 0),)) == {Partition(EVENTS, 0): 2}
    assert consumer.stop(()) == {}


def test_what_is_held_of_a_partition_that_starts_anew_is_let_go_because_it_comes_again() -> None:
    archive = Failing()
    consumer = held(archive)
    consumer.apply(batch(0, 1))
    consumer.start(MemoryBus(1, lambda: NOW).source("archive", [EVENTS]), (Partition(EVENTS, 0),))
    archive.room = True
    consumer.apply(batch(0))
    assert consumer.stop(()) == {Partition(EVENTS, 0): 1}
    assert archive.appended == 1


def test_a_full_disk_says_nothing_is_done_and_the_same_rows_are_written_later() -> None:
    archive = Failing()
    consumer = held(archive, rows_max=3)
    consumer.apply(batch(0, 1))
    for _ in range(5):
        with pytest.raises(StageUnavailable):
            consumer.apply(batch(2))  # the same batch comes again, and is held once
    archive.room = True
    assert consumer.apply(batch(2, 3)) == {Partition(EVENTS, 0): 4}
    assert archive.appended == 4
