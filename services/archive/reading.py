"""Rows of a file somebody brings: csv, jsonl or parquet, plain or compressed, each with the line it stood on."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import msgspec

from services.domain import BadRequest

Format = Literal["auto", "csv", "jsonl", "parquet"]
Fields = Mapping[str, object]
Told = Callable[[int], None]
"""Told how many bytes of the file (as it lies on the disk) have been read."""

SEPARATORS = ",;\t|"
TELL_EVERY = 5000
ROWS_AT_ONCE = 10_000


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
    if not file.path.is_file():
        raise BadRequest(f"there is no file {file.path}")
    read = {"csv": _csv_rows, "jsonl": _jsonl_rows, "parquet": _parquet_rows}[format_of(file)]
    try:
        yield from read(file, told)
    except (OSError, EOFError) as error:
        raise BadRequest(f"{file.path} cannot be read: {error}") from error


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
        lines = io.TextIOWrapper(stream, file.encoding, errors="surrogateescape", newline="")
        first = "" if file.columns else lines.readline()
        if not file.columns and not first.strip():
            raise BadRequest(
                f"{file.path} is empty" if not first else f"{file.path} has no header: its line 1 is blank"
            )
        separator = file.separator or max(SEPARATORS, key=first.count)
        reader = _Splitter(lines, separator) if len(separator) > 1 else csv.reader(lines, delimiter=separator)
        names = file.columns or tuple(name.strip() for name in next(csv.reader([first], delimiter=separator), ()))
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


def _parquet_rows(file: DataFile, told: Told) -> Iterator[Row | BadRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(file.path)
    except pa.ArrowInvalid as error:
        raise BadRequest(f"{file.path} cannot be read: {error}") from error
    line = 0
    with opened:
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
def _bytes_of(path: Path) -> Iterator[tuple[IO[bytes], Callable[[], int]]]:
    """The content of a file, uncompressed on the way, and how far its bytes on the disk have been read."""
    with path.open("rb") as raw:
        start = raw.read(4)
        raw.seek(0)
        stream: Any = raw
        if start.startswith(b"\x1f\x8b"):
            stream = gzip.GzipFile(fileobj=raw)
        elif start == b"\x28\xb5\x2f\xfd":
            import pyarrow as pa

            stream = io.BufferedReader(pa.input_stream(raw, compression="zstd"))
        yield stream, raw.tell


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
