"""The promises of a bus (order, groups, commits, ownership), held over the in-memory log and the embedded one, and in
`tests/live/test_kafka_contract.py` over Kafka, which takes its time to settle who owns what."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.bus.embedded import EmbeddedBus
from services.domain import Batch, Message, Outgoing, Partition
from services.memory import MemoryBus
from services.placing import murmur2, partition_of
from services.ports import Bus, EventSink, EventSource, LogView, Member

NOW = datetime.now(UTC).replace(microsecond=0)
"""When the clocks of the logs stand still: today, because Kafka refuses what claims to come from tomorrow."""
EVENTS = "freshrank.events"
ITEMS = "freshrank.items"
WAIT_S = 20.0


def outgoing(key: str, text: str, topic: str = EVENTS) -> Outgoing:
    return Outgoing(topic, key, text.encode())


def first(source: EventSource) -> Batch:
    """Poll until the member has joined; what it says then."""
    until = time.monotonic() + WAIT_S
    while True:
        batch = source.poll(10, 0)
        if batch.gained or time.monotonic() > until:
            return batch
        assert not batch.messages


def drained(source: EventSource, expected: int, records_max: int = 100) -> list[Message]:
    """Poll until `expected` messages came (at most 20 s)."""
    messages: list[Message] = []
    until = time.monotonic() + WAIT_S
    while len(messages) < expected and time.monotonic() < until:
        messages += source.poll(records_max, 0.05).messages
    return messages


def settled(*sources: EventSource, places: int = 4) -> list[tuple[list[Partition], list[Partition]]]:
    """Let every member poll in turn until these own `places` partitions, evenly; what each gained and lost."""
    changes: list[tuple[list[Partition], list[Partition]]] = [([], []) for _ in sources]
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        for (gained, lost), source in zip(changes, sources, strict=True):
            batch: Batch = source.poll(0, 0.01)
            gained.extend(batch.gained)
            lost.extend(batch.lost)
        if [len(source.lag()) for source in sources] == [places // len(sources)] * len(sources):
            return changes
    raise AssertionError(f"not settled: {[source.lag() for source in sources]}")


def texts(messages: Sequence[Message]) -> list[str]:
    return [message.value.decode() for message in messages]


class EventSourceContract:
    """The suite; every log under test has four partitions and a clock that stands at NOW."""

    @pytest.fixture
    def log(self) -> Bus:
        raise AssertionError("each implementation gives its own")

    def test_a_new_member_gains_every_partition_before_its_first_message(self, log: Bus) -> None:
        sink: EventSink = log.sink()
        sink.publish([outgoing("a", "1")])
        source = log.source("features", [EVENTS])
        joined = first(source)
        assert joined.gained == tuple(Partition(EVENTS, n) for n in range(4))
        assert (joined.lost, joined.messages) == ((), ())
        assert texts(drained(source, 1)) == ["1"]

    def test_messages_of_one_key_come_in_the_order_they_were_published(self, log: Bus) -> None:
        coordinates = log.sink().publish([outgoing("ann", str(n)) for n in range(50)])
        assert [c.offset for c in coordinates] == list(range(50))
        assert len({c.partition for c in coordinates}) == 1
        assert texts(drained(log.source("features", [EVENTS]), 50, records_max=7)) == [str(n) for n in range(50)]

    def test_keys_go_where_kafka_would_put_them(self, log: Bus) -> None:
        coordinates = log.sink().publish([outgoing(key, key) for key in ("a", "b", "c", "ann")])
        assert [c.partition for c in coordinates] == [partition_of(key, 4) for key in ("a", "b", "c", "ann")]

    def test_a_message_carries_its_coordinate_its_key_and_when_it_was_accepted(self, log: Bus) -> None:
        (coordinate,) = log.sink().publish([outgoing("ann", "x")])
        (message,) = drained(log.source("features", [EVENTS]), 1)
        assert (message.coordinate, message.key, message.accepted_at) == (coordinate, "ann", NOW)
        assert coordinate.log_id == log.view().log_id("freshrank.events")

    def test_a_poll_never_exceeds_its_size(self, log: Bus) -> None:
        log.sink().publish([outgoing(f"user-{n}", str(n)) for n in range(100)])
        source = log.source("features", [EVENTS])
        first(source)
        sizes = [len(source.poll(30, 0.5).messages) for _ in range(8)]
        assert sum(sizes) == 100
        assert max(sizes) <= 30

    def test_an_empty_poll_waits_as_long_as_asked_and_no_longer(self, log: Bus) -> None:
        source = log.source("features", [EVENTS])
        first(source)
        began = time.monotonic()
        assert source.poll(10, 0.1).messages == ()
        assert 0.09 < time.monotonic() - began < 1.5  # of a machine that has more to do

    def test_a_waiting_poll_is_ended_by_a_message(self, log: Bus) -> None:
        source = log.source("features", [EVENTS])
        first(source)
        later = threading.Timer(0.05, lambda: log.sink().publish([outgoing("a", "late")]))
        began = time.monotonic()
        later.start()
        assert texts(source.poll(10, 5).messages) == ["late"]
        assert time.monotonic() - began < 2
        later.join()

    def test_what_was_not_committed_comes_again_to_the_next_member(self, log: Bus) -> None:
        log.sink().publish([outgoing("ann", str(n)) for n in range(5)])
        before = log.source("features", [EVENTS])
        messages = drained(before, 5)
        c = messages[1].coordinate
        before.commit({Partition(EVENTS, c.partition): c.offset + 1})
        before.close()
        assert texts(drained(log.source("features", [EVENTS]), 3)) == ["2", "3", "4"]

    def test_a_commit_never_moves_backwards(self, log: Bus) -> None:
        place = Partition(EVENTS, log.sink().publish([outgoing("ann", str(n)) for n in range(5)])[0].partition)
        source = log.source("features", [EVENTS])
        drained(source, 5)
        source.commit({place: 4})
        source.commit({place: 2})
        assert log.view().committed("features", EVENTS)[place] == 4
        assert source.lag()[place] == 1

    def test_groups_read_independently(self, log: Bus) -> None:
        log.sink().publish([outgoing("ann", "1")])
        one, other = log.source("features", [EVENTS]), log.source("archive", [EVENTS])
        assert texts(drained(one, 1)) == ["1"]
        one.commit(Batch(tuple(drained(other, 1))).next_offsets())
        assert sum(log.view().committed("features", EVENTS).values()) == 1
        assert sum(log.view().committed("archive", EVENTS).values()) == 0

    def test_a_group_that_is_forgotten_begins_anew(self, log: Bus) -> None:
        log.sink().publish([outgoing(key, key) for key in "abcdefgh"])
        source = log.source("passing", [EVENTS])
        first(source)
        source.commit(Batch(tuple(drained(source, 8))).next_offsets())
        source.close()
        assert sum(log.view().committed("passing", EVENTS).values()) == 8
        log.forget("passing")
        assert set(log.view().committed("passing", EVENTS).values()) == {0}
        assert log.view().topics("passing") == ()
        again = log.source("passing", [EVENTS])
        first(again)
        assert len(drained(again, 8)) == 8
        again.close()

    def test_every_partition_begins_at_its_first_message_kept(self, log: Bus) -> None:
        log.sink().publish([outgoing(key, key) for key in "abcdefgh"])
        assert log.view().begins(EVENTS) == dict.fromkeys(log.view().ends(EVENTS), 0)

    def test_the_view_says_what_a_group_reads_and_keeps_saying_it_when_nobody_does(self, log: Bus) -> None:
        view: LogView = log.view()
        assert view.topics("trends") == ()
        before = log.source("trends", [ITEMS, EVENTS])
        first(before)
        assert log.view().topics("trends") == (EVENTS, ITEMS)
        before.close()
        assert log.view().topics("trends") == (EVENTS, ITEMS)
        first(log.source("trends", [EVENTS]))
        assert log.view().topics("trends") == (EVENTS,)
        assert log.view().topics("features") == ()

    def test_a_member_reads_all_its_topics_and_no_other(self, log: Bus) -> None:
        log.sink().publish([outgoing("ann", "event"), outgoing("film", "item", ITEMS), outgoing("x", "no", "other")])
        assert set(texts(drained(log.source("archive", [EVENTS, ITEMS]), 2))) == {"event", "item"}

    def test_seek_goes_back_and_forward_and_leaves_unowned_partitions_alone(self, log: Bus) -> None:
        place = Partition(EVENTS, log.sink().publish([outgoing("ann", str(n)) for n in range(5)])[0].partition)
        source = log.source("trends", [EVENTS])
        drained(source, 5)
        source.seek({place: 3, Partition("other", 0): 9})
        assert texts(drained(source, 2)) == ["3", "4"]

    def test_two_members_divide_the_partitions_and_lose_nothing(self, log: Bus) -> None:
        one = log.source("features", [EVENTS])
        settled(one)
        two = log.source("features", [EVENTS])
        (_, lost), (gained, _) = settled(one, two)
        assert len(lost) == 2
        assert gained == lost
        coordinates = log.sink().publish([outgoing(f"user-{n}", str(n)) for n in range(40)])
        theirs = sum(Partition(EVENTS, c.partition) in gained for c in coordinates)
        read = [*drained(one, 40 - theirs), *drained(two, theirs)]
        assert sorted(texts(read), key=int) == [str(n) for n in range(40)]

    def test_two_members_divide_every_topic_evenly(self, log: Bus) -> None:
        one = log.source("trends", [EVENTS, ITEMS])
        settled(one, places=8)
        two = log.source("trends", [EVENTS, ITEMS])
        settled(one, two, places=8)
        for source in (one, two):
            topics = [partition.topic for partition in source.lag()]
            assert (topics.count(EVENTS), topics.count(ITEMS)) == (2, 2)

    def test_a_member_that_leaves_hands_its_partitions_on(self, log: Bus) -> None:
        one, two = log.source("features", [EVENTS]), log.source("features", [EVENTS])
        settled(one, two)
        leaving: Member = two
        leaving.close()
        ((gained, lost),) = settled(one)
        assert (len(gained), lost) == (2, [])

    def test_a_commit_of_a_partition_that_was_lost_is_left_alone(self, log: Bus) -> None:
        log.sink().publish([outgoing(f"user-{n}", str(n)) for n in range(40)])
        one = log.source("features", [EVENTS])
        polled = Batch(tuple(drained(one, 40))).next_offsets()
        two = log.source("features", [EVENTS])
        (_, lost), _ = settled(one, two)
        one.commit(polled)

        def uncommitted() -> set[Partition]:
            return {p for p, offset in log.view().committed("features", EVENTS).items() if offset == 0}

        until = time.monotonic() + 10
        settled(one, two)
        while uncommitted() > set(lost) and time.monotonic() < until:
            settled(
                one, two
            )  # a bus may keep offsets until the group has settled, which a busy broker takes its time for
        assert uncommitted() == set(lost)

    def test_a_change_of_ownership_raises_the_generation(self, log: Bus) -> None:
        one = log.source("features", [EVENTS])
        before = first(one).generation
        two = log.source("features", [EVENTS])
        settled(one, two)
        assert one.poll(0, 0).generation > before

    def test_ends_and_lag_count_what_was_published(self, log: Bus) -> None:
        log.sink().publish([outgoing(f"user-{n}", str(n)) for n in range(40)])
        source = log.source("features", [EVENTS])
        settled(source)
        assert sum(log.view().ends(EVENTS).values()) == 40
        assert source.lag() == log.view().ends(EVENTS)
        source.commit(Batch(tuple(drained(source, 40))).next_offsets())
        assert source.lag() == dict.fromkeys(log.view().ends(EVENTS), 0)

    def test_retention_threatens_nothing_that_is_young(self, log: Bus) -> None:
        log.sink().publish([outgoing("ann", "1")])
        first(log.source("features", [EVENTS]))
        assert log.trim(NOW) == {}

    def test_many_publishing_threads_lose_and_repeat_nothing(self, log: Bus) -> None:
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
    def log(self) -> Bus:
        return MemoryBus(4, lambda: NOW)


class TestEmbedded(EventSourceContract):
    @pytest.fixture
    def log(self, tmp_path: Path) -> Iterator[Bus]:
        bus = EmbeddedBus(tmp_path / "bus.db", 4, 5000, 24, now=lambda: NOW).open()
        yield bus
        bus.close()


@pytest.mark.parametrize(
    ("key", "hashed"),
    [(b"21", -973932308), (b"foobar", -790332482), (b"a-little-bit-long-string", -985981536), (b"abc", 479470107)],
)
def test_the_hash_agrees_with_the_vectors_of_kafkas_own_test(key: bytes, hashed: int) -> None:
    assert murmur2(key) == hashed & 0xFFFFFFFF
