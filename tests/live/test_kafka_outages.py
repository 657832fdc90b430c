"""Kafka away, hanging and back: what is told to whom, how long it takes, and that nothing is lost or repeated by it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import pytest
from contracts.test_event_source import EVENTS, drained, outgoing, texts
from live_stack import Stack

from services.bus.kafka import KafkaBus
from services.bus.kafka_client import KafkaChoices
from services.consume import consume
from services.domain import Batch, Coordinate, Outgoing, StageUnavailable
from services.patience import Patience, PatientSource

DEADLINE_MS = 2000
SLACK_S = 3.0
"""For a machine that has more to do."""
BACK_S = 60.0
T = TypeVar("T")


def bus_of(servers: str, prefix: str, **chosen: object) -> KafkaBus:
    choices = KafkaChoices(tuple(servers.split(",")), prefix=prefix, deadline_ms=DEADLINE_MS, **chosen)  # type: ignore[arg-type]
    return KafkaBus(choices, lambda: datetime.now(UTC)).open()


@pytest.fixture(scope="module")
def broker(module_stack: Callable[..., Stack]) -> Stack:
    return module_stack("kafka")


@pytest.fixture
def stack(broker: Stack) -> Iterator[Stack]:
    yield broker
    broker.start("kafka")  # wherever the test has ended


@pytest.fixture
def bus(stack: Stack, topic_prefix: str) -> Iterator[KafkaBus]:
    bus = bus_of(stack.settings["FRESHRANK_KAFKA_SERVERS"], topic_prefix)
    yield bus
    bus.close()


def refused_within(seconds: float, work: Callable[[], object]) -> str:
    began = time.monotonic()
    with pytest.raises(StageUnavailable) as raised:
        work()
    assert time.monotonic() - began < seconds
    return str(raised.value)


def insisted(ask: Callable[[], T]) -> T:
    """What is answered once each client has found the broker again: each waits on its own before it tries anew."""
    end = time.monotonic() + BACK_S
    while True:
        try:
            return ask()
        except StageUnavailable:
            assert time.monotonic() < end
            time.sleep(0.1)


def published(bus: KafkaBus, message: Outgoing) -> Coordinate:
    """Publish as a client does: again, the same, until it is taken."""
    return insisted(lambda: bus.sink().publish([message])[0])


@pytest.mark.timeout(300)
def test_while_kafka_is_away_everybody_hears_so_in_time_and_afterwards_goes_on(stack: Stack, bus: KafkaBus) -> None:
    source = bus.source("features", [EVENTS])
    bus.sink().publish([outgoing("ann", "before")])
    done = Batch(tuple(drained(source, 1))).next_offsets()
    for away in (stack.kill, stack.pause):
        away("kafka")
        for work in (
            lambda: bus.sink().publish([outgoing("ann", "lost?")]),
            partial(source.commit, done),
            lambda: bus.view().ends(EVENTS),
            lambda: bus.source("archive", [EVENTS]).poll(10, 0),
        ):
            said = refused_within(DEADLINE_MS / 1000 + SLACK_S, work)
            assert said.startswith("Kafka at 127.0.0.1:")
        stack.start("kafka")
        published(bus, outgoing("ann", f"after {away.__name__}"))
        read = drained(source, 1)
        while f"after {away.__name__}" not in texts(read):
            read += drained(source, 1)
        # What was refused may be there all the same: that is not promised either way.
        assert set(texts(read)) <= {"lost?", f"after {away.__name__}"}
        done = Batch(tuple(read)).next_offsets()


@pytest.mark.timeout(300)
def test_a_consumer_waits_for_kafka_and_reads_each_message_once(stack: Stack, bus: KafkaBus) -> None:
    class Reader:
        name, topics = "features", (EVENTS,)

        def __init__(self) -> None:
            self.read: list[str] = []

        def start(self, source: object, gained: object) -> None: ...

        def apply(self, batch: Batch) -> dict[object, int]:
            self.read += texts(batch.messages)
            return dict(batch.next_offsets())

        def stop(self, lost: object) -> dict[object, int]:
            return {}

    reader, stopping = Reader(), threading.Event()
    source = PatientSource(bus.source("features", [EVENTS]), Patience("features", (StageUnavailable,), stopping))
    thread = threading.Thread(target=consume, args=(source, reader, stopping.is_set), kwargs={"wait_s": 0.1})
    thread.start()
    try:
        for n in range(30):
            if n == 10:
                stack.kill("kafka")
                threading.Thread(target=stack.start, args=("kafka",)).start()
            published(bus, outgoing("ann", str(n)))
        end = time.monotonic() + BACK_S
        while "29" not in reader.read and time.monotonic() < end:
            time.sleep(0.05)
    finally:
        stopping.set()
        thread.join()
    assert list(dict.fromkeys(reader.read)) == [str(n) for n in range(30)]
    committed, ends = insisted(lambda: (bus.view().committed("features", EVENTS), bus.view().ends(EVENTS)))
    assert committed == ends


@pytest.mark.timeout(300)
def test_a_full_buffer_is_refused_at_once_and_says_how_full_it_is(stack: Stack) -> None:
    bus = bus_of(stack.settings["FRESHRANK_KAFKA_SERVERS"], "full.", buffer_messages_max=10)
    bus.sink().publish([outgoing("ann", "before")])
    stack.pause("kafka")
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(bus.sink().publish, [outgoing("ann", str(n)) for n in range(8)])
        time.sleep(0.2)
        said = refused_within(1.5, lambda: bus.sink().publish([outgoing("ann", str(n)) for n in range(3)]))
        assert "8 messages wait for it already, with 3 more" in said
        assert "kafka_buffer_messages_max=10" in said
        with pytest.raises(StageUnavailable):
            waiting.result()
    stack.start("kafka")
    published(bus, outgoing("ann", "there is room again"))
    many = bus.sink().publish([outgoing("ann", str(n)) for n in range(35)])  # more than the buffer: in parts
    assert [c.offset for c in many] == list(range(many[0].offset, many[0].offset + 35))
    bus.close()


@pytest.mark.timeout(300)
def test_a_bus_that_is_opened_while_kafka_is_away_works_when_it_is_there(stack: Stack) -> None:
    servers = stack.settings["FRESHRANK_KAFKA_SERVERS"]
    stack.kill("kafka")
    bus = bus_of(servers, "late.")
    refused_within(DEADLINE_MS / 1000 + SLACK_S, lambda: bus.view().ends(EVENTS))
    stack.start("kafka")
    published(bus, outgoing("ann", "1"))
    assert texts(drained(bus.source("features", [EVENTS]), 1)) == ["1"]
    bus.close()
