"""What was mended goes back into the log once, linked to where it stood, and takes its place by its own time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest

from services import intake, wire
from services.archive.consumer import ArchiveConsumer
from services.archive.replay import Replay, mended, with_fields
from services.consume import consume
from services.domain import (
    TOPIC_EVENTS,
    TOPIC_ITEMS,
    TOPIC_SLATES,
    TOPICS,
    BadRequest,
    Coordinate,
    Event,
    ItemChange,
    KindRules,
    Message,
    Outgoing,
    Slate,
    StageUnavailable,
    WireError,
)
from services.features.consumer import FeaturesConsumer
from services.memory import MemoryArchive, MemoryBus, MemoryFeatureStore, MemoryQuarantine
from services.ports import Consumer
from services.quarantine import Rejected
from services.settings import DEFAULT_KINDS

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


class World:
    """A log, the archive consumer with its quarantine, the features consumer; a clock that is set by hand."""

    def __init__(self, erased: Mapping[str, int] | None = None) -> None:
        self.clock = NOON
        self.bus = MemoryBus(2, lambda: self.clock)
        self.archive, self.quarantine, self.features = MemoryArchive(), MemoryQuarantine(), MemoryFeatureStore()
        rules = KindRules(DEFAULT_KINDS)
        self.parts: tuple[Consumer, ...] = (
            ArchiveConsumer(self.archive, self.quarantine),
            FeaturesConsumer(self.features, rules, lambda: self.clock, 10, lambda: erased or {}),
        )
        self.replay = Replay(self.quarantine, self.bus, lambda: self.clock)

    def publish(self, *messages: Outgoing) -> None:
        self.bus.publish(messages)
        self.run()

    def run(self) -> None:
        for part in self.parts:
            source = self.bus.source(part.name, part.topics)
            source.poll(0, 0)
            rounds = iter(range(20))
            consume(source, part, lambda rounds=rounds: next(rounds, None) is None, wait_s=0)
            source.close()

    def events(self) -> list[Event]:
        return list(self.archive.events(NOON - 1000 * HOUR, NOON + 1000 * HOUR))


def click(event_id: str, item_id: str, at: datetime) -> Event:
    return Event(event_id, "ann", item_id, "click", at, NOON)


def test_a_mended_event_lands_in_order_in_the_row_and_once_in_the_archive() -> None:
    world = World()
    broken = json.loads(wire.encode_event(click("e2", "b", NOON - 2 * HOUR)).value) | {"item_id": ""}
    world.publish(
        wire.encode_event(click("e1", "a", NOON - 3 * HOUR)),
        Outgoing(TOPIC_EVENTS, "ann", json.dumps(broken).encode()),
        wire.encode_event(click("e3", "c", NOON - HOUR)),
    )
    assert [e.item_id for e in world.features.read("ann").events] == ["c", "a"]
    world.clock = NOON + 5 * HOUR
    (entry,) = world.quarantine.list(9)
    place = world.replay(entry, with_fields(entry.rejected.value, {"item_id": "b"}))
    world.run()
    assert [e.item_id for e in world.features.read("ann").events] == ["c", "b", "a"]
    (found,) = [e for e in world.events() if e.event_id == "e2"]
    assert (found.occurred_at, found.accepted_at) == (NOON - 2 * HOUR, NOON)
    settled = world.quarantine.list(9)[0]
    assert (settled.replayed_at, settled.replayed_as) == (world.clock, place)


def test_the_replayed_message_names_the_place_where_it_stood() -> None:
    world = World()
    world.publish(Outgoing(TOPIC_EVENTS, "somebody", wire.encode_event(click("e1", "a", NOON)).value))
    (entry,) = world.quarantine.list(9)
    assert entry.rejected.reason == "key_mismatch"
    place = world.replay(entry)  # as it is: it only stood under a wrong key
    message = world.bus.logs[next(p for p in world.bus.logs if p.number == place.partition)][place.offset]
    assert (message.key, json.loads(message.value or b"")["replay_of"]) == ("ann", str(entry.rejected.coordinate))
    assert Coordinate.parse(json.loads(message.value or b"")["replay_of"]) == entry.rejected.coordinate


def test_an_entry_is_replayed_once_unless_it_is_wanted_again() -> None:
    world = World()
    world.publish(Outgoing(TOPIC_EVENTS, "somebody", wire.encode_event(click("e1", "a", NOON)).value))
    (entry,) = world.quarantine.list(9)
    world.replay(entry)
    with pytest.raises(BadRequest, match="was replayed at 2026-11-23 12:00:00 UTC as"):
        world.replay(entry)
    world.replay(entry, again=True)
    world.run()
    assert [e.event_id for e in world.events()] == ["e1"]  # an id is one event, however often it comes
    assert len(world.features.read("ann").events) == 1


def test_a_log_that_is_away_leaves_the_entry_open_and_a_death_on_the_way_says_so() -> None:
    world = World()
    world.publish(Outgoing(TOPIC_EVENTS, "somebody", wire.encode_event(click("e1", "a", NOON)).value))
    (entry,) = world.quarantine.list(9)

    class Away(MemoryBus):
        def publish(self, messages: object) -> tuple[Coordinate, ...]:
            raise StageUnavailable("the log is away")

    with pytest.raises(StageUnavailable):
        Replay(world.quarantine, Away(1, lambda: NOON), lambda: NOON)(entry)
    assert world.quarantine.list(9)[0].replayed_at is None
    world.quarantine.claim(entry.number, NOON)  # what a process leaves that died right after
    with pytest.raises(BadRequest, match="its replay died on the way"):
        world.replay(entry)


def test_what_still_cannot_be_read_is_not_published() -> None:
    world = World()
    world.publish(Outgoing(TOPIC_EVENTS, "ann", b'{"user_id":"ann"}'))
    (entry,) = world.quarantine.list(9)
    for value, why in ((None, "missing_item_id"), (b'{"user_id":"ann","item_id":7.5}', "bad_item_id")):
        with pytest.raises(BadRequest, match=f"it still cannot be read: {why}"):
            world.replay(entry, value)
    assert sum(world.bus.ends(TOPIC_EVENTS).values()) == 1
    assert world.quarantine.list(9)[0].replayed_at is None


def test_a_replay_is_judged_as_of_its_first_acceptance() -> None:
    world = World()
    ahead = wire.encode_event(click("e1", "a", NOON + 2 * HOUR))
    world.publish(ahead, Outgoing(TOPIC_EVENTS, "ann", b'{"user_id":"ann","event_id":"e2"}'))
    world.clock = NOON + 9 * HOUR  # by now it would lie in the past
    future, timeless = world.quarantine.list(9)
    with pytest.raises(BadRequest, match="future"):
        world.replay(future)
    world.replay(timeless, with_fields(timeless.rejected.value, {"item_id": "b"}))
    world.run()
    (found,) = world.events()
    assert (found.event_id, found.occurred_at) == ("e2", NOON)


def test_what_was_accepted_before_an_erasure_does_not_come_back() -> None:
    world = World(erased={"ann": int((NOON + HOUR).timestamp() * 1_000_000)})
    world.publish(Outgoing(TOPIC_EVENTS, "somebody", wire.encode_event(click("e1", "a", NOON - HOUR)).value))
    world.clock = NOON + 2 * HOUR
    world.replay(world.quarantine.list(9)[0])
    world.run()
    assert world.features.read("ann").is_stranger


def test_items_and_slates_are_replayed_too() -> None:
    world = World()
    change = wire.encode_item(ItemChange("film", "put", {"title": "Film"}, NOON - HOUR, NOON))
    slate = wire.encode_slate(Slate("r1", "ann", None, 0, 0, (), (), (), NOON - HOUR))
    bad_change = with_fields(change.value, {"fields.title": "7", "fields.available": "false"})
    world.publish(Outgoing(TOPIC_ITEMS, "film", bad_change), Outgoing(TOPIC_SLATES, "nobody", slate.value))
    world.clock = NOON + HOUR
    by_topic = {entry.rejected.coordinate.topic: entry for entry in world.quarantine.list(9)}
    item = by_topic[TOPIC_ITEMS]
    world.replay(item, with_fields(item.rejected.value, {"fields.title": "Film"}))
    world.replay(by_topic[TOPIC_SLATES])
    world.run()
    (found,) = world.archive.items.values()
    assert (dict(found.fields), found.updated_at) == ({"title": "Film", "available": False}, NOON - HOUR)
    assert [s.request_id for s in world.archive.slates(NOON - 9 * HOUR, NOON)] == ["r1"]


def test_what_is_kept_in_part_wants_the_whole_message() -> None:
    whole = wire.encode_event(click("e1", "a", NOON)).value
    rejected = Rejected(Coordinate("l", TOPIC_EVENTS, 0, 1), "oversized", "", whole[:10], NOON, "ann", len(whole))
    with pytest.raises(BadRequest, match="only 10 of"):
        mended(rejected)
    message = mended(rejected, whole)
    taken = intake.read_event(Message(rejected.coordinate, message.key, message.value, NOON + HOUR))
    assert taken == click("e1", "a", NOON)


def test_a_field_is_set_to_json_or_to_a_text() -> None:
    value = with_fields(b'{"a":1,"b":{"c":2}}', {"a": "true", "b.c": "x y", "d.e": '"7"'})
    assert json.loads(value) == {"a": True, "b": {"c": "x y"}, "d": {"e": "7"}}
    for bad in (b"{oops", b"[1]", b"\xff"):
        with pytest.raises(BadRequest, match="no field can be set"):
            with_fields(bad, {"a": "1"})
    with pytest.raises(BadRequest, match="a is no object"):
        with_fields(b'{"a":1}', {"a.b": "1"})


def test_an_order_of_many_replays_does_not_matter() -> None:
    rows = []
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        world = World()
        clicks = [click(f"e{n}", f"item-{n}", NOON - n * HOUR) for n in range(3)]
        world.publish(*(Outgoing(TOPIC_EVENTS, "x", wire.encode_event(c).value) for c in clicks))
        entries = world.quarantine.list(9)
        for number in order:
            world.replay(entries[number])
            world.run()
        rows.append(world.features.read("ann").events)
    assert rows[0] == rows[1] == rows[2]
    assert [e.item_id for e in rows[0]] == ["item-0", "item-1", "item-2"]


def test_the_same_message_is_bad_for_every_reader() -> None:
    message = Message(Coordinate("l", TOPICS[0], 0, 0), "bob", wire.encode_event(click("e", "a", NOON)).value, NOON)
    with pytest.raises(WireError, match="key_mismatch"):
        intake.check(message)
