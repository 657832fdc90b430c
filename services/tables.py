"""The SQL tables of the metadata database (SQLAlchemy Core) and how it is opened. Learned models live in `models/`."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Engine,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
)
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
    Column("vector_hash", String(32), nullable=False, comment="hash of the text and encoder that was embedded last"),
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
