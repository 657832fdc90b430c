"""Old rows folded: of what is older than a time only each key's newest row stays, so that a history has a bound."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.stores.parts_io import Part, Schema, Table, nothing, one_at_a_time, read_manifest, replace_parts

FOLDED_LEVEL = 99
"""The level of a folded part: above what merging by level ever makes, so it is merged with nothing."""
ROWS_AT_ONCE = 16_384


def fold_old(
    folder: Path,
    schema: Schema,
    key: str,
    order: tuple[str, str],
    before: datetime,
    fsync: bool = True,
    now: Callable[[], float] = time.time,
    reached: Callable[[str], None] = nothing,
) -> int:
    """Fold the parts whose rows are all older than `before` into one; how many rows that takes away.

    `order`: the event time, then what settles equal times. A join as of `before` or later answers as it did. Fewer than
    two such parts: nothing happens. Where another process or thread is merging this folder: nothing either.
    """
    with one_at_a_time(folder) as mine:
        parts = read_manifest(folder).parts if mine else ()
        old = tuple(part for part in parts if _newest(folder / part.name, order[0]) < before)
        if len(old) < 2:
            return 0
        replace_parts(folder, schema, old, _folded(folder, old, schema, key, order), FOLDED_LEVEL, fsync, now, reached)
        folded = next(part for part in read_manifest(folder).parts if part.level == FOLDED_LEVEL)
        return sum(part.rows for part in old) - folded.rows


def _newest(path: Path, time_name: str) -> datetime:
    """The newest event time of a part, from its footer."""
    footer = pq.read_metadata(path)
    place = footer.schema.names.index(time_name)
    groups = (footer.row_group(number).column(place) for number in range(footer.num_row_groups))
    newest: datetime = max(group.statistics.max for group in groups)
    return newest


def _folded(folder: Path, parts: Sequence[Part], schema: Schema, key: str, order: tuple[str, str]) -> Iterator[Table]:
    names = ", ".join(f'"{name}"' for name in schema.names)
    query = (
        f"SELECT {names} FROM read_parquet($paths) "
        f'QUALIFY row_number() OVER (PARTITION BY "{key}" ORDER BY "{order[0]}" DESC, "{order[1]}" DESC) = 1'
    )
    with duckdb.connect(":memory:", config={"memory_limit": "1GB", "threads": 1}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        paths = [str(folder / part.name) for part in parts]
        for batch in connection.sql(query, params={"paths": paths}).to_arrow_reader(ROWS_AT_ONCE):
            yield pa.Table.from_batches([batch])
