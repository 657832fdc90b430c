"""The promises of a slate log (never blocks, drops are counted), over the in-memory one and the queue to the bus."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol

import pytest

from services.archive.slates import QueueSlateLog
from services.domain import Coordinate, Outgoing, Slate, StageUnavailable
from services.memory import MemoryBus, MemorySlateLog
from services.ports import SlateLog
from services.wire import decode_slate

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def slate(request_id: str) -> Slate:
    return Slate(request_id, "ann", "r1", 17, 3, (), (), (), NOW)


class Bounded(SlateLog, Protocol):
    """A slate log that counts what it dropped."""

    dropped: int


class SlateLogContract:
    """The suite. The log under test takes at most 5 slates while nothing is read from it; `read` gives what it kept."""

    @pytest.fixture
    def made(self) -> tuple[Bounded, Callable[[], list[Slate]]]:
        raise AssertionError("each implementation gives its own")

    def test_what_was_recorded_can_be_read_after_a_flush(self, made: tuple[Bounded, Callable[[], list[Slate]]]) -> None:
        slates, read = made
        for name in ("r1", "r2", "r3"):
            slates.record(slate(name))
        slates.flush(3)
        assert [each.request_id for each in read()] == ["r1", "r2", "r3"]
        assert slates.dropped == 0


class TestMemory(SlateLogContract):
    @pytest.fixture
    def made(self) -> tuple[Bounded, Callable[[], list[Slate]]]:
        slates = MemorySlateLog(5)
        return slates, lambda: slates.slates

    def test_more_than_it_holds_is_dropped_and_counted(self) -> None:
        slates = MemorySlateLog(5)
        for n in range(7):
            slates.record(slate(str(n)))
        assert (len(slates.slates), slates.dropped) == (5, 2)


class TestQueue(SlateLogContract):
    @pytest.fixture
    def made(self) -> Iterator[tuple[Bounded, Callable[[], list[Slate]]]]:
        bus = MemoryBus(1, lambda: NOW)
        slates = QueueSlateLog(bus, 5)
        source = bus.source("archive", ["freshrank.slates"])
        source.poll(0, 0)
        yield slates, lambda: [decode_slate(message.value) for message in source.poll(100, 0).messages]
        slates.close()


def test_features_are_recorded_of_a_share_of_the_slates_which_their_request_ids_choose() -> None:
    bus = MemoryBus(1, lambda: NOW)
    recorded = []
    for share in (0.0, 0.25, 0.25, 1.0):
        slates = QueueSlateLog(bus, 1000, share)
        source = bus.source("archive", ["freshrank.slates"])
        for number in range(400):
            slates.record(replace(slate(f"r{number}"), features=b"\x00" * 8))
        slates.close()
        read = [decode_slate(m.value) for _ in range(3) for m in source.poll(1000, 0).messages][-400:]
        assert [each.request_id for each in read] == [f"r{number}" for number in range(400)]
        recorded.append({each.request_id for each in read if each.features})
        source.close()
    assert (len(recorded[0]), len(recorded[3])) == (0, 400)
    assert recorded[1] == recorded[2]
    assert 70 < len(recorded[1]) < 130


class StuckSink:
    """A sink that takes nothing until it is let go, and then takes or refuses it."""

    def __init__(self, refuses: bool) -> None:
        self.go_on = threading.Event()
        self.refuses = refuses
        self.published = 0

    def publish(self, messages: Sequence[Outgoing]) -> tuple[Coordinate, ...]:
        self.go_on.wait(5)
        if self.refuses:
            raise StageUnavailable("the log is full")
        self.published += len(messages)
        return ()

    def flush(self) -> None: ...


def test_recording_never_waits_for_a_stuck_bus_and_counts_what_it_drops() -> None:
    sink = StuckSink(refuses=False)
    slates = QueueSlateLog(sink, 5)
    slates.record(slate("taken"))
    while slates._queue.qsize():  # until the thread holds the first one
        time.sleep(0.001)
    time.sleep(0.05)
    began = time.monotonic()
    for n in range(20):
        slates.record(slate(str(n)))
    assert time.monotonic() - began < 2  # a stuck bus would hold each of them for ever
    assert slates.dropped == 15
    sink.go_on.set()
    slates.close()
    assert sink.published == 6


def test_a_refusing_bus_loses_slates_by_count_and_never_raises() -> None:
    sink = StuckSink(refuses=True)
    sink.go_on.set()
    slates = QueueSlateLog(sink, 5)
    slates.record(slate("r1"))
    slates.flush(3)
    slates.close()
    assert slates.dropped == 1


def test_a_bus_that_fails_in_a_way_nobody_thought_of_ends_no_recording() -> None:
    class Breaking(StuckSink):
        def publish(self, messages: Sequence[Outgoing]) -> tuple[Coordinate, ...]:
            if self.refuses:
                raise ZeroDivisionError
            return super().publish(messages)

    sink = Breaking(refuses=True)
    sink.go_on.set()
    slates = QueueSlateLog(sink, 5)
    slates.record(slate("r1"))
    slates.flush(3)
    sink.refuses = False
    slates.record(slate("r2"))
    slates.flush(3)
    slates.close()
    assert (slates.dropped, sink.published) == (1, 1)


def test_a_flush_does_not_wait_longer_than_asked() -> None:
    sink = StuckSink(refuses=False)
    slates = QueueSlateLog(sink, 5)
    slates.record(slate("r1"))
    began = time.monotonic()
    slates.flush(0.05)
    assert time.monotonic() - began < 3
    sink.go_on.set()
    slates.close()
