"""Feast's offline store on folders of parquet parts, joined point-in-time by DuckDB.

What the stock ones get wrong is right here: an append costs its own rows (`parts_io`), every entity row comes back in
the order asked (also one without features, also two equal ones), the newest `created` wins a tie, memory does not grow
with the rows per entity, and several threads may ask at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast.infra.offline_stores import offline_utils
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel
from feast.type_map import feast_value_type_to_pa
from pydantic import Field

from feature_repo.stores.parts_io import append_part, live_parts

TIME = pa.timestamp("us", tz="UTC")


class ParquetOfflineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """`folder` holds one folder of parts per source. `memory_limit` and `threads` bound a join. `renamed`: in which
    folder the rows of a source are kept, where it is not its own."""

    type: str = "feature_repo.stores.parquet_offline.ParquetOfflineStore"
    folder: str
    memory_limit: str = "2GB"
    threads: int = 2
    fsync: bool = True
    renamed: dict[str, str] = Field(default_factory=dict)


class ParquetOfflineStore(OfflineStore):  # type: ignore[misc]
    """Appends parts, joins them as of a time, reads them for a materialisation."""

    supports_filter_by_created_timestamp = False  # Feast refuses the flag instead of ignoring it

    @staticmethod
    def offline_write_batch(config: Any, feature_view: Any, table: Any, progress: Callable[[int], Any] | None) -> None:
        """Append the rows, cast to the declared schema; durable on return."""
        source = feature_view.batch_source
        append_part(folder_of(config, source), table, declared_schema(feature_view), config.offline_store.fsync)
        if progress:
            progress(table.num_rows)

    @staticmethod
    def get_historical_features(
        config: Any,
        feature_views: Sequence[Any],
        feature_refs: Sequence[str],
        entity_df: Any,
        registry: Any,
        project: str,
        full_feature_names: bool = False,
        **_unused: Any,
    ) -> RetrievalJob:
        """For each entity row the newest feature row at or before its time; nulls where there is none."""
        if not isinstance(entity_df, pd.DataFrame):
            raise ValueError("entity_df must be a pandas DataFrame")
        time_name = offline_utils.infer_event_timestamp_from_entity_df(
            dict(zip(entity_df.columns, entity_df.dtypes, strict=True))
        )
        entities = _entity_table(entity_df, time_name)
        joins = [_Join.of(config, view, feature_refs, full_feature_names) for view in feature_views]
        metadata = RetrievalMetadata(
            features=list(feature_refs),
            keys=[name for name in entity_df.columns if name != time_name],
            min_event_timestamp=entity_df[time_name].min(),
            max_event_timestamp=entity_df[time_name].max(),
        )
        return ParquetJob(
            config.offline_store,
            lambda connection: _joined(connection, entities, time_name, joins),
            full_feature_names,
            OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            metadata,
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: Any,
        data_source: Any,
        join_key_columns: Sequence[str],
        feature_name_columns: Sequence[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """The newest row of each entity with `start_date <= event time < end_date`."""
        newest = f'"{timestamp_field}" DESC' + (
            f', "{created_timestamp_column}" DESC' if created_timestamp_column else ""
        )
        keys = _names(join_key_columns) or "''"
        query = (
            f"SELECT {_names([*join_key_columns, *feature_name_columns, timestamp_field])} FROM {{scan}} "
            f"WHERE {_between(timestamp_field, start_date, end_date)} "
            f"QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY {newest}) = 1"
        )
        return _reading(config, data_source, query)

    @staticmethod
    def pull_all_from_table_or_query(
        config: Any,
        data_source: Any,
        join_key_columns: Sequence[str],
        feature_name_columns: Sequence[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Every row with `start_date <= event time < end_date`."""
        more = [created_timestamp_column] if created_timestamp_column else []
        wanted = _names([*join_key_columns, *feature_name_columns, timestamp_field, *more])
        query = f"SELECT {wanted} FROM {{scan}} WHERE {_between(timestamp_field, start_date, end_date)}"
        return _reading(config, data_source, query)


