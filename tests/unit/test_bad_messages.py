"""Every kind of bad message on every topic: its own reason in the quarantine, the messages around it archived.

All kinds are published to one embedded log and read once by the archive consumer; each test looks at one of them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services import intake, wire
from services.archive.consumer import ArchiveConsumer
from services.archive.parts import FOR_EVER, ParquetArchive
from services.archive.rejected import SqlQuarantine
from services.bus.embedded import EmbeddedBus
from services.consume import consume
from services.domain import (
    TOPIC_EVENTS,
    TOPIC_ITEMS,
    TOPIC_SLATES,
    TOPICS,
    Coordinate,
    Event,
    ItemChange,
    Message,
    Outgoing,
    Pick,
    Reason,
    Slate,
    WireError,
)
from services.memory import MemoryArchive, MemoryBus, MemoryQuarantine
from services.quarantine import Rejected
from services.sqlite import open_database

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
PICK = Pick("film", 0, 1.5, "trending", Reason("trending_in", (), "Trending"))
GOOD: dict[str, Outgoing] = {
    TOPIC_EVENTS: wire.encode_event(Event("e1", "ann", "film", "click", NOW - timedelta(minutes=1), NOW)),
    TOPIC_ITEMS: wire.encode_item(ItemChange("film", "put", {"title": "Film"}, NOW - timedelta(minutes=1), NOW)),
    TOPIC_SLATES: wire.encode_slate(Slate("r1", "ann", None, 0, 0, (PICK,), (), (), NOW - timedelta(minutes=1))),
}
NULL = "<no key>"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of bad message. `value`: its bytes, or what is changed in a good message; None takes a field out."""

    topic: str
    name: str
    reason: str
    value: bytes | Mapping[str, object]
    key: str = ""

    def message(self) -> Outgoing:
        """It, with the key of the good message unless another is given."""
        good = GOOD[self.topic]
        return Outgoing(self.topic, self.key or good.key, self.value if isinstance(self.value, bytes) else self._made())

    def _made(self) -> bytes:
        assert isinstance(self.value, Mapping)
        fields: dict[str, Any] = json.loads(GOOD[self.topic].value) | dict(self.value)
        gone = {name for name, value in self.value.items() if value is None}
        return json.dumps({name: value for name, value in fields.items() if name not in gone}).encode()


