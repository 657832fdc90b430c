"""The quarantine keeps keys, how large a message was, what it counts against the bound, and its replay."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def columns() -> tuple[sa.Column[Any], ...]:
    """What is added."""
    key = "as bytes: a foreign key may hold what no text column takes"
    whole, bound = "bytes as it came; value may be a part", "what the entry counts against the bound"
    return (
        sa.Column("key", sa.LargeBinary, comment=key),
        sa.Column("size", sa.BigInteger, nullable=False, server_default="0", comment=whole),
        sa.Column("held", sa.BigInteger, nullable=False, server_default="0", comment=bound),
        sa.Column("replayed_us", sa.BigInteger, nullable=False, server_default="0", comment="0: never"),
        sa.Column(
            "replayed_as", sa.Text, nullable=False, server_default="", comment="the coordinate of the replay, as text"
        ),
    )


def upgrade() -> None:
    """Homes from before revisions may have the columns; entries kept whole are as large as their bytes. What is held in
    all is counted anew: a count from before a way down would never shrink, and new entries would have no room."""
    known = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("rejected")}
    for column in columns():
        if column.name not in known:
            op.add_column("rejected", column)
    op.execute("UPDATE rejected SET size = length(value) WHERE size = 0")
    op.execute("UPDATE rejected SET held = 300 + length(value) + length(detail) WHERE held = 0")
    op.execute("DELETE FROM counters WHERE name = 'rejected_bytes'")
    op.execute("INSERT INTO counters (name, value) SELECT 'rejected_bytes', coalesce(sum(held), 0) FROM rejected")


def downgrade() -> None:
    """The entries stay, what was added to them goes."""
    with op.batch_alter_table("rejected") as rejected:
        for column in columns():
            rejected.drop_column(column.name)
