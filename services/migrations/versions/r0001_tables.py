"""The first tables. Tables that are there already (a home made before revisions existed) stay as they are.

`jobs` is the scheduler's: made here, so that schedulers that start together do not both make it.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

BigId = sa.BigInteger().with_variant(sa.Integer, "sqlite")
Bytes, Big, Text, Real = sa.LargeBinary, sa.BigInteger, sa.Text, sa.Float


def name(length: int) -> sa.String:
    """Text in the order of its characters, whatever the language of the database."""
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def required(column: str, type_: Any, **options: Any) -> sa.Column[Any]:
    """A column that is never null."""
    return sa.Column(column, type_, nullable=False, **options)


def key(column: str, type_: Any) -> sa.Column[Any]:
    """A column of the primary key."""
    return sa.Column(column, type_, primary_key=True)


INDEXES = (
    ("items_live_seq", "items_live", ("seq",), False),
    ("rejected_coordinate", "rejected", ("log_id", "topic", "partition", "offset"), True),
    ("trend_hours_hour", "trend_hours", ("hour",), False),
    ("trend_users_at", "trend_users", ("at_us",), False),
    ("ix_jobs_next_run_time", "jobs", ("next_run_time",), False),
)


def tables() -> dict[str, tuple[sa.Column[Any], ...]]:
    """Every table and its columns."""
    return {**of_items(), **of_trends(), **of_training()}


def of_items() -> dict[str, tuple[sa.Column[Any], ...]]:
    """Cards, the change feed, counters, the quarantine."""
    return {
        "items": (
            key("item_id", name(256)),
            required("card", Bytes),
            required("field_times", Bytes, comment="updated_us of each field, for patches out of order"),
            required("created_us", Big),
            required("log_id", sa.String(64)),
            required("partition", sa.Integer),
            required("offset", Big, comment="coordinate of the newest change applied"),
            required("text_hash", sa.String(32), comment="hash of the text to embed; empty: nothing to embed"),
            required(
                "vector_hash",
                sa.String(32),
                server_default="",
                comment="hash of the text and encoder that was embedded last",
            ),
            required("accepted_us", Big),
        ),
        "items_live": (
            key("item_id", name(256)),
            key("part", sa.String(16)),
            required("payload", Bytes),
            required("seq", Big),
        ),
        "counters": (key("name", sa.String(64)), required("value", Big)),
        "rejected": (
            sa.Column("id", BigId, primary_key=True, autoincrement=True),
            required("log_id", sa.String(64)),
            required("topic", sa.String(128)),
            required("partition", sa.Integer),
            required("offset", Big),
            required("reason", sa.String(64)),
            required("detail", Text),
            required("value", Bytes),
            required("accepted_us", Big),
        ),
    }


def of_trends() -> dict[str, tuple[sa.Column[Any], ...]]:
    """The state of the trends consumer."""
    return {
        "trend_state": (
            key("topic", sa.String(128)),
            key("partition", sa.Integer),
            required("log_id", sa.String(64)),
            required("next_offset", Big),
            required("payload", Bytes),
        ),
        "trend_ring": (
            key("topic", sa.String(128)),
            key("partition", sa.Integer),
            key("slot", sa.Integer),
            required("number", Big, comment="running number of the chunk; slot is its remainder"),
            required("payload", Bytes),
        ),
        "trend_hours": (
            key("item_id", name(256)),
            sa.Column("hour", Big, primary_key=True, comment="hours since 1970 of the event time"),
            *(required(f"c{number}", Big) for number in range(9)),
        ),
        "trend_items": (
            key("item_id", name(256)),
            required("hour", Big, comment="the newest closed hour that counts includes"),
            required("counts", Bytes),
        ),
        "trend_covisits": (key("item_id", name(256)), required("total", Real), required("payload", Bytes)),
        "trend_users": (key("user_id", name(256)), required("at_us", Big), required("payload", Bytes)),
    }


def of_training() -> dict[str, tuple[sa.Column[Any], ...]]:
    """Erasures, releases, runs, who runs, and when."""
    return {
        "erasures": (key("user_id", name(256)), required("erased_us", Big)),
        "releases": (
            key("release_id", sa.String(64)),
            required("path", Text),
            required("created_us", Big),
            required("data_until_us", Big),
            required("promoted_us", Big, comment="0: never promoted"),
            required("live", sa.Boolean),
            required("reason", Text),
            required("metrics", Bytes),
        ),
        "runs": (
            key("run_id", sa.String(64)),
            required("started_us", Big),
            required("ended_us", Big, comment="0: running or died"),
            required("state", sa.String(16), comment="running, done, failed"),
            required("effort", sa.String(16)),
            required("release_id", sa.String(64)),
            required("message", Text),
            required("metrics", Bytes),
            required("seconds", Real),
        ),
        "leases": (key("name", sa.String(64)), required("holder", sa.String(128)), required("until_us", Big)),
        "jobs": (key("id", sa.Unicode(191)), sa.Column("next_run_time", sa.Float(25)), required("job_state", Bytes)),
    }


def upgrade() -> None:
    """From nothing."""
    for table, columns in tables().items():
        options = {"sqlite_with_rowid": False} if table == "trend_hours" else {}
        op.create_table(table, *columns, if_not_exists=True, **options)
    for index, table, names, unique in INDEXES:
        op.create_index(index, table, list(names), unique=unique, if_not_exists=True)


def downgrade() -> None:
    """To nothing."""
    for table in reversed(tables()):
        op.drop_table(table, if_exists=True)
