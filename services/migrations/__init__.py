"""The history of the metadata database's tables: one file per revision, each both ways (Alembic)."""
