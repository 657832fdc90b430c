"""The files that an evaluation reads: events, items and targets, as csv (also gz) or parquet."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from services.archive.reading import BadRow, DataFile, Fields, Row, format_of, rows_of
from services.archive.recipes import item_fields
from services.domain import BadRequest, KindRules, WireError, to_us
from services.fields import check_id, id_text, number_of, parse_time
from services.training.columns import EventColumns, apart, signed_weights

if TYPE_CHECKING:
    import pyarrow as pa

EVENT_COLUMNS = ("user_id", "item_id", "timestamp", "kind", "value")
DEFAULT_KIND = "click"
"""What an event is where the file has no column `kind`: positive, whatever its value."""
MS_FROM = 1e11
"""A timestamp from here on is in ms: 1e11 s is the year 5138, 1e11 ms is 1973."""
US_PER_S, US_PER_MS = 1_000_000, 1000
T = TypeVar("T")
TIMES_MAX = 6e10


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the items file; `published_us` 0: not given."""

    item_id: str
    title: str
    text: str
    categories: tuple[str, ...]
    published_us: int


@dataclass(frozen=True, slots=True)
class Target:
    """One line of the targets file; `time_us` None: after all events."""

    user_id: str
    item_id: str
    time_us: int | None


@dataclass(frozen=True, slots=True)
class Data:
    """What was read. `events` are in time order; equal times stand as they stood in the file. Its `item_ids` are the
    whole catalogue, in the order of their ids: every item of all files, with events or without."""

    events: EventColumns
    items: tuple[Item, ...]
    targets: tuple[Target, ...]


class Suspect(Exception):
    """Something in a file is wrong; where, the row by row reading says."""


def read_data(
    events: Path,
    items: Path,
    targets: Path | None,
    rules: KindRules,
    more_users: Sequence[str] = (),
    more_items: Sequence[str] = (),
) -> Data:
    """Read all files; `more` ids stand in other files. Raises BadRequest with file, line and column of the first
    mistake."""
    known = read_items(items)
    wanted = read_targets(targets) if targets else ()
    table = _event_table(events)
    users = [*more_users, *(each.user_id for each in wanted)]
    ids = [*more_items, *(each.item_id for each in known), *(each.item_id for each in wanted)]
    return Data(_columns(table, users, ids, rules), known, wanted)


# ---------------------------------------------------------------------------------------- items and targets


def read_items(path: Path) -> tuple[Item, ...]:
    """The lines of an items file `item_id,title[,text,categories,published_at]`, in their order."""
    found: dict[str, Item] = {}
    lines: dict[str, int] = {}
    for row in rows_in(path, ("item_id", "title")):
        item = _item(path, row)
        if item.item_id in found:
            wrong(path, row.line, "item_id", f"{item.item_id!r} stands in line {lines[item.item_id]} already")
        found[item.item_id], lines[item.item_id] = item, row.line
    if not found:
        raise BadRequest(f"{path} holds no item")
    return tuple(found.values())


def read_targets(path: Path) -> tuple[Target, ...]:
    """The lines of a targets file `user_id,item_id[,timestamp]`, in their order."""
    found = tuple(
        Target(
            checked(path, row, "user_id", _user_id),
            checked(path, row, "item_id", _item_id),
            checked(path, row, "timestamp", maybe_time_us),
        )
        for row in rows_in(path, ("user_id", "item_id"))
    )
    if not found:
        raise BadRequest(f"{path} holds no target")
    return found


def _item(path: Path, row: Row) -> Item:
    fields = item_fields(row.fields)
    published = checked(path, row, "published_at", _maybe_published_us)
    categories = fields.get("categories")
    if categories not in (None, "") and not isinstance(categories, list | tuple):
        wrong(path, row.line, "categories", f"must be texts separated by |, not {categories!r}")
    return Item(
        checked(path, row, "item_id", _item_id),
        _text(row.fields.get("title")),
        _text(row.fields.get("text")),
        tuple(str(each) for each in categories) if isinstance(categories, list | tuple) else (),
        published,
    )


def rows_in(path: Path, needed: Sequence[str]) -> Any:
    """The readable rows; the first that is not, or a column that is not there, ends the reading."""
    first = True
    for row in rows_of(_file(path)):
        if isinstance(row, BadRow):
            wrong(path, row.line, None, row.detail)
        if first:
            _check_header(path, tuple(row.fields), needed)
            first = False
        yield row


# --------------------------------------------------------------------------------------------------- events


