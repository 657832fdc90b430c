"""Item cards: the pure merge of changes into a card, and the two places cards are kept."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import msgspec
from sqlalchemy import Connection, Engine, select

from services.domain import NO_PROPERTIES, TOPIC_ITEMS, Coordinate, ItemCard, ItemChange, from_us, to_us
from services.fields import ITEM_FIELDS
from services.freshness import LIVE, Arrived, arrived
from services.item_parts import Payload, card_part
from services.tables import among, items, next_number, upsert

IN_MAX = 1000
TOKENS_MAX = 64
WriteParts = Callable[[Connection, Sequence[tuple[str, Payload]], Arrived | None], int]
"""Writes parts of the change feed inside the caller's transaction; `services.catalogue.live.write_parts`."""
_DELETED = "deleted"
LOCK = "catalogue_apply"
"""Held by whoever writes the table `items`."""
_DEFAULTS: Mapping[str, object] = {name: getattr(ItemCard(""), name) for name in ITEM_FIELDS}


@dataclass(frozen=True, slots=True)
class Entry:
    """A card, when each of its fields was last set (µs by the caller's clock), and the newest change it holds."""

    card: ItemCard
    field_times: Mapping[str, int]
    created_at: datetime
    coordinate: Coordinate
    accepted_at: datetime


def applied(entry: Entry | None, coordinate: Coordinate, change: ItemChange) -> Entry | None:
    """The entry after a change; None when the change says nothing new (seen before, or older in every field).

    A put sets every field (absent ones to their default) and revives a tombstone; a patch sets the named ones; a delete
    leaves a tombstone. Each field goes by its own time: an older `updated_at` never overwrites a newer one.
    """
    if entry and _seen(entry.coordinate, coordinate):
        return None
    updated_us = to_us(change.updated_at)
    times = dict(entry.field_times) if entry else {}
    fresh = {name: given for name, given in _said(change).items() if updated_us >= times.get(name, updated_us)}
    if not fresh:
        return None
    times |= dict.fromkeys(fresh, updated_us)
    card = _with(entry.card if entry else ItemCard(change.item_id), fresh)
    return Entry(card, times, entry.created_at if entry else change.accepted_at, coordinate, change.accepted_at)


def card_text(card: ItemCard) -> str:
    """What a card's text vector is made of: title | categories | attributes | the first TOKENS_MAX words of its text.
    Empty when there is nothing to embed."""
    if card.deleted:
        return ""
    attributes = ", ".join(f"{name} {value}" for name, value in sorted(card.attributes.items()))
    words = " ".join(card.text.split()[:TOKENS_MAX])
    return " | ".join(part for part in (card.title.strip(), ", ".join(card.categories), attributes, words) if part)


def text_hash(card: ItemCard) -> str:
    """The identity of a card's text; empty when there is nothing to embed."""
    return hash_of_text(card_text(card))


def hash_of_text(text: str) -> str:
    """The identity of a text; empty for an empty one."""
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest() if text else ""