def in_every_topic() -> Iterator[Kind]:
    """Bytes and envelopes that no topic takes."""
    for topic, good in GOOD.items():
        text = good.value
        doubled = text[:-1] + b',"v":1}'
        deep = text[:-1] + b',"more":' + b"[" * 40 + b"]" * 40 + b"}"
        deeper = text[:-1] + b',"more":' + b"[" * 9000 + b"]" * 9000 + b"}"
        nan = text[:-1] + b',"more":NaN}'
        infinity = text[:-1] + b',"more":[-Infinity]}'
        for name, reason, value in (
            ("no bytes", "empty", b""),
            ("10 MB", "oversized", text[:-1] + b',"more":"' + b"x" * 10_000_000 + b'"}'),
            ("cut in the middle", "truncated", text[: len(text) // 2]),
            ("cut before the last brace", "truncated", text[:-1]),
            ("cut within a letter", "truncated", b'{"user_id":"\xc3'),
            ("another encoding", "not_utf8", '{"user_id":"zo\xeb"}'.encode("latin-1")),
            ("compressed", "not_utf8", b"\x1f\x8b\x08\x00\x00\x00\x00\x00"),
            ("no JSON", "not_json", b"user_id=ann&item_id=film"),
            ("single quotes", "not_json", b"{'user_id':'ann'}"),
            ("a line break within a text", "not_json", b'{"user_id":"a\nb"}'),
            ("half of a letter", "bad_text", text[:-1] + b',"more":"\\ud800"}'),
            ("two documents", "trailing_data", text + text),
            ("a name twice", "duplicate_key", doubled),
            ("a name twice within", "duplicate_key", text[:-1] + b',"more":{"a":1,"a":1}}'),
            ("nested deep", "too_deep", deep),
            ("nested too deep for a reader", "too_deep", deeper),
            ("NaN", "not_finite", nan),
            ("infinity", "not_finite", infinity),
            ("a list", "not_an_object", b"[" + text + b"]"),
            ("a text", "not_an_object", b'"ann"'),
            ("null", "not_an_object", b"null"),
        ):
            yield Kind(topic, name, reason, value)
        yield Kind(topic, "a version of tomorrow", "unknown_version", {"v": 2})
        yield Kind(topic, "a version as text", "unknown_version", {"v": "1"})
        yield Kind(topic, "a version that is true", "unknown_version", {"v": True})
        yield Kind(topic, "somebody else's key", "key_mismatch", good.value, "bob")
        yield Kind(topic, "no key", "null_key", good.value, NULL)


def of_events() -> Iterator[Kind]:
    """What only an event can have wrong."""
    for reason, changed in (
        ("missing_user_id", {"user_id": None}), ("missing_item_id", {"item_id": None}),
        ("bad_user_id", {"user_id": ["ann"]}), ("bad_item_id", {"item_id": 1.5}), ("bad_kind", {"kind": {"a": 1}}),
        ("bad_event_id", {"event_id": True}), ("bad_request_id", {"request_id": []}),
        ("bad_session_id", {"session_id": {}}),
        ("empty_user_id", {"user_id": "  "}), ("empty_item_id", {"item_id": ""}), ("empty_kind", {"kind": ""}),
        ("long_user_id", {"user_id": "u" * 257}), ("long_item_id", {"item_id": "i" * 5000}),
        ("long_kind", {"kind": "k" * 257}), ("long_event_id", {"event_id": "e" * 257}),
        ("control_in_user_id", {"user_id": "ann\x00"}), ("control_in_item_id", {"item_id": "film\x1b[2J"}),
        ("control_in_kind", {"kind": "cl\nick"}), ("control_in_session_id", {"session_id": "\x7f"}),
        ("bad_time", {"occurred_at": "yesterday"}), ("bad_time", {"occurred_at": False}),
        ("bad_time", {"occurred_at": "2026-13-45T99:00:00Z"}), ("bad_time", {"occurred_at": 1e300}),
        ("bad_time", {"occurred_at": "0001-01-01T00:00:00+23:00"}),
        ("future", {"occurred_at": "2026-11-23T12:05:01Z"}), ("future", {"occurred_at": "9999-01-01T00:00:00Z"}),
        ("too_old", {"occurred_at": "1970-01-01T00:00:00Z"}), ("too_old", {"occurred_at": 0}),
        ("bad_value", {"value": "much"}), ("bad_value", {"value": True}), ("bad_value", {"value": [1]}),
        ("not_finite", {"value": 10**400}), ("not_finite", {"value": "inf"}),
        ("negative_value", {"kind": "purchase", "value": -0.01}),
        ("bad_properties", {"properties": "page=home"}),
        ("many_properties", {"properties": {f"p{n}": "x" for n in range(51)}}),
    ):  # fmt: skip
        yield Kind(TOPIC_EVENTS, f"{changed}"[:40], reason, changed)


def of_items() -> Iterator[Kind]:
    """What only an item can have wrong."""
    for reason, changed in (
        ("missing_item_id", {"item_id": None}), ("bad_item_id", {"item_id": {}}), ("empty_item_id", {"item_id": ""}),
        ("long_item_id", {"item_id": "i" * 257}), ("control_in_item_id", {"item_id": "a\tb"}),
        ("missing_operation", {"operation": None}), ("bad_operation", {"operation": "drop"}),
        ("bad_fields", {"fields": ["title"]}), ("unknown_field", {"fields": {"colour": "red"}}),
        ("bad_title", {"fields": {"title": 7}}), ("bad_text", {"fields": {"text": None}}),
        ("bad_available", {"fields": {"available": "no"}}), ("bad_categories", {"fields": {"categories": "Drama"}}),
        ("bad_attributes", {"fields": {"attributes": [1]}}),
        ("bad_time", {"fields": {"published_at": "soon"}}), ("bad_time", {"updated_at": "soon"}),
        ("too_old", {"updated_at": "1970-01-01T00:00:00Z"}),
        ("many_properties", {"fields": {"attributes": {f"p{n}": "x" for n in range(51)}}}),
    ):  # fmt: skip
        yield Kind(TOPIC_ITEMS, f"{changed}"[:40], reason, changed)


def of_slates() -> Iterator[Kind]:
    """What only a slate can have wrong."""
    pick = {"item_id": "film", "score": 1.0, "source": "x", "reason_kind": "for_you"}
    for reason, changed in (
        ("bad_slate", {"items": "film"}), ("bad_slate", {"items": None}), ("bad_slate", {"request_id": None}),
        ("bad_slate", {"user_row_time_us": "now"}), ("bad_slate", {"asked_at": 17}),
        ("empty_request_id", {"request_id": ""}), ("long_request_id", {"request_id": "r" * 257}),
        ("control_in_user_id", {"user_id": "a\x01"}), ("empty_item_id", {"items": [pick | {"item_id": ""}]}),
        ("negative_time", {"user_row_time_us": -1}), ("negative_time", {"items_as_of": -5}),
        ("duplicate_item", {"items": [pick, pick]}), ("bad_propensity", {"items": [pick | {"propensity": 1.5}]}),
        ("future", {"asked_at": "2026-11-23T12:06:00Z"}), ("too_old", {"asked_at": "1970-01-01T00:00:00Z"}),
    ):  # fmt: skip
        yield Kind(TOPIC_SLATES, f"{changed}"[:40], reason, changed)


KINDS = [*in_every_topic(), *of_events(), *of_items(), *of_slates()]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of all of them: entries by coordinate, where each kind stood, how many good ones were archived."""

    entries: Mapping[Coordinate, Rejected]
    places: tuple[Coordinate, ...]
    archived: tuple[int, int, int]
    lag: int


def read_all(home: Path, messages: list[Outgoing]) -> Outcome:
    """Publish, take the key away where that is the fault, and let the archive consumer read it all."""
    bus = EmbeddedBus(home / "bus.db", 2, 5000, 24, now=lambda: NOW).open()
    engine = open_database(home / "meta.db")
    archive, quarantine = ParquetArchive(home / "archive"), SqlQuarantine(engine, bytes_max=10**9)
    try:
        places = bus.sink().publish(messages)
        with sqlite3.connect(home / "bus.db") as connection:
            connection.execute("UPDATE messages SET key = NULL WHERE key = ?", (NULL,))
        connection.close()
        source = bus.source("archive", TOPICS)
        source.poll(0, 0)
        consumer = ArchiveConsumer(archive, quarantine)
        consume(source, consumer, lambda: not any(source.lag().values()), records_max=50, wait_s=0)
        entries = {e.rejected.coordinate: e.rejected for e in quarantine.list(10_000)}
        events = sum(1 for _ in archive.events(*FOR_EVER))
        slates, items = sum(1 for _ in archive.slates(*FOR_EVER)), sum(1 for _ in archive.item_changes(*FOR_EVER))
        return Outcome(entries, places, (events, slates, items), sum(source.lag().values()))
    finally:
        bus.close()
        engine.dispose()


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Every kind once, a good event of a user of its own, an item and a slate after each."""
    messages: list[Outgoing] = []
    for number, kind in enumerate(KINDS):
        event = Event(f"g{number}", f"user-{number}", "film", "click", NOW, NOW)
        messages += [kind.message(), wire.encode_event(event), GOOD[TOPIC_ITEMS], GOOD[TOPIC_SLATES]]
    return read_all(tmp_path_factory.mktemp("kinds"), messages)


def test_there_are_many_kinds_and_each_topic_has_25_reasons_or_more() -> None:
    assert len({(kind.topic, kind.name, kind.reason) for kind in KINDS}) == len(KINDS)
    by_topic = {topic: {kind.reason for kind in KINDS if kind.topic == topic} for topic in TOPICS}
    assert {topic: len(reasons) >= 20 for topic, reasons in by_topic.items()} == dict.fromkeys(TOPICS, True)
    assert len(set().union(*by_topic.values())) >= 45


@pytest.mark.parametrize("number", range(len(KINDS)), ids=[f"{k.topic[10:]}: {k.name}" for k in KINDS])
def test_a_bad_message_is_kept_with_its_own_reason(outcome: Outcome, number: int) -> None:
    kind, place = KINDS[number], outcome.places[4 * number]
    entry = outcome.entries[place]
    sent = kind.message()
    assert (entry.reason, entry.key) == (kind.reason, None if kind.key == NULL else sent.key)
    assert (entry.size, entry.value) == (len(sent.value), sent.value[:1_000_000])
    assert entry.detail
    assert entry.detail.isprintable()


def test_the_messages_around_the_bad_ones_are_archived_and_no_partition_stands_still(outcome: Outcome) -> None:
    assert set(outcome.entries) == set(outcome.places[::4])
    assert outcome.archived == (len(KINDS), len(KINDS), len(KINDS))
    assert outcome.lag == 0


def test_a_tombstone_has_a_reason_of_its_own() -> None:
    for topic in TOPICS:  # only a foreign producer on Kafka can write one
        message = Message(Coordinate("log", topic, 0, 1), "ann", None, NOW)
        (entry,) = intake.read([message]).rejected
        assert (entry.reason, entry.value) == ("null_value", b"")


def test_an_unknown_kind_is_no_fault_it_is_neutral() -> None:
    event = Event("e", "ann", "film", "wink", NOW, NOW)
    out = wire.encode_event(event)
    (taken,) = intake.read([Message(Coordinate("l", out.topic, 0, 0), out.key, out.value, NOW)]).events
    assert taken[1] == event


keys = st.sampled_from(["ann", "film", "bob", "r1"])
whatever = st.binary(max_size=60) | st.sampled_from([kind.message().value for kind in KINDS if kind.name != "10 MB"])
changed = st.builds(
    lambda good, at, byte: good[: at % len(good)] + bytes([byte]) + good[at % len(good) + 1 :],
    st.sampled_from([message.value for message in GOOD.values()]), st.integers(0, 500), st.integers(0, 255),
)  # fmt: skip
messages = st.builds(
    Outgoing, st.sampled_from(TOPICS), keys, whatever | changed | st.sampled_from([m.value for m in GOOD.values()])
)


@settings(max_examples=150, deadline=None)
@given(st.lists(messages, min_size=1, max_size=40))
def test_any_bytes_stop_no_partition_and_everything_is_archived_or_kept_exactly_once(sent: list[Outgoing]) -> None:
    bus, archive, quarantine = MemoryBus(2, lambda: NOW), RecordingArchive(), MemoryQuarantine(bytes_max=10**9)
    places = bus.publish(sent)
    source = bus.source("archive", TOPICS)
    source.poll(0, 0)
    consume(
        source, ArchiveConsumer(archive, quarantine, rows_max=7), lambda: not any(source.lag().values()),
        records_max=5, wait_s=0,
    )  # fmt: skip
    kept = [entry.rejected.coordinate for entry in quarantine.list(1000)]
    assert sorted(archive.written + kept) == sorted(places)
    for entry in quarantine.list(1000):
        with pytest.raises(WireError):
            intake.check(replace_key(entry.rejected))


class RecordingArchive(MemoryArchive):
    """An archive that notes every coordinate each time it is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[Coordinate] = []

    def append(self, *records: Any) -> None:
        super().append(*records)
        self.written += [coordinate for kind in records for coordinate, _ in kind]


def replace_key(rejected: Rejected) -> Message:
    """The message as it was read."""
    return Message(rejected.coordinate, rejected.key, rejected.value, rejected.accepted_at)
