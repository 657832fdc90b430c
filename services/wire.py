"""The wire: JSON, one schema with a version field `v`, for events, item changes and slates.

Ours is written canonically; what others write is read too (aliases, epoch times). Reading never trusts: a message that
does not fit raises WireError with a reason that is counted and kept in the quarantine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from services import document
from services.document import UNREADABLE
from services.domain import (
    NO_PROPERTIES,
    TOPIC_EVENTS,
    TOPIC_ITEMS,
    TOPIC_SLATES,
    Event,
    ItemChange,
    Operation,
    Outgoing,
    Pick,
    Reason,
    Slate,
    WireError,
    to_us,
)
from services.fields import (
    aware,
    check_id,
    check_item_fields,
    check_properties,
    id_text,
    number_of,
    parse_time,
    properties_of,
)

VERSION = 1
BYTES_MAX = 64 * 1024
FUTURE_CLAMPED = timedelta(minutes=5)
OLDEST = datetime(1995, 1, 1, tzinfo=UTC)
AMOUNT_KINDS = frozenset({"view", "play", "read", "cart", "purchase"})
"""Their value is an amount (seconds, a share, money): never negative. A rating's scale may have a negative half."""

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
EVENT_NAMES = frozenset((*_OURS, "v", "accepted_at", "replay_of"))
"""Every name that says something in an event."""


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
    accepted_at: datetime | None = None
    replay_of: str | None = None


class WireItem(msgspec.Struct, omit_defaults=True):
    """An item change as it is written."""

    v: int
    item_id: str
    operation: Operation
    updated_at: datetime
    fields: dict[str, object] = {}
    accepted_at: datetime | None = None
    replay_of: str | None = None


class WirePick(msgspec.Struct, omit_defaults=True):
    item_id: str
    score: float
    source: str
    reason_kind: str
    reason_items: list[str] = []
    reason_text: str = ""
    propensity: float | None = None  # 1.0 is not written; omitting a default goes by identity, which no float keeps


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
    replay_of: str | None = None


_event_decoder = msgspec.json.Decoder(WireEvent)
_item_decoder = msgspec.json.Decoder(WireItem)
_slate_decoder = msgspec.json.Decoder(WireSlate)
_encoder = msgspec.json.Encoder()


# --------------------------------------------------------------------------------------------- reading


def decode_event(value: bytes, accepted_at: datetime) -> Event:
    """The event in a message. Lateness and future are judged against `accepted_at`, never against a clock here; a
    message that came into the log later than it was accepted (spooled, replayed) says itself when that was."""
    try:
        wire = _event_decoder.decode(value)
    except UNREADABLE:
        return parse_event(document.object_of(value), accepted_at)
    if _encoder.encode(wire) != value:  # not as we write it: it may hold what no reader should guess at
        document.check(value)
    if wire.v != VERSION:
        raise WireError("unknown_version", f"v={wire.v}, this reader knows {VERSION}")
    for name in ("event_id", "user_id", "item_id", "kind"):
        check_id(name, getattr(wire, name))
    for name, given in (("request_id", wire.request_id), ("session_id", wire.session_id)):
        if given is not None:
            check_id(name, given)
    if wire.properties:
        check_properties(wire.properties)
    return _event(wire, accepted_at if wire.accepted_at is None else min(aware(wire.accepted_at), accepted_at))


def parse_event(fields: Mapping[str, object], accepted_at: datetime) -> Event:
    """An event from a mapping with our field names or their aliases (an API body, an import row, a foreign message)."""
    check_version(fields)
    said = [name for name, given in fields.items() if name in _OURS and given is not None]
    ours = {_OURS[name]: fields[name] for name in said}
    if len(ours) < len(said):
        _check_agree(fields, said)
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


def _check_agree(fields: Mapping[str, object], said: Sequence[str]) -> None:
    """WireError where two names of one field say different things: nobody knows which is meant."""
    first: dict[str, str] = {}
    for name in said:
        other = first.setdefault(_OURS[name], name)
        if str(fields[other]).strip() != str(fields[name]).strip():
            detail = f"{other} and {name} are names of one field and say different things; leave one out"
            raise WireError("contradiction", detail)


def derived_event_id(wire: WireEvent, ordinal: int = 0) -> str:
    """An id from all normalised fields (and an ordinal among equals), so that a retry is the same event."""
    parts = (wire.user_id, wire.item_id, wire.kind, str(to_us(wire.occurred_at)), repr(wire.value))
    more = (wire.request_id or "", wire.session_id or "", repr(sorted((wire.properties or {}).items())), str(ordinal))
    return "d" + hashlib.blake2b("\x1f".join(parts + more).encode(), digest_size=12).hexdigest()


def decode_item(value: bytes, accepted_at: datetime) -> ItemChange:
    """The item change in a message; `updated_at` is capped at `accepted_at` and is that where none is given."""
    try:
        wire = _item_decoder.decode(value)
    except UNREADABLE:
        wire = _item_of(document.object_of(value), accepted_at)
    else:
        if _encoder.encode(wire) != value:
            document.check(value)
    if wire.v != VERSION:
        raise WireError("unknown_version", f"v={wire.v}, this reader knows {VERSION}")
    check_id("item_id", wire.item_id)
    if wire.accepted_at is not None:
        accepted_at = min(aware(wire.accepted_at), accepted_at)
    fields = check_item_fields(wire.fields)
    return ItemChange(wire.item_id, wire.operation, fields, updated_at_of(wire.updated_at, accepted_at), accepted_at)


