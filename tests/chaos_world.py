"""A stream with everything that goes wrong in it, the answer that one undisturbed process gives to it, and what the
stores of an instance hold: three values that can be compared.

The answer is computed from the messages alone with the in-memory implementations (trends: in a SQLite file of its own).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Engine, select

from services import wire
from services.archive.consumer import ArchiveConsumer
from services.bounds import BOUNDED, Bounds
from services.catalogue.cards import MemoryCatalogue
from services.catalogue.live import write_parts
from services.domain import (
    HOUR_US,
    TOPIC_EVENTS,
    TOPIC_ITEMS,
    TOPIC_SLATES,
    TOPICS,
    Batch,
    Coordinate,
    Event,
    ItemCard,
    ItemChange,
    KindRules,
    Message,
    Outgoing,
    Partition,
    Pick,
    Reason,
    Slate,
    UserState,
    WireError,
)
from services.features.consumer import FeaturesConsumer
from services.features.history import MemoryHistory
from services.item_parts import Payload, StatsPart, decode_part
from services.memory import MemoryArchive, MemoryFeatureStore, MemoryQuarantine
from services.ports import Archive
from services.quarantine import Entry
from services.settings import DEFAULT_KINDS
from services.sqlite import open_database
from services.tables import items_live, trend_covisits, trend_hours
from services.trends.consumer import TrendsConsumer, TrendsSettings
from services.trends.counters import decayed_hours
from services.wiring import Home, now

RULES = KindRules(DEFAULT_KINDS)
KINDS = ("click",) * 12 + ("purchase", "like", "cart", "hide", "view", "view", "impression", "rating")
DUPLICATES, LATE, BROKEN, ITEMS, SLATES = 0.02, 0.05, 0.01, 0.03, 0.02
SPAN = timedelta(hours=6)
GROUPS = {
    "features": (TOPIC_EVENTS,),
    "trends": (TOPIC_EVENTS, TOPIC_SLATES),
    "archive": TOPICS,
    "catalogue": (TOPIC_ITEMS,),
}
EVER = (datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC))


# ------------------------------------------------------------------------------------------------ stream


def stream(seed: int, events: int, begins: datetime) -> list[Outgoing]:
    """`events` events in SPAN of event time, with duplicates, late and broken ones, and item changes and slates between
    them. The same for the same arguments."""
    chance = random.Random(seed)
    users, items = max(20, events // 60), max(20, events // 80)
    sent: list[Outgoing] = []
    for n in range(events):
        at = begins + SPAN * (n / events)
        if chance.random() < LATE:
            at -= timedelta(minutes=chance.randint(10, 40 * 60))
        if sent and chance.random() < DUPLICATES:
            sent.append(_event_before(sent, chance))
            continue
        if chance.random() < BROKEN:
            sent.append(_broken(chance, n, users))
            continue
        kind = chance.choice(KINDS)
        sent.append(
            wire.encode_event(
                Event(
                    f"e{seed}-{n}", _skewed(chance, "u", users), _skewed(chance, "i", items), kind, at, at,
                    value=float(chance.randint(1, 10)) if kind == "rating" else None,
                )
            )
        )  # fmt: skip
        if chance.random() < ITEMS:
            sent.append(_change(chance, n, items, at))
        if chance.random() < SLATES:
            sent.append(wire.encode_slate(_slate(chance, f"s{seed}-{n}", users, items, at)))
    return sent


def _skewed(chance: random.Random, letter: str, count: int) -> str:
    """Few are met often, many rarely: some users have far more events than a row holds."""
    return f"{letter}{int(count * chance.random() ** 2.5)}"


def _event_before(sent: Sequence[Outgoing], chance: random.Random) -> Outgoing:
    """A sender that tries again: mostly at once, sometimes much later."""
    back = chance.choice((1, 3, 10, 100, 2000, len(sent)))
    for message in reversed(sent[-back:][: max(1, back // 2)]):
        if message.topic == TOPIC_EVENTS:
            return message
    return next(message for message in sent if message.topic == TOPIC_EVENTS)


def _broken(chance: random.Random, n: int, users: int) -> Outgoing:
    good = {
        "v": 1, "event_id": f"b{n}", "user_id": f"u{n % users}", "item_id": "i1", "kind": "click",
        "occurred_at": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    text = json.dumps(good)
    values = (
        text[: chance.randint(1, len(text) - 1)].encode(), b"", b"\xff\xfe\x00", b"[]", b"null",
        json.dumps({**good, "v": 99}).encode(), json.dumps({**good, "user_id": ""}).encode(),
        json.dumps({**good, "occurred_at": "2199-01-01T00:00:00Z"}).encode(),
        json.dumps({**good, "occurred_at": "1970-01-01T00:00:00Z"}).encode(),
        json.dumps({**good, "value": "NaN"}).encode(), json.dumps({**good, "item_id": ["i1"]}).encode(),
        json.dumps({**good, "properties": {"long": "x" * 70_000}}).encode(),
    )  # fmt: skip
    topic = chance.choice((TOPIC_EVENTS, TOPIC_EVENTS, TOPIC_EVENTS, TOPIC_ITEMS))
    return Outgoing(topic, f"u{n % users}", chance.choice(values))


def _change(chance: random.Random, n: int, items: int, at: datetime) -> Outgoing:
    item_id = _skewed(chance, "i", items)
    fields: dict[str, object] = {"title": f"Title {n}", "categories": [f"c{n % 5}"]}
    match chance.randrange(10):
        case 0:
            change = ItemChange(item_id, "delete", {}, at, at)
        case 1 | 2 | 3:
            change = ItemChange(item_id, "patch", {"available": chance.random() < 0.5}, at, at)
        case _:
            change = ItemChange(item_id, "put", fields, at, at)
    return wire.encode_item(change)


def _slate(chance: random.Random, request_id: str, users: int, items: int, at: datetime) -> Slate:
    shown = dict.fromkeys(_skewed(chance, "i", items) for _ in range(8))
    picks = tuple(
        Pick(i, rank, 1.0 / (rank + 1), "trending", Reason("for_you", (), "")) for rank, i in enumerate(shown)
    )
    return Slate(request_id, _skewed(chance, "u", users), None, 0, 0, picks, (), (), at)


# ------------------------------------------------------------------------------------------------ answer


@dataclass(frozen=True)
class Answer:
    """All that the four consumers make of a stream, in a form that can be compared."""

    events: list[Event]
    slates: list[str]
    rejected: dict[Coordinate, tuple[str, bytes]]
    rows: dict[str, UserState]
    hours: dict[tuple[str, int], tuple[int, ...]]
    counts: dict[str, list[float]]
    covisits: dict[str, float]
    cards: list[ItemCard]

    def differences(self, other: Answer, covisits: bool = True) -> list[str]:
        """What is not the same, in words; empty when all is."""
        found: list[str] = []
        for name in ("events", "slates", "cards"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                wrong = [(m, t) for m, t in zip(mine, theirs, strict=False) if m != t][:1]
                found.append(f"{name}: {len(mine)} and {len(theirs)}, first difference {wrong}")
        for name in ("rejected", "rows", "hours"):
            found += _different(name, getattr(self, name), getattr(other, name))
        found += _distant("counts", self.counts, other.counts)
        if covisits:
            totals = ({i: [t] for i, t in each.items()} for each in (self.covisits, other.covisits))
            found += _distant("covisits", *totals)
        return found


def _different(name: str, mine: Mapping[Any, Any], theirs: Mapping[Any, Any]) -> list[str]:
    wrong = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
    if not wrong:
        return []
    first = wrong[0]
    return [f"{name}: {len(wrong)} of {len(mine)} differ, {first}: {mine.get(first)} and {theirs.get(first)}"]


def _distant(name: str, mine: Mapping[str, list[float]], theirs: Mapping[str, list[float]]) -> list[str]:
    """Sums of floats, made in another order: equal to a hundred-thousandth."""
    if mine.keys() != theirs.keys():
        return [f"{name}: {sorted(mine.keys() ^ theirs.keys())[:5]} only on one side"]
    wrong = [key for key in mine if not np.allclose(mine[key], theirs[key], rtol=1e-5, atol=0.0)]
    told = (f"{name}: {len(wrong)} of {len(mine)} differ, {key}: {mine[key]} and {theirs[key]}" for key in wrong)
    return list(told)[:1]


def timeless(row: UserState) -> UserState:
    """A row without its times, which tell how often it was written."""
    return replace(row, row_time_us=0, previous_row_time_us=0)


class _Fed:
    """An EventSource for a consumer that is fed by hand."""

    def seek(self, offsets: Mapping[Partition, int]) -> None:
        assert not any(offsets.values()), "nothing was stored before"

    def lag(self) -> Mapping[Partition, int]:
        return {}


def single_process_answer(messages: Sequence[Message], folder: Path, bounds: Bounds = BOUNDED) -> Answer:
    """What one process that nothing happens to makes of these messages."""
    ordered = sorted(messages, key=lambda m: (m.accepted_at, m.coordinate))
    archive, quarantine, store, catalogue = MemoryArchive(), MemoryQuarantine(), MemoryFeatureStore(), MemoryCatalogue()
    engine = open_database(folder / "reference.db")
    trends = TrendsConsumer(
        engine, RULES, MemoryHistory(tuple), write_parts, lambda *_topic: messages[0].coordinate.log_id, now,
        TrendsSettings(flush_s=1e9, flush_events=5000, bounds=bounds),
    )  # fmt: skip
    features = FeaturesConsumer(store, RULES, now)
    archiver = ArchiveConsumer(archive, quarantine)
    gained = tuple(sorted({Partition(m.coordinate.topic, m.coordinate.partition) for m in ordered}))
    trends.start(_Fed(), tuple(p for p in gained if p.topic in trends.topics))  # type: ignore[arg-type]
    for start in range(0, len(ordered), 1000):
        batch = Batch(tuple(ordered[start : start + 1000]))
        archiver.apply(batch)
        features.apply(Batch(tuple(m for m in batch.messages if m.coordinate.topic == TOPIC_EVENTS)))
        trends.apply(Batch(tuple(m for m in batch.messages if m.coordinate.topic in trends.topics)))
        catalogue.apply(_changes(batch.messages))
    archiver.stop(())
    trends.stop(())
    users = _users(archive.events(*EVER))
    answer = _answer(archive, quarantine.list(10**9), store.read_many(users), engine, catalogue.all_cards())
    engine.dispose()
    return answer


def stored_answer(home: Home) -> Answer:
    """What an instance's stores hold."""
    users = _users(home.archive.events(*EVER))
    rows = home.features.read_many(users)
    return _answer(home.archive, home.quarantine.list(10**9), rows, home.engine, home.catalogue.all_cards())


