"""The archive in parquet parts: `events`, `slates` and `items`, each by UTC day.

A day is a folder of parts with a manifest (`feature_repo.stores.parts_io`), so an append is durable and whole or not
there. Reading streams through DuckDB, day by day, and drops repeats and erased users.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from services import wire
from services.archive import columns
from services.archive.columns import Schema, Table
from services.domain import DAY_US, Coordinate, Event, ItemChange, Slate, StageUnavailable, from_us, to_us

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

log = structlog.get_logger()
EVENTS, SLATES, ITEMS = "events", "slates", "items"
FOR_EVER = (datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC))

FILES_AT_ONCE = 256
ROWS_AT_ONCE = 8192
READ_THREADS = 2
READ_MEMORY = "1GB"
"""DuckDB's limit for one read; beyond it a sort spills to disk."""

SWEEP_AFTER_S = 600.0
"""Replaced parts stay this long, so that a reader that opened a manifest can finish."""


def _nobody() -> Mapping[str, int]:
    return {}


class ParquetArchive:
    """The Archive port over a folder. `erased` gives, by user, the µs before which everything is forgotten."""

    def __init__(self, folder: Path, erased: Callable[[], Mapping[str, int]] = _nobody) -> None:
        self.folder = folder
        self._erased = erased
        self._lock = threading.Lock()

    # ------------------------------------------------------------------------------------------ writing

    def append(
        self,
        events: Sequence[tuple[Coordinate, Event]],
        slates: Sequence[tuple[Coordinate, Slate]],
        items: Sequence[tuple[Coordinate, ItemChange]],
    ) -> None:
        """Archive: one part for each day touched. StageUnavailable when the disk refuses: appending again is fine."""
        with self._lock, self._as_unavailable("written"):
            self._append(EVENTS, columns.event_schema(), columns.event_table, _by_day(events, _event_us))
            self._append(SLATES, columns.slate_schema(), columns.slate_table, _by_day(slates, _slate_us))
            self._append(ITEMS, columns.item_schema(), columns.item_table, _by_day(items, _item_us))

    def merge(self) -> int:
        """Merge the small parts of every day that has many, leaving out erased users; how many merges."""
        from feature_repo.stores import parts_io

        schemas = {EVENTS: columns.event_schema(), SLATES: columns.slate_schema(), ITEMS: columns.item_schema()}
        merges = 0
        with self._as_unavailable("merged"):
            for record, schema in schemas.items():
                for _, folder in self._days(record, *FOR_EVER):
                    if parts_io.merge_due(folder):
                        merges += self._merge(record, schema, folder)
        return merges

    def _merge(self, record: str, schema: Schema, folder: Path) -> int:
        from feature_repo.stores import parts_io

        erased = self._erased() if record != ITEMS else {}
        rewrite = (lambda table: _without(table, erased, _ACCEPTED[record])) if erased else None
        merges = parts_io.merge_levels(folder, schema, rewrite=rewrite)
        parts_io.sweep(folder, SWEEP_AFTER_S)
        return merges

    def _append(
        self,
        record: str,
        schema: Schema,
        build: Callable[[Any], Table],
        by_day: Mapping[int, Sequence[object]],
    ) -> None:
        from feature_repo.stores import parts_io

        for day, rows in sorted(by_day.items()):
            folder = self.folder / record / _day_name(day)
            parts_io.append_part(folder, build(rows), schema)
            if parts_io.merge_due(folder):
                self._merge_if_it_can(record, schema, folder)

    def _merge_if_it_can(self, record: str, schema: Schema, folder: Path) -> None:
        """Merge what an append made due. The rows are durable already: were a merge that fails to count as theirs,
        they would be appended again and again, and fill the very disk that has no room for the merge."""
        try:
            with self._as_unavailable("merged"):
                self._merge(record, schema, folder)
        except StageUnavailable as error:
            log.warning("merge_failed", folder=str(folder), error=str(error))

    # ------------------------------------------------------------------------------------------ reading

    def events(self, since: datetime, until: datetime) -> Iterator[Event]:
        """Archive."""
        for paths in self._chunks(EVENTS, since, until):
            for batch in self._stream(_events_query(columns.EVENT_COLUMNS), paths, since, until):
                yield from columns.events_of(batch)

    def events_table(self, since: datetime, until: datetime, wanted: Sequence[str] = columns.EVENT_COLUMNS) -> Table:
        """The events of `events`, in the same order, as one Arrow table with the wanted columns of `event_schema`."""
        return self._events_table(since, until, wanted, "")

    def _events_table(self, since: datetime, until: datetime, wanted: Sequence[str], condition: str) -> Table:
        import pyarrow as pa

        schema = columns.event_schema()
        batches: list[Any] = []
        for paths in self._chunks(EVENTS, since, until):
            batches += self._stream(_events_query(wanted, condition), paths, since, until)
        return pa.Table.from_batches(batches, pa.schema([schema.field(name) for name in wanted]))

    def answers_table(self, since: datetime, until: datetime) -> Table:
        """The events of `events_table` that name the request they answer."""
        return self._events_table(since, until, columns.ANSWER_COLUMNS, "AND request_id IS NOT NULL")

    def slates(self, since: datetime, until: datetime, request_ids: Collection[str] | None = None) -> Iterator[Slate]:
        """Archive."""
        query = _slates_query("message", request_ids is not None)
        for paths in self._chunks(SLATES, since, until):
            for batch in self._stream(query, paths, since, until, request_ids or ()):
                yield from map(wire.decode_slate, batch.column("message").to_pylist())

    def slates_with_features(self, since: datetime, until: datetime, most: int) -> list[Slate]:
        """Slates that recorded features, by the time they were asked for; where there are more than `most`, some of
        them, chosen by their request ids."""
        few = f"ORDER BY md5(request_id) LIMIT {int(most)}"
        query = f"SELECT message FROM ({_slates_query('request_id, message', False, _WITH_FEATURES)}) {few}"
        found: list[Slate] = []
        for paths in self._chunks(SLATES, since, until):
            for batch in self._stream(query, paths, since, until):
                found += map(wire.decode_slate, batch.column("message").to_pylist())
        chosen = sorted(found, key=lambda slate: hashlib.md5(slate.request_id.encode()).hexdigest())[:most]
        return sorted((slate for slate in chosen if slate.features), key=lambda slate: slate.asked_at)

    def slates_explored(self, since: datetime, until: datetime) -> Iterator[Slate]:
        """The slates of `slates` with a pick that was drawn to learn about it: those whose propensities count."""
        query = _slates_query("message", False, "AND propensities IS NOT NULL", _SLATES_OF_ALL_AGES)
        for paths in self._chunks(SLATES, since, until):
            for batch in self._stream(query, paths, since, until):
                yield from map(wire.decode_slate, batch.column("message").to_pylist())

    def slates_served(self, since: datetime, until: datetime) -> int:
        """How many slates `slates` would give."""
        query = f"SELECT count(*) AS served FROM ({_slates_query('asked_us', False)})"
        return sum(
            int(batch.column("served")[0].as_py())
            for paths in self._chunks(SLATES, since, until)
            for batch in self._stream(query, paths, since, until)
        )

    def item_changes(self, since: datetime, until: datetime) -> Iterator[tuple[Coordinate, ItemChange]]:
        """Changes of the catalogue accepted in `since <= accepted_at < until`, each coordinate once; those of one item
        in their order."""
        for paths in self._chunks(ITEMS, since, until):
            for batch in self._stream(_ITEMS_QUERY, paths, since, until):
                yield from columns.item_changes_of(batch)

    def bounds(self) -> tuple[datetime, datetime] | None:
        """Archive. Erased users count here until a merge has dropped them."""
        days = self._days(EVENTS, *FOR_EVER)
        with self._as_unavailable("read"), _duckdb(self._spill()) as connection:
            first = next((found for _, folder in days if (found := _extremes(connection, folder))), None)
            last = next((found for _, folder in reversed(days) if (found := _extremes(connection, folder))), None)
        return (from_us(first[0]), from_us(last[1])) if first and last else None

    def log_ids(self, since: datetime | None = None) -> set[str]:
        """The logs that the archived events of since then came through."""
        found: set[str] = set()
        for paths in self._chunks(EVENTS, since or FOR_EVER[0], FOR_EVER[1]):
            with self._as_unavailable("read"), _duckdb(self._spill()) as connection:
                rows = connection.execute("SELECT DISTINCT log_id FROM read_parquet($paths)", {"paths": paths})
                found |= {log_id for (log_id,) in rows.fetchall()}
        return found

    def _stream(
        self, query: str, paths: Sequence[str], since: datetime, until: datetime, request_ids: Collection[str] = ()
    ) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        erased = self._erased()
        gone = pa.table(
            {"user_id": pa.array(list(erased), pa.string()), "erased_us": pa.array(list(erased.values()), pa.int64())}
        )
        with self._as_unavailable("read"), _duckdb(self._spill()) as connection:
            connection.register("gone", gone)
            connection.register("slate_columns", columns.slate_schema().empty_table())
            connection.register("asked", pa.table({"request_id": pa.array(list(request_ids), pa.string())}))
            values = {"paths": list(paths), "since": to_us(since), "until": to_us(until)}
            reader: Any = connection.sql(query, params=values).to_arrow_reader(ROWS_AT_ONCE)
            yield from reader

    def _chunks(self, record: str, since: datetime, until: datetime) -> Iterator[list[str]]:
        """The live parts of the days in a span, some whole days at a time, in time order."""
        from feature_repo.stores import parts_io

        chunk: list[str] = []
        for _, folder in self._days(record, since, until):
            chunk += map(str, parts_io.live_parts(folder))
            if len(chunk) >= FILES_AT_ONCE:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    def _days(self, record: str, since: datetime, until: datetime) -> list[tuple[int, Path]]:
        """The day folders that a span touches, oldest first."""
        root = self.folder / record
        first, last = to_us(since) // DAY_US, (to_us(until) - 1) // DAY_US
        found = [(_day_number(path.name), path) for path in root.iterdir()] if root.is_dir() else []
        return sorted((day, path) for day, path in found if first <= day <= last)

    def _spill(self) -> Path:
        return self.folder / ".spill"

    @contextmanager
    def _as_unavailable(self, doing: str) -> Iterator[None]:
        """Turn what the disk, parquet or DuckDB raises into StageUnavailable with one sentence."""
        import duckdb
        import pyarrow as pa

        try:
            yield
        except (OSError, pa.ArrowException, duckdb.Error) as error:
            raise StageUnavailable(f"the archive {self.folder} could not be {doing}: {error}") from error


