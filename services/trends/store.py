"""The trends state in SQL. All functions run inside one transaction that holds the write lock (`next_number`).

Ring and offset belong to a partition. Counts, co-visits and users are one for all partitions: they are added to under
the lock, in the transaction that moves the offset, so each event is in them once, whoever owned its partition.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, and_, delete, select
from sqlalchemy import Row as SqlRow

from services.bounds import Share
from services.domain import Partition
from services.signals import COUNTS_WIDTH
from services.tables import (
    among,
    next_number,
    trend_covisits,
    trend_hours,
    trend_items,
    trend_ring,
    trend_state,
    trend_users,
    upsert,
)
from services.trends.counters import CHUNK, NOTHING, HourCounts, Once, Standing, cumulated, end_us
from services.trends.covisits import Recent, Row, Users, merged, similar

IN_MAX = 1000
HOURS_KEPT = 180 * 24
"""Hours are kept for corrections by late events; a count of 180 days ago has decayed below what a float32 shows."""
USERS_KEPT_US = 90 * 24 * 3600 * 1_000_000
_WRITTEN = "trends_written_us"
_COLUMNS = tuple(trend_hours.c[f"c{column}"] for column in range(COUNTS_WIDTH))
_SUMMED = tuple(column.name for column in _COLUMNS)
_encoder = msgspec.msgpack.Encoder()
_recent_decoder = msgspec.msgpack.Decoder(Recent)
_row_decoder = msgspec.msgpack.Decoder(Row)


class PartitionState(msgspec.Struct, array_like=True):
    """How far a partition is: `until_us`, no earlier event is expected; `newest_us`, its newest event; whose events
    counted so far."""

    until_us: int = 0
    newest_us: int = 0
    share: Share = msgspec.field(default_factory=Share)


@dataclass(frozen=True, slots=True)
class Stored:
    """What is stored of one partition."""

    log_id: str
    next_offset: int
    state: PartitionState


@dataclass(frozen=True, slots=True)
class HourRows:
    """Rows of `item_stats`: `counts` float32 [n, COUNTS_WIDTH], each stamped `at_us` int64 [n], the end of its hour."""

    item_ids: tuple[str, ...]
    counts: NDArray[np.float32]
    at_us: NDArray[np.int64]


class CountsHistory(Protocol):
    """What training will read of item counts; each append is durable on return."""

    def append_item_stats(
        self, item_ids: Sequence[str], counts: NDArray[np.float32], at_us: NDArray[np.int64], created_at: datetime
    ) -> None:
        """Rows by event-time hour: counts [n, COUNTS_WIDTH] stamped `at_us` [n], the end of their hour."""

    def append_item_live(
        self,
        item_ids: Sequence[str],
        counts: NDArray[np.float32],
        at_us: NDArray[np.int64],
        written_us: int,
        created_at: datetime,
    ) -> None:
        """What servers are told: counts [n, COUNTS_WIDTH] held at `at_us` [n], all written at `written_us`."""


# ------------------------------------------------------------------------------------------- partitions


def stored_partitions(connection: Connection) -> dict[Partition, Stored]:
    """Every partition any owner has stored."""
    rows = connection.execute(select(trend_state)).all()
    return {
        Partition(r.topic, r.partition): Stored(
            r.log_id, r.next_offset, msgspec.msgpack.decode(r.payload, type=PartitionState)
        )
        for r in rows
    }


def store_partitions(connection: Connection, stored: Mapping[Partition, Stored]) -> None:
    """Replace the rows of these partitions."""
    rows = [
        {
            "topic": p.topic,
            "partition": p.number,
            "log_id": each.log_id,
            "next_offset": each.next_offset,
            "payload": msgspec.msgpack.encode(each.state),
        }
        for p, each in stored.items()
    ]
    upsert(connection, trend_state, rows)


def rising_us(connection: Connection, now_us: int) -> int:
    """The time of a writing: now, but always after the writing before, whoever did that and whatever the clocks say."""
    last_us = next_number(connection, _WRITTEN, 0)
    written_us = max(now_us, last_us + 1)
    next_number(connection, _WRITTEN, written_us - last_us)
    return written_us


def load_once(connection: Connection, partition: Partition, ring_max: int) -> Once:
    """The ring of a partition as it was last stored."""
    of_partition = and_(trend_ring.c.topic == partition.topic, trend_ring.c.partition == partition.number)
    query = select(trend_ring.c.number, trend_ring.c.payload).where(of_partition).order_by(trend_ring.c.number)
    entries: list[tuple[int, int, int]] = []
    written = 0
    for number, payload in connection.execute(query):
        chunk = np.frombuffer(payload, dtype="<i8").reshape(-1, 3)
        entries += [(row[0], row[1], row[2]) for row in chunk.tolist()]
        written = number * CHUNK + len(chunk)
    return Once(ring_max, entries, written)


def store_once(connection: Connection, partition: Partition, once: Once) -> None:
    """Write the chunks of the ring that changed."""
    rows = [
        {
            "topic": partition.topic,
            "partition": partition.number,
            "slot": number % once.slots(),
            "number": number,
            "payload": np.asarray(chunk, dtype="<i8").tobytes(),
        }
        for number, chunk in once.unstored()
    ]
    upsert(connection, trend_ring, rows)


# ------------------------------------------------------------------------------------------------ counts


def add_hours(connection: Connection, sums: HourCounts) -> None:
    """Add the sums to what is stored of each (item, hour)."""
    rows = [
        {"item_id": item_id, "hour": hour, **dict(zip(_SUMMED, units, strict=True))}
        for item_id, hour, units in zip(sums.item_ids, sums.hours.tolist(), sums.units.tolist(), strict=True)
    ]
    upsert(connection, trend_hours, rows, added=_SUMMED)


def newly_closed(connection: Connection, after: int, until: int) -> list[str]:
    """Items with counts in the hours `after < hour <= until`."""
    within = and_(trend_hours.c.hour > after, trend_hours.c.hour <= until)
    return list(connection.execute(select(trend_hours.c.item_id).where(within).distinct()).scalars())


def settle(
    connection: Connection, earliest: Mapping[str, int], closed: int, closed_before: int
) -> tuple[dict[str, Standing], HourRows]:
    """Bring the standing of these items up to date.

    `earliest`: by item, the earliest hour touched since the last time. Returns each item's newest standing, open
    hours included, and a row for each closed hour that is new or changed.
    """
    newest: dict[str, Standing] = {}
    bases: dict[str, Standing] = {}
    closing: list[tuple[str, Standing]] = []
    for item_ids in _chunks(earliest):
        stored = _bases(connection, item_ids)
        usable = {i: base for i, base in stored.items() if base.hour < earliest[i]}
        newest |= {i: usable.get(i, NOTHING) for i in item_ids}
        sums = _hours_after_bases(connection, list(usable), [i for i in item_ids if i not in usable])
        counts = cumulated([newest[i] for i in sums.item_ids], sums)
        for item_id, hour, after in zip(sums.item_ids, sums.hours.tolist(), counts, strict=True):
            newest[item_id] = Standing(hour, after)
            if hour <= closed:
                bases[item_id] = newest[item_id]
                if hour >= min(earliest[item_id], closed_before + 1):
                    closing.append((item_id, newest[item_id]))
    upsert(
        connection,
        trend_items,
        [{"item_id": i, "hour": s.hour, "counts": s.counts.astype("<f8").tobytes()} for i, s in bases.items()],
    )
    return newest, _hour_rows(closing)


def prune(connection: Connection, newest_us: int, closed: int) -> None:
    """Forget hours and users that no longer matter."""
    connection.execute(delete(trend_hours).where(trend_hours.c.hour < closed - HOURS_KEPT))
    connection.execute(delete(trend_users).where(trend_users.c.at_us < newest_us - USERS_KEPT_US))


def _bases(connection: Connection, item_ids: Sequence[str]) -> dict[str, Standing]:
    rows = connection.execute(select(trend_items).where(among(connection, trend_items.c.item_id, item_ids))).all()
    return {r.item_id: Standing(r.hour, np.frombuffer(r.counts, dtype="<f8")) for r in rows}


def _hours_after_bases(connection: Connection, with_base: Sequence[str], whole: Sequence[str]) -> HourCounts:
    """The stored hours of the items after their stored standing, by item, rising; all hours of the items in `whole`."""
    every = select(trend_hours.c.item_id, trend_hours.c.hour, *_COLUMNS)
    after = every.join_from(trend_hours, trend_items, trend_items.c.item_id == trend_hours.c.item_id)
    rows: list[SqlRow[Any]] = []
    for item_ids, query in ((with_base, after.where(trend_hours.c.hour > trend_items.c.hour)), (whole, every)):
        of_items = query.where(among(connection, trend_hours.c.item_id, item_ids))
        of_items = of_items.order_by(trend_hours.c.item_id, trend_hours.c.hour)
        rows += connection.execute(of_items).all()
    numbers = np.asarray([row[1:] for row in rows], dtype=np.int64).reshape(-1, 1 + COUNTS_WIDTH)
    return HourCounts(tuple(row[0] for row in rows), numbers[:, 0], numbers[:, 1:])


def _hour_rows(closing: Sequence[tuple[str, Standing]]) -> HourRows:
    counts = np.asarray([s.counts for _, s in closing], dtype=np.float32).reshape(-1, COUNTS_WIDTH)
    at_us = np.asarray([end_us(s.hour) for _, s in closing], dtype=np.int64)
    return HourRows(tuple(item_id for item_id, _ in closing), counts, at_us)


# --------------------------------------------------------------------------------------- users and pairs


def load_recent(connection: Connection, user_ids: Collection[str]) -> dict[str, Recent]:
    """What is stored of these users."""
    found: dict[str, Recent] = {}
    for some in _chunks(user_ids):
        query = select(trend_users.c.user_id, trend_users.c.payload).where(
            among(connection, trend_users.c.user_id, some)
        )
        found |= {user_id: _recent_decoder.decode(payload) for user_id, payload in connection.execute(query).all()}
    return found


def store_users(connection: Connection, users: Users) -> None:
    """Write the users that changed."""
    rows = [
        {"user_id": user_id, "at_us": recent.record.newest_us, "payload": _encoder.encode(recent)}
        for user_id, recent in users.unstored().items()
    ]
    upsert(connection, trend_users, rows)


def add_pairs(
    connection: Connection, met: Mapping[str, Mapping[str, float]], now_us: int, limit: int
) -> Iterator[tuple[str, Row]]:
    """Add pairs to the stored rows; yields each changed item's co-visited items as cosines, at most `limit`."""
    changed: dict[str, tuple[float, Row]] = {}
    for item_ids in _chunks(met):
        stored = _covisit_rows(connection, item_ids)
        for item_id in item_ids:
            total, row = stored.get(item_id, (0.0, None))
            changed[item_id] = (total + sum(met[item_id].values()), merged(row, met[item_id], 2 * limit))
    rows = [{"item_id": i, "total": t, "payload": _encoder.encode(row)} for i, (t, row) in changed.items()]
    upsert(connection, trend_covisits, rows)
    totals = {item_id: total for item_id, (total, _) in changed.items()}
    others = {other for _, row in changed.values() for other in row.item_ids}
    totals |= _totals(connection, others - totals.keys())
    for item_id, (total, row) in changed.items():
        yield item_id, similar(total, row, totals, now_us, limit)


def _covisit_rows(connection: Connection, item_ids: Sequence[str]) -> dict[str, tuple[float, Row | None]]:
    rows = connection.execute(select(trend_covisits).where(among(connection, trend_covisits.c.item_id, item_ids))).all()
    return {r.item_id: (r.total, _row_decoder.decode(r.payload)) for r in rows}


def _totals(connection: Connection, item_ids: Collection[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for some in _chunks(item_ids):
        query = select(trend_covisits.c.item_id, trend_covisits.c.total).where(
            among(connection, trend_covisits.c.item_id, some)
        )
        found |= {row.item_id: row.total for row in connection.execute(query).all()}
    return found


def _chunks(names: Iterable[str]) -> Iterator[list[str]]:
    """Some at a time, for the limit that databases have on the values of an IN."""
    everything = list(names)
    for start in range(0, len(everything), IN_MAX):
        yield everything[start : start + IN_MAX]
