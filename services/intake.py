"""Messages of the log as the records they carry, or the reason why not: the one place where a message is judged.

Every consumer passes over the same ones. A bad message is data: it stops nobody."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from services import domain, wire
from services.domain import (
    TOPIC_EVENTS,
    TOPIC_ITEMS,
    TOPIC_SLATES,
    Coordinate,
    Event,
    ItemChange,
    Message,
    Slate,
    WireError,
)
from services.quarantine import Rejected

SLATE_BYTES_MAX = 1_000_000
"""A list of 500 items with the longest ids and reasons has about 400 KB; a log takes a megabyte."""
DETAIL_LENGTH_MAX = 500


@dataclass(slots=True)
class Read:
    """What a batch held, each in the order it came."""

    events: list[tuple[Message, Event]] = field(default_factory=list)
    slates: list[tuple[Message, Slate]] = field(default_factory=list)
    items: list[tuple[Coordinate, ItemChange]] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)


def read(messages: Iterable[Message]) -> Read:
    """Every message as what its topic holds, or as a rejected one."""
    found = Read()
    for message in messages:
        try:
            match message.coordinate.topic:
                case domain.TOPIC_EVENTS:
                    found.events.append((message, read_event(message)))
                case domain.TOPIC_SLATES:
                    found.slates.append((message, read_slate(message)))
                case domain.TOPIC_ITEMS:
                    found.items.append((message.coordinate, read_item(message)))
        except WireError as error:
            found.rejected.append(reject(message, error))
    return found


def read_event(message: Message) -> Event:
    """The event in a message of the events topic."""
    event = event_of(message)
    _check_key(message, event.user_id)
    return event


def read_item(message: Message) -> ItemChange:
    """The change in a message of the items topic."""
    change = item_of(message)
    _check_key(message, change.item_id)
    return change


def read_slate(message: Message) -> Slate:
    """The slate in a message of the slates topic."""
    slate = slate_of(message)
    _check_key(message, slate.user_id or slate.request_id)
    return slate


def event_of(message: Message) -> Event:
    """The event in a message, whatever its key."""
    return wire.decode_event(_bytes_of(message, wire.BYTES_MAX), message.accepted_at)


def item_of(message: Message) -> ItemChange:
    """The item change in a message, whatever its key."""
    return wire.decode_item(_bytes_of(message, wire.BYTES_MAX), message.accepted_at)


def slate_of(message: Message) -> Slate:
    """The slate in a message, whatever its key."""
    return wire.decode_slate(_bytes_of(message, SLATE_BYTES_MAX), message.accepted_at)


def check(message: Message) -> None:
    """WireError unless the message can be read as what its topic holds."""
    {TOPIC_EVENTS: read_event, TOPIC_ITEMS: read_item, TOPIC_SLATES: read_slate}[message.coordinate.topic](message)


def reject(message: Message, error: WireError) -> Rejected:
    """The quarantine entry of a message that raised `error`. The detail holds nothing that a terminal or a database
    could stumble over."""
    detail = "".join(each if each.isprintable() else repr(each)[1:-1] for each in error.detail[:DETAIL_LENGTH_MAX])
    value = message.value or b""
    return Rejected(message.coordinate, error.reason, detail, value, message.accepted_at, message.key, len(value))


def _bytes_of(message: Message, bytes_max: int) -> bytes:
    value = message.value
    if value is None:
        raise WireError("null_value", "a tombstone: nothing is deleted by a message without a value")
    if not value:
        raise WireError("empty", "no bytes")
    if len(value) > bytes_max:
        raise WireError("oversized", f"{len(value)} bytes, the limit is {bytes_max}")
    return value


def _check_key(message: Message, wanted: str) -> None:
    """The key decides the partition, and with it who takes the message in and after what."""
    if message.key is None:
        raise WireError("null_key", f"the key must be {wanted!r}")
    if message.key != wanted:
        raise WireError("key_mismatch", f"the key is {message.key!r}, it must be {wanted!r}")
