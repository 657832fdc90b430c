"""The SQLite file of the embedded log: its tables, how a connection is opened, and what its errors mean."""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.domain import FreshrankError, Partition, StageUnavailable

FORMAT = "1"
WAL_BYTES_MAX = 64 * 1024 * 1024
LOOK_EVERY_S = 0.001

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    """CREATE TABLE IF NOT EXISTS places (
        place INTEGER PRIMARY KEY, topic TEXT NOT NULL, number INTEGER NOT NULL, next_offset INTEGER NOT NULL,
        UNIQUE (topic, number))""",
    """CREATE TABLE IF NOT EXISTS messages (
        place INTEGER NOT NULL, "offset" INTEGER NOT NULL, key TEXT, value BLOB NOT NULL, accepted_us INTEGER NOT NULL,
        PRIMARY KEY (place, "offset")) WITHOUT ROWID""",
    "CREATE TABLE IF NOT EXISTS groups (name TEXT PRIMARY KEY, generation INTEGER NOT NULL) WITHOUT ROWID",
    """CREATE TABLE IF NOT EXISTS subscriptions (
        name TEXT NOT NULL, topic TEXT NOT NULL, PRIMARY KEY (name, topic)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS members (
        member INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, topics TEXT NOT NULL, pid INTEGER NOT NULL,
        born REAL NOT NULL, heartbeat_us INTEGER NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS owners (
        name TEXT NOT NULL, place INTEGER NOT NULL, member INTEGER NOT NULL,
        PRIMARY KEY (name, place)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS committed (
        name TEXT NOT NULL, place INTEGER NOT NULL, next_offset INTEGER NOT NULL,
        PRIMARY KEY (name, place)) WITHOUT ROWID""",
)


def connect(path: Path, busy_timeout_ms: int, bytes_max: int | None = None) -> sqlite3.Connection:
    """A connection in autocommit mode (transactions are begun by name), durable at every commit."""
    connection = sqlite3.connect(path, timeout=busy_timeout_ms / 1000, isolation_level=None, check_same_thread=False)
    try:
        _write_ahead(connection, busy_timeout_ms)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA journal_size_limit={WAL_BYTES_MAX}")
        if bytes_max is not None:
            page_bytes = connection.execute("PRAGMA page_size").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count={max(1, bytes_max // page_bytes)}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def prepare(connection: sqlite3.Connection, topics: tuple[str, ...], partitions: int) -> tuple[str, int]:
    """Make the tables and topics where they are missing; the log's identity and its number of partitions.

    A log keeps the number of partitions it was made with: another number would send known keys elsewhere.
    """
    connection.execute("BEGIN IMMEDIATE")
    for statement in _SCHEMA:
        connection.execute(statement)
    made = (("format", FORMAT), ("log_id", uuid.uuid4().hex), ("partitions", str(partitions)))
    connection.executemany("INSERT OR IGNORE INTO meta VALUES (?, ?)", made)
    known = dict(connection.execute("SELECT name, value FROM meta").fetchall())
    for topic in topics:
        add_topic(connection, topic, int(known["partitions"]))
    connection.execute("COMMIT")
    if known["format"] != FORMAT:
        raise FreshrankError(f"the log has format {known['format']}, this program reads format {FORMAT}")
    return known["log_id"], int(known["partitions"])


def add_topic(connection: sqlite3.Connection, topic: str, partitions: int) -> None:
    """Make the partitions of a topic that are missing; inside a transaction."""
    rows = [(topic, number) for number in range(partitions)]
    connection.executemany("INSERT OR IGNORE INTO places (topic, number, next_offset) VALUES (?, ?, 0)", rows)


def places_of(connection: sqlite3.Connection, topics: tuple[str, ...]) -> dict[int, Partition]:
    """The partitions of some topics by their number in this file."""
    marks = ",".join("?" * len(topics))
    rows = connection.execute(f"SELECT place, topic, number FROM places WHERE topic IN ({marks})", topics)
    return {place: Partition(topic, number) for place, topic, number in rows}


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """One write transaction: all or nothing, durable on return."""
    _begin(connection)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def as_unavailable(path: Path, doing: str) -> Iterator[None]:
    """Turn what SQLite raises (full disk, lock, damaged file) into StageUnavailable with one clear sentence."""
    try:
        yield
    except sqlite3.Error as error:
        raise StageUnavailable(f"the log {path} could not {doing}: {error}") from error


def _begin(connection: sqlite3.Connection) -> None:
    """Take the write lock, looking every millisecond until the connection's busy timeout.

    SQLite's own wait backs off to 100 ms a look: beside a steady publisher, a consumer's commit then starves for
    seconds (measured: 2.9 s, and "database is locked"), because the lock is free for milliseconds only.
    """
    busy_timeout_ms = connection.execute("PRAGMA busy_timeout").fetchone()[0]
    until = time.monotonic() + busy_timeout_ms / 1000
    connection.execute("PRAGMA busy_timeout=0")
    try:
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(LOOK_EVERY_S)
    finally:
        connection.execute(f"PRAGMA busy_timeout={busy_timeout_ms}")


def _write_ahead(connection: sqlite3.Connection, busy_timeout_ms: int) -> None:
    """Switch to WAL; SQLite's own busy wait does not cover the switch, so two first openers would collide."""
    until = time.monotonic() + busy_timeout_ms / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return