class ParquetJob(RetrievalJob):  # type: ignore[misc]
    """A query that runs when its result is asked for, on a DuckDB connection of its own."""

    def __init__(
        self, config: Any, run: Callable[[Any], Any], full_names: bool = False, odfvs: Any = (), metadata: Any = None
    ) -> None:
        self._config = config
        self._run = run
        self._full_names = full_names
        self._odfvs = list(odfvs)
        self._metadata = metadata

    @property
    def full_feature_names(self) -> bool:
        """Whether columns are named `view__feature`."""
        return self._full_names

    @property
    def on_demand_feature_views(self) -> list[Any]:
        """The on-demand views asked for."""
        return self._odfvs

    @property
    def metadata(self) -> Any:
        """What was asked."""
        return self._metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> Any:  # noqa: ARG002
        with _duckdb(self._config) as connection:
            return self._run(connection)

    def _to_df_internal(self, timeout: int | None = None) -> Any:
        return self._to_arrow_internal(timeout).to_pandas()

    def persist(self, storage: Any, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Store the result as one parquet file."""
        path = storage.file_options.uri
        if os.path.exists(path) and not allow_overwrite:
            raise FileExistsError(path)
        pq.write_table(self.to_arrow(timeout=timeout), path)


def folder_of(config: Any, source: Any) -> Path:
    """The folder of parts of a source."""
    name = str(source.file_options.uri)
    renamed: str = config.offline_store.renamed.get(name, name)
    return Path(config.offline_store.folder) / renamed


def declared_schema(view: Any) -> Any:
    """The columns of a view's history: keys, features, event time and created; nothing is inferred from files."""
    source = view.batch_source
    fields = [(column.name, _arrow_type(column.dtype)) for column in (*view.entity_columns, *view.features)]
    return pa.schema([*fields, (source.timestamp_field, TIME), (source.created_timestamp_column, TIME)])


# ---------------------------------------------------------------------------------------------- inside


@dataclass(frozen=True, slots=True)
class _Join:
    """One view's part of a point-in-time join. `columns`: feature, name it gets. `keys`: its column, the entity's."""

    paths: tuple[str, ...]
    schema: Any
    columns: tuple[tuple[str, str], ...]
    keys: tuple[tuple[str, str], ...]
    time: str
    created: str
    ttl_s: int

    @staticmethod
    def of(config: Any, view: Any, feature_refs: Sequence[str], full_names: bool) -> _Join:
        name = view.projection.name_to_use()
        wanted = [ref.split(":", 1)[1] for ref in feature_refs if ref.split(":", 1)[0] == name]
        keys = view.projection.join_key_map or {column.name: column.name for column in view.entity_columns}
        source = view.batch_source
        return _Join(
            tuple(str(path) for path in live_parts(folder_of(config, source))),
            declared_schema(view),
            tuple((column, f"{name}__{column}" if full_names else column) for column in wanted),
            tuple(keys.items()),
            source.timestamp_field,
            source.created_timestamp_column,
            int(view.ttl.total_seconds()) if view.ttl else 0,
        )


def _joined(connection: Any, entities: Any, time_name: str, joins: Sequence[_Join]) -> Any:
    """Two passes per view: a narrow one finds which stored row answers each entity row, a wide one fetches those."""
    connection.register("entities", entities)
    kept = [f'e."{name}"' for name in entities.column_names if name != "__row"]
    parts: list[str] = []
    for number, join in enumerate(joins):
        scan = _scan(connection, join.paths, join.schema, f"empty{number}")
        connection.execute(_narrow(number, join, scan, time_name))
        wide = ", ".join(f'w."{column}"' for column, _ in join.columns)
        parts.append(
            f"LEFT JOIN (SELECT m.__row, {wide} FROM m{number} m JOIN {scan} w "
            f"ON w.filename = m.filename AND w.file_row_number = m.file_row_number) f{number} "
            f"ON f{number}.__row = e.__row"
        )
        kept += [f'f{number}."{column}" AS "{shown}"' for column, shown in join.columns]
    query = f"SELECT {', '.join(kept)} FROM entities e {' '.join(parts)} ORDER BY e.__row"
    return connection.sql(query).to_arrow_table()


def _narrow(number: int, join: _Join, scan: str, time_name: str) -> str:
    on = " AND ".join(f'e."{theirs}" = f."{ours}"' for ours, theirs in join.keys)
    keys = _names([ours for ours, _ in join.keys])
    within = f""" WHERE f."{join.time}" >= e."{time_name}" - INTERVAL '{join.ttl_s} seconds'""" if join.ttl_s else ""
    wanted = " AND ".join(f'"{ours}" IN (SELECT "{theirs}" FROM entities)' for ours, theirs in join.keys)
    return (
        f"CREATE TEMP TABLE m{number} AS SELECT e.__row, f.filename, f.file_row_number FROM entities e ASOF JOIN "
        f'(SELECT {keys}, "{join.time}", filename, file_row_number FROM {scan} '
        f'WHERE {wanted} AND "{join.time}" <= (SELECT max("{time_name}") FROM entities) '
        f'QUALIFY row_number() OVER (PARTITION BY {keys}, "{join.time}" ORDER BY "{join.created}" DESC) = 1) f '
        f'ON {on} AND e."{time_name}" >= f."{join.time}"{within}'
    )


def _scan(connection: Any, paths: Sequence[str], schema: Any, empty: str) -> str:
    """The parts as a table; a table without rows where nothing was ever appended."""
    if paths:
        listed = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
        return f"read_parquet([{listed}], filename=true, file_row_number=true)"
    more = pa.schema([("filename", pa.string()), ("file_row_number", pa.int64())])
    connection.register(empty, pa.schema([*schema, *more]).empty_table())
    return empty


def _entity_table(entity_df: Any, time_name: str) -> Any:
    table = pa.Table.from_pandas(entity_df, preserve_index=False).replace_schema_metadata(None)
    place = table.column_names.index(time_name)
    times = pa.array(pd.to_datetime(entity_df[time_name], utc=True)).cast(TIME)
    table = table.set_column(place, time_name, times)
    return table.append_column("__row", pa.array(range(table.num_rows), pa.int64()))


def _reading(config: Any, source: Any, query: str) -> ParquetJob:
    paths = [str(path) for path in live_parts(folder_of(config, source))]
    if not paths:
        raise FileNotFoundError(f"{folder_of(config, source)} holds no rows yet")

    def run(connection: Any) -> Any:
        return connection.sql(query.format(scan=_scan(connection, paths, None, ""))).to_arrow_table()

    return ParquetJob(config.offline_store, run)


@contextmanager
def _duckdb(config: Any) -> Iterator[Any]:
    options = {"memory_limit": config.memory_limit, "threads": config.threads}
    with duckdb.connect(":memory:", config=options) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        yield connection


def _names(columns: Sequence[str]) -> str:
    return ", ".join(f'"{column}"' for column in columns)


def _between(column: str, since: datetime | None, until: datetime | None) -> str:
    bounds = [f"\"{column}\" >= TIMESTAMPTZ '{since.isoformat()}'"] if since else []
    bounds += [f"\"{column}\" < TIMESTAMPTZ '{until.isoformat()}'"] if until else []
    return " AND ".join(bounds) or "true"


def _arrow_type(dtype: Any) -> Any:
    """Feast's type as arrow's; times do not occur among the features."""
    return _arrow_of(dtype.to_value_type())


@cache
def _arrow_of(value_type: Any) -> Any:
    """Kept: Feast makes a table of all its types for each that is asked (half a millisecond of every batch)."""
    return feast_value_type_to_pa(value_type)
