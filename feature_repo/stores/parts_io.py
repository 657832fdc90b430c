"""A folder of immutable parquet parts: append durably, read what a manifest lists, merge by level. No Feast in here.

    <folder>/manifest.json      the live parts; replaced by rename
    <folder>/part-*.parquet     written as a dot-file, fsynced, renamed
    <folder>/.lock .merging     flock: one change of the manifest, one merge at a time, across processes

A crash at any step leaves the manifest before or the manifest after, never a part of either. Files that the manifest
does not list are swept once they are old; a part that is replaced is dated anew, so that a reader's paths stay readable
for `older_than_s` of `sweep` after that. (Thousands are replaced in that time: a manifest that lists them too is read
and written with every append.)
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

Table: TypeAlias = Any
Schema: TypeAlias = Any

PARTS_PER_LEVEL = 64
ROW_GROUP_ROWS = 16_384
LOCK_WAIT_S = 30.0
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Part:
    """One live part. `level` 0 is as appended; a part of level n + 1 holds the rows of many of level n."""

    name: str
    level: int
    rows: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The live parts in the order they were appended."""

    parts: tuple[Part, ...] = ()


def nothing(_step: str) -> None:
    """The default of `reached`: go on."""


def append_part(
    folder: Path, table: Table, schema: Schema, fsync: bool = True, reached: Callable[[str], None] = nothing
) -> Path | None:
    """Append the rows, cast to `schema`, as one part: durable and visible on return. No rows: nothing, and None.

    `reached` is told of each finished step (`written`, `renamed`, `listed`): the crash tests stop there.
    """
    if table.num_rows == 0:
        return None
    if not folder.is_dir():
        _make_folder(folder)
    draft, name = _draft(folder)
    with _write(draft, schema, fsync) as write:
        write(_cast(table, schema))
    reached("written")
    with locked(folder / ".lock"):
        os.rename(draft, folder / name)
        reached("renamed")
        known = read_manifest(folder)
        _replace_manifest(folder, Manifest((*known.parts, Part(name, 0, table.num_rows))), fsync)
    reached("listed")
    return folder / name


def live_parts(folder: Path) -> tuple[Path, ...]:
    """The paths to read now, oldest append first; empty where nothing was ever appended."""
    return tuple(folder / part.name for part in read_manifest(folder).parts)


def merge_due(folder: Path, width: int = PARTS_PER_LEVEL) -> bool:
    """Whether `merge_levels` would find something to do."""
    return bool(_mergeable(read_manifest(folder), width))


def merge_levels(
    folder: Path,
    schema: Schema,
    width: int = PARTS_PER_LEVEL,
    rewrite: Callable[[Table], Table] | None = None,
    fsync: bool = True,
    now: Callable[[], float] = time.time,
    reached: Callable[[str], None] = nothing,
) -> int:
    """Merge `width` parts of a level into one of the next, as long as a level has that many; returns how many merges.

    Streams, so memory is bounded by a few row groups. Appends go on meanwhile. Where another process or thread is
    merging this folder, nothing happens. `rewrite` sees the rows in pieces and may drop some (erasure).
    """
    merges = 0
    with one_at_a_time(folder) as mine:
        while mine and (sources := _mergeable(read_manifest(folder), width)):
            pieces = _pieces([folder / part.name for part in sources], schema)
            kept = map(rewrite, pieces) if rewrite else pieces
            replace_parts(folder, schema, sources, kept, sources[0].level + 1, fsync, now, reached)
            merges += 1
    return merges


def replace_parts(
    folder: Path,
    schema: Schema,
    sources: Sequence[Part],
    pieces: Iterable[Table],
    level: int,
    fsync: bool = True,
    now: Callable[[], float] = time.time,
    reached: Callable[[str], None] = nothing,
) -> None:
    """Put one part with the rows of `pieces` where the first of `sources` stood. Hold `one_at_a_time` meanwhile."""
    draft, name = _draft(folder)
    rows = 0
    with _write(draft, schema, fsync) as write:
        for piece in pieces:
            rows += piece.num_rows
            write(_cast(piece, schema))
    reached("written")
    merged = Part(name, level, rows)
    with locked(folder / ".lock"):
        os.rename(draft, folder / name)
        reached("renamed")
        known = read_manifest(folder)
        names = {part.name for part in sources}
        place = min(i for i, part in enumerate(known.parts) if part.name in names)
        kept_parts = [part for part in known.parts if part.name not in names]
        for source in names:  # before they leave the manifest: a sweep sees them there, or young
            os.utime(folder / source, (now(), now()))
        _replace_manifest(folder, Manifest((*kept_parts[:place], merged, *kept_parts[place:])), fsync)
    reached("listed")


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[bool]:
    """Whether this is the only one merging the folder, held until the end."""
    if not folder.is_dir():
        yield False
        return
    with (folder / ".merging").open("ab") as file:
        yield _try_lock(file.fileno())


