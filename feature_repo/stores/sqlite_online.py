"""Feast's online store on one SQLite file that many processes share.

What the stock one gets wrong is right here: WAL and a connection per thread (a writer never blocks a reader), times to
the microsecond, one row per entity, a late older row never replaces a newer one, and `write_if_unchanged`, a
compare-and-set on the row time, so that two writers can never take each other's events away.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from feast.infra.online_stores.online_store import OnlineStore
from feast.repo_config import FeastConfigBaseModel
from pydantic import Field

from feature_repo.stores.faults import StoreDown
from feature_repo.stores.rows import (
    Read,
    Row,
    key_of,
    moment_of,
    pack_values,
    table_of,
    text_of_key,
    unpack_values,
    us_of,
)


class SqliteOnlineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """`read_wait_ms`: how long a read waits for a lock. `write_wait_ms`: how long a write does.
    `renamed`: under which name the rows of a view are kept, where it is not its own."""

    type: str = "feature_repo.stores.sqlite_online.SqliteOnlineStore"
    path: str
    read_wait_ms: int = 200
    write_wait_ms: int = 5000
    renamed: dict[str, str] = Field(default_factory=dict)
    vector_enabled: bool = False


class SqliteOnlineStore(OnlineStore):  # type: ignore[misc]
    """One table per feature view: key, row time in µs, all features packed."""

    def __init__(self) -> None:
        self._mine = threading.local()
        self._lock = threading.Lock()
        self._connections: list[sqlite3.Connection] = []

    def online_read(
        self, config: Any, table: Any, entity_keys: Sequence[Any], requested_features: Sequence[str] | None = None
    ) -> list[Read]:
        """The newest row of each key, in the order asked; `(None, None)` for one that has none."""
        rows = self.read_packed(config, table, entity_keys)
        return [
            (moment_of(row[0]), unpack_values(row[1], table, requested_features)) if row else (None, None)
            for row in rows
        ]

    def read_packed(self, config: Any, table: Any, entity_keys: Sequence[Any]) -> list[tuple[int, bytes] | None]:
        """The newest row of each key as it is stored: row time in µs and the packed features; None where there is
        none."""
        statement = f"SELECT ts, d FROM {_table(config, table)} WHERE k = ?"
        try:
            connection = self._connection(config, "reads", config.online_store.read_wait_ms)
            return [connection.execute(statement, (key_of(config, key),)).fetchone() for key in entity_keys]
        except sqlite3.Error as error:
            raise StoreDown(f"{config.online_store.path} cannot be read: {error}") from error

    def online_write_batch(
        self, config: Any, table: Any, data: Sequence[Row], progress: Callable[[int], Any] | None
    ) -> None:
        """Write the rows, durably, all or none; one that is older than what is stored is passed over."""
        statement = (
            f"INSERT INTO {_table(config, table)} (k, ts, d) VALUES (?, ?, ?) "
            "ON CONFLICT (k) DO UPDATE SET ts = excluded.ts, d = excluded.d WHERE excluded.ts >= ts"
        )
        rows = [(key_of(config, key), us_of(at), pack_values(values)) for key, values, at, _ in data]
        self._in_transaction(config, lambda connection: connection.executemany(statement, rows))
        if progress:
            progress(len(rows))

    def write_if_unchanged(
        self, config: Any, table: Any, data: Sequence[tuple[Any, bytes, int]], expected_us: Sequence[int]
    ) -> tuple[int, ...]:
        """Write each row (entity key, packed features, row time in µs) whose stored row time is what is expected
        (0: there is none); the places of those refused. Durable on return, in one transaction."""
        name = _table(config, table)
        first = f"INSERT INTO {name} (ts, d, k) VALUES (?, ?, ?) ON CONFLICT (k) DO NOTHING"
        again = f"UPDATE {name} SET ts = ?, d = ? WHERE k = ? AND ts = ?"
        rows = [(at_us, features, key_of(config, key)) for key, features, at_us in data]
        refused: list[int] = []

        def write(connection: sqlite3.Connection) -> None:
            refused.clear()
            for place, (row, expected) in enumerate(zip(rows, expected_us, strict=True)):
                done = connection.execute(again, (*row, expected)) if expected else connection.execute(first, row)
                if done.rowcount == 0:
                    refused.append(place)

        self._in_transaction(config, write)
        return tuple(refused)

    def user_ids(self, config: Any, table: Any) -> Iterator[str]:
        """The id of every row, for views whose key is one text."""
        last = b""
        while True:
            try:
                connection = self._connection(config, "reads", config.online_store.read_wait_ms)
                keys = connection.execute(
                    f"SELECT k FROM {_table(config, table)} WHERE k > ? ORDER BY k LIMIT 1000", (last,)
                ).fetchall()
            except sqlite3.Error as error:
                raise StoreDown(f"{config.online_store.path} cannot be read: {error}") from error
            if not keys:
                return
            last = keys[-1][0]
            yield from (text_of_key(key) for (key,) in keys)

    def what_it_may_lose(self, config: Any) -> tuple[str, ...]:  # noqa: ARG002
        """Why rows that were written may be gone later: they may not."""
        return ()

    def update(
        self,
        config: Any,
        tables_to_delete: Sequence[Any],
        tables_to_keep: Sequence[Any],
        entities_to_delete: Sequence[Any],  # noqa: ARG002
        entities_to_keep: Sequence[Any],  # noqa: ARG002
        partial: bool,  # noqa: ARG002
    ) -> None:
        """Make the tables of the views that are applied, drop those of the views that are gone."""

        def change(connection: sqlite3.Connection) -> None:
            for view in tables_to_keep:
                connection.execute(
                    f"CREATE TABLE IF NOT EXISTS {_table(config, view)} "
                    "(k BLOB PRIMARY KEY, ts INTEGER NOT NULL, d BLOB NOT NULL)"  # with rowid: half the cost at 1 KB
                )
            for view in tables_to_delete:
                connection.execute(f"DROP TABLE IF EXISTS {_table(config, view)}")

        self._in_transaction(config, change)

    def teardown(self, config: Any, tables: Sequence[Any], entities: Sequence[Any]) -> None:
        """Drop the tables."""
        self.update(config, tables, (), entities, (), partial=False)

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()
            self._mine = threading.local()

    # ------------------------------------------------------------------------------------------ inside

    def _in_transaction(self, config: Any, work: Callable[[sqlite3.Connection], object]) -> None:
        try:
            connection = self._connection(config, "writes", config.online_store.write_wait_ms)
            connection.execute("BEGIN IMMEDIATE")
            try:
                work(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StoreDown(f"{config.online_store.path} cannot be written: {error}") from error

    def _connection(self, config: Any, use: str, wait_ms: int) -> sqlite3.Connection:
        held: sqlite3.Connection | None = getattr(self._mine, use, None)
        if held is None:
            path = Path(config.online_store.path)
            path.parent.mkdir(parents=True, exist_ok=True)
            held = sqlite3.connect(path, timeout=wait_ms / 1000, isolation_level=None, check_same_thread=False)
            held.execute("PRAGMA journal_mode=WAL")
            held.execute("PRAGMA synchronous=FULL")  # offsets are committed after this: it must not be lost
            held.execute("PRAGMA cache_size=-32768")
            held.execute("PRAGMA wal_autocheckpoint=8192")  # 32 MiB: not after every batch
            setattr(self._mine, use, held)
            with self._lock:
                self._connections.append(held)
        return held


def _table(config: Any, view: Any) -> str:
    return '"' + table_of(config, view).replace('"', "") + '"'
