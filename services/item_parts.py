"""What the change feed `items_live` says of an item, part by part, and how a part becomes bytes and comes back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import msgspec

from services.domain import ItemCard, to_us

PartName = Literal["card", "stats", "covisits", "vector"]
"""In the feed a vector's part has the tag of its encoder behind it: `vector.TAG` (none in rows from before that)."""


class CardPart(msgspec.Struct, array_like=True):
    """Part `card`: the merged card of an item; `created_us` is when its first card was accepted."""

    title: str
    categories: list[str]
    available: bool
    deleted: bool
    published_us: int
    expires_us: int
    created_us: int


class StatsPart(msgspec.Struct, array_like=True):
    """Part `stats`: COUNTS_WIDTH decayed counts, held at `at_us`. `written_us` is the moment it was written: one for
    all that is written at once, strictly rising from one writing to the next; 0 where that was not kept."""

    counts: list[float]
    at_us: int
    written_us: int = 0


class CovisitsPart(msgspec.Struct, array_like=True):
    """Part `covisits`: items seen together with this one, strongest first."""

    item_ids: list[str]
    weights: list[float]


class VectorPart(msgspec.Struct, array_like=True):
    """Part `vector`: the raw text vector, float16 little-endian bytes, the encoder it came from, and the identity of
    the text (empty where that was not kept). An item has one of each encoder."""

    encoder: str
    float16: bytes
    text_hash: str = ""


Payload = CardPart | StatsPart | CovisitsPart | VectorPart
_TYPES: dict[PartName, type[Payload]] = {
    "card": CardPart,
    "stats": StatsPart,
    "covisits": CovisitsPart,
    "vector": VectorPart,
}
PARTS: tuple[type[Payload], ...] = tuple(_TYPES.values())


def encode_part(payload: Payload) -> bytes:
    """The bytes of a payload as they stand in `items_live`."""
    return msgspec.msgpack.encode(payload)


def decode_part(part: str, payload: bytes) -> Payload:
    """The payload of a row of `items_live`."""
    name: PartName = "vector" if part.startswith("vector") else part  # type: ignore[assignment]
    return msgspec.msgpack.decode(payload, type=_TYPES[name])


def card_part(card: ItemCard, created_at: datetime) -> CardPart:
    """The part of a card that servers need."""
    return CardPart(
        card.title,
        list(card.categories),
        card.available,
        card.deleted,
        to_us(card.published_at) if card.published_at else 0,
        to_us(card.expires_at) if card.expires_at else 0,
        to_us(created_at),
    )


@dataclass(frozen=True, slots=True)
class ItemChanged:
    """One row of the change feed, decoded."""

    item_id: str
    payload: Payload
    seq: int