_ACCEPTED = {EVENTS: "accepted_us", SLATES: "asked_us"}
"""The time that an erasure is compared with."""

_ONE_COPY = 'QUALIFY row_number() OVER (PARTITION BY log_id, topic, "partition", "offset") = 1'
_ITEMS_QUERY = f"""
    SELECT * FROM read_parquet($paths), (SELECT count(*) AS unused FROM gone)
    WHERE accepted_us >= $since AND accepted_us < $until {_ONE_COPY}
    ORDER BY accepted_us, topic, "partition", "offset" """


_WITH_FEATURES = """AND contains(decode(message), '"features":"')"""


_SLATES_OF_ALL_AGES = """(SELECT * FROM slate_columns
    UNION ALL BY NAME SELECT * FROM read_parquet($paths, union_by_name = true))"""
"""Parts from before a column have null there, also where no part has it."""


def _slates_query(wanted: str, only_asked: bool, some: str = "", parts: str = "read_parquet($paths)") -> str:
    some += "AND request_id IN (SELECT request_id FROM asked)" if only_asked else ""
    return f"""
        SELECT {wanted} FROM {parts} AS slate ANTI JOIN gone
        ON slate.user_id = gone.user_id AND slate.asked_us < gone.erased_us
        WHERE asked_us >= $since AND asked_us < $until {some} {_ONE_COPY} ORDER BY asked_us, request_id"""


