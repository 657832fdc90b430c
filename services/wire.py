"""The wire: JSON, one schema with a version field `v`, for events, item changes and slates.

Ours is written canonically; what others write is read too (aliases, epoch times). Reading never trusts: a message that
does not fit raises WireError with a reason that is counted and kept in the quarantine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

import msgspec

from services.domain import (
    NO_PROPERTIES,
    TOPIC_EVENTS,
    TOPIC_ITEMS,
    TOPIC_SLATES,
    Event,
    ItemChange,
    Message,
    Operation,
    Outgoing,
    Pick,
    Reason,
    Rejected,
    Slate,
    WireError,
    to_us,
)
from services.fields import aware, check_id, check_item_fields, id_text, number_of, parse_time, properties_of

VERSION = 1
BYTES_MAX = 64 * 1024
FUTURE_CLAMPED = timedelta(minutes=5)
OLDEST = datetime(1995, 1, 1, tzinfo=UTC)
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, OverflowError, RecursionError)
"""What reading foreign bytes may raise: no JSON, another shape, a number that no float holds, a too deep nesting."""

EVENT_ALIASES: Mapping[str, tuple[str, ...]] = {
    "user_id": ("userId", "UserId", "user", "visitorId", "uid"),
    "item_id": ("itemId", "ItemId", "item"),
    "kind": ("event_type", "eventType", "FeedbackType", "type"),
    "occurred_at": ("timestamp", "sentAt", "Timestamp", "eventTime"),
    "value": ("eventValue", "Value", "rating"),
    "event_id": ("eventId", "id"),
    "session_id": ("sessionId",),
    "request_id": ("recommendation_id", "recommendationId", "ranking"),
    "properties": (),
}
_OURS: Mapping[str, str] = {alias: ours for ours, aliases in EVENT_ALIASES.items() for alias in (ours, *aliases)}


class WireEvent(msgspec.Struct, omit_defaults=True):
    """An event as it is written: field order here is byte order on the wire (the golden messages hold it)."""

    v: int
    event_id: str
    user_id: str
    item_id: str
    kind: str
    occurred_at: datetime
    value: float | None = None
    request_id: str | None = None
    session_id: str | None = None
    properties: dict[str, str] | None = None


class WireItem(msgspec.Struct, omit_defaults=True):
    """An item change as it is written."""

    v: int
    item_id: str
    operation: Operation
    updated_at: datetime
    fields: dict[str, object] = {}


class WirePick(msgspec.Struct, omit_defaults=True):
    item_id: str
    score: float
    source: str
    reason_kind: str
    reason_items: list[str] = []
    reason_text: str = ""


class WireSlate(msgspec.Struct, omit_defaults=True):
    """A served slate as it is written; `dropped` is not written (it is for debugging at the desk)."""

    v: int
    request_id: str
    user_id: str | None
    release_id: str | None
    user_row_time_us: int
    items_as_of: int
    asked_at: datetime
    items: list[WirePick]
    degraded: list[str] = []
    items_as_of_us: int = 0
    features: bytes = b""


_event_decoder = msgspec.json.Decoder(WireEvent)
_item_decoder = msgspec.json.Decoder(WireItem)
_slate_decoder = msgspec.json.Decoder(WireSlate)
_encoder = msgspec.json.Encoder()


# --------------------------------------------------------------------------------------------- reading


def decode_event(value: bytes, accepted_at: datetime) -> Event:
    """The event in a message. Lateness and future are judged against `accepted_at`, never against a clock here."""
    _check_size(value)
    try:
        wire = _event_decoder.decode(value)
    except UNREADABLE:
        return parse_event(_decode_object(value), accepted_at)
    if wire.v != VERSION:
        raise WireError("unknown_version", f"v={wire.v}, this reader knows {VERSION}")
    for name in ("event_id", "user_id", "item_id", "kind"):
        check_id(name, getattr(wire, name))
    return _event(wire, accepted_at)


def parse_event(fields: Mapping[str, object], accepted_at: datetime) -> Event:
    """An event from a mapping with our field names or their aliases (an API body, an import row, a foreign message)."""
    version = fields.get("v", VERSION)
    if version != VERSION:
        raise WireError("unknown_version", f"v={version!r}, this reader knows {VERSION}")
    ours = {_OURS[name]: given for name, given in fields.items() if name in _OURS and given is not None}
    user_id, item_id = id_text(ours, "user_id"), id_text(ours, "item_id")
    kind = id_text(ours, "kind") if "kind" in ours else "click"
    occurred_at = parse_time(ours["occurred_at"], "occurred_at") if "occurred_at" in ours else accepted_at
    wire = WireEvent(
        v=VERSION,
        event_id=id_text(ours, "event_id") if "event_id" in ours else "",
        user_id=user_id,
        item_id=item_id,
        kind=kind,
        occurred_at=occurred_at,
        value=number_of(ours["value"]) if "value" in ours else None,
        request_id=id_text(ours, "request_id") if "request_id" in ours else None,
        session_id=id_text(ours, "session_id") if "session_id" in ours else None,
        properties=properties_of(ours["properties"]) if "properties" in ours else None,
    )
    if not wire.event_id:
        wire.event_id = derived_event_id(wire)
    return _event(wire, accepted_at)


def derived_event_id(wire: WireEvent, ordinal: int = 0) -> str:
    """An id from all normalised fields (and an ordinal among equals), so that a retry is the same event."""
    parts = (wire.user_id, wire.item_id, wire.kind, str(to_us(wire.occurred_at)), repr(wire.value))
    more = (wire.request_id or "", wire.session_id or "", repr(sorted((wire.properties or {}).items())), str(ordinal))
    return "d" + hashlib.blake2b("\x1f".join(parts + more).encode(), digest_size=12).hexdigest()


def decode_item(value: bytes, accepted_at: datetime) -> ItemChange:
    """The item change in a message; `updated_at` is capped at `accepted_at`."""
    _check_size(value)
    try:
        wire = _item_decoder.decode(value)
    except UNREADABLE as error:
        _decode_object(value)  # says truncated or not an object, where that is the cause
        raise WireError("bad_item", str(error)) from None
    if wire.v != VERSION:
        raise WireError("unknown_version", f"v={wire.v}, this reader knows {VERSION}")
    check_id("item_id", wire.item_id)
    updated_at = min(aware(wire.updated_at), accepted_at)
    return ItemChange(wire.item_id, wire.operation, check_item_fields(wire.fields), updated_at, accepted_at)


def decode_slate(value: bytes) -> Slate:
    """The slate in a message."""
    try:
        wire = _slate_decoder.decode(value)
    except UNREADABLE as error:
        raise WireError("bad_slate", str(error)) from None
    if wire.v != VERSION:
        raise WireError("unknown_version", f"v={wire.v}, this reader knows {VERSION}")
    picks = tuple(
        Pick(p.item_id, rank, p.score, p.source, Reason(p.reason_kind, tuple(p.reason_items), p.reason_text))  # type: ignore[arg-type]
        for rank, p in enumerate(wire.items)
    )
    return Slate(
        wire.request_id,
        wire.user_id,
        wire.release_id,
        wire.user_row_time_us,
        wire.items_as_of,
        picks,
        tuple(wire.degraded),
        (),
        aware(wire.asked_at),
        wire.items_as_of_us,
        wire.features,
    )


def decode_events(messages: Iterable[Message]) -> tuple[list[tuple[Message, Event]], list[Rejected]]:
    """Every message of the events topic as an event or as a rejected one, in order; other topics are passed over."""
    events: list[tuple[Message, Event]] = []
    rejected: list[Rejected] = []
    for message in messages:
        if message.coordinate.topic != TOPIC_EVENTS:
            continue
        try:
            events.append((message, decode_event(message.value, message.accepted_at)))
        except WireError as error:
            rejected.append(reject(message, error))
    return events, rejected


def reject(message: Message, error: WireError) -> Rejected:
    """The quarantine entry of a message that raised `error`."""
    return Rejected(message.coordinate, error.reason, error.detail, message.value, message.accepted_at)


# --------------------------------------------------------------------------------------------- writing


def encode_event(event: Event) -> Outgoing:
    """The message of an event, keyed by its user."""
    wire = WireEvent(
        VERSION,
        event.event_id,
        event.user_id,
        event.item_id,
        event.kind,
        event.occurred_at,
        event.value,
        event.request_id,
        event.session_id,
        dict(event.properties) or None,
    )
    return Outgoing(TOPIC_EVENTS, event.user_id, _encoder.encode(wire))


def encode_item(change: ItemChange) -> Outgoing:
    """The message of an item change, keyed by its item."""
    wire = WireItem(VERSION, change.item_id, change.operation, change.updated_at, dict(change.fields))
    return Outgoing(TOPIC_ITEMS, change.item_id, _encoder.encode(wire))


def encode_slate(slate: Slate) -> Outgoing:
    """The message of a served slate, keyed by its user (by its request where there is none)."""
    picks = [
        WirePick(p.item_id, p.score, p.source, p.reason.kind, list(p.reason.item_ids), p.reason.text)
        for p in slate.items
    ]
    wire = WireSlate(
        VERSION,
        slate.request_id,
        slate.user_id,
        slate.release_id,
        slate.user_row_time_us,
        slate.items_as_of,
        slate.asked_at,
        picks,
        list(slate.degraded),
        slate.items_as_of_us,
        slate.features,
    )
    return Outgoing(TOPIC_SLATES, slate.user_id or slate.request_id, _encoder.encode(wire))


# --------------------------------------------------------------------------------------------- fields


def _event(wire: WireEvent, accepted_at: datetime) -> Event:
    occurred_at = aware(wire.occurred_at)
    if occurred_at > accepted_at:
        if occurred_at - accepted_at > FUTURE_CLAMPED:
            raise WireError("future", f"occurred_at {occurred_at.isoformat()} is over 5 min after it was accepted")
        occurred_at = accepted_at
    if occurred_at < OLDEST:
        raise WireError("too_old", f"occurred_at {occurred_at.isoformat()} is before {OLDEST.date()}")
    return Event(
        wire.event_id,
        wire.user_id,
        wire.item_id,
        wire.kind,
        occurred_at,
        accepted_at,
        None if wire.value is None else number_of(wire.value),
        wire.request_id,
        wire.session_id,
        wire.properties or NO_PROPERTIES,
    )


def _check_size(value: bytes) -> None:
    if len(value) > BYTES_MAX:
        raise WireError("oversized", f"{len(value)} bytes, the limit is {BYTES_MAX}")
    if not value:
        raise WireError("empty", "no bytes")


def _decode_object(value: bytes) -> dict[str, object]:
    try:
        decoded = msgspec.json.decode(value)
    except UNREADABLE as error:
        raise WireError("not_json", str(error)) from None
    if not isinstance(decoded, dict):
        raise WireError("not_an_object", f"a JSON {type(decoded).__name__}")
    return decoded
