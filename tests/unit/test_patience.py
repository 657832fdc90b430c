"""A store that is away is waited for: nothing is committed meanwhile, nothing is lost, and an order to stop ends it."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import pytest

from services.consume import consume
from services.domain import Batch, Coordinate, Message, Outgoing, Partition, StageUnavailable, from_us
from services.memory import MemoryBus
from services.patience import Patience, PatientConsumer, PatientSource, Stopped
from services.ports import EventSource


class Flaky:
    """A consumer whose store is away for the first `failures` calls."""

    name = "flaky"
    topics = ("freshrank.events",)

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.applied: list[bytes] = []

    def start(self, source: EventSource, gained: tuple[Partition, ...]) -> None:
        """Nothing to load."""

    def apply(self, batch: Batch) -> Mapping[Partition, int]:
        if batch.messages and self.failures > 0:
            self.failures -= 1
            raise StageUnavailable("the store is away")
        self.applied += [message.value for message in batch.messages]
        return batch.next_offsets()

    def stop(self, lost: tuple[Partition, ...]) -> Mapping[Partition, int]:
        return {}


def bus_with(*values: bytes) -> MemoryBus:
    bus = MemoryBus(1, lambda: from_us(1))
    bus.publish([Outgoing("freshrank.events", "ann", value) for value in values])
    return bus


def test_a_store_that_comes_back_gets_each_message_once() -> None:
    bus, part, stopping = bus_with(b"1", b"2"), Flaky(failures=2), threading.Event()
    patience = Patience("flaky", (StageUnavailable,), stopping)
    source = PatientSource(bus.source("flaky", part.topics), patience)
    consume(source, PatientConsumer(part, patience), lambda: len(part.applied) == 2, wait_s=0.01)
    assert part.applied == [b"1", b"2"]
    assert bus.committed("flaky", "freshrank.events") == {Partition("freshrank.events", 0): 2}


def test_while_the_store_is_away_nothing_is_committed_and_the_order_to_stop_is_heard() -> None:
    bus, part, stopping = bus_with(b"1"), Flaky(failures=10**9), threading.Event()
    patience = Patience("flaky", (StageUnavailable,), stopping)
    source = PatientSource(bus.source("flaky", part.topics), patience)
    threading.Timer(0.2, stopping.set).start()
    with pytest.raises(Stopped):
        consume(source, PatientConsumer(part, patience), stopping.is_set, wait_s=0.01)
    assert part.applied == []
    assert bus.committed("flaky", "freshrank.events") == {Partition("freshrank.events", 0): 0}


def test_a_mistake_of_ours_is_not_waited_for() -> None:
    patience = Patience("flaky", (StageUnavailable,), threading.Event())

    def wrong() -> None:
        raise AssertionError("ours")

    with pytest.raises(AssertionError):
        patience.call(wrong)


class Buffering(Flaky):
    """A consumer that makes its work durable only when it has to let go."""

    def __init__(self) -> None:
        super().__init__(0)
        self.held: dict[Partition, int] = {}

    def apply(self, batch: Batch) -> Mapping[Partition, int]:
        self.held |= batch.next_offsets()
        return {}

    def stop(self, lost: tuple[Partition, ...]) -> Mapping[Partition, int]:
        flushed, self.held = self.held, {}
        return flushed


class Handed(EventSource):
    """A source that plays back batches and keeps what is committed."""

    def __init__(self, *batches: Batch) -> None:
        self.batches = list(batches)
        self.committed: dict[Partition, int] = {}

    def poll(self, records_max: int, wait_s: float) -> Batch:
        return self.batches.pop(0)

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        self.committed |= offsets

    def seek(self, offsets: Mapping[Partition, int]) -> None:
        """Nothing to seek."""

    def lag(self) -> Mapping[Partition, int]:
        return {}


def test_what_is_flushed_when_a_partition_is_lost_is_committed() -> None:
    place = Partition("freshrank.events", 0)
    message = Message(Coordinate("log", place.topic, 0, 6), "ann", b"x", from_us(1))
    source = Handed(Batch((message,)), Batch((), lost=(place,)))
    committed_when_lost: dict[Partition, int] = {}

    def stopped() -> bool:
        if not source.batches:
            committed_when_lost.update(source.committed)
        return not source.batches

    consume(source, Buffering(), stopped)
    assert committed_when_lost == {place: 7}