def _events_query(wanted: Sequence[str], condition: str = "") -> str:
    """One row per event: a coordinate that was written twice has one event_id, so the ids of a day settle both."""
    return f"""
        SELECT {", ".join(f"event.{name}" for name in wanted)} FROM read_parquet($paths) AS event ANTI JOIN gone
        ON event.user_id = gone.user_id AND event.accepted_us < gone.erased_us
        WHERE occurred_us >= $since AND occurred_us < $until {condition}
        QUALIFY row_number() OVER (
            PARTITION BY occurred_us // {DAY_US}, event_id ORDER BY occurred_us, accepted_us, "partition", "offset") = 1
        ORDER BY occurred_us, event_id"""


def _extremes(connection: duckdb.DuckDBPyConnection, folder: Path) -> tuple[int, int] | None:
    from feature_repo.stores import parts_io

    paths = [str(path) for path in parts_io.live_parts(folder)]
    if not paths:
        return None
    query = "SELECT min(occurred_us), max(occurred_us) FROM read_parquet($paths)"
    first, last = connection.execute(query, {"paths": paths}).fetchall()[0]
    return (first, last) if first is not None else None


@contextmanager
def _duckdb(spill: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB of its own for one read: bounded memory, bounded threads, spilling beside the archive."""
    import duckdb

    options: dict[str, str | bool | int | float | list[str]] = {
        "threads": READ_THREADS,
        "memory_limit": READ_MEMORY,
        "temp_directory": str(spill),
        "autoinstall_known_extensions": False,
    }
    with duckdb.connect(":memory:", config=options) as connection:
        yield connection


def _without(table: Table, erased: Mapping[str, int], accepted: str) -> Table:
    """The rows that no erasure covers."""
    import pyarrow as pa

    users, times = table.column("user_id").to_pylist(), table.column(accepted).to_pylist()
    return table.filter(pa.array([t >= erased.get(u or "", 0) for u, t in zip(users, times, strict=True)], pa.bool_()))


def _by_day(rows: Sequence[Any], time_us: Callable[[Any], int]) -> dict[int, list[Any]]:
    by_day: dict[int, list[Any]] = {}
    for row in rows:
        by_day.setdefault(time_us(row) // DAY_US, []).append(row)
    return by_day


def _event_us(row: tuple[Coordinate, Event]) -> int:
    return to_us(row[1].occurred_at)


def _slate_us(row: tuple[Coordinate, Slate]) -> int:
    return to_us(row[1].asked_at)


def _item_us(row: tuple[Coordinate, ItemChange]) -> int:
    return to_us(row[1].accepted_at)


def _day_name(day: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)).strftime("%Y-%m-%d")


def _day_number(name: str) -> int:
    return (datetime.strptime(name, "%Y-%m-%d").replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)).days
