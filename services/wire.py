"""The wire: JSON, one schema with a version field `v`, for events, item changes and slates.

Ours is written canonically; what others write is read too (aliases, epoch times). Reading never trusts: a message that
does not fit raises WireError with a reason that is counted and kept in the quarantine.
"""

from __future__ import annotations

import hashlib
import math
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
    from_us,
    to_us,
)

VERSION = 1
BYTES_MAX = 64 * 1024
ID_LENGTH_MAX = 256
PROPERTIES_MAX = 50
FUTURE_CLAMPED = timedelta(minutes=5)
OLDEST = datetime(1995, 1, 1, tzinfo=UTC)

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
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return parse_event(_decode_object(value), accepted_at)
    if wire.v != VERSION:
        raise WireError("unknown_version", f"v={wire.v}, this reader knows {VERSION}")
    for name in ("event_id", "user_id", "item_id", "kind"):
        _check_id(name, getattr(wire, name))
    return _event(wire, accepted_at)


def parse_event(fields: Mapping[str, object], accepted_at: datetime) -> Event:
    """An event from a mapping with our field names or their aliases (an API body, an import row, a foreign message)."""
    version = fields.get("v", VERSION)
    if version != VERSION:
        raise WireError("unknown_version", f"v={version!r}, this reader knows {VERSION}")
    ours = {_OURS[name]: given for name, given in fields.items() if name in _OURS and given is not None}
    user_id, item_id = _text(ours, "user_id"), _text(ours, "item_id")
    kind = _text(ours, "kind") if "kind" in ours else "click"
    occurred_at = parse_time(ours["occurred_at"], "occurred_at") if "occurred_at" in ours else accepted_at
    wire = WireEvent(
        v=VERSION,
        event_id=_text(ours, "event_id") if "event_id" in ours else "",
        user_id=user_id,
        item_id=item_id,
        kind=kind,
        occurred_at=occurred_at,
        value=_number(ours["value"]) if "value" in ours else None,
        request_id=_text(ours, "request_id") if "request_id" in ours else None,
        session_id=_text(ours, "session_id") if "session_id" in ours else None,
        properties=_properties(ours["properties"]) if "properties" in ours else None,
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
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        _decode_object(value)  # says truncated or not an object, where that is the cause
        raise WireError("bad_item", str(error)) from None
    if wire.v != VERSION:
        raise WireError("unknown_version", f"v={wire.v}, this reader knows {VERSION}")
    _check_id("item_id", wire.item_id)
    updated_at = min(_aware(wire.updated_at), accepted_at)
    return ItemChange(wire.item_id, wire.operation, check_item_fields(wire.fields), updated_at, accepted_at)


ITEM_FIELDS = ("title", "text", "categories", "attributes", "available", "published_at", "expires_at")
TEXT_LENGTH_MAX = 20_000


def check_item_fields(fields: Mapping[str, object]) -> Mapping[str, object]:
    """The named fields of an item, each of its type (times as aware datetimes, categories as a tuple).

    Raises WireError("bad_item") for an unknown field or a wrong type.
    """
    checked: dict[str, object] = {}
    for name, given in fields.items():
        if name not in ITEM_FIELDS:
            raise WireError("bad_item", f"unknown field {name!r}; known: {', '.join(ITEM_FIELDS)}")
        checked[name] = _item_field(name, given)
    return checked


def decode_slate(value: bytes) -> Slate:
    """The slate in a message."""
    try:
        wire = _slate_decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
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
        _aware(wire.asked_at),
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
    )
    return Outgoing(TOPIC_SLATES, slate.user_id or slate.request_id, _encoder.encode(wire))


# --------------------------------------------------------------------------------------------- fields


