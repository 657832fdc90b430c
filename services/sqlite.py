"""The metadata database in a file of the home: how it is opened."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from services.migrations import revisions


def open_database(path: Path, busy_timeout_ms: int = 5000, migrate: bool = True) -> Engine:
    """The embedded metadata database, brought to the revision this program wants. SettingsInvalid when it is a newer
    one, or when `migrate` is false and it is an older one."""
    engine = sqlite_engine(path, busy_timeout_ms)
    try:
        revisions.require(engine, (lambda: revisions.bring_up(engine)) if migrate else None)
    except BaseException:
        engine.dispose()
        raise
    return engine


def sqlite_engine(path: Path, busy_timeout_ms: int = 5000) -> Engine:
    """Connections to the embedded metadata database as it is: SQLite in WAL mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    waits = {"timeout": busy_timeout_ms / 1000}
    engine = create_engine(f"sqlite:///{path}", connect_args=waits, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def _pragmas(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    return engine
