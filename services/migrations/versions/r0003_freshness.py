"""When the messages behind a write of the change feed were accepted, and what each process tells of itself."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Two tables, empty: they fill by themselves."""
    op.create_table(
        "live_arrivals",
        sa.Column(
            "seq", sa.BigInteger, primary_key=True, autoincrement=False, comment="the last number that one write took"
        ),
        sa.Column("part", sa.String(16), nullable=False),
        sa.Column(
            "arrivals", sa.LargeBinary, nullable=False, comment="when the messages behind that write were accepted"
        ),
        if_not_exists=True,
    )
    op.create_table(
        "process_reports",
        sa.Column("process_id", sa.String(64), primary_key=True),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sa.Column("report", sa.LargeBinary, nullable=False),
        if_not_exists=True,
    )


def downgrade() -> None:
    """What was measured goes; nothing is computed from it."""
    for table in ("process_reports", "live_arrivals"):
        op.drop_table(table, if_exists=True)
