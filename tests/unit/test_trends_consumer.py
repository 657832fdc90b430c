"""The trends consumer over the in-memory log and a real SQL database: what reaches the change feed and the hour rows
does not depend on pace, crashes, owners or partitions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, select

from services import wire
from services.bounds import UNBOUNDED, Bounds
from services.catalogue.live import ItemFeed, write_parts
from services.domain import (
    HOUR_US,
    SECOND_US,
    TOPIC_EVENTS,
    Batch,
    Event,
    KindRule,
    KindRules,
    Outgoing,
    Partition,
    Pick,
    Reason,
    Slate,
    to_us,
)
from services.features.history import MemoryHistory
from services.freshness import Arrivals, Arrived
from services.item_parts import Payload
from services.items import ItemTable
from services.memory import MemoryBus, MemorySource
from services.signals import decayed
from services.sqlite import open_database
from services.tables import trend_covisits
from services.training.columns import columns_of_rows
from services.training.history import EventsHistory
from services.trends import store
from services.trends.consumer import TrendsConsumer, TrendsSettings
from services.trends.covisits import Recent, Row

START = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
ITEMS = [f"i{n}" for n in range(7)]
RULES = KindRules({"click": KindRule("positive"), "purchase": KindRule("positive"), "hide": KindRule("negative")})


@dataclass
class World:
    """A log, a database, a clock that the test moves, and the hour rows that were appended (the newest stand)."""

    engine: Engine
    bus: MemoryBus
    clock: list[datetime] = field(default_factory=lambda: [START])
    rows: dict[tuple[str, int], tuple[float, ...]] = field(default_factory=dict)
    appended: int = 0
    live: MemoryHistory = field(default_factory=lambda: MemoryHistory(lambda: ()))
    settings: TrendsSettings = field(default_factory=TrendsSettings)

    def consumer(self, settings: TrendsSettings | None = None, **kept: object) -> TrendsConsumer:
        return TrendsConsumer(
            self.engine, RULES, self, write_parts, self.bus.log_id, self.now, settings or self.settings
        )

    def now(self) -> datetime:
        return self.clock[0]

    def append_item_live(self, *rows: Any) -> None:
        self.live.append_item_live(*rows)

    def append_item_stats(
        self, item_ids: Sequence[str], counts: NDArray[np.float32], at_us: NDArray[np.int64], created_at: datetime
    ) -> None:
        assert counts.shape == (len(item_ids), 9)
        self.appended += len(item_ids)
        for item_id, row, at in zip(item_ids, counts.tolist(), at_us.tolist(), strict=True):
            self.rows[item_id, at] = tuple(row)

    def table(self) -> ItemTable:
        table = ItemTable()
        ItemFeed(self.engine).load(table)
        return table


@pytest.fixture
def world(engine: Engine) -> World:
    return world_on(engine)


def new_world(path: Path, partitions: int = 3) -> World:
    """A second one, always on SQLite."""
    return world_on(open_database(path), partitions)


def world_on(engine: Engine, partitions: int = 3) -> World:
    made = World(engine, MemoryBus(partitions, lambda: START))
    made.bus.now = made.now
    return made


def click(number: int, user: str, item: str, at: datetime, kind: str = "click") -> Event:
    return Event(f"e{number}", user, item, kind, at, at)


def stream(count: int = 150) -> list[Event]:
    """Clicks of twelve users on seven items, seven minutes apart (17 h), now and then a purchase or a hide."""
    kinds = {5: "purchase", 9: "hide"}
    return [
        click(n, f"u{n % 12}", f"i{n * n % 7}", START + timedelta(minutes=7 * n), kinds.get(n % 20, "click"))
        for n in range(count)
    ]


def run(source: MemorySource, consumer: TrendsConsumer, polls: int = 1000) -> None:
    """Consume until a poll is empty, as `consume` does it."""
    for _ in range(polls):
        batch = source.poll(50, 0)
        if batch.lost:
            consumer.stop(batch.lost)
        if batch.gained:
            consumer.start(source, batch.gained)
        source.commit(consumer.apply(batch))
        if not batch.messages and not batch.gained:
            return


def import_all(world: World, events: Sequence[Event]) -> None:
    """A fast import: everything published, then read, long after it happened."""
    world.clock[0] = START + timedelta(days=3)
    world.bus.publish([wire.encode_event(event) for event in events])
    source, consumer = world.bus.source("trends", consumer_topics(world)), world.consumer()
    run(source, consumer)
    source.commit(consumer.stop(()))
    source.close()


def consumer_topics(world: World) -> tuple[str, ...]:
    return world.consumer().topics


def trickle(world: World, events: Sequence[Event], restart_every: int = 0) -> None:
    """A slow stream: each event is published and read when it happens; the process may be restarted on the way."""
    source, consumer = world.bus.source("trends", consumer_topics(world)), world.consumer()
    for number, event in enumerate(events):
        world.clock[0] = event.occurred_at
        world.bus.publish([wire.encode_event(event)])
        run(source, consumer)
        if restart_every and number % restart_every == restart_every - 1:
            source.close()  # without stop: what was buffered is lost, and comes again
            source, consumer = world.bus.source("trends", consumer_topics(world)), world.consumer()
    world.clock[0] = START + timedelta(days=3)
    run(source, consumer)
    world.clock[0] += timedelta(minutes=2)
    run(source, consumer)
    source.commit(consumer.stop(()))
    source.close()


def assert_same(one: World, other: World) -> None:
    assert one.rows.keys() == other.rows.keys()
    for key, counts in one.rows.items():
        np.testing.assert_allclose(counts, other.rows[key], rtol=1e-6, err_msg=str(key))
    first, second = one.table(), other.table()
    ids = sorted(first.item_ids())
    assert ids == sorted(second.item_ids())
    now_us = to_us(START + timedelta(days=3))
    blocks = [table.block(ids) for table in (first, second)]
    now_counts = [decayed(block.counts, block.counts_at_us, now_us) for block in blocks]
    np.testing.assert_allclose(now_counts[0], now_counts[1], rtol=1e-5)
    for item_id in ids:
        pairs = dict(first.covisits(item_id)), dict(second.covisits(item_id))
        assert pairs[0].keys() == pairs[1].keys()


def test_hour_rows_hold_the_decayed_counts_of_all_partitions(world: World) -> None:
    half = timedelta(minutes=30)
    events = [
        click(1, "u1", "a", START + half),
        click(2, "u2", "a", START + half, "purchase"),
        click(3, "u3", "a", START + 3 * half),
        click(4, "u3", "a", START + 3 * half + timedelta(minutes=5)),
        click(5, "u4", "a", START + half, "hide"),
    ]
    import_all(world, events)
    ends = [to_us(START) + HOUR_US, to_us(START) + 2 * HOUR_US]
    assert sorted(world.rows) == [("a", end) for end in ends]
    first, second = (world.rows["a", end] for end in ends)
    # two positive events half an hour before the end; then half of that and one more (u3's second click is no news)
    assert first[3] == pytest.approx(2 * 2**-0.5)
    assert second[3] == pytest.approx(2 * 2**-1.5 + 2**-0.5)
    assert first[6] == pytest.approx(2**-0.5)
    assert first[:3] == (0, 0, 0)


def test_a_fast_import_leaves_what_a_slow_stream_leaves(world: World, tmp_path: Path) -> None:
    slow = new_world(tmp_path / "slow.db")
    import_all(world, stream())
    trickle(slow, stream())
    assert len(world.rows) > 60
    assert_same(world, slow)


def test_partitions_and_restarts_change_nothing(world: World, tmp_path: Path) -> None:
    other = new_world(tmp_path / "other.db", partitions=1)
    import_all(world, stream(60))
    trickle(other, stream(60), restart_every=7)
    assert_same(world, other)


def test_late_events_correct_the_rows_of_hours_closed_before(world: World, tmp_path: Path) -> None:
    straight = new_world(tmp_path / "straight.db")
    events = stream(120)
    import_all(straight, events)
    source, consumer = world.bus.source("trends", consumer_topics(world)), world.consumer()
    world.clock[0] = START + timedelta(days=3)
    for part in (events[60:], events[:60]):
        world.bus.publish([wire.encode_event(event) for event in part])
        run(source, consumer)
        source.commit(consumer.stop(()))
    assert world.rows.keys() == straight.rows.keys()
    for key, counts in straight.rows.items():
        np.testing.assert_allclose(world.rows[key], counts, rtol=1e-6)


def test_nothing_is_committed_before_it_is_stored_and_an_idle_second_stores_it(world: World) -> None:
    world.bus.publish([wire.encode_event(click(1, "u", "a", START))])
    source, consumer = world.bus.source("trends", consumer_topics(world)), world.consumer()
    run(source, consumer)
    assert sum(source.lag().values()) == 1
    assert len(world.table()) == 0
    world.clock[0] += timedelta(seconds=1)
    source.commit(consumer.apply(Batch(())))
    assert sum(source.lag().values()) == 0
    assert world.table().trending(to_us(world.now()), 3)[0][0] == "a"


def crash_in_parts(*_: object) -> int:
    raise RuntimeError("crash between the state and the parts")


class CrashingHistory:
    """Rows go to the world, but for those of the `broken` kinds, once each."""

    def __init__(self, world: World, broken: list[str]) -> None:
        self.world, self.broken = world, broken

    def append_item_live(self, *rows: Any) -> None:
        self._maybe("append_item_live")
        self.world.append_item_live(*rows)

    def append_item_stats(self, *rows: Any) -> None:
        self._maybe("append_item_stats")
        self.world.append_item_stats(*rows)

    def _maybe(self, step: str) -> None:
        if step in self.broken:
            self.broken.remove(step)
            raise RuntimeError("crash between the parts and the commit")


@pytest.mark.parametrize("broken", ["write_parts", "append_item_live", "append_item_stats", "bus commit"])
def test_a_crash_at_any_step_of_a_flush_changes_nothing(world: World, tmp_path: Path, broken: str) -> None:
    whole = new_world(tmp_path / "whole.db")
    import_all(whole, stream(60))
    world.clock[0] = START + timedelta(days=3)
    world.bus.publish([wire.encode_event(event) for event in stream(60)])
    parts = crash_in_parts if broken == "write_parts" else write_parts
    history = CrashingHistory(world, [broken] if broken.startswith("append") else [])
    crashing = TrendsConsumer(world.engine, RULES, history, parts, world.bus.log_id, world.now)
    source = world.bus.source("trends", crashing.topics)
    run(source, crashing)
    if broken == "bus commit":
        crashing.stop(())  # flushed; the process dies before the bus hears of it
    else:
        with pytest.raises(RuntimeError, match="crash between"):
            crashing.stop(())
    source.close()
    source, consumer = world.bus.source("trends", crashing.topics), world.consumer()
    run(source, consumer)
    source.commit(consumer.stop(()))
    assert_same(world, whole)


def test_reading_goes_on_where_the_state_ends_even_when_the_bus_never_heard_of_it(world: World) -> None:
    forgetful = TrendsSettings(ring_max=1)  # the ring must not be what saves the counts
    world.bus.publish([wire.encode_event(click(n, f"u{n}", "a", START)) for n in range(9)])
    for _ in range(2):
        source, consumer = world.bus.source("trends", consumer_topics(world)), world.consumer(forgetful)
        run(source, consumer)
        consumer.stop(())
        source.close()
    assert world.table().block(["a"]).counts[0, 5] == pytest.approx(9.0, rel=1e-3)


def test_a_batch_given_again_after_a_failed_flush_is_counted_once(world: World) -> None:
    world.bus.publish([wire.encode_event(click(n, f"u{n}", "a", START)) for n in range(9)])
    settings = TrendsSettings(flush_events=1, ring_max=1)
    world.clock[0] += timedelta(days=1)

    history = CrashingHistory(world, ["append_item_stats"])
    consumer = TrendsConsumer(world.engine, RULES, history, write_parts, world.bus.log_id, world.now, settings)
    source = world.bus.source("trends", consumer.topics)
    consumer.start(source, source.poll(50, 0).gained)
    batch = source.poll(50, 0)
    with pytest.raises(RuntimeError, match="crash"):
        consumer.apply(batch)
    source.commit(consumer.apply(batch))
    assert sum(source.lag().values()) == 0
    assert world.table().block(["a"]).counts[0, 5] == pytest.approx(9.0, rel=1e-3)


def test_a_paused_owner_cannot_count_again_what_its_successor_counted(world: World) -> None:
    topics = consumer_topics(world)
    world.bus.publish([wire.encode_event(click(n, f"u{n}", "a", START)) for n in range(9)])
    paused_source, paused = world.bus.source("trends", topics), world.consumer()
    run(paused_source, paused)  # has taken all in, and stored nothing yet
    paused_source.close()
    source, successor = world.bus.source("trends", topics), world.consumer()
    run(source, successor)
    source.commit(successor.stop(()))
    assert paused.stop(()) == {}, "the paused owner has nothing to commit"
    block = world.table().block(["a"])
    assert block.counts[0, 5] == pytest.approx(9.0, rel=1e-3)


def test_what_a_refused_flush_let_go_is_read_again_from_the_start_of_a_log_that_was_empty(world: World) -> None:
    """A partition of which nothing is stored yet has no offset to go back to but the first."""
    topics = consumer_topics(world)
    users = [f"u{n}" for n in range(30)]
    early, late = users[:1], users[1:]  # one partition has something to store, the others are still empty
    world.bus.publish([wire.encode_event(click(0, early[0], "a", START))])
    source, owner = world.bus.source("trends", topics), world.consumer()
    run(source, owner)
    source.commit(owner.stop(()))
    world.bus.publish([wire.encode_event(click(n, user, "a", START)) for n, user in enumerate(late, start=1)])
    run(source, owner)  # taken in, and not stored yet
    with world.engine.begin() as connection:  # somebody else has stored the first partition meanwhile
        stored = store.stored_partitions(connection)
        moved = {p: replace(each, log_id="moved on") for p, each in stored.items() if each.next_offset}
        assert len(moved) == 1
        store.store_partitions(connection, moved)
    assert owner.stop(()) == {}, "the flush is refused"
    with world.engine.begin() as connection:
        store.store_partitions(connection, {p: stored[p] for p in moved})
    owner.start(source, tuple(moved))  # and is ours again
    run(source, owner)
    source.commit(owner.stop(()))
    assert world.table().block(["a"]).counts[0, 5] == pytest.approx(30.0, rel=1e-3)


def test_a_partition_that_comes_back_comes_with_all_that_happened_meanwhile(world: World, tmp_path: Path) -> None:
    """The users remembered from the first time must not hide that somebody else has met them since."""
    events = [click(n, "u", item, START + timedelta(minutes=n)) for n, item in enumerate("abc")]
    topics = consumer_topics(world)
    consumers = [world.consumer(), world.consumer()]
    world.clock[0] += timedelta(days=3)
    for turn, event in enumerate(events):  # the partition goes from one to the other and back
        world.bus.publish([wire.encode_event(event)])
        source, owner = world.bus.source("trends", topics), consumers[turn % 2]
        run(source, owner)
        source.commit(owner.stop(tuple(source.lag())))
        source.close()
    whole = new_world(tmp_path / "whole.db")
    import_all(whole, events)
    assert covisits(world) == covisits(whole)
    assert covisits(whole)["c"].keys() == {"a", "b"}


def covisits(world: World) -> dict[str, dict[str, float]]:
    with world.engine.connect() as connection:
        rows = {row.item_id: row.payload for row in connection.execute(select(trend_covisits))}
    decoded = {item_id: msgspec.msgpack.decode(payload, type=Row) for item_id, payload in rows.items()}
    return {i: dict(zip(row.item_ids, row.weights, strict=True)) for i, row in decoded.items()}


def test_a_recreated_log_is_read_from_its_start_and_adds_to_what_is_known(world: World) -> None:
    import_all(world, [click(1, "u", "a", START)])
    renewed = World(world.engine, MemoryBus(3, world.now), world.clock)
    import_all(renewed, [click(2, "v", "a", START + timedelta(minutes=1))])
    assert renewed.table().block(["a"]).counts[0, 5] == pytest.approx(2.0, rel=1e-3)


def slate(number: int, user: str | None, *item_ids: str) -> Slate:
    picks = tuple(Pick(i, rank, 1.0, "faiss", Reason("for_you", (), "")) for rank, i in enumerate(item_ids))
    return Slate(f"r{number}", user, None, 0, 0, picks, (), (), START)


def test_hours_close_although_a_log_before_this_one_had_more_partitions(world: World) -> None:
    gone = store.Stored("the log before", 7, store.PartitionState(to_us(START), to_us(START)))
    with world.engine.begin() as connection:
        store.store_partitions(connection, {Partition(TOPIC_EVENTS, 9): gone})
    import_all(world, [click(0, "u", "a", START), click(1, "u", "b", START + timedelta(hours=2))])
    world.clock[0] += timedelta(minutes=2)
    source, owner = world.bus.source("trends", consumer_topics(world)), world.consumer()
    run(source, owner)
    assert {(item_id, at_us) for item_id, at_us in world.rows} == {
        ("a", to_us(START) + HOUR_US),
        ("b", to_us(START) + 3 * HOUR_US),
    }


@pytest.mark.parametrize(("counted_from", "expected"), [("slates", 2.0), ("clients", 1.0), ("none", 0.0)])
def test_impressions_come_from_slates_or_from_clients_never_both(
    world: World, counted_from: str, expected: float
) -> None:
    settings = TrendsSettings(impressions_from=counted_from)
    served = [slate(1, "u", "a", "b"), slate(2, "u", "a"), slate(3, None, "a")]
    world.bus.publish([wire.encode_slate(each) for each in served])
    world.bus.publish([wire.encode_event(click(1, "u", "a", START, "impression"))])
    world.bus.publish([wire.encode_event(click(2, "u", "a", START))])
    consumer = world.consumer(settings)
    source = world.bus.source("trends", consumer.topics)
    run(source, consumer)
    source.commit(consumer.stop(()))
    counts = world.table().block(["a"]).counts[0]
    # slates: user u saw item a in two slates within 30 min, which is one impression, and a stranger saw it once
    assert counts[2] == pytest.approx(expected)
    assert counts[5] == pytest.approx(1.0)


def test_bad_messages_are_passed_over(world: World) -> None:
    world.bus.publish([Outgoing(TOPIC_EVENTS, "u", b"{"), wire.encode_event(click(1, "u", "a", START))])
    source, consumer = world.bus.source("trends", consumer_topics(world)), world.consumer()
    run(source, consumer)
    source.commit(consumer.stop(()))
    assert sum(source.lag().values()) == 0
    assert world.table().item_ids() == ("a",)


def test_erased_users_are_dropped(world: World) -> None:
    erased: Callable[[], dict[str, int]] = lambda: {"u": to_us(START) + 1}  # noqa: E731
    world.bus.publish([wire.encode_event(click(1, "u", "a", START)), wire.encode_event(click(2, "v", "b", START))])
    consumer = TrendsConsumer(world.engine, RULES, world, write_parts, world.bus.log_id, world.now, erased=erased)
    source = world.bus.source("trends", consumer.topics)
    run(source, consumer)
    consumer.stop(())
    assert world.table().item_ids() == ("b",)


def test_items_seen_by_the_same_user_become_covisits(world: World) -> None:
    moments = [START + timedelta(minutes=place) for place in range(3)]
    import_all(world, [click(n, "u", item, at) for n, (item, at) in enumerate(zip("abc", moments, strict=True))])
    assert [item_id for item_id, _ in world.table().covisits("b")] == ["c", "a"], "the later pair is a minute stronger"


def test_what_servers_are_told_can_be_joined_as_of_any_writing(world: World) -> None:
    """After each flush a server's table is what the history says as of the table's own time, to the last bit."""
    settings = TrendsSettings(flush_events=1)
    consumer, told = world.consumer(settings), []
    source = world.bus.source("trends", consumer.topics)
    for number, event in enumerate(stream(40)):
        world.clock[0] = START + timedelta(days=3, seconds=-number if number > 30 else number)  # a clock is set back
        world.bus.publish([wire.encode_event(event)])
        run(source, consumer)
        table = world.table()
        told.append((table.as_of_us, table.block(ITEMS)))
    assert len({as_of_us for as_of_us, _ in told}) == len({b.as_of for _, b in told}) > 30
    assert [as_of_us for as_of_us, _ in told] == sorted(as_of_us for as_of_us, _ in told)
    for as_of_us, block in told:
        assert block.as_of_us == as_of_us
        counts, stamps, written = world.live.live_items_at(ITEMS, np.full(len(ITEMS), as_of_us))
        assert (counts == block.counts).all()
        assert (stamps == block.counts_at_us).all()
        assert written.max() == as_of_us


def test_a_crash_before_the_commit_leaves_rows_that_no_server_was_told_of(world: World) -> None:
    """The counts written again are the newer ones, so they are what every later join finds."""
    world.bus.publish([wire.encode_event(click(1, "u", "a", START))])
    history = CrashingHistory(world, ["append_item_stats"])
    world.clock[0] += timedelta(days=1)
    consumer = TrendsConsumer(world.engine, RULES, history, write_parts, world.bus.log_id, world.now)
    source = world.bus.source("trends", consumer.topics)
    run(source, consumer)
    with pytest.raises(RuntimeError, match="crash"):
        consumer.stop(())
    source.close()
    assert world.table().as_of_us == 0
    world.clock[0] += timedelta(seconds=1)
    world.bus.publish([wire.encode_event(click(2, "v", "a", START))])
    source, consumer = world.bus.source("trends", consumer_topics(world)), world.consumer()
    run(source, consumer)
    source.commit(consumer.stop(()))
    block = world.table().block(["a"])
    times = np.array([to_us(world.now()) - SECOND_US, block.as_of_us])
    counts, _, written = world.live.live_items_at(["a", "a"], times)
    assert written.tolist() == times.tolist()
    assert (counts[1] == block.counts[0]).all()
    assert counts[1, 5] == pytest.approx(2 * counts[0, 5])


def test_a_flush_tells_servers_when_its_events_were_accepted_live_ones_apart(world: World) -> None:
    """Accepted at eight: a click of eight, one of ten minutes before (live still), one of the day before."""
    ages = (timedelta(), timedelta(minutes=10), timedelta(days=1))
    events = [click(n, f"u{n}", "i1", START - age) for n, age in enumerate(ages)]
    world.bus.publish([wire.encode_event(event) for event in events])
    consumer, source = world.consumer(), world.bus.source("trends", (TOPIC_EVENTS,))
    run(source, consumer)
    source.commit(consumer.stop(()))
    told = ItemFeed(world.engine).arrived(0, world.table().as_of)
    assert told == [Arrived("stats", Arrivals([to_us(START)], [2], [1]))]
    assert ItemFeed(world.engine).arrived(world.table().as_of, 10**9) == []


def test_long_flushes_stand_further_apart_while_messages_keep_coming(world: World) -> None:
    def slow_write(connection: Connection, parts: Sequence[tuple[str, Payload]], came: Arrived | None) -> int:
        world.clock[0] += timedelta(seconds=3)  # so long a flush takes
        return write_parts(connection, parts, came)

    consumer = TrendsConsumer(world.engine, RULES, world, slow_write, world.bus.log_id, world.now, TrendsSettings())
    source = world.bus.source("trends", consumer.topics)
    run(source, consumer)
    flushed_at: list[float] = []
    for number in range(40):
        world.clock[0] += timedelta(seconds=1)
        world.bus.publish([wire.encode_event(click(number, f"u{number}", "i1", START))])
        before = world.clock[0]
        if consumer.apply(source.poll(50, 0)):
            flushed_at.append((before - START).total_seconds())
    assert flushed_at == [5.0, 17.0, 29.0, 41.0]  # the first after flush_s; then 3 s of 12, not 3 s of 5


def visits(count: int = 400) -> list[Event]:
    """Thirty days of known users, of newcomers from the twentieth day on, and of a machine on the twenty-fifth."""
    events = [click(n, f"k{n % 9}", f"i{n * n % 7}", START + timedelta(hours=1.7 * n)) for n in range(count)]
    events += [click(1000 + n, f"n{n}", f"i{n % 3}", START + timedelta(days=20, hours=n)) for n in range(60)]
    events += [click(2000 + n, "m", f"i{n % 5}", START + timedelta(days=25, minutes=9 * n)) for n in range(150)]
    return sorted(events, key=lambda event: event.occurred_at)


def test_votes_are_the_same_after_restarts_on_the_way_and_in_training(tmp_path: Path) -> None:
    bounds = Bounds(30, 0.25)
    worlds = [new_world(tmp_path / name, partitions=1) for name in ("whole.db", "restarted.db")]
    for made, restart_every in zip(worlds, (1000, 3), strict=True):
        made.settings = TrendsSettings(flush_events=100, bounds=bounds)
        made.clock[0] = START + timedelta(days=60)
        made.bus.publish([wire.encode_event(event) for event in visits()])
        for _ in range(20):  # each reads what it reads and is gone, without a stop; the last ones find nothing more
            source, consumer = made.bus.source("trends", consumer_topics(made)), made.consumer()
            run(source, consumer, restart_every)
            source.close()
        source, consumer = made.bus.source("trends", consumer_topics(made)), made.consumer()
        run(source, consumer)
        source.commit(consumer.stop(()))
        source.close()
    whole, restarted = worlds
    assert whole.rows == restarted.rows, "hours are exact sums"
    assert stored_covisits(whole) == pytest.approx(stored_covisits(restarted))
    rows = [(e.user_id, e.item_id, e.kind, to_us(e.occurred_at), None) for e in visits()]
    trained = EventsHistory(columns_of_rows(rows, RULES), bounds=bounds)
    (item_ids, stamps), counts = zip(*whole.rows, strict=True), list(whole.rows.values())
    expected, _ = trained.items_at(item_ids, np.array(stamps))
    np.testing.assert_allclose(counts, expected, rtol=1e-5)
    unbounded, _ = EventsHistory(columns_of_rows(rows, RULES), bounds=UNBOUNDED).items_at(item_ids, np.array(stamps))
    assert not np.allclose(counts, unbounded, rtol=0.01), (
        "a stream that the bounds change nothing of would prove nothing"
    )


def stored_covisits(world: World) -> dict[str, float]:
    with world.engine.connect() as connection:
        return {row.item_id: row.total for row in connection.execute(select(trend_covisits))}


def test_a_user_row_of_an_earlier_program_is_known_since_its_oldest_item() -> None:
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode((["b", "a"], [20, 10])), type=Recent)
    assert (stored.record.since_us, stored.record.newest_us) == (10, 20)
