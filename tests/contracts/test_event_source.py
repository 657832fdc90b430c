"""The promises of a bus (order, groups, commits, ownership), held over the in-memory log and the embedded one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import pytest

from services.bus.embedded import EmbeddedBus
from services.domain import Batch, Message, Outgoing, Partition
from services.memory import MemoryBus
from services.placing import murmur2, partition_of
from services.ports import EventSink, EventSource, LogView

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
EVENTS = "freshrank.events"
ITEMS = "freshrank.items"


class Member(EventSource, Protocol):
    """A source that can leave its group."""

    def close(self) -> None: ...


class Log(Protocol):
    """What a bus offers."""

    def sink(self) -> EventSink: ...

    def view(self) -> LogView: ...

    def source(self, group: str, topics: Sequence[str]) -> Member: ...


def outgoing(key: str, text: str, topic: str = EVENTS) -> Outgoing:
    return Outgoing(topic, key, text.encode())


def drained(source: EventSource, expected: int, records_max: int = 100) -> list[Message]:
    """Poll until `expected` messages came (at most 3 s)."""
    messages: list[Message] = []
    until = time.monotonic() + 3
    while len(messages) < expected and time.monotonic() < until:
        messages += source.poll(records_max, 0.05).messages
    return messages


def settled(*sources: EventSource, rounds: int = 4) -> list[tuple[list[Partition], list[Partition]]]:
    """Let every member poll in turn until ownership is settled; what each gained and lost."""
    changes: list[tuple[list[Partition], list[Partition]]] = [([], []) for _ in sources]
    for _ in range(rounds):
        for (gained, lost), source in zip(changes, sources, strict=True):
            batch: Batch = source.poll(0, 0)
            gained.extend(batch.gained)
            lost.extend(batch.lost)
    return changes


def texts(messages: Sequence[Message]) -> list[str]:
    return [message.value.decode() for message in messages]


class EventSourceContract:
    """The suite; every log under test has four partitions and a clock that stands at NOW."""

    @pytest.fixture
    def log(self) -> Log:
        raise AssertionError("each implementation gives its own")

    def test_a_new_member_gains_every_partition_before_its_first_message(self, log: Log) -> None:
        log.sink().publish([outgoing("a", "1")])
        source = log.source("features", [EVENTS])
        first = source.poll(10, 0)
        assert first.gained == tuple(Partition(EVENTS, n) for n in range(4))
        assert (first.lost, first.messages) == ((), ())
        assert texts(drained(source, 1)) == ["1"]

    def test_messages_of_one_key_come_in_the_order_they_were_published(self, log: Log) -> None:
        coordinates = log.sink().publish([outgoing("ann", str(n)) for n in range(50)])
        assert [c.offset for c in coordinates] == list(range(50))
        assert len({c.partition for c in coordinates}) == 1
        assert texts(drained(log.source("features", [EVENTS]), 50, records_max=7)) == [str(n) for n in range(50)]

    def test_keys_go_where_kafka_would_put_them(self, log: Log) -> None:
        coordinates = log.sink().publish([outgoing(key, key) for key in ("a", "b", "c", "ann")])
        assert [c.partition for c in coordinates] == [partition_of(key, 4) for key in ("a", "b", "c", "ann")]

    def test_a_message_carries_its_coordinate_its_key_and_when_it_was_accepted(self, log: Log) -> None:
        (coordinate,) = log.sink().publish([outgoing("ann", "x")])
        (message,) = drained(log.source("features", [EVENTS]), 1)
        assert (message.coordinate, message.key, message.accepted_at) == (coordinate, "ann", NOW)
        assert coordinate.log_id == log.view().log_id()

    def test_a_poll_never_exceeds_its_size(self, log: Log) -> None:
        log.sink().publish([outgoing(f"user-{n}", str(n)) for n in range(100)])
        source = log.source("features", [EVENTS])
        source.poll(0, 0)
        assert [len(source.poll(30, 0).messages) for _ in range(5)] == [30, 30, 30, 10, 0]

    def test_an_empty_poll_waits_as_long_as_asked_and_no_longer(self, log: Log) -> None:
        source = log.source("features", [EVENTS])
        source.poll(10, 0)
        began = time.monotonic()
        assert source.poll(10, 0.1).messages == ()
        assert 0.09 < time.monotonic() - began < 0.6

    def test_a_waiting_poll_is_ended_by_a_message(self, log: Log) -> None:
        source = log.source("features", [EVENTS])
        source.poll(10, 0)
        later = threading.Timer(0.05, lambda: log.sink().publish([outgoing("a", "late")]))
        began = time.monotonic()
        later.start()
        assert texts(source.poll(10, 5).messages) == ["late"]
        assert time.monotonic() - began < 2
        later.join()

    def test_what_was_not_committed_comes_again_to_the_next_member(self, log: Log) -> None:
        log.sink().publish([outgoing("ann", str(n)) for n in range(5)])
        first = log.source("features", [EVENTS])
        messages = drained(first, 5)
        c = messages[1].coordinate
        first.commit({Partition(EVENTS, c.partition): c.offset + 1})
        first.close()
        assert texts(drained(log.source("features", [EVENTS]), 3)) == ["2", "3", "4"]

    def test_a_commit_never_moves_backwards(self, log: Log) -> None:
        place = Partition(EVENTS, log.sink().publish([outgoing("ann", str(n)) for n in range(5)])[0].partition)
        source = log.source("features", [EVENTS])
        drained(source, 5)
        source.commit({place: 4})
        source.commit({place: 2})
        assert log.view().committed("features", EVENTS)[place] == 4
        assert source.lag()[place] == 1

    def test_groups_read_independently(self, log: Log) -> None:
        log.sink().publish([outgoing("ann", "1")])
        one, other = log.source("features", [EVENTS]), log.source("archive", [EVENTS])
        assert texts(drained(one, 1)) == ["1"]
        one.commit(Batch(tuple(drained(other, 1))).next_offsets())
        assert sum(log.view().committed("features", EVENTS).values()) == 1
        assert sum(log.view().committed("archive", EVENTS).values()) == 0

    def test_the_view_says_what_a_group_reads_and_keeps_saying_it_when_nobody_does(self, log: Log) -> None:
        assert log.view().topics("trends") == ()
        before = log.source("trends", [ITEMS, EVENTS])
        before.poll(0, 0)
        assert log.view().topics("trends") == (EVENTS, ITEMS)
        before.close()
        assert log.view().topics("trends") == (EVENTS, ITEMS)
        log.source("trends", [EVENTS]).poll(0, 0)
        assert log.view().topics("trends") == (EVENTS,)
        assert log.view().topics("features") == ()

    def test_a_member_reads_all_its_topics_and_no_other(self, log: Log) -> None:
        log.sink().publish([outgoing("ann", "event"), outgoing("film", "item", ITEMS), outgoing("x", "no", "other")])
        assert set(texts(drained(log.source("archive", [EVENTS, ITEMS]), 2))) == {"event", "item"}

    def test_seek_goes_back_and_forward_and_leaves_unowned_partitions_alone(self, log: Log) -> None:
        place = Partition(EVENTS, log.sink().publish([outgoing("ann", str(n)) for n in range(5)])[0].partition)
        source = log.source("trends", [EVENTS])
        drained(source, 5)
        source.seek({place: 3, Partition("other", 0): 9})
        assert texts(drained(source, 2)) == ["3", "4"]

    def test_two_members_divide_the_partitions_and_lose_nothing(self, log: Log) -> None:
        one = log.source("features", [EVENTS])
        settled(one)
        two = log.source("features", [EVENTS])
        (_, lost), (gained, _) = settled(one, two)
        assert len(lost) == 2
        assert gained == lost
        log.sink().publish([outgoing(f"user-{n}", str(n)) for n in range(40)])
        read = [*one.poll(100, 0).messages, *two.poll(100, 0).messages]
        assert sorted(texts(read), key=int) == [str(n) for n in range(40)]

    def test_a_member_that_leaves_hands_its_partitions_on(self, log: Log) -> None:
        one, two = log.source("features", [EVENTS]), log.source("features", [EVENTS])
        settled(one, two)
        two.close()
        ((gained, lost),) = settled(one)
        assert (len(gained), lost) == (2, [])

    def test_a_commit_of_a_partition_that_was_lost_is_left_alone(self, log: Log) -> None:
        log.sink().publish([outgoing(f"user-{n}", str(n)) for n in range(40)])
        one = log.source("features", [EVENTS])
        polled = Batch(tuple(drained(one, 40))).next_offsets()
        two = log.source("features", [EVENTS])
        (_, lost), _ = settled(one, two)
        one.commit(polled)
        committed = log.view().committed("features", EVENTS)
        assert {p for p, offset in committed.items() if offset == 0} == set(lost)

    def test_a_change_of_ownership_raises_the_generation(self, log: Log) -> None:
        one = log.source("features", [EVENTS])
        before = one.poll(0, 0).generation
        two = log.source("features", [EVENTS])
        settled(one, two)
        assert one.poll(0, 0).generation > before

    def test_ends_and_lag_count_what_was_published(self, log: Log) -> None:
        log.sink().publish([outgoing(f"user-{n}", str(n)) for n in range(40)])
        source = log.source("features", [EVENTS])
        settled(source)
        assert sum(log.view().ends(EVENTS).values()) == 40
        assert source.lag() == log.view().ends(EVENTS)
        source.commit(Batch(tuple(drained(source, 40))).next_offsets())
        assert source.lag() == dict.fromkeys(log.view().ends(EVENTS), 0)

    def test_many_publishing_threads_lose_and_repeat_nothing(self, log: Log) -> None:
        def publish(thread: int) -> None:
            for n in range(20):
                log.sink().publish([outgoing(f"user-{thread}", f"{thread}:{n}")])

        threads = [threading.Thread(target=publish, args=(thread,)) for thread in range(6)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        read = texts(drained(log.source("features", [EVENTS]), 120))
        assert len(read) == len(set(read)) == 120
        for thread in range(6):
            assert [t for t in read if t.startswith(f"{thread}:")] == [f"{thread}:{n}" for n in range(20)]


class TestMemory(EventSourceContract):
    @pytest.fixture
    def log(self) -> Log:
        return MemoryBus(4, lambda: NOW)


class TestEmbedded(EventSourceContract):
    @pytest.fixture
    def log(self, tmp_path: Path) -> Iterator[Log]:
        bus = EmbeddedBus(tmp_path / "bus.db", 4, 5000, 24, now=lambda: NOW).open()
        yield bus
        bus.close()


@pytest.mark.parametrize(
    ("key", "hashed"),
    [(b"21", -973932308), (b"foobar", -790332482), (b"a-little-bit-long-string", -985981536), (b"abc", 479470107)],
)
def test_the_hash_agrees_with_the_vectors_of_kafkas_own_test(key: bytes, hashed: int) -> None:
    assert murmur2(key) == hashed & 0xFFFFFFFF
