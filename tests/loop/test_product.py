"""Four tests that describe the product: an event changes the answer; a crash changes nothing; a release is one thing;
a feature has one meaning. The whole product in one process: the real consumers over the in-memory log."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from services import wire
from services.consume import consume
from services.demo.world import World, WorldSize, make_world
from services.domain import Batch, Event, Partition, Query, ReleaseInfo, Slate, UserState, to_us
from services.features.consumer import FeaturesConsumer
from services.features.fold import fold, interaction
from services.items import ItemTable
from services.memory import MemoryBus, MemoryFeatureStore, MemoryRegistry, MemorySlateLog
from services.ports import EventSource
from services.recommend import Stages, recommend
from services.serving import Paces, Serving
from services.settings import Settings
from services.wiring import Home, build_stages

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
RULES = Settings().kind_rules()
EVENTS = "freshrank.events"


WORLD_SIZE = WorldSize(users=40, items=60, events_per_user=24.0, days=14.0)


def small_world() -> World:
    return make_world(WORLD_SIZE, seed=3, ends_at=NOW - timedelta(minutes=1))


def publish(bus: MemoryBus, events: Sequence[Event]) -> None:
    bus.publish([wire.encode_event(event) for event in events])


def run_features(bus: MemoryBus, store: MemoryFeatureStore, **options: int) -> None:
    """The features consumer until it has read everything."""
    part = FeaturesConsumer(store, RULES, lambda: NOW)
    source = bus.source("features", part.topics)

    def caught_up() -> bool:
        return bus.committed("features", EVENTS) == bus.ends(EVENTS)

    consume(source, part, caught_up, wait_s=0.0, **options)
    source.close()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(Settings(home=tmp_path, text_encoder="hashing"))
    yield home
    home.close()


# ------------------------------------------------------------------------------- 1. an event changes the answer


def item_table(world: World) -> ItemTable:
    """Items with cards and clicks, as the feed would bring them."""
    from services.item_parts import CardPart, ItemChanged, StatsPart

    table, seq = ItemTable(), count(1)
    clicks: dict[str, int] = {}
    for event in world.events():
        clicks[event.item_id] = clicks.get(event.item_id, 0) + 1
    for change in world.item_changes():
        card = CardPart(str(change.fields["title"]), [], True, False, 0, 0, to_us(change.updated_at))
        counts = [0.0, 0.0, 0.0] + [float(clicks.get(change.item_id, 0))] * 3 + [0.0, 0.0, 0.0]
        table.apply([ItemChanged(change.item_id, card, next(seq))])
        table.apply([ItemChanged(change.item_id, StatsPart(counts, to_us(NOW)), next(seq))])
    return table


def test_an_event_changes_the_answer_and_its_own_items_are_gone() -> None:
    world, bus, store = small_world(), MemoryBus(2, lambda: NOW), MemoryFeatureStore()
    stages, _ = build_stages(None, item_table(world), store, MemorySlateLog())
    query = Query("r1", "visitor", 10, NOW)
    before = [pick.item_id for pick in recommend(query, stages).items]
    clicked = before[:3]
    publish(bus, [Event(f"c{n}", "visitor", i, "click", NOW, NOW) for n, i in enumerate(clicked)])
    run_features(bus, store)
    after = recommend(query, stages)
    assert len(before) == len(after.items) == 10
    assert not {pick.item_id for pick in after.items} & set(clicked)
    assert [pick.item_id for pick in after.items][:7] == before[3:]
    assert after.user_row_time_us >= to_us(NOW)


# --------------------------------------------------------------------------------- 2. a crash changes nothing


class Crash(BaseException):
    """kill -9, as far as one process can play it."""


class Crashing:
    """Wraps source, store and consumer; the `at`-th step taken through any of them ends in a crash."""

    def __init__(self, at: int) -> None:
        self.left = at

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Crash


class CrashingSource(EventSource):
    def __init__(self, source: EventSource, crash: Crashing) -> None:
        self._source, self._crash = source, crash

    def poll(self, records_max: int, wait_s: float) -> Batch:
        self._crash.step()
        batch = self._source.poll(records_max, wait_s)
        self._crash.step()
        return batch

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        self._crash.step()
        self._source.commit(offsets)
        self._crash.step()

    def seek(self, offsets: Mapping[Partition, int]) -> None:
        self._source.seek(offsets)

    def lag(self) -> Mapping[Partition, int]:
        return self._source.lag()


class CrashingStore(MemoryFeatureStore):
    crash: Crashing

    def write(self, states: Sequence[UserState]) -> tuple[str, ...]:
        self.crash.step()
        refused = super().write(states)
        self.crash.step()
        return refused

    def append_history(self, states: Sequence[UserState], created_at: datetime) -> None:
        self.crash.step()
        super().append_history(states, created_at)
        self.crash.step()


def without_row_time(states: Sequence[UserState]) -> list[UserState]:
    return [replace(state, row_time_us=0, previous_row_time_us=0) for state in states]


def test_a_crash_at_any_step_changes_nothing() -> None:
    events = list(small_world().events())[:120]
    users = sorted({event.user_id for event in events})
    plain = MemoryFeatureStore()
    bus = MemoryBus(2, lambda: NOW)
    publish(bus, events)
    run_features(bus, plain)
    wanted = without_row_time(plain.read_many(users))
    history = {(s.user_id, s.events) for s, _ in plain.history}
    for at in count(1):
        crashed, store = run_crashing(events, at)
        assert without_row_time(store.read_many(users)) == wanted, f"after a crash at step {at}"
        assert {(s.user_id, s.events) for s, _ in store.history} == history, f"after a crash at step {at}"
        if not crashed:
            assert at > 10, "hardly a step was taken: the test does not test"
            return


def run_crashing(events: Sequence[Event], at: int) -> tuple[bool, MemoryFeatureStore]:
    """Consume with one crash at step `at`, start again, finish."""
    bus, store, crash = MemoryBus(2, lambda: NOW), CrashingStore(), Crashing(at)
    store.crash = crash
    publish(bus, events)
    for _ in range(2):
        part = FeaturesConsumer(store, RULES, lambda: NOW)
        source = bus.source("features", part.topics)
        try:
            consume(
                CrashingSource(source, crash),
                part,
                lambda: bus.committed("features", EVENTS) == bus.ends(EVENTS),
                records_max=40,
                wait_s=0.0,
            )
            return crash.left < 0, store
        except Crash:
            source.close()
    raise AssertionError("two crashes")


# ------------------------------------------------------------------------------------ 3. a release is one thing


def test_under_a_hot_swap_every_answer_comes_from_one_release() -> None:
    world = small_world()
    table, store, registry = item_table(world), MemoryFeatureStore(), MemoryRegistry()
    served = world.item_changes()
    halves = {"even": {c.item_id for n, c in enumerate(world.item_changes()) if n % 2 == 0}}
    halves["odd"] = {c.item_id for c in served} - halves["even"]
    serving = Serving(_FullFeed(table), registry, _half_stages(store, halves), lambda: None, lambda: NOW, Paces(0.005))
    for name in halves:
        registry.publish(ReleaseInfo(name, "", NOW, NOW))
    registry.promote("even")
    serving.start()
    slates: list[Slate] = []
    stopping = threading.Event()

    def ask() -> None:
        while not stopping.is_set():
            slates.append(recommend(Query("r", None, 10, NOW, record=False), serving.stages()))

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    for name in ("odd", "even", "odd"):
        registry.promote(name)
        _until(lambda name=name: serving.stages().release_id == name)
    stopping.set()
    for asker in askers:
        asker.join()
    serving.stop()
    assert {slate.release_id for slate in slates} == {"even", "odd"}
    for slate in slates:
        assert slate.items
        assert {pick.item_id for pick in slate.items} <= halves[str(slate.release_id)]


class _FullFeed:
    def __init__(self, table: ItemTable) -> None:
        self._table = table

    def load(self, table: ItemTable) -> int:
        table.__dict__.update(self._table.__dict__)
        return len(table)

    def poll(self, table: ItemTable) -> int:
        return 0


def _half_stages(
    store: MemoryFeatureStore, halves: Mapping[str, set[str]]
) -> Callable[[ReleaseInfo | None, ItemTable], Stages]:
    """Stages whose sources and filter both belong to one half: an answer of two releases would be empty or mixed."""

    def build(info: ReleaseInfo | None, items: ItemTable) -> Stages:
        stages, _ = build_stages(None, items, store, MemorySlateLog())
        return (
            stages
            if info is None
            else replace(stages, release_id=info.release_id, filters=(_Only(halves[info.release_id]),))
        )

    return build


class _Only:
    name = "half"

    def __init__(self, allowed: set[str]) -> None:
        self._allowed = allowed

    def keep(self, query: Query, user: UserState, candidates: Sequence[object]) -> Sequence[bool]:
        return [getattr(each, "item_id", "") in self._allowed for each in candidates]


def _until(true: Callable[[], bool], tries: int = 2000) -> None:
    for _ in range(tries):
        if true():
            return
        threading.Event().wait(0.005)
    raise AssertionError("it did not come")


# ------------------------------------------------------------------------------- 4. a feature has one meaning


def test_a_feature_has_one_meaning_online_offline_and_in_the_archive(home: Home) -> None:
    """A slate is served after 300 of 600 events; later, the history at its row time and the archive folded up to it
    both give what the server read then."""
    from services.archive.consumer import ArchiveConsumer

    events = list(small_world().events())[:600]
    bus = MemoryBus(2, lambda: NOW)
    archive, served = home.archive, {}
    for half in (events[:300], events[300:]):
        publish(bus, half)
        for part in (
            FeaturesConsumer(home.features, RULES, lambda: NOW),
            ArchiveConsumer(archive, home.quarantine, wait_s=0),
        ):
            source = bus.source(part.name, part.topics)
            topics = part.topics
            consume(
                source,
                part,
                lambda name=part.name, topics=topics: all(bus.committed(name, t) == bus.ends(t) for t in topics),
                records_max=70,
                wait_s=0.0,
            )
            source.close()
        if not served:
            served = {user: home.features.read(user) for user in sorted({e.user_id for e in half})}
    users = tuple(served)
    times = np.array([served[user].row_time_us for user in users], dtype=np.int64)
    joined = home.history.users_at(users, times)
    archived = list(archive.events(NOW - timedelta(days=400), NOW))
    assert len(archived) == 600
    for place, user in enumerate(users):
        state = served[user]
        at = slice(joined.offsets[place], joined.offsets[place + 1])
        offline = [
            (joined.item_ids[code], us, weight)
            for code, us, weight in zip(
                joined.item_codes[at], joined.occurred_us[at].tolist(), joined.weight[at].tolist(), strict=True
            )
        ]
        mine = [e for e in archived if e.user_id == user and to_us(e.occurred_at) <= state.events[0].occurred_us]
        folded = fold(UserState(user), [i for e in mine if (i := interaction(e, RULES)) is not None])
        assert joined.row_time_us[place] == state.row_time_us
        assert offline == [(e.item_id, e.occurred_us, e.weight) for e in state.events]
        assert folded.events == state.events
        assert (folded.seen, folded.hidden, folded.first_seen_us) == (state.seen, state.hidden, state.first_seen_us)
