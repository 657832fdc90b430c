"""The quarantine in SQL: messages that could not be read, whole, by coordinate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import Engine, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from services import tables
from services.domain import Coordinate, Rejected, StageUnavailable, from_us, to_us

_rejected = tables.rejected


class SqlQuarantine:
    """The Quarantine port over the metadata database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, rejected: Sequence[Rejected]) -> None:
        """Quarantine. StageUnavailable when the database cannot take them: then nothing of the batch is stored."""
        if not rejected:
            return
        dialect = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        statement = dialect.insert(_rejected).on_conflict_do_nothing()
        try:
            with self._engine.begin() as connection:
                connection.execute(statement, [_row(each) for each in rejected])
        except SQLAlchemyError as error:
            raise StageUnavailable(f"the quarantine could not take {len(rejected)} messages: {error}") from error

    def list(self, limit: int, after: int = 0) -> Sequence[tuple[int, Rejected]]:
        """Quarantine."""
        query = select(_rejected).where(_rejected.c.id > after).order_by(_rejected.c.id).limit(limit)
        with self._engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        return [
            (
                row["id"],
                Rejected(
                    Coordinate(row["log_id"], row["topic"], row["partition"], row["offset"]),
                    row["reason"],
                    row["detail"],
                    row["value"],
                    from_us(row["accepted_us"]),
                ),
            )
            for row in rows
        ]

    def count(self) -> Mapping[str, int]:
        """Quarantine."""
        query = select(_rejected.c.reason, func.count()).group_by(_rejected.c.reason).order_by(_rejected.c.reason)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return {str(reason): int(count) for reason, count in rows}

    def expire(self, before: datetime) -> int:
        """Forget what was accepted before a moment (the bus forgets it then, too); how many entries."""
        with self._engine.begin() as connection:
            return connection.execute(delete(_rejected).where(_rejected.c.accepted_us < to_us(before))).rowcount


def _row(rejected: Rejected) -> dict[str, object]:
    c = rejected.coordinate
    return {
        "log_id": c.log_id,
        "topic": c.topic,
        "partition": c.partition,
        "offset": c.offset,
        "reason": rejected.reason,
        "detail": rejected.detail,
        "value": rejected.value,
        "accepted_us": to_us(rejected.accepted_at),
    }
