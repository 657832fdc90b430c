"""The quarantine in SQL: messages that could not be read, by coordinate, bounded by bytes, the oldest let go first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from services import tables
from services.domain import Coordinate, StageUnavailable, from_us, to_us
from services.quarantine import (
    ALL,
    ENTRY_BYTES_MAX,
    QUARANTINE_BYTES_MAX,
    Entry,
    Rejected,
    Wanted,
    entry_bytes,
    kept_part,
)
from services.tables import counters, next_number, upsert

_rejected = tables.rejected
HELD = "rejected_bytes"
FORGOTTEN = "rejected_forgotten"
ROOM_SHARE = 0.9
"""A full quarantine is emptied down to this share of its bound, so that not every entry pays for it."""
FORGET_AT_ONCE = 1000


class SqlQuarantine:
    """The Quarantine port over the metadata database."""

    def __init__(
        self,
        engine: Engine,
        entry_bytes_max: int = ENTRY_BYTES_MAX,
        bytes_max: int = QUARANTINE_BYTES_MAX,
    ) -> None:
        self._engine = engine
        self._entry_bytes_max = entry_bytes_max
        self._bytes_max = bytes_max

    def add(self, rejected: Sequence[Rejected]) -> None:
        """Quarantine. StageUnavailable when the database cannot take them: then nothing of the batch is stored."""
        if not rejected:
            return
        dialect: Any = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        statement = dialect.insert(_rejected).on_conflict_do_nothing().returning(_rejected.c.held)
        try:
            with self._engine.begin() as connection:
                next_number(connection, HELD, 0)  # takes the lock that orders writers
                new = connection.execute(statement, [_row(kept_part(e, self._entry_bytes_max)) for e in rejected])
                held = next_number(connection, HELD, sum(new.scalars()))
                if held > self._bytes_max:
                    self._make_room(connection, held)
        except SQLAlchemyError as error:
            raise StageUnavailable(f"the quarantine could not take {len(rejected)} messages: {error}") from error

    def list(self, limit: int, after: int = 0, wanted: Wanted = ALL) -> Sequence[Entry]:
        """Quarantine."""
        query = select(_rejected).where(_rejected.c.id > after, *_conditions(wanted)).order_by(_rejected.c.id)
        with self._engine.connect() as connection:
            return [_entry(row) for row in connection.execute(query.limit(limit)).mappings()]

    def get(self, number: int) -> Entry | None:
        """Quarantine."""
        with self._engine.connect() as connection:
            row = connection.execute(select(_rejected).where(_rejected.c.id == number)).mappings().one_or_none()
        return None if row is None else _entry(row)

    def count(self) -> Mapping[str, int]:
        """Quarantine."""
        query = select(_rejected.c.reason, func.count()).group_by(_rejected.c.reason).order_by(_rejected.c.reason)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return {str(reason): int(count) for reason, count in rows}

    def forgotten(self) -> int:
        """Quarantine."""
        with self._engine.connect() as connection:
            return connection.execute(select(counters.c.value).where(counters.c.name == FORGOTTEN)).scalar() or 0

    def claim(self, number: int, at: datetime, again: bool = False) -> bool:
        """Quarantine."""
        free = () if again else (_rejected.c.replayed_us == 0,)
        statement = update(_rejected).where(_rejected.c.id == number, *free)
        with self._engine.begin() as connection:
            done = connection.execute(statement.values(replayed_us=to_us(at), replayed_as=""))
        return done.rowcount == 1

    def release(self, number: int) -> None:
        """Quarantine."""
        with self._engine.begin() as connection:
            connection.execute(update(_rejected).where(_rejected.c.id == number).values(replayed_us=0, replayed_as=""))

    def settle(self, number: int, replayed_as: Coordinate) -> None:
        """Quarantine."""
        with self._engine.begin() as connection:
            statement = update(_rejected).where(_rejected.c.id == number).values(replayed_as=str(replayed_as))
            connection.execute(statement)

    def expire(self, before: datetime) -> int:
        """Forget what was accepted before a moment (the bus forgets it then, too); how many entries."""
        with self._engine.begin() as connection:
            next_number(connection, HELD, 0)
            gone = connection.execute(
                delete(_rejected).where(_rejected.c.accepted_us < to_us(before)).returning(_rejected.c.held)
            ).scalars().all()  # fmt: skip
            next_number(connection, HELD, -sum(gone))
        return len(gone)

    def _make_room(self, connection: Connection, held: int) -> None:
        """Let the oldest go, in the transaction that needs their room."""
        forgotten = 0
        while held > self._bytes_max * ROOM_SHARE:
            oldest = connection.execute(
                select(_rejected.c.id, _rejected.c.held).order_by(_rejected.c.id).limit(FORGET_AT_ONCE)
            ).all()
            if not oldest:
                break
            last = oldest[0].id
            for row in oldest:
                if held <= self._bytes_max * ROOM_SHARE:
                    break
                last, held, forgotten = row.id, held - row.held, forgotten + 1
            connection.execute(delete(_rejected).where(_rejected.c.id <= last))
        upsert(connection, counters, [{"name": HELD, "value": held}])
        next_number(connection, FORGOTTEN, forgotten)


def _conditions(wanted: Wanted) -> list[ColumnElement[bool]]:
    c, found = _rejected.c, list[ColumnElement[bool]]()
    if wanted.reason is not None:
        found.append(c.reason == wanted.reason)
    if wanted.topic is not None:
        found.append(c.topic == wanted.topic)
    if wanted.since is not None:
        found.append(c.accepted_us >= to_us(wanted.since))
    if wanted.until is not None:
        found.append(c.accepted_us < to_us(wanted.until))
    if wanted.replayed is not None:
        found.append(c.replayed_us > 0 if wanted.replayed else c.replayed_us == 0)
    return found


def _entry(row: Any) -> Entry:
    rejected = Rejected(
        Coordinate(row["log_id"], row["topic"], row["partition"], row["offset"]),
        row["reason"],
        row["detail"],
        row["value"],
        from_us(row["accepted_us"]),
        None if row["key"] is None else row["key"].decode("utf-8", "surrogateescape"),
        row["size"],
    )
    replayed_at = from_us(row["replayed_us"]) if row["replayed_us"] else None
    return Entry(row["id"], rejected, replayed_at, Coordinate.parse(row["replayed_as"]) if row["replayed_as"] else None)


def _row(rejected: Rejected) -> dict[str, object]:
    c = rejected.coordinate
    return {
        "log_id": c.log_id,
        "topic": c.topic,
        "partition": c.partition,
        "offset": c.offset,
        "reason": rejected.reason,
        "detail": rejected.detail.replace("\x00", "\\x00"),  # PostgreSQL has no NUL in texts
        "value": rejected.value,
        "accepted_us": to_us(rejected.accepted_at),
        "key": None if rejected.key is None else rejected.key.encode("utf-8", "surrogateescape"),
        "size": rejected.size,
        "held": entry_bytes(rejected),
    }
