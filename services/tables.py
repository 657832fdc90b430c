"""The SQL tables of the metadata database (SQLAlchemy Core) and how it is opened. Learned models live in `models/`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from operator import itemgetter
from pathlib import Path

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Insert,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
)
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

metadata = MetaData()
BigId = BigInteger().with_variant(Integer, "sqlite")

items = Table(
    "items",
    metadata,
    Column("item_id", String(256), primary_key=True),
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
    Column("item_id", String(256), primary_key=True),
    Column("part", String(16), primary_key=True),
    Column("payload", LargeBinary, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Index("items_live_seq", "seq"),
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
    Column("item_id", String(256), primary_key=True),
    Column("hour", BigInteger, primary_key=True, comment="hours since 1970 of the event time"),
    *(Column(f"c{column}", BigInteger, nullable=False) for column in range(9)),
    Index("trend_hours_hour", "hour"),
    sqlite_with_rowid=False,
)

trend_items = Table(
    "trend_items",
    metadata,
    Column("item_id", String(256), primary_key=True),
    Column("hour", BigInteger, nullable=False, comment="the newest closed hour that counts includes"),
    Column("counts", LargeBinary, nullable=False),
)

trend_covisits = Table(
    "trend_covisits",
    metadata,
    Column("item_id", String(256), primary_key=True),
    Column("total", Float, nullable=False),
    Column("payload", LargeBinary, nullable=False),
)

trend_users = Table(
    "trend_users",
    metadata,
    Column("user_id", String(256), primary_key=True),
    Column("at_us", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Index("trend_users_at", "at_us"),
)

erasures = Table(
    "erasures",
    metadata,
    Column("user_id", String(256), primary_key=True),
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


def upsert(
    connection: Connection, table: Table, rows: Sequence[Mapping[str, object]], added: Collection[str] = ()
) -> None:
    """Insert rows; where the primary key exists, replace the other columns (columns in `added` are summed instead)."""
    if not rows:
        return
    names = tuple(rows[0])
    compiled = _upsert_statement(table, names, tuple(added), connection.dialect.name).compile(
        dialect=connection.dialect, column_keys=names
    )
    if compiled.positiontup is None:
        connection.exec_driver_sql(compiled.string, [dict(row) for row in rows])
    else:  # tuples made here cost a third of what SQLAlchemy takes to bind thousands of dictionaries
        order = itemgetter(*compiled.positiontup)
        connection.exec_driver_sql(compiled.string, [order(row) for row in rows])


def _upsert_statement(table: Table, names: tuple[str, ...], added: tuple[str, ...], dialect: str) -> Insert:
    statement = (sqlite_insert if dialect == "sqlite" else postgresql_insert)(table)
    keys = [column.name for column in table.primary_key]
    changed = {
        name: table.c[name] + statement.excluded[name] if name in added else statement.excluded[name]
        for name in names
        if name not in keys
    }
    return statement.on_conflict_do_update(index_elements=keys, set_=changed)


def next_number(connection: Connection, name: str, count: int = 1) -> int:
    """The last of `count` fresh rising numbers. Takes the database's (or the row's) write lock until the transaction
    ends, so numbers become visible in their order. Begin a read-and-write transaction with it: it locks first."""
    make = sqlite_insert if connection.dialect.name == "sqlite" else postgresql_insert
    statement = make(counters).values(name=name, value=count)
    statement = statement.on_conflict_do_update(
        index_elements=["name"], set_={"value": counters.c.value + statement.excluded.value}
    )
    return int(connection.execute(statement.returning(counters.c.value)).scalar_one())


def open_database(path: Path, busy_timeout_ms: int = 5000) -> Engine:
    """The embedded metadata database: SQLite in WAL mode, tables made where missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": busy_timeout_ms / 1000})

    @event.listens_for(engine, "connect")
    def _pragmas(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    metadata.create_all(engine)
    return engine
