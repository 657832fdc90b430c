"""The metadata database in PostgreSQL: how it is opened, and a deadline for every wait for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from sqlalchemy import URL, Engine, create_engine, event, make_url, text
from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import ConnectionPoolEntry

from services.domain import SettingsInvalid
from services.migrations import revisions

ANSWER_MARGIN_S = 1.0
"""The server ends a statement at its timeout; one that says nothing this long after that does not answer at all."""
IDLE_MS = 60_000
"""A transaction nobody goes on with (its process was stopped) is ended by the server: others wait for its locks."""
MIGRATION_MS = 3_600_000
RECYCLE_S = 1800
"""Connections are made anew after this: a proxy on the way may forget idle ones without a word."""


@dataclass(frozen=True, slots=True)
class Waits:
    """How long to wait: for a connection (from the pool, too), for a lock, for a statement. And the pool's size."""

    connect_ms: int = 3000
    lock_ms: int = 10_000
    statement_ms: int = 15_000
    pool_max: int = 10


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that gives up on a server that does not answer: a frozen one watches over no timeout of its own."""

    answer_s: float | None = None

    def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        """psycopg: every wait for the server goes through here."""
        started = time.monotonic()
        options.setdefault("timeout", self.answer_s)
        try:
            return super().wait(gen, *args, **options)
        except psycopg.OperationalError as error:
            if self.answer_s is None or time.monotonic() - started < self.answer_s or self.closed:
                raise
            self.close()
            raise psycopg.OperationalError(f"the database did not answer within {self.answer_s:g} s") from error


def open_postgresql(url: str, waits: Waits = Waits(), migrate: bool = True) -> Engine:
    """The metadata database, brought to the revision this program wants. SettingsInvalid when it is a newer one, or
    when `migrate` is false and it is an older one; what SQLAlchemy raises when it is away."""
    engine = engine_of(url, waits)

    def bring_up() -> None:
        slow = migrating_engine(url, waits)
        try:
            revisions.bring_up(slow)
        finally:
            slow.dispose()

    try:
        revisions.require(engine, bring_up if migrate else None)
    except BaseException:
        engine.dispose()
        raise
    return engine


def migrating_engine(url: str, waits: Waits) -> Engine:
    """Connections on which a statement may take as long as changing a table takes."""
    return engine_of(url, replace(waits, statement_ms=MIGRATION_MS))


def engine_of(url: str, waits: Waits) -> Engine:
    """Connections to a PostgreSQL as it is. A broken one is found out when it is taken from the pool."""
    engine = create_engine(
        parsed(url),
        pool_size=waits.pool_max,
        max_overflow=0,
        pool_timeout=waits.connect_ms / 1000,
        pool_pre_ping=True,
        pool_recycle=RECYCLE_S,
        hide_parameters=True,
        connect_args={"connect_timeout": max(1, round(waits.connect_ms / 1000)), "application_name": "freshrank"},
    )
    timeouts = {
        "statement_timeout": waits.statement_ms,
        "lock_timeout": waits.lock_ms,
        "idle_in_transaction_session_timeout": IDLE_MS,
    }
    answer_s = waits.statement_ms / 1000 + ANSWER_MARGIN_S

    @event.listens_for(engine, "do_connect")
    def _connect(_dialect: Dialect, _record: ConnectionPoolEntry, given: list[Any], named: dict[str, Any]) -> Any:
        return BoundedConnection.connect(*given, **named)

    @event.listens_for(engine, "connect")
    def _bound(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
        assert isinstance(connection, BoundedConnection)
        connection.answer_s = answer_s
        for name, wait_ms in timeouts.items():
            connection.execute("SELECT set_config(%s, %s, false)", (name, str(wait_ms)))
        connection.commit()

    return engine


@contextmanager
def alone(engine: Engine, number: int) -> Iterator[None]:
    """Hold the advisory lock of this number, over all machines, for a block."""
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": number})
        yield


def parsed(url: str) -> URL:
    """The address with its driver. SettingsInvalid where it is none; the reason does not repeat it."""
    try:
        return make_url(url).set(drivername="postgresql+psycopg")
    except (ArgumentError, ValueError):
        raise SettingsInvalid("database_url cannot be read: postgresql://user:password@host:5432/name") from None
