"""Rows of a file somebody brings: csv, jsonl or parquet, plain or compressed, each with the line it stood on."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import msgspec

from services.domain import BadRequest

if TYPE_CHECKING:
    import pyarrow.parquet as pq

Format = Literal["auto", "csv", "jsonl", "parquet"]
Fields = Mapping[str, object]
Told = Callable[[int], None]
"""Told how many bytes of the file (as it lies on the disk) have been read."""

SEPARATORS = ",;\t|"
TELL_EVERY = 5000
ROWS_AT_ONCE = 10_000
NAMES_SHOWN_MAX, NAME_LENGTH_MAX = 30, 40
HEADER_LENGTH_MAX = 100_000
"""More characters than a header has; a file without line ends is not read whole to find its columns."""
_PACKED: Mapping[str, tuple[str, bytes]] = {".gz": ("gzip", b"\x1f\x8b"), ".zst": ("zstd", b"\x28\xb5\x2f\xfd")}
"""The first bytes of a compressed file, by the end of its name."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file and how to read it. `columns` name the fields where the file has no header line."""

    path: Path
    format: Format = "auto"
    columns: tuple[str, ...] = ()
    separator: str = ""
    encoding: str = "utf-8-sig"


@dataclass(frozen=True, slots=True)
class Row:
    """One readable row, by the number of its line (of its row, in parquet), counted from 1."""

    line: int
    fields: Fields


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be read, and why."""

    line: int
    reason: str
    detail: str
    text: str = ""


def rows_of(file: DataFile, told: Told = lambda _bytes: None) -> Iterator[Row | BadRow]:
    """Every row of the file, in order. Raises BadRequest when the file itself cannot be read."""
    read = {"csv": _csv_rows, "jsonl": _jsonl_rows, "parquet": _parquet_rows}[format_of(file)]
    with _readable(file.path):
        yield from read(file, told)


def headers_of(file: DataFile) -> Iterator[tuple[str, ...]]:
    """The names of the columns: said once in csv and parquet, rows or not; with every readable row in jsonl.

    Raises BadRequest where the file cannot be read, is not packed as its name says, or gives two columns one name.
    """
    with _readable(file.path):
        _check_packed(file.path)
        if format_of(file) == "jsonl":
            yield from (tuple(row.fields) for row in _jsonl_rows(file, lambda _bytes: None) if isinstance(row, Row))
            return
        names = _csv_columns(file) if format_of(file) == "csv" else _parquet_columns(file)
        if twice := [name for name in dict.fromkeys(names) if name and names.count(name) > 1]:
            raise BadRequest(f"{file.path} names a column twice: {listed(twice)}")
        yield names


def listed(names: Collection[str]) -> str:
    """Names of columns as a sentence can hold them, whatever bytes they were made of and however many there are."""
    shown = [name if name.isprintable() else ascii(name)[1:-1] for name in islice(names, NAMES_SHOWN_MAX)]
    more = len(names) - len(shown)
    cut = (each if len(each) <= NAME_LENGTH_MAX else f"{each[:NAME_LENGTH_MAX]}..." for each in shown)
    return (", ".join(cut) or "none") + (f" and {more:,} more" if more else "")


def format_of(file: DataFile) -> Literal["csv", "jsonl", "parquet"]:
    """The format as given, or by the name: `.parquet`, `.jsonl`/`.ndjson`/`.json`, anything else is csv."""
    if file.format != "auto":
        return file.format
    suffixes = [suffix.lower() for suffix in file.path.suffixes if suffix.lower() not in (".gz", ".zst")]
    last = suffixes[-1] if suffixes else ""
    if last in (".parquet", ".pq"):
        return "parquet"
    return "jsonl" if last in (".jsonl", ".ndjson", ".json") else "csv"


def _csv_rows(file: DataFile, told: Told) -> Iterator[Row | BadRow]:
    with _bytes_of(file.path) as (stream, place):
        lines = _text_of(file, stream)
        names, separator = _csv_header(file, lines)
        reader = _Splitter(lines, separator) if len(separator) > 1 else csv.reader(lines, delimiter=separator)
        header_lines = 0 if file.columns else 1
        while True:
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield BadRow(reader.line_num + header_lines, "bad_csv", str(error))
                continue
            line = reader.line_num + header_lines
            if line % TELL_EVERY == 0:
                told(place())
            if values:
                yield _csv_row(line, names, values, separator)


def _csv_columns(file: DataFile) -> tuple[str, ...]:
    with _bytes_of(file.path) as (stream, _place), _text_of(file, stream) as lines:
        return _csv_header(file, lines)[0]


def _text_of(file: DataFile, stream: IO[bytes]) -> io.TextIOWrapper:
    return io.TextIOWrapper(stream, file.encoding, errors="surrogateescape", newline="")


def _csv_header(file: DataFile, lines: io.TextIOWrapper) -> tuple[tuple[str, ...], str]:
    """The names of the columns, and what separates them; takes line 1 unless the names are given."""
    if file.columns:
        return file.columns, file.separator or SEPARATORS[0]
    first = lines.readline(HEADER_LENGTH_MAX)
    if not first.strip():
        raise BadRequest(f"{file.path} is empty" if not first else f"{file.path} has no header: its line 1 is blank")
    if len(first) == HEADER_LENGTH_MAX:
        raise BadRequest(f"{file.path} has no header: its line 1 has {HEADER_LENGTH_MAX:,} characters or more")
    separator = file.separator or max(SEPARATORS, key=first.count)
    return tuple(name.strip() for name in next(csv.reader([first], delimiter=separator), ())), separator


def _csv_row(line: int, names: tuple[str, ...], values: list[str], separator: str) -> Row | BadRow:
    text = separator.join(values)
    if len(values) != len(names):
        return BadRow(line, "columns", f"{len(values)} fields where {len(names)} are named", text)
    if not text.isascii() and not _is_text(text):
        return BadRow(line, "bad_encoding", "not valid text in the encoding of the file", text)
    return Row(line, dict(zip(names, values, strict=True)))


def _jsonl_rows(file: DataFile, told: Told) -> Iterator[Row | BadRow]:
    with _bytes_of(file.path) as (stream, place):
        for line, raw in enumerate(stream, start=1):
            if line % TELL_EVERY == 0:
                told(place())
            if not raw.strip():
                continue
            try:
                fields = msgspec.json.decode(raw)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                yield BadRow(line, "not_json", str(error), raw.decode(errors="replace"))
                continue
            if isinstance(fields, dict):
                yield Row(line, fields)
            else:
                yield BadRow(line, "not_an_object", f"a JSON {type(fields).__name__}", raw.decode(errors="replace"))


def _parquet_columns(file: DataFile) -> tuple[str, ...]:
    with _parquet(file.path) as opened:
        return tuple(opened.schema_arrow.names)


def _parquet(path: Path) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise BadRequest(f"{path} cannot be read: {error}") from error


def _parquet_rows(file: DataFile, told: Told) -> Iterator[Row | BadRow]:
    line = 0
    with _parquet(file.path) as opened:
        total, size = max(opened.metadata.num_rows, 1), file.path.stat().st_size
        for batch in opened.iter_batches(batch_size=ROWS_AT_ONCE):
            for fields in batch.to_pylist():
                line += 1
                yield Row(line, fields)
            told(size * line // total)


class _Splitter:
    """`csv.reader` for separators of several characters; no quoting."""

    def __init__(self, lines: io.TextIOWrapper, separator: str) -> None:
        self._lines = lines
        self._separator = separator
        self.line_num = 0

    def __next__(self) -> list[str]:
        line = next(self._lines)
        self.line_num += 1
        text = line.rstrip("\r\n")
        return text.split(self._separator) if text else []


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """BadRequest where the file is not there, or what is read from it inside does not hold together."""
    if not path.is_file():
        raise BadRequest(f"there is no file {path}")
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise BadRequest(f"{path} cannot be read: {error}") from error


def _check_packed(path: Path) -> None:
    kind, start = _PACKED.get(path.suffix.lower(), ("", b""))
    with path.open("rb") as raw:
        if raw.read(len(start)) != start:
            raise BadRequest(f"{path} cannot be read: its name says {kind}, its content does not")


@contextmanager
def _bytes_of(path: Path) -> Iterator[tuple[IO[bytes], Callable[[], int]]]:
    """The content of a file, uncompressed on the way, and how far its bytes on the disk have been read."""
    with path.open("rb") as raw:
        start = raw.read(4)
        raw.seek(0)
        stream: Any = raw
        if start.startswith(_PACKED[".gz"][1]):
            stream = gzip.GzipFile(fileobj=raw)
        elif start == _PACKED[".zst"][1]:
            import pyarrow as pa

            stream = io.BufferedReader(pa.input_stream(raw, compression="zstd"))
        yield stream, raw.tell


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