def _event_table(path: Path) -> pa.Table:
    """The events as columns user_id, item_id, kind (dictionaries), occurred_us and value. Read at once; where that
    meets a mistake, row by row up to it."""
    import pyarrow as pa

    try:
        return _checked_events(read_table(path, EVENT_COLUMNS[:3], EVENT_COLUMNS[3:], ()))
    except (Suspect, pa.ArrowException, OSError) as error:
        for row in rows_in(path, EVENT_COLUMNS[:3]):
            _check_event(path, row)
        raise BadRequest(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def read_table(path: Path, needed: Sequence[str], more: Sequence[str], coded: Sequence[str]) -> pa.Table:
    """The columns `needed`, and of `more` those that are there, of csv (as texts; those of `coded` as dictionaries) or
    parquet. Raises BadRequest where one is missing, Suspect or pyarrow's errors where something else is wrong."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow import csv

    if format_of(_file(path)) == "parquet":
        names = pq.read_schema(path).names
        _check_header(path, names, needed)
        table = pq.read_table(path, columns=[name for name in (*needed, *more) if name in names])
    else:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        texts = {name: pa.string() for name in (*needed, *more)}
        texts |= {name: pa.dictionary(pa.int32(), pa.string()) for name in coded}
        with pa.input_stream(str(path), compression="gzip" if zipped else None) as stream:
            table = csv.read_csv(
                stream,
                parse_options=csv.ParseOptions(newlines_in_values=True),
                convert_options=csv.ConvertOptions(column_types=texts, strings_can_be_null=False),
            )
        _check_header(path, table.column_names, needed)
    if len(set(table.column_names)) < len(table.column_names):
        raise Suspect("two columns have one name")
    return table.select([name for name in (*needed, *more) if name in table.column_names])


def _checked_events(table: pa.Table) -> pa.Table:
    import pyarrow as pa

    if len(table) == 0:
        raise Suspect("it holds no event")
    size = len(table)
    columns = {name: ids_of(table[name], name) for name in ("user_id", "item_id")}
    columns["occurred_us"] = pa.array(times_us(table["timestamp"]))
    if "kind" in table.column_names:
        columns["kind"] = _kinds(table["kind"])
    else:
        columns["kind"] = pa.DictionaryArray.from_arrays(np.zeros(size, dtype=np.int32), [DEFAULT_KIND])
    columns["value"] = pa.array(numbers_of(table["value"]) if "value" in table.column_names else np.full(size, np.nan))
    return pa.table(columns)


def ids_of(column: pa.ChunkedArray, name: str) -> pa.DictionaryArray:
    """A column of ids, checked and coded. Raises Suspect."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):
        whole = column.unify_dictionaries().combine_chunks()
        if whole.null_count:
            raise Suspect(f"{name} is missing")
        ids = ids_of(pa.chunked_array([whole.dictionary]), name)
        return pa.DictionaryArray.from_arrays(ids.indices.take(whole.indices), ids.dictionary)
    if not pa.types.is_string(column.type):
        if pa.types.is_floating(column.type):
            raise Suspect(f"{name} is no text")
        column = column.cast(pa.string())
    if column.null_count:
        raise Suspect(f"{name} is missing")
    coded = pc.utf8_trim_whitespace(column).combine_chunks().dictionary_encode()
    for each in coded.dictionary.to_pylist():
        try:
            check_id(name, each)
        except WireError as error:
            raise Suspect(str(error)) from None
    return coded


def _kinds(column: pa.ChunkedArray) -> pa.DictionaryArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    filled = pc.fill_null(column.cast(pa.string()), "")
    kinds = pc.utf8_trim_whitespace(filled)
    return pc.if_else(pc.equal(kinds, ""), DEFAULT_KIND, kinds).combine_chunks().dictionary_encode()


def times_us(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """A column of timestamps. Raises Suspect."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.null_count:
        raise Suspect("timestamp is missing")
    if pa.types.is_timestamp(column.type):
        in_us = column.cast(pa.timestamp("us", column.type.tz), safe=False)
        return np.asarray(in_us.cast(pa.int64()).to_numpy(), dtype=np.int64)
    if pa.types.is_string(column.type):
        column = pc.utf8_trim_whitespace(column)
    given = column.cast(pa.float64()).to_numpy()  # exact for whole seconds and ms; µs are below what is promised
    if not np.isfinite(given).all():
        raise Suspect("timestamp is no number")
    in_ms = np.abs(given) >= MS_FROM
    seconds = np.where(in_ms, given / 1000, given)
    if (np.abs(seconds) >= TIMES_MAX).any():
        raise Suspect("timestamp is out of range")
    times_us: NDArray[np.int64] = np.rint(np.where(in_ms, given * US_PER_MS, given * US_PER_S)).astype(np.int64)
    return times_us


def numbers_of(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """A column of numbers, NaN where there is none. Raises Suspect."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_string(column.type):
        trimmed = pc.utf8_trim_whitespace(column)
        column = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)
    missing = pc.is_null(column).to_numpy()
    given = np.asarray(column.cast(pa.float64()).to_numpy(), dtype=np.float64)
    if not np.isfinite(given[~missing]).all():
        raise Suspect("it holds a number that is not finite")
    return np.where(missing, np.nan, given)


def _check_event(path: Path, row: Row) -> None:
    """The same checks on one row, raised with its place."""
    checked(path, row, "user_id", _user_id)
    checked(path, row, "item_id", _item_id)
    if row.fields.get("timestamp") in (None, ""):
        wrong(path, row.line, "timestamp", "is required")
    checked(path, row, "timestamp", maybe_time_us)
    if row.fields.get("value") not in (None, ""):
        checked(path, row, "value", lambda fields: number_of(fields["value"]))


def _columns(table: pa.Table, more_users: Sequence[str], more_items: Sequence[str], rules: KindRules) -> EventColumns:
    """Ids sorted and coded, events in time order."""
    users, user_codes = _coded(table["user_id"], more_users)
    item_ids, item_codes = _coded(table["item_id"], more_items)
    kinds, kind_codes = _coded(table["kind"], [])
    weights = signed_weights(kinds, kind_codes, table["value"].to_numpy(), rules)
    occurred_us = apart(user_codes, table["occurred_us"].to_numpy())
    order = np.argsort(occurred_us, kind="stable")
    return EventColumns(
        users, item_ids, kinds, user_codes[order].astype(np.int32), item_codes[order].astype(np.int32),
        kind_codes[order].astype(np.int16), occurred_us[order], weights[order],
    )  # fmt: skip


def _coded(column: pa.ChunkedArray, more: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    whole = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    named = whole.dictionary.to_pylist()
    ids = tuple(sorted({*named, *more}))
    place = {each: number for number, each in enumerate(ids)}
    translated = np.array([place[each] for each in named], dtype=np.int64)
    return ids, translated[whole.indices.to_numpy()]


# --------------------------------------------------------------------------------------------------- shared


def _file(path: Path) -> DataFile:
    if not path.is_file():
        raise BadRequest(f"there is no file {path}")
    if format_of(DataFile(path)) == "jsonl":
        raise BadRequest(f"{path}: an evaluation reads csv (also gz) or parquet")
    return DataFile(path, separator="" if format_of(DataFile(path)) == "parquet" else ",")


def _check_header(path: Path, names: Sequence[str], needed: Sequence[str]) -> None:
    for name in needed:
        if name not in names:
            raise BadRequest(f"{path}, line 1: there is no column {name}; there are {', '.join(names)}")


def checked(path: Path, row: Row, column: str, read: Callable[[Fields], T]) -> T:
    """What is read of a row; what is wrong with it is raised with its place."""
    try:
        return read(row.fields)
    except WireError as error:
        wrong(path, row.line, column, error.detail)


def _user_id(fields: Fields) -> str:
    return id_text(fields, "user_id")


def _item_id(fields: Fields) -> str:
    return id_text(fields, "item_id")


def maybe_time_us(fields: Mapping[str, object]) -> Any:
    """The timestamp in µs; None where there is none. A text must be a number."""
    given = fields.get("timestamp")
    if given in (None, ""):
        return None
    if isinstance(given, str):
        try:
            given = float(given)
        except ValueError:
            raise WireError("bad_time", f"must be an epoch in s or ms, not {given!r}") from None
        if not math.isfinite(given):
            raise WireError("bad_time", "must be a finite number")
    return to_us(parse_time(given, "timestamp"))


def _maybe_published_us(fields: Mapping[str, object]) -> int:
    given = fields.get("published_at")
    return 0 if given in (None, "") else to_us(parse_time(given, "published_at"))


def _text(given: object) -> str:
    return "" if given is None else str(given).strip()


def wrong(path: Path, line: int, column: str | None, what: str) -> NoReturn:
    """Raises BadRequest that names the place."""
    place = f"{path}, line {line}" + (f", column {column}" if column else "")
    raise BadRequest(f"{place}: {what}")