class MemoryCatalogue:
    """Cards in a dict."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}

    def apply(self, changes: Sequence[tuple[Coordinate, ItemChange]]) -> tuple[ItemCard, ...]:
        """Catalogue."""
        with self._lock:
            changed = _merge(self._entries, changes)
            self._entries |= changed
        return tuple(entry.card for entry in changed.values())

    def cards(self, item_ids: Sequence[str]) -> tuple[ItemCard | None, ...]:
        """Catalogue."""
        return tuple(entry.card if (entry := self._entries.get(i)) else None for i in item_ids)

    def all_cards(self) -> Iterator[ItemCard]:
        """Catalogue."""
        yield from (entry.card for _, entry in sorted(self._entries.items()))


class SqlCatalogue:
    """Cards in SQL; a changed card is in the change feed in the same transaction."""

    def __init__(self, engine: Engine, write_parts: WriteParts) -> None:
        self._engine = engine
        self._write_parts = write_parts

    def apply(self, changes: Sequence[tuple[Coordinate, ItemChange]]) -> tuple[ItemCard, ...]:
        """Catalogue."""
        if not changes:
            return ()
        with self._engine.begin() as connection:
            next_number(connection, LOCK)
            changed = _merge(_entries(connection, [change.item_id for _, change in changes]), changes)
            upsert(connection, items, [_row(entry) for entry in changed.values()])
            parts = [(item_id, card_part(entry.card, entry.created_at)) for item_id, entry in changed.items()]
            if parts:
                moments = [(c.accepted_at, c.accepted_at - c.updated_at <= LIVE) for _, c in changes]
                self._write_parts(connection, parts, arrived("card", moments))
        return tuple(entry.card for entry in changed.values())

    def cards(self, item_ids: Sequence[str]) -> tuple[ItemCard | None, ...]:
        """Catalogue."""
        with self._engine.connect() as connection:
            found = _entries(connection, item_ids)
        return tuple(found[i].card if i in found else None for i in item_ids)

    def all_cards(self) -> Iterator[ItemCard]:
        """Catalogue: a page at a time, so that no read transaction stays open while the caller works."""
        after = ""
        while True:
            query = select(items).where(items.c.item_id > after).order_by(items.c.item_id).limit(IN_MAX)
            with self._engine.connect() as connection:
                page = connection.execute(query).all()
            if not page:
                return
            yield from (card_of(row.item_id, row.card) for row in page)
            after = page[-1].item_id


# ------------------------------------------------------------------------------------------------ merge


def _merge(known: Mapping[str, Entry], changes: Sequence[tuple[Coordinate, ItemChange]]) -> dict[str, Entry]:
    """The entries that changed, after all changes in their order."""
    changed: dict[str, Entry] = {}
    for coordinate, change in changes:
        entry = applied(changed.get(change.item_id) or known.get(change.item_id), coordinate, change)
        if entry:
            changed[change.item_id] = entry
    return changed


def _seen(newest: Coordinate, coordinate: Coordinate) -> bool:
    place = (coordinate.log_id, coordinate.topic, coordinate.partition)
    return place == (newest.log_id, newest.topic, newest.partition) and coordinate.offset <= newest.offset


def _said(change: ItemChange) -> Mapping[str, object]:
    match change.operation:
        case "put":
            return {**_DEFAULTS, **change.fields, _DELETED: False}
        case "patch":
            return change.fields
        case "delete":
            return {_DELETED: True}


def _with(card: ItemCard, fields: Mapping[str, object]) -> ItemCard:
    return replace(card, **fields)  # type: ignore[arg-type]  # the wire has checked the types of the fields


# -------------------------------------------------------------------------------------------------- SQL


class _StoredCard(msgspec.Struct, array_like=True):
    title: str
    text: str
    categories: list[str]
    attributes: dict[str, str]
    available: bool
    published_us: int | None
    expires_us: int | None
    deleted: bool


_card_decoder = msgspec.msgpack.Decoder(_StoredCard)
_times_decoder = msgspec.msgpack.Decoder(dict[str, int])


def _row(entry: Entry) -> dict[str, object]:
    card, coordinate = entry.card, entry.coordinate
    stored = _StoredCard(
        card.title,
        card.text,
        list(card.categories),
        dict(card.attributes),
        card.available,
        to_us(card.published_at) if card.published_at else None,
        to_us(card.expires_at) if card.expires_at else None,
        card.deleted,
    )
    return {
        "item_id": card.item_id,
        "card": msgspec.msgpack.encode(stored),
        "field_times": msgspec.msgpack.encode(entry.field_times),
        "created_us": to_us(entry.created_at),
        "log_id": coordinate.log_id,
        "partition": coordinate.partition,
        "offset": coordinate.offset,
        "text_hash": text_hash(card),
        "accepted_us": to_us(entry.accepted_at),
    }


def _entries(connection: Connection, item_ids: Sequence[str]) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    wanted = list(dict.fromkeys(item_ids))
    for start in range(0, len(wanted), IN_MAX):
        query = select(items).where(among(connection, items.c.item_id, wanted[start : start + IN_MAX]))
        for row in connection.execute(query):
            found[row.item_id] = Entry(
                card_of(row.item_id, row.card),
                _times_decoder.decode(row.field_times),
                from_us(row.created_us),
                Coordinate(row.log_id, TOPIC_ITEMS, row.partition, row.offset),
                from_us(row.accepted_us),
            )
    return found


def card_of(item_id: str, stored: bytes) -> ItemCard:
    """The card in a row of the table `items`."""
    s = _card_decoder.decode(stored)
    return ItemCard(
        item_id,
        s.title,
        s.text,
        tuple(s.categories),
        s.attributes or NO_PROPERTIES,
        s.available,
        None if s.published_us is None else from_us(s.published_us),
        None if s.expires_us is None else from_us(s.expires_us),
        s.deleted,
    )
