"""The change feed `items_live`: one row per item and part, numbered by one rising sequence.

The sequence is taken under the database's write lock, in the transaction that writes the rows: rows become visible in
the order of their numbers, so a reader that has number n has missed nothing below it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

import msgspec
from sqlalchemy import Connection, Engine, delete, select

from services.freshness import Arrivals, Arrived
from services.item_parts import (
    CardPart,
    CovisitsPart,
    ItemChanged,
    Payload,
    StatsPart,
    VectorPart,
    decode_part,
    encode_part,
)
from services.items import ItemTable
from services.tables import items_live, live_arrivals, next_number, upsert
from services.telemetry import ITEMS_AS_OF

SEQUENCE = "items_live"
PAGE = 5000
POLL_PAGES = 20
ARRIVALS_KEPT = 2000
"""Writes whose arrivals are kept: a server that polls four times a second reads them long before."""


def part_name(payload: Payload) -> str:
    """The name of a payload's row in the feed."""
    match payload:
        case CardPart():
            return "card"
        case StatsPart():
            return "stats"
        case CovisitsPart():
            return "covisits"
        case VectorPart(encoder):
            return f"vector.{encoder_tag(encoder)}"


def encoder_tag(encoder: str) -> str:
    """Eight digits that stand for an encoder in keys."""
    return hashlib.blake2b(encoder.encode(), digest_size=4).hexdigest()


def write_parts(connection: Connection, parts: Sequence[tuple[str, Payload]], arrived: Arrived | None = None) -> int:
    """Write parts of items inside the caller's transaction; returns the number of the last. Of an (item, part) named
    twice the later one stays. `arrived` says when the messages behind the write were accepted, so that servers can
    measure how old they are when they see it."""
    last = next_number(connection, SEQUENCE, len(parts))
    rows = {
        (item_id, part_name(payload)): {
            "item_id": item_id,
            "part": part_name(payload),
            "payload": encode_part(payload),
            "seq": seq,
        }
        for seq, (item_id, payload) in enumerate(parts, start=last - len(parts) + 1)
    }
    upsert(connection, items_live, list(rows.values()))
    if arrived is not None and arrived.arrivals.times_us and parts:
        _keep(connection, last, arrived)
    return last


def _keep(connection: Connection, last: int, arrived: Arrived) -> None:
    row = {"seq": last, "part": arrived.part, "arrivals": msgspec.msgpack.encode(arrived.arrivals)}
    upsert(connection, live_arrivals, [row])
    newest = select(live_arrivals.c.seq).order_by(live_arrivals.c.seq.desc())
    oldest_kept = newest.limit(1).offset(ARRIVALS_KEPT - 1).scalar_subquery()
    connection.execute(delete(live_arrivals).where(live_arrivals.c.seq < oldest_kept))


def forget_vectors(connection: Connection, encoders: Collection[str]) -> int:
    """Remove the text vectors of all encoders but these from the feed, inside the caller's transaction; how many. A
    running server keeps what it has read."""
    kept = [f"vector.{encoder_tag(encoder)}" for encoder in encoders]
    t = items_live.c
    return connection.execute(delete(items_live).where(t.part.like("vector.%"), t.part.not_in(kept))).rowcount


class ItemFeed:
    """Reads the change feed into an item table."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def changes(self, since: int, limit: int = PAGE) -> list[ItemChanged]:
        """Up to `limit` rows with a number above `since`, in their order."""
        query = select(items_live).where(items_live.c.seq > since).order_by(items_live.c.seq).limit(limit)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [ItemChanged(r.item_id, decode_part(r.part, r.payload), r.seq) for r in rows]

    def arrived(self, since: int, until: int) -> list[Arrived]:
        """When the messages behind the writes numbered above `since` up to `until` were accepted."""
        t = live_arrivals.c
        query = select(live_arrivals).where(t.seq > since, t.seq <= until).order_by(t.seq)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [Arrived(r.part, msgspec.msgpack.decode(r.arrivals, type=Arrivals)) for r in rows]

    def load(self, table: ItemTable) -> int:
        """Apply everything there is, page by page; returns how many changes were applied."""
        applied = 0
        while page := self.changes(table.as_of):
            table.apply(page)
            applied += len(page)
        ITEMS_AS_OF.set(table.as_of)
        return applied

    def poll(self, table: ItemTable) -> int:
        """Apply what is new, all of it at once, so that no answer knows half of a writing (of more than POLL_PAGES
        pages the first ones: a whole catalogue came); 0 when the table is up to date."""
        changes = self.changes(table.as_of)
        for _ in range(POLL_PAGES - 1):
            if len(changes) % PAGE or not changes:
                break
            more = self.changes(changes[-1].seq)
            changes += more
            if not more:
                break
        if changes:
            table.apply(changes)
            ITEMS_AS_OF.set(table.as_of)
        return len(changes)
