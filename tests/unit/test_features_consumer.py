"""The features consumer over the in-memory bus and store: crashes between any two steps, rivals, imports, bad messages;
and one meaning of a row online, offline and in the log, over Feast."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np
import pytest
from feast_home import feast_at

from services.consume import consume
from services.domain import (
    TOPIC_EVENTS,
    Event,
    KindRule,
    KindRules,
    Outgoing,
    Partition,
    StageUnavailable,
    UserState,
    from_us,
    to_us,
)
from services.features.consumer import FeaturesConsumer, RowCache
from services.features.fold import fold, interaction
from services.features.history import MemoryHistory
from services.features.store import FeastFeatureStore, FeastHistory
from services.memory import MemoryBus, MemoryFeatureStore, MemorySource
from services.ports import FeatureHistory, FeatureStore
from services.telemetry import EVENTS_DUPLICATE, EVENTS_LATE
from services.wire import encode_event

T0 = datetime(2026, 11, 1, tzinfo=UTC)
NOW = datetime(2026, 11, 23, tzinfo=UTC)
RULES = KindRules(
    {"click": KindRule("positive"), "hide": KindRule("negative"), "rating": KindRule("positive", 1.0, threshold=6.0)}
)


def now() -> datetime:
    return NOW


def event(user: str, number: int, item: str = "", kind: str = "click", value: float | None = None) -> Event:
    at = T0 + timedelta(seconds=number)
    return Event(f"e-{user}-{number}", user, item or f"i{number % 9}", kind, at, NOW, value)


def stream(count: int, seed: int = 1) -> list[Event]:
    """Events of five users, a fifth of them out of order, some of each sign, some neutral."""
    chance = random.Random(seed)
    kinds = [("click", None), ("click", None), ("rating", 8.0), ("rating", 2.5), ("hide", None), ("impression", None)]
    events = [
        event(f"u{chance.randrange(5)}", number, f"i{chance.randrange(40)}", *chance.choice(kinds))
        for number in range(count)
    ]
    for place in chance.sample(range(count), count // 5):
        other = min(count - 1, place + chance.randrange(30))
        events[place], events[other] = events[other], events[place]
    return events


def published(events: Sequence[Event], partitions: int = 2) -> MemoryBus:
    bus = MemoryBus(partitions, now)
    bus.publish([encode_event(each) for each in events])
    return bus


def work(bus: MemoryBus, consumer: FeaturesConsumer, source: MemorySource | None = None, records_max: int = 7) -> None:
    """Consume until nothing lags."""
    source = source or bus.source("features", (TOPIC_EVENTS,))
    left = lambda: bool(source.lag()) and not any(source.lag().values())  # noqa: E731
    try:
        consume(source, consumer, left, records_max=records_max, wait_s=0.01)
    finally:
        source.close()


def content(state: UserState) -> UserState:
    return replace(state, row_time_us=0, previous_row_time_us=0)


def rows_of(store: FeatureStore) -> list[UserState]:
    return [content(state) for state in store.read_many([f"u{n}" for n in range(5)])]


def history_of(history: FeatureHistory) -> list[tuple[int, tuple[str, ...]]]:
    """What a join answers for each user at every tenth second: row time and items."""
    asked = [(f"u{n}", to_us(T0) + second * 1_000_000 - 1) for n in range(5) for second in range(0, 330, 10)]
    rows = history.users_at([user for user, _ in asked], np.array([at for _, at in asked]))
    items = np.array([*rows.item_ids, ""])[rows.item_codes]
    ends = rows.offsets
    return [(int(t), tuple(items[ends[r] : ends[r + 1]])) for r, t in enumerate(rows.row_time_us)]


class Crash(Exception):
    """The process dies here."""


class Failing:
    """A store whose process dies (or which is away) at one step of one call."""

    def __init__(self, store: FeatureStore, step: str, call: int, error: type[Exception] = Crash) -> None:
        self._store, self._step, self._call, self._error = store, step, call, error

    def read(self, user_id: str) -> UserState:
        return self._store.read(user_id)

    def read_many(self, user_ids: Sequence[str]) -> tuple[UserState, ...]:
        self._reached("before read")
        return self._store.read_many(user_ids)

    def append_history(self, states: Sequence[UserState], created_at: datetime) -> None:
        self._reached("before history")
        self._store.append_history(states, created_at)
        self._reached("after history")

    def write(self, states: Sequence[UserState]) -> tuple[str, ...]:
        self._reached("before write")
        refused = self._store.write(states)
        self._reached("after write")
        return refused

    def _reached(self, step: str) -> None:
        if step == self._step:
            self._call -= 1
            if self._call == 0:
                raise self._error


class NoCommit(MemorySource):
    """A member whose process dies before its commit is stored."""

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        if offsets:
            raise Crash


STEPS = ["before read", "before history", "after history", "before write", "after write"]


def expected_rows(events: Sequence[Event]) -> list[UserState]:
    """The fold of the log, user by user."""
    rows = []
    for user in (f"u{n}" for n in range(5)):
        mine = [interaction(each, RULES) for each in events if each.user_id == user]
        rows.append(content(fold(UserState(user), [each for each in mine if each])))
    return rows


@pytest.mark.parametrize("call", [1, 3])
@pytest.mark.parametrize("step", STEPS)
def test_a_crash_between_any_two_steps_changes_nothing(step: str, call: int) -> None:
    events = stream(60)
    bus, store = published(events), MemoryFeatureStore()
    with pytest.raises(Crash):
        work(bus, FeaturesConsumer(Failing(store, step, call), RULES, now))
    work(bus, FeaturesConsumer(store, RULES, now))
    calm = MemoryFeatureStore()
    work(published(events), FeaturesConsumer(calm, RULES, now))
    assert rows_of(store) == rows_of(calm) == expected_rows(events)
    assert history_of(MemoryHistory(lambda: store.history)) == history_of(MemoryHistory(lambda: calm.history))


def test_a_crash_before_the_commit_repeats_the_batch_and_changes_nothing() -> None:
    events = stream(60)
    bus, store = published(events), MemoryFeatureStore()
    with pytest.raises(Crash):
        work(bus, FeaturesConsumer(store, RULES, now), NoCommit(bus, "features", (TOPIC_EVENTS,)))
    duplicates = EVENTS_DUPLICATE._value.get()
    work(bus, FeaturesConsumer(store, RULES, now))
    assert EVENTS_DUPLICATE._value.get() > duplicates
    assert rows_of(store) == expected_rows(events)


def test_a_store_that_is_away_commits_nothing_and_is_read_anew() -> None:
    bus, store = published([event("u1", 1), event("u1", 2)]), MemoryFeatureStore()
    consumer = FeaturesConsumer(Failing(store, "after write", 1, StageUnavailable), RULES, now)
    source = bus.source("features", (TOPIC_EVENTS,))
    source.poll(10, 0)
    with pytest.raises(StageUnavailable):
        consumer.apply(source.poll(10, 0))
    assert sum(source.lag().values()) == 2
    source.close()
    work(bus, consumer)  # the row was written after all: what the consumer remembers must not be older
    assert [each.item_id for each in store.read("u1").events] == ["i2", "i1"]


class RivalFirst(MemoryFeatureStore):
    """A store where another owner writes a row between our read and our write, three times."""

    def __init__(self) -> None:
        super().__init__()
        self.rivals = 3

    def write(self, states: Sequence[UserState]) -> tuple[str, ...]:
        if self.rivals and states:
            self.rivals -= 1
            user_id = states[0].user_id
            theirs = interaction(event(user_id, 500 + self.rivals, f"theirs{self.rivals}"), RULES)
            assert theirs
            super().write([fold(self.read(user_id), [theirs])])
        return super().write(states)


def test_a_refused_row_is_read_again_and_neither_owners_events_are_lost() -> None:
    store = RivalFirst()
    work(published([event("u1", 1), event("u1", 2)]), FeaturesConsumer(store, RULES, now))
    assert [each.item_id for each in store.read("u1").events] == ["theirs2", "theirs1", "theirs0", "i2", "i1"]
    assert store.rivals == 0
    times = [state.row_time_us for state, _ in store.history]
    assert store.read("u1").row_time_us == max(times)  # what was written last was in the history first


def test_two_owners_of_one_partition_lose_no_event() -> None:
    events = stream(300)
    store = MemoryFeatureStore()
    batches = published(events, partitions=1)
    source = batches.source("features", (TOPIC_EVENTS,))
    source.poll(1, 0)
    owners = [FeaturesConsumer(store, RULES, now), FeaturesConsumer(store, RULES, now)]
    previous = None
    for number in range(30):  # each takes every batch that the other has just taken, with rows it remembers from before
        batch = source.poll(10, 0)
        owners[number % 2].apply(batch)
        if previous:
            owners[number % 2].apply(previous)
        previous = batch
    assert rows_of(store) == expected_rows(events)


def test_an_import_leaves_the_history_that_a_slow_stream_leaves() -> None:
    events = stream(300)
    fast, slow = MemoryFeatureStore(), MemoryFeatureStore()
    work(published(events, 1), FeaturesConsumer(fast, RULES, now), records_max=1000)
    work(published(events, 1), FeaturesConsumer(slow, RULES, now), records_max=1)

    def rows(store: MemoryFeatureStore) -> list[UserState]:
        return sorted(
            (replace(s, previous_row_time_us=0) for s, _ in store.history), key=lambda s: (s.user_id, s.row_time_us)
        )

    assert rows(fast) == rows(slow)
    assert len(rows(fast)) == sum(each.kind != "impression" for each in events)


def test_bad_messages_are_passed_over() -> None:
    bus, store = published([event("u1", 1)], 1), MemoryFeatureStore()
    bus.publish([Outgoing(TOPIC_EVENTS, "u1", bad) for bad in (b"{", b"", b"[]", b'{"v":99}')])
    bus.publish([encode_event(event("u1", 2))])
    work(bus, FeaturesConsumer(store, RULES, now))
    assert len(store.read("u1").events) == 2


def test_what_was_accepted_before_an_erasure_leaves_no_row() -> None:
    erased_at = NOW + timedelta(seconds=1)
    bus, store = published([event("u1", 1), event("u2", 2)]), MemoryFeatureStore()
    bus.now = lambda: NOW + timedelta(seconds=2)
    bus.publish([encode_event(event("u1", 3))])
    work(bus, FeaturesConsumer(store, RULES, now, erased=lambda: {"u1": to_us(erased_at)}))
    assert [each.item_id for each in store.read("u1").events] == ["i3"]
    assert len(store.read("u2").events) == 1


def test_late_events_are_counted() -> None:
    before = EVENTS_LATE._value.get()
    work(
        published([event("u1", n) for n in (*range(10, 80), 1, 2)], 1),
        FeaturesConsumer(MemoryFeatureStore(), RULES, now),
    )
    assert EVENTS_LATE._value.get() - before == 2


def test_an_empty_batch_commits_nothing() -> None:
    source = published([]).source("features", (TOPIC_EVENTS,))
    assert FeaturesConsumer(MemoryFeatureStore(), RULES, now).apply(source.poll(10, 0)) == {}


def test_the_cache_keeps_the_rows_used_last() -> None:
    cache = RowCache(2)
    a, b, c = (UserState(name) for name in "abc")
    cache.keep([a, b])
    assert cache["a"] is a
    cache.keep([c])
    assert ("a" in cache, "b" in cache, "c" in cache) == (True, False, True)
    cache.clear()
    assert "a" not in cache


@pytest.fixture
def feast(tmp_path: Path) -> Iterator[tuple[FeastFeatureStore, FeastHistory, Callable[[], None]]]:
    feast_store = feast_at(tmp_path / "home")
    store = FeastFeatureStore(feast_store)
    yield store, FeastHistory(feast_store), store.close
    store.close()


def test_a_row_has_one_meaning_online_offline_and_in_the_log(
    feast: tuple[FeastFeatureStore, FeastHistory, object],
) -> None:
    events = stream(300)
    store, history, _ = feast
    work(published(events), FeaturesConsumer(store, RULES, now, cache_users=3), records_max=40)
    calm = MemoryFeatureStore()
    work(published(events), FeaturesConsumer(calm, RULES, now), records_max=40)
    assert rows_of(store) == expected_rows(events)
    assert history_of(history) == history_of(MemoryHistory(lambda: calm.history))
    online = store.read_many([f"u{n}" for n in range(5)])
    rows = history.users_at([state.user_id for state in online], np.full(5, to_us(NOW)))
    for r, state in enumerate(online):
        assert rows.row_time_us[r] == state.row_time_us
        assert rows.occurred_us[rows.offsets[r] : rows.offsets[r + 1]].tolist() == [e.occurred_us for e in state.events]


def test_what_a_join_knew_is_the_fold_of_the_log_up_to_then(
    feast: tuple[FeastFeatureStore, FeastHistory, object],
) -> None:
    events = sorted(stream(300), key=lambda each: each.occurred_at)  # in order: a row's time is its newest event's
    store, history, _ = feast
    work(published(events, 1), FeaturesConsumer(store, RULES, now), records_max=50)
    asked = events[::7]
    rows = history.users_at([each.user_id for each in asked], np.array([to_us(each.occurred_at) - 1 for each in asked]))
    for r, each in enumerate(asked):
        known = [
            interaction(e, RULES) for e in events if e.user_id == each.user_id and e.occurred_at < each.occurred_at
        ]
        expected = fold(UserState(each.user_id), [i for i in known if i]).events
        codes = rows.item_codes[rows.offsets[r] : rows.offsets[r + 1]]
        assert [rows.item_ids[code] for code in codes] == [i.item_id for i in expected]
        assert rows.row_time_us[r] == (expected[0].occurred_us if expected else 0)


@pytest.mark.parametrize("step", STEPS)
def test_over_feast_a_crash_between_any_two_steps_changes_nothing(
    step: str, feast: tuple[FeastFeatureStore, FeastHistory, object]
) -> None:
    events = stream(60)
    store, history, _ = feast
    bus = published(events)
    with pytest.raises(Crash):
        work(bus, FeaturesConsumer(Failing(store, step, 2), RULES, now), records_max=15)
    work(bus, FeaturesConsumer(store, RULES, now), records_max=15)
    calm = MemoryFeatureStore()
    work(published(events), FeaturesConsumer(calm, RULES, now), records_max=15)
    assert rows_of(store) == expected_rows(events)
    assert history_of(history) == history_of(MemoryHistory(lambda: calm.history))


def test_times_keep_their_microseconds(feast: tuple[FeastFeatureStore, FeastHistory, object]) -> None:
    store, history, _ = feast
    odd = msgspec.structs.replace(event("u1", 1), occurred_at=from_us(1_600_000_000_123_457))
    work(published([odd]), FeaturesConsumer(store, RULES, now))
    assert store.read("u1").row_time_us == 1_600_000_000_123_457
    rows = history.users_at(["u1", "u1"], np.array([1_600_000_000_123_456, 1_600_000_000_123_457]))
    assert rows.row_time_us.tolist() == [0, 1_600_000_000_123_457]
