"""The sets of user rows: which is live, what each is made by and how far it is built."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """One table, empty: without an entry the rows there are are the live ones."""
    op.create_table(
        "namespaces",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("definition", sa.Text, nullable=False, comment="kinds, events of a row, since; empty: not known"),
        sa.Column("source", sa.String(16), nullable=False, comment="log, or archive and then the log"),
        sa.Column("offsets", sa.Text, nullable=False, comment="where the group began to read the log"),
        sa.Column("archived_us", sa.BigInteger, nullable=False, comment="the archive is read up to here"),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("caught_up_us", sa.BigInteger, nullable=False, comment="0: not built yet"),
        sa.Column("live", sa.Boolean, nullable=False),
        sa.Column("live_us", sa.BigInteger, nullable=False, comment="when it became live last; 0: never"),
        if_not_exists=True,
    )


def downgrade() -> None:
    """Go back to the first rows before this: an older program knows no others."""
    op.drop_table("namespaces", if_exists=True)