def offline_answer(home: Home, user_ids: Sequence[str]) -> dict[str, list[tuple[int, str, str, float]]]:
    """By user, the events (when, item, kind, weight; newest first) of the newest row of the offline history."""
    later = np.full(len(user_ids), int(EVER[1].timestamp()) * 1_000_000 - 1, dtype=np.int64)
    rows = home.history.users_at(user_ids, later)
    events = list(
        zip(
            rows.occurred_us.tolist(), [rows.item_ids[code] for code in rows.item_codes.tolist()],
            [rows.kinds[code] for code in rows.kind_codes.tolist()], rows.weight.tolist(), strict=True,
        )
    )  # fmt: skip
    return {u: events[rows.offsets[n] : rows.offsets[n + 1]] for n, u in enumerate(user_ids)}


def events_of(rows: Mapping[str, UserState]) -> dict[str, list[tuple[int, str, str, float]]]:
    """The same of rows as they are served."""
    return {u: [(e.occurred_us, e.item_id, e.kind, e.weight) for e in row.events] for u, row in rows.items()}


def _users(events: Iterable[Event]) -> list[str]:
    return sorted({event.user_id for event in events})


def _changes(messages: Iterable[Message]) -> list[tuple[Coordinate, ItemChange]]:
    changes: list[tuple[Coordinate, ItemChange]] = []
    for message in messages:
        if message.coordinate.topic == TOPIC_ITEMS:
            try:
                changes.append((message.coordinate, wire.decode_item(message.value, message.accepted_at)))
            except WireError:
                continue
    return changes