def parse_time(given: object, name: str) -> datetime:
    """A time given as ISO 8601 (naive means UTC), as epoch seconds or as epoch milliseconds."""
    if isinstance(given, datetime):
        return _aware(given)
    if isinstance(given, str):
        text = given.strip()
        try:
            return _aware(datetime.fromisoformat(text))
        except ValueError:
            given = _float_or_none(text)
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise WireError("bad_time", f"{name} must be ISO 8601 or an epoch in s or ms")
    seconds = given / 1000 if abs(given) >= 1e11 else given  # 1e11 s is the year 5138; 1e11 ms is 1973
    if not -6e10 < seconds < 2e11:
        raise WireError("bad_time", f"{name}={given!r} is out of range")
    return from_us(round(seconds * 1_000_000))


def _event(wire: WireEvent, accepted_at: datetime) -> Event:
    occurred_at = _aware(wire.occurred_at)
    if occurred_at > accepted_at:
        if occurred_at - accepted_at > FUTURE_CLAMPED:
            raise WireError("future", f"occurred_at {occurred_at.isoformat()} is over 5 min after it was accepted")
        occurred_at = accepted_at
    if occurred_at < OLDEST:
        raise WireError("too_old", f"occurred_at {occurred_at.isoformat()} is before {OLDEST.date()}")
    if wire.value is not None and not math.isfinite(wire.value):
        raise WireError("bad_value", "value must be a finite number")
    return Event(
        wire.event_id,
        wire.user_id,
        wire.item_id,
        wire.kind,
        occurred_at,
        accepted_at,
        wire.value,
        wire.request_id,
        wire.session_id,
        wire.properties or NO_PROPERTIES,
    )


def _aware(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    return moment if moment.tzinfo is UTC else moment.astimezone(UTC)


def _check_size(value: bytes) -> None:
    if len(value) > BYTES_MAX:
        raise WireError("oversized", f"{len(value)} bytes, the limit is {BYTES_MAX}")
    if not value:
        raise WireError("empty", "no bytes")


def _check_id(name: str, given: str) -> None:
    if not given or len(given) > ID_LENGTH_MAX or "\x00" in given:
        raise WireError(f"bad_{name}", f"{name} must have 1 to {ID_LENGTH_MAX} characters, none of them NUL")


def _decode_object(value: bytes) -> dict[str, object]:
    try:
        decoded = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError("not_json", str(error)) from None
    if not isinstance(decoded, dict):
        raise WireError("not_an_object", f"a JSON {type(decoded).__name__}")
    return decoded


def _text(fields: Mapping[str, object], name: str) -> str:
    given = fields.get(name)
    if isinstance(given, int) and not isinstance(given, bool):
        given = str(given)
    if given is None:
        raise WireError(f"missing_{name}", f"{name} is required")
    if not isinstance(given, str):
        raise WireError(f"bad_{name}", f"{name} must be a text, not {type(given).__name__}")
    given = given.strip()
    _check_id(name, given)
    return given


def _number(given: object) -> float:
    number = _float_or_none(given) if isinstance(given, str) else given
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise WireError("bad_value", "value must be a finite number")
    return float(number)


def _float_or_none(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _properties(given: object) -> dict[str, str]:
    if not isinstance(given, dict) or len(given) > PROPERTIES_MAX:
        raise WireError("bad_properties", f"properties must be an object with at most {PROPERTIES_MAX} entries")
    return {
        str(name): value if isinstance(value, str) else msgspec.json.encode(value).decode()
        for name, value in given.items()
    }


def _item_field(name: str, given: object) -> object:
    if name in ("title", "text"):
        if not isinstance(given, str):
            raise WireError("bad_item", f"{name} must be a text")
        return given[:TEXT_LENGTH_MAX]
    if name == "available":
        if not isinstance(given, bool):
            raise WireError("bad_item", "available must be true or false")
        return given
    if name == "categories":
        if not isinstance(given, list | tuple) or not all(isinstance(each, str) for each in given):
            raise WireError("bad_item", "categories must be a list of texts")
        return tuple(given)
    if name == "attributes":
        if not isinstance(given, dict):
            raise WireError("bad_item", "attributes must be an object")
        return _properties(given)
    return None if given is None else parse_time(given, name)
