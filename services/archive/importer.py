"""Bring data in: read files, sort by time, make ids, publish. What cannot be read goes to a rejects file.

1. events are read, checked and put aside in a table on the disk, 2. their time is shifted where wanted, 3. items are
published, 4. events are published in time order. Nothing is published before every event has been read.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

import msgspec

from services import wire
from services.archive.reading import BadRow, Fields, Row, headers_of, listed, rows_of
from services.archive.recipes import ImportSource
from services.domain import (
    NO_PROPERTIES,
    BadRequest,
    Event,
    ItemChange,
    Outgoing,
    WireError,
    from_us,
    to_us,
)
from services.fields import check_id, check_item_fields
from services.ports import EventSink

if TYPE_CHECKING:
    import duckdb

Progress = Callable[[int, int, str], None]
"""Told (done, total, what is being done)."""

ROWS_AT_ONCE = 20_000
PUBLISHED_AT_ONCE = 5000
SORT_MEMORY = "512MB"
"""Beyond this the sort spills to disk."""

REJECT_TEXT_MAX = 2000
_LATER = "later"
"""Stands for an id until the ordinal that it is made from is known."""

COLUMNS_MAX = 1000
"""So many names are gathered from a file whose rows name their own columns."""
_GIVES_ID = frozenset({"event_id", *wire.EVENT_ALIASES["event_id"]})
_GIVES_TIME = ("occurred_at", *wire.EVENT_ALIASES["occurred_at"])


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did. `skipped` rows were left out on purpose; `rejected` ones could not be read, by reason.
    Of the `unread` files not one row could be read."""

    events: int
    items: int
    skipped: int
    rejected: Mapping[str, int] = field(default_factory=dict)
    rejects_path: Path | None = None
    first: datetime | None = None
    last: datetime | None = None
    unread: tuple[Path, ...] = ()


def _silent(_done: int, _total: int, _text: str) -> None:
    """Report nothing."""


def import_sources(
    sources: Sequence[ImportSource],
    sink: EventSink,
    now: datetime,
    *,
    work: Path,
    rejects_path: Path,
    shift_to: datetime | None = None,
    progress: Progress = _silent,
) -> Imported:
    """Publish what the sources hold; `work` takes the sort's files, which are gone at the end.

    `shift_to` moves all event times, and publication times with them, so that the last event happens then. The k-th
    event of one user at one time gets k µs more; an event without an id gets one from its fields, so that importing
    the same file again sends the same events.
    """
    if shift_to is not None and shift_to > now + wire.FUTURE_CLAMPED:
        raise BadRequest(f"the last event cannot happen at {shift_to.isoformat()}: that is in the future")
    for source in sources:
        _check_columns(source)
    with _Rejects(rejects_path) as rejects, _table(work) as table:
        skipped = _read_events(sources, now, table, rejects, progress)
        first_us, last_us = table.execute("SELECT min(occurred_us), max(occurred_us) FROM rows").fetchall()[0]
        shift_us = to_us(shift_to) - last_us if shift_to is not None and last_us is not None else 0
        if shift_us and first_us + shift_us < to_us(wire.OLDEST):
            raise BadRequest(f"moved to {shift_to}, the first event would happen before {wire.OLDEST.date()}")
        items = _publish_items(sources, now, table, shift_us, sink, rejects, progress)
        events = _publish_events(table, now, shift_us, sink, progress)
    return Imported(
        events,
        items,
        skipped,
        dict(rejects.counts),
        rejects_path if rejects.counts else None,
        from_us(first_us + shift_us) if events else None,
        from_us(last_us + shift_us) if events else None,
        rejects.unread(),
    )


# ----------------------------------------------------------------------------------------------- events

_COLUMNS = ("event_id", "user_id", "item_id", "kind", "occurred_us", "value", "request_id", "session_id", "properties")
_SORTED = """
    WITH numbered AS (
        SELECT *,
            CASE WHEN event_id IS NULL THEN row_number() OVER (
                PARTITION BY user_id, occurred_us, event_id IS NULL ORDER BY place) - 1 ELSE 0 END AS later_us,
            row_number() OVER (
                PARTITION BY user_id, item_id, kind, occurred_us, "value", request_id, session_id, properties
                ORDER BY place) - 1 AS ordinal
        FROM rows)
    SELECT * EXCLUDE (place, later_us), occurred_us + later_us AS at_us FROM numbered ORDER BY at_us, place"""


