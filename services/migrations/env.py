"""What Alembic runs: the steps that are missing, inside the transaction of `services/migrations/revisions.py`."""

from alembic import context

from services.migrations.revisions import VERSION_TABLE

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=context.config.attributes.get("metadata"),
    version_table=VERSION_TABLE,
    render_as_batch=connection.dialect.name == "sqlite",  # SQLite changes a column by copying its table
)
with context.begin_transaction():
    context.run_migrations()