def _answer(
    archive: Archive, quarantined: Sequence[Entry], rows: Iterable[UserState], engine: Engine,
    cards: Iterable[ItemCard],
) -> Answer:  # fmt: skip
    parts = select(items_live.c.item_id, items_live.c.payload).where(items_live.c.part == "stats")
    with engine.connect() as connection:
        hours = connection.execute(select(trend_hours)).all()
        stats = {row.item_id: decode_part("stats", row.payload) for row in connection.execute(parts)}
        covisits = {row.item_id: row.total for row in connection.execute(select(trend_covisits))}
    ends_us = (1 + max(row.hour for row in hours)) * HOUR_US
    each_rejected = (entry.rejected for entry in quarantined)
    rejected = {each.coordinate: (each.reason, each.value) for each in each_rejected}
    assert len(rejected) == len(quarantined), "the quarantine holds a message twice"
    return Answer(
        events=list(archive.events(*EVER)),
        slates=sorted(slate.request_id for slate in archive.slates(*EVER)),
        rejected=rejected,
        rows={row.user_id: timeless(row) for row in rows},
        hours={(row.item_id, row.hour): tuple(row[2:]) for row in hours},
        counts={item_id: _counts_at(part, ends_us) for item_id, part in stats.items()},
        covisits=covisits,
        cards=list(cards),
    )


def _counts_at(part: Payload, at_us: int) -> list[float]:
    """Counts as of one moment for all items: stores hold them as of the last time they were touched."""
    assert isinstance(part, StatsPart)
    counts = decayed_hours(np.asarray(part.counts, dtype=np.float64), (at_us - part.at_us) / HOUR_US)
    return [float(count) for count in counts]


def read_all(home: Home, ends: Mapping[Partition, int]) -> list[Message]:
    """Every message of the log up to these ends, read by a group of its own."""
    source = home.bus.source("reader-of-everything", TOPICS)
    found: list[Message] = []
    deadline = now() + timedelta(seconds=60)
    while len(found) < sum(ends.values()):
        assert now() < deadline, f"{len(found)} of {sum(ends.values())} messages could be read"
        found += source.poll(5000, 0.2).messages
    source.close()
    return found


def begins_now() -> datetime:
    """Long enough ago that nothing of the stream is in the future, and not so long that counts are forgotten."""
    return (datetime.now(UTC) - timedelta(days=3)).replace(minute=0, second=0, microsecond=0)