def updated_at_of(given: datetime, accepted_at: datetime) -> datetime:
    """When an item was changed: never after it was accepted; WireError before OLDEST."""
    updated_at = min(aware(given), accepted_at)
    if updated_at < OLDEST:
        raise WireError("too_old", f"updated_at {updated_at.isoformat()} is before {OLDEST.date()}")
    return updated_at


def _item_of(found: Mapping[str, object], accepted_at: datetime) -> WireItem:
    """An item change from an object that is not quite as it is written; says which field is wrong."""
    check_version(found)
    operation, fields = found.get("operation"), found.get("fields", {})
    if operation is None:
        raise WireError("missing_operation", "operation is required")
    if operation not in ("put", "patch", "delete"):
        raise WireError("bad_operation", "operation must be put, patch or delete")
    if not isinstance(fields, dict):
        raise WireError("bad_fields", f"fields must be an object, not {type(fields).__name__}")
    updated_at = found.get("updated_at")
    return WireItem(
        VERSION, id_text(found, "item_id"), operation,
        accepted_at if updated_at is None else parse_time(updated_at, "updated_at"), fields,
    )  # fmt: skip


def decode_slate(value: bytes, accepted_at: datetime | None = None) -> Slate:
    """The slate in a message; its time is judged against `accepted_at` where that is given."""
    try:
        wire = _slate_decoder.decode(value)
    except UNREADABLE as error:
        check_version(document.object_of(value))
        raise WireError("bad_slate", str(error)) from None
    if _encoder.encode(wire) != value:
        document.check(value)
    if wire.v != VERSION:
        raise WireError("unknown_version", f"v={wire.v}, this reader knows {VERSION}")
    _check_slate(wire, accepted_at)
    picks = tuple(
        Pick(
            p.item_id, rank, p.score, p.source,
            Reason(p.reason_kind, tuple(p.reason_items), p.reason_text),  # type: ignore[arg-type]
            1.0 if p.propensity is None else p.propensity,
        )
        for rank, p in enumerate(wire.items)
    )  # fmt: skip
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


def _check_slate(wire: WireSlate, accepted_at: datetime | None) -> None:
    check_id("request_id", wire.request_id)
    if wire.user_id is not None:
        check_id("user_id", wire.user_id)
    if min(wire.user_row_time_us, wire.items_as_of, wire.items_as_of_us) < 0:
        raise WireError("negative_time", "user_row_time_us, items_as_of and items_as_of_us are never negative")
    seen = set[str]()
    for pick in wire.items:
        check_id("item_id", pick.item_id)
        if not math.isfinite(pick.score):
            raise WireError("not_finite", f"the score of {pick.item_id!r} is {pick.score}")
        if pick.propensity is not None and not 0.0 < pick.propensity <= 1.0:
            raise WireError("bad_propensity", f"the propensity of {pick.item_id!r} is {pick.propensity}, not in (0, 1]")
        if pick.item_id in seen:
            raise WireError("duplicate_item", f"{pick.item_id!r} has two places")
        seen.add(pick.item_id)
    asked_at = aware(wire.asked_at)
    if accepted_at is not None and asked_at - accepted_at > FUTURE_CLAMPED:
        raise WireError("future", f"asked_at {asked_at.isoformat()} is over 5 min after it was accepted")
    if asked_at < OLDEST:
        raise WireError("too_old", f"asked_at {asked_at.isoformat()} is before {OLDEST.date()}")


def check_version(found: Mapping[str, object]) -> None:
    """WireError where a message names a version that this reader does not know."""
    version = found.get("v", VERSION)
    if isinstance(version, bool) or version != VERSION:
        raise WireError("unknown_version", f"v={version!r}, this reader knows {VERSION}")


# --------------------------------------------------------------------------------------------- writing


def encode_event(event: Event, accepted_at: datetime | None = None, replay_of: str | None = None) -> Outgoing:
    """The message of an event, keyed by its user. `accepted_at`: when, if that is before the log takes it;
    `replay_of`: the place of the message that it stands for."""
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
        accepted_at,
        replay_of,
    )
    return Outgoing(TOPIC_EVENTS, event.user_id, _encoder.encode(wire))


def encode_item(change: ItemChange, accepted_at: datetime | None = None, replay_of: str | None = None) -> Outgoing:
    """The message of an item change, keyed by its item; the rest as for an event."""
    fields = dict(change.fields)
    wire = WireItem(VERSION, change.item_id, change.operation, change.updated_at, fields, accepted_at, replay_of)
    return Outgoing(TOPIC_ITEMS, change.item_id, _encoder.encode(wire))


def encode_slate(slate: Slate, replay_of: str | None = None) -> Outgoing:
    """The message of a served slate, keyed by its user (by its request where there is none)."""
    picks = [
        WirePick(
            p.item_id, p.score, p.source, p.reason.kind, list(p.reason.item_ids), p.reason.text,
            None if p.propensity == 1.0 else p.propensity,
        )
        for p in slate.items
    ]  # fmt: skip
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
        replay_of,
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
    value = None if wire.value is None else number_of(wire.value)
    if value is not None and value < 0 and wire.kind in AMOUNT_KINDS:
        raise WireError("negative_value", f"the value of {wire.kind} is an amount, not {value:g}")
    return Event(
        wire.event_id,
        wire.user_id,
        wire.item_id,
        wire.kind,
        occurred_at,
        accepted_at,
        value,
        wire.request_id,
        wire.session_id,
        wire.properties or NO_PROPERTIES,
    )