def _read_events(
    sources: Sequence[ImportSource],
    now: datetime,
    table: duckdb.DuckDBPyConnection,
    rejects: _Rejects,
    progress: Progress,
) -> int:
    """Put every readable event into the table; how many rows were left out."""
    skipped, place = 0, 0
    held: list[tuple[object, ...]] = []
    for source in sources:
        if source.event is None:
            continue
        readable = False
        for row in _rows(source, progress):
            if isinstance(row, BadRow):
                rejects.add(source.file.path, row)
                continue
            try:
                columns = _columns(source.event(row.fields), now)
            except WireError as error:
                rejects.add(source.file.path, BadRow(row.line, error.reason, error.detail, _shown(row.fields)))
                continue
            readable = True
            if columns is None:
                skipped += 1
                continue
            held.append((place, *columns))
            place += 1
            if len(held) >= ROWS_AT_ONCE:
                _put_aside(table, held)
                held = []
        if readable:
            rejects.readable.add(source.file.path)
    _put_aside(table, held)
    return skipped


def _columns(fields: Fields | None, now: datetime) -> tuple[object, ...] | None:
    """The checked columns of one event, as the wire reads it; None for a row that is left out."""
    if fields is None:
        return None
    if all(fields.get(name) in (None, "") for name in _GIVES_TIME):
        raise WireError("missing_time", "occurred_at is required: taken as now, it would be new with every import")
    gives_id = not _GIVES_ID.isdisjoint(fields)
    event = wire.parse_event(fields if gives_id else {**fields, "event_id": _LATER}, now)
    return (
        event.event_id if gives_id else None,
        event.user_id,
        event.item_id,
        event.kind,
        to_us(event.occurred_at),
        event.value,
        event.request_id,
        event.session_id,
        msgspec.json.encode(dict(sorted(event.properties.items()))).decode() if event.properties else None,
    )


def _put_aside(table: duckdb.DuckDBPyConnection, held: Sequence[tuple[object, ...]]) -> None:
    import pyarrow as pa

    if not held:
        return
    types = {"place": pa.int64(), "occurred_us": pa.int64(), "value": pa.float64()}
    names = ("place", *_COLUMNS)
    columns = zip(names, zip(*held, strict=True), strict=True)
    table.register("held", pa.table({n: pa.array(v, types.get(n, pa.string())) for n, v in columns}))
    table.execute("INSERT INTO rows SELECT * FROM held")
    table.unregister("held")


def _publish_events(
    table: duckdb.DuckDBPyConnection, now: datetime, shift_us: int, sink: EventSink, progress: Progress
) -> int:
    """Publish all rows in time order; how many."""
    total = table.execute("SELECT count(*) FROM rows").fetchall()[0][0]
    done = 0
    reader: Any = table.sql(_SORTED).to_arrow_reader(PUBLISHED_AT_ONCE)
    for batch in reader:
        rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
        messages = [_message(row, now, shift_us) for row in rows]
        for start in range(0, len(messages), PUBLISHED_AT_ONCE):
            done += len(sink.publish(messages[start : start + PUBLISHED_AT_ONCE]))
            progress(done, total, "publishing events")
    return done


def _message(row: tuple[Any, ...], now: datetime, shift_us: int) -> Outgoing:
    event_id, user_id, item_id, kind, given_us, value, request_id, session_id, properties, ordinal, at_us = row
    named = msgspec.json.decode(properties, type=dict[str, str]) if properties else None
    if event_id is None:  # from the time as it was given: neither the shift nor the place in a basket counts
        given_at = from_us(given_us)
        fields = wire.WireEvent(
            wire.VERSION, "", user_id, item_id, kind, given_at, value, request_id, session_id, named
        )
        event_id = wire.derived_event_id(fields, ordinal)
    event = Event(
        event_id, user_id, item_id, kind, from_us(at_us + shift_us), now, value, request_id, session_id,
        named or NO_PROPERTIES,
    )  # fmt: skip
    return wire.encode_event(event)


# ------------------------------------------------------------------------------------------------ items


def _publish_items(
    sources: Sequence[ImportSource],
    now: datetime,
    table: duckdb.DuckDBPyConnection,
    shift_us: int,
    sink: EventSink,
    rejects: _Rejects,
    progress: Progress,
) -> int:
    """Publish every readable item, in the order of its file; how many."""
    first_us: dict[str, int] = dict(table.execute("SELECT item_id, min(occurred_us) FROM rows GROUP BY 1").fetchall())
    count = 0
    held: list[Outgoing] = []
    for source in sources:
        if source.item is None:
            continue
        readable = False
        for row in _rows(source, progress):
            if isinstance(row, BadRow):
                if source.event is None:  # a file with events, too, has had its bad rows written down already
                    rejects.add(source.file.path, row)
                continue
            try:
                fields = source.item(row.fields)
                if fields is not None:
                    held.append(_item_message(fields, now, first_us, shift_us))
                readable = True
            except WireError as error:
                rejects.add(source.file.path, BadRow(row.line, error.reason, error.detail, _shown(row.fields)))
            if len(held) >= PUBLISHED_AT_ONCE:
                count += len(sink.publish(held))
                held = []
        if readable:
            rejects.readable.add(source.file.path)
    return count + len(sink.publish(held))


