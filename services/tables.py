"""The SQL tables of the metadata database (SQLAlchemy Core). Learned models live in `models/`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    Unicode,
    any_,
    literal,
)
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine.interfaces import Dialect

metadata = MetaData()
BigId = BigInteger().with_variant(Integer, "sqlite")
Id = String(256).with_variant(String(256, collation="C"), "postgresql")
"""The id of an item or a user, in the order of its characters, whatever the language of the database."""

items = Table(
    "items",
    metadata,
    Column("item_id", Id, primary_key=True),
    Column("card", LargeBinary, nullable=False),
    Column("field_times", LargeBinary, nullable=False, comment="updated_us of each field, for patches out of order"),
    Column("created_us", BigInteger, nullable=False),
    Column("log_id", String(64), nullable=False),
    Column("partition", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False, comment="coordinate of the newest change applied"),
    Column("text_hash", String(32), nullable=False, comment="hash of the text to embed; empty: nothing to embed"),
    Column(
        "vector_hash",
        String(32),
        nullable=False,
        server_default="",
        comment="hash of the text and encoder that was embedded last",
    ),
    Column("accepted_us", BigInteger, nullable=False),
)

items_live = Table(
    "items_live",
    metadata,
    Column("item_id", Id, primary_key=True),
    Column("part", String(16), primary_key=True),
    Column("payload", LargeBinary, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Index("items_live_seq", "seq"),
)

live_arrivals = Table(
    "live_arrivals",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False, comment="the last number that one write took"),
    Column("part", String(16), nullable=False),
    Column("arrivals", LargeBinary, nullable=False, comment="when the messages behind that write were accepted"),
)

process_reports = Table(
    "process_reports",
    metadata,
    Column("process_id", String(64), primary_key=True),
    Column("at_us", BigInteger, nullable=False),
    Column("report", LargeBinary, nullable=False),
)

counters = Table(
    "counters",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", BigInteger, nullable=False),
)

rejected = Table(
    "rejected",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("log_id", String(64), nullable=False),
    Column("topic", String(128), nullable=False),
    Column("partition", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("reason", String(64), nullable=False),
    Column("detail", Text, nullable=False),
    Column("value", LargeBinary, nullable=False),
    Column("accepted_us", BigInteger, nullable=False),
    Column("key", LargeBinary, nullable=True, comment="as bytes: a foreign key may hold what no text column takes"),
    Column("size", BigInteger, nullable=False, server_default="0", comment="bytes as it came; value may be a part"),
    Column("held", BigInteger, nullable=False, server_default="0", comment="what the entry counts against the bound"),
    Column("replayed_us", BigInteger, nullable=False, server_default="0", comment="0: never"),
    Column("replayed_as", Text, nullable=False, server_default="", comment="the coordinate of the replay, as text"),
    Index("rejected_coordinate", "log_id", "topic", "partition", "offset", unique=True),
)

trend_state = Table(
    "trend_state",
    metadata,
    Column("topic", String(128), primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("log_id", String(64), nullable=False),
    Column("next_offset", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
)

trend_ring = Table(
    "trend_ring",
    metadata,
    Column("topic", String(128), primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("slot", Integer, primary_key=True),
    Column("number", BigInteger, nullable=False, comment="running number of the chunk; slot is its remainder"),
    Column("payload", LargeBinary, nullable=False),
)

trend_hours = Table(
    "trend_hours",
    metadata,
    Column("item_id", Id, primary_key=True),
    Column("hour", BigInteger, primary_key=True, comment="hours since 1970 of the event time"),
    *(Column(f"c{column}", BigInteger, nullable=False) for column in range(9)),
    Index("trend_hours_hour", "hour"),
    sqlite_with_rowid=False,
)

trend_items = Table(
    "trend_items",
    metadata,
    Column("item_id", Id, primary_key=True),
    Column("hour", BigInteger, nullable=False, comment="the newest closed hour that counts includes"),
    Column("counts", LargeBinary, nullable=False),
)

trend_covisits = Table(
    "trend_covisits",
    metadata,
    Column("item_id", Id, primary_key=True),
    Column("total", Float, nullable=False),
    Column("payload", LargeBinary, nullable=False),
)

trend_users = Table(
    "trend_users",
    metadata,
    Column("user_id", Id, primary_key=True),
    Column("at_us", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Index("trend_users_at", "at_us"),
)

namespaces = Table(
    "namespaces",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("definition", Text, nullable=False, comment="kinds, events of a row, since; empty: not known"),
    Column("source", String(16), nullable=False, comment="log, or archive and then the log"),
    Column("offsets", Text, nullable=False, comment="where the group began to read the log"),
    Column("archived_us", BigInteger, nullable=False, comment="the archive is read up to here"),
    Column("created_us", BigInteger, nullable=False),
    Column("caught_up_us", BigInteger, nullable=False, comment="0: not built yet"),
    Column("live", Boolean, nullable=False),
    Column("live_us", BigInteger, nullable=False, comment="when it became live last; 0: never"),
)

erasures = Table(
    "erasures",
    metadata,
    Column("user_id", Id, primary_key=True),
    Column("erased_us", BigInteger, nullable=False),
)

releases = Table(
    "releases",
    metadata,
    Column("release_id", String(64), primary_key=True),
    Column("path", Text, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("data_until_us", BigInteger, nullable=False),
    Column("promoted_us", BigInteger, nullable=False, comment="0: never promoted"),
    Column("live", Boolean, nullable=False),
    Column("reason", Text, nullable=False),
    Column("metrics", LargeBinary, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("started_us", BigInteger, nullable=False),
    Column("ended_us", BigInteger, nullable=False, comment="0: running or died"),
    Column("state", String(16), nullable=False, comment="running, done, failed"),
    Column("effort", String(16), nullable=False),
    Column("release_id", String(64), nullable=False),
    Column("message", Text, nullable=False),
    Column("metrics", LargeBinary, nullable=False),
    Column("seconds", Float, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("holder", String(128), nullable=False),
    Column("until_us", BigInteger, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Unicode(191), primary_key=True),
    Column("next_run_time", Float(25), index=True),
    Column("job_state", LargeBinary, nullable=False),
)
"""The scheduler's; its shape is APScheduler's."""


def upsert(
    connection: Connection, table: Table, rows: Sequence[Mapping[str, object]], added: Collection[str] = ()
) -> None:
    """Insert rows; where the primary key exists, replace the other columns (columns in `added` are summed instead).

    No key may be named twice. The rows go by the driver's fastest way: tuples made here cost a third of what SQLAlchemy
    takes to bind thousands of dictionaries, and PostgreSQL takes one array per column in half the time of a row each.
    """
    if not rows:
        return
    names = tuple(rows[0])
    columns = itemgetter(*names)
    if connection.dialect.name == "sqlite":
        statement = _upsert_text(
            table, names, tuple(added), connection.dialect, f"VALUES ({', '.join('?' * len(names))})"
        )
        connection.exec_driver_sql(statement, [columns(row) for row in rows])
    else:
        arrays = ", ".join(f"%b::{_bare_type(table.c[name], connection.dialect)}[]" for name in names)
        statement = _upsert_text(table, names, tuple(added), connection.dialect, f"SELECT * FROM unnest({arrays})")
        connection.exec_driver_sql(statement, tuple(map(list, zip(*map(columns, rows), strict=True))))


def _upsert_text(table: Table, names: Sequence[str], added: Collection[str], dialect: Dialect, given: str) -> str:
    quoted = dialect.identifier_preparer.quote
    keys = [column.name for column in table.primary_key]
    sums = {name: f"{quoted(table.name)}.{quoted(name)} + " for name in added}
    changed = [f"{quoted(n)} = {sums.get(n, '')}excluded.{quoted(n)}" for n in names if n not in keys]
    return (
        f"INSERT INTO {quoted(table.name)} ({', '.join(map(quoted, names))}) {given} "
        f"ON CONFLICT ({', '.join(map(quoted, keys))}) DO UPDATE SET {', '.join(changed)}"
    )


def _bare_type(column: Column[Any], dialect: Dialect) -> str:
    return column.type.compile(dialect).split(" COLLATE ")[0]


def among(connection: Connection, column: ColumnElement[str], names: Sequence[str]) -> ColumnElement[bool]:
    """Whether the column holds one of the names. PostgreSQL gets them as one array: to put a thousand parameters into a
    statement costs its driver 10 ms."""
    if connection.dialect.name == "sqlite":
        return column.in_(names)
    return column == any_(literal(list(names), ARRAY(String)))


def next_number(connection: Connection, name: str, count: int = 1) -> int:
    """The last of `count` fresh rising numbers. Takes the database's (or the row's) write lock until the transaction
    ends, so numbers become visible in their order. Begin a read-and-write transaction with it: it locks first."""
    make = sqlite_insert if connection.dialect.name == "sqlite" else postgresql_insert
    statement = make(counters).values(name=name, value=count)
    statement = statement.on_conflict_do_update(
        index_elements=["name"], set_={"value": counters.c.value + statement.excluded.value}
    )
    return int(connection.execute(statement.returning(counters.c.value)).scalar_one())