def sweep(folder: Path, older_than_s: float = 600.0, now: Callable[[], float] = time.time) -> int:
    """Unlink what was replaced over `older_than_s` ago, and what was never listed; returns how many files."""
    if not folder.is_dir():
        return 0
    before = now() - older_than_s

    def is_old(path: Path) -> bool:
        try:
            return path.stat().st_mtime <= before
        except FileNotFoundError:  # a draft that has its name by now, or somebody else's sweep
            return False

    old = [path for path in _ours(folder) if is_old(path)]
    with locked(folder / ".lock"):
        kept = {part.name for part in read_manifest(folder).parts}
        gone = [path for path in old if path.name not in kept and is_old(path)]
        for path in gone:
            path.unlink()
    return len(gone)


def read_manifest(folder: Path) -> Manifest:
    """The manifest as it stands; an empty one where there is none."""
    try:
        stored = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return Manifest()
    assert stored["version"] == 1, f"{folder / MANIFEST} has version {stored['version']}, this reader knows 1"
    return Manifest(tuple(Part(*part) for part in stored["parts"]))


# ---------------------------------------------------------------------------------------------- inside


def _mergeable(manifest: Manifest, width: int) -> tuple[Part, ...]:
    by_level: dict[int, list[Part]] = {}
    for part in manifest.parts:
        by_level.setdefault(part.level, []).append(part)
    full = [parts for _, parts in sorted(by_level.items()) if len(parts) >= width]
    return tuple(full[0][:width]) if full else ()


def _pieces(paths: Sequence[Path], schema: Schema) -> Iterator[Table]:
    """The rows of all files in order, in tables of about ROW_GROUP_ROWS."""
    held: list[Table] = []
    rows = 0
    for path in paths:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROW_GROUP_ROWS):
                held.append(_cast(_with_later_columns(pa.Table.from_batches([batch]), schema), schema))
                rows += batch.num_rows
                if rows >= ROW_GROUP_ROWS:
                    yield pa.concat_tables(held)
                    held, rows = [], 0
    if held:
        yield pa.concat_tables(held)


def _with_later_columns(table: Table, schema: Schema) -> Table:
    """Rows of a part from before a column of `schema` was added have null there."""
    for name in schema.names:
        if name not in table.schema.names:
            table = table.append_column(name, pa.nulls(table.num_rows, schema.field(name).type))
    return table


def _ours(folder: Path) -> Iterator[Path]:
    """The parts, and what a crash leaves of parts and manifests."""
    for pattern in ("part-*.parquet", ".part-*.parquet", ".manifest-*"):
        yield from folder.glob(pattern)


def _cast(table: Table, schema: Schema) -> Table:
    if table.schema.equals(schema, check_metadata=True):
        return table
    return table.select(schema.names).cast(schema).replace_schema_metadata(schema.metadata)


def _draft(folder: Path) -> tuple[Path, str]:
    name = f"part-{time.time_ns():020d}-{os.getpid()}-{uuid.uuid4().hex[:8]}.parquet"
    return folder / f".{name}", name


@contextmanager
def _write(path: Path, schema: Schema, fsync: bool) -> Iterator[Callable[[Table], None]]:
    """A parquet file under construction; whole and, if wanted, fsynced at the end. A failed write leaves no file."""
    try:
        with path.open("wb") as file:
            with pq.ParquetWriter(file, schema, compression="zstd", compression_level=1) as writer:
                yield lambda table: writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
            file.flush()
            if fsync:
                os.fsync(file.fileno())
    except OSError:  # a full disk is not made fuller
        path.unlink(missing_ok=True)
        raise


def _replace_manifest(folder: Path, manifest: Manifest, fsync: bool) -> None:
    parts = [[part.name, part.level, part.rows] for part in manifest.parts]
    draft = folder / f".manifest-{uuid.uuid4().hex[:8]}"
    with draft.open("w") as file:
        file.write(json.dumps({"version": 1, "parts": parts}))
        file.flush()
        if fsync:
            os.fsync(file.fileno())
    os.rename(draft, folder / MANIFEST)
    if fsync:
        _fsync_folder(folder)


def _make_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for parent in folder.parents[:2]:
        _fsync_folder(parent)


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Hold an exclusive flock on `path`; TimeoutError after `wait_s`."""
    until = time.monotonic() + wait_s
    with path.open("ab") as file:
        while not _try_lock(file.fileno()):
            if time.monotonic() > until:
                raise TimeoutError(f"{path} was held by another process for {wait_s:g} s")
            time.sleep(0.002)
        yield  # closing the file lets go of the lock


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