def _item_message(fields: Fields, now: datetime, first_us: Mapping[str, int], shift_us: int) -> Outgoing:
    """The put of an item. Whoever was seen with an event had been published by then, whatever the file says."""
    given = dict(fields)
    item_id = given.pop("item_id", None)
    item_id = str(item_id).strip() if isinstance(item_id, str | int) else ""
    check_id("item_id", item_id)
    checked = dict(check_item_fields(given))
    if isinstance(published_at := checked.get("published_at"), datetime):
        seen_us = first_us.get(item_id, to_us(published_at))
        checked["published_at"] = _shifted(min(published_at, from_us(seen_us)), shift_us)
    message = wire.encode_item(ItemChange(item_id, "put", checked, now, now))
    if len(message.value) > wire.BYTES_MAX:
        raise WireError("oversized", f"{len(message.value)} bytes, the limit is {wire.BYTES_MAX}")
    return message


def _shifted(moment: datetime, shift_us: int) -> datetime:
    try:
        return moment + timedelta(microseconds=shift_us)
    except OverflowError:
        raise WireError("bad_time", f"{moment.isoformat()} is out of range once it is shifted") from None


# ----------------------------------------------------------------------------------------------- inside


def _rows(source: ImportSource, progress: Progress) -> Iterator[Row | BadRow]:
    path = source.file.path
    total = path.stat().st_size
    yield from rows_of(source.file, lambda done: progress(done, total, f"reading {path.name}"))
    progress(total, total, f"reading {path.name}")


def _check_columns(source: ImportSource) -> None:
    """Refuse, before anything is published, a file that is missing or has no column for what every row must say."""
    names: dict[str, None] = {}
    absent: list[str] = []
    for header in headers_of(source.file):
        if names and names.keys() >= set(header):
            continue
        names |= dict.fromkeys(header)
        absent = _absent(source, names)
        if not absent or len(names) > COLUMNS_MAX:
            break
    if absent:
        raise BadRequest(
            f"{source.file.path}: no column stands for {', '.join(absent)}; it has {listed(names)};"
            f" name {'it' if len(absent) == 1 else 'them'} with {' '.join(f'--map {ours}=COLUMN' for ours in absent)}"
        )


def _absent(source: ImportSource, names: Mapping[str, None]) -> list[str]:
    """The fields every row must give that come out of no column of these names."""
    try:
        fields = (source.event or source.item or dict)(dict.fromkeys(names, "1"))
    except KeyError as missing:
        raise BadRequest(f"{source.file.path} has no column {missing}; it has {listed(names)}") from None
    wanted = ("user_id", "item_id", "occurred_at") if source.event else ("item_id",)
    known = set(wanted if fields is None else fields)
    return [ours for ours in wanted if known.isdisjoint((ours, *wire.EVENT_ALIASES[ours]))]


@contextmanager
def _table(work: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty table `rows` on the disk, gone at the end."""
    import duckdb

    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work, prefix="import-") as folder:
        options: dict[str, str | bool | int | float | list[str]] = {
            "threads": 2,
            "memory_limit": SORT_MEMORY,
            "temp_directory": folder,
            "autoinstall_known_extensions": False,
        }
        with duckdb.connect(str(Path(folder) / "rows.duckdb"), config=options) as connection:
            texts = ("event_id", "user_id", "item_id", "kind"), ("request_id", "session_id", "properties")
            before, after = (", ".join(f"{name} VARCHAR" for name in names) for names in texts)
            connection.execute(
                f'CREATE TABLE rows (place BIGINT, {before}, occurred_us BIGINT, "value" DOUBLE, {after})'
            )
            yield connection


class _Rejects:
    """The rejects file: one JSON object per bad row; made with the first one. `readable` files have a good row."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self.counts: Counter[str] = Counter()
        self.readable: set[Path] = set()
        self._hurt: dict[Path, None] = {}

    def __enter__(self) -> _Rejects:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def unread(self) -> tuple[Path, ...]:
        """The files that have rows of which not one could be read."""
        return tuple(path for path in self._hurt if path not in self.readable)

    def add(self, path: Path, row: BadRow) -> None:
        """Write one row down."""
        self._hurt[path] = None
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("wb")
        self.counts[row.reason] += 1
        text = row.text[:REJECT_TEXT_MAX].encode(errors="replace").decode()
        entry = {"file": str(path), "line": row.line, "reason": row.reason, "detail": row.detail, "row": text}
        self._file.write(msgspec.json.encode(entry) + b"\n")


def _shown(fields: Fields) -> str:
    try:
        return msgspec.json.encode(dict(fields), enc_hook=str).decode()
    except (msgspec.MsgspecError, UnicodeEncodeError, OverflowError, RecursionError):
        return ascii(fields)
