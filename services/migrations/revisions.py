"""Which revision a database is at, and how it gets to another one: in one transaction, one process at a time.

The revision is read by plain SQL, and an empty database gets the tables as they are today; Alembic is imported only
where tables have to change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    insert,
    inspect,
    text,
)

from services.domain import BadRequest, SettingsInvalid
from services.tables import counters, metadata

if TYPE_CHECKING:
    from alembic.config import Config

REVISIONS = ("0001", "0002", "0003", "0004")
"""Oldest first; a test holds them and the files in `versions/` together."""
HEAD = REVISIONS[-1]
BASE = "base"
"""Where a database is that no revision was brought to."""
VERSION_TABLE = "freshrank_version"
LOCK_NUMBER = 7_303_014
"""Names the advisory lock in PostgreSQL; any number that nobody else uses does."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a database is, and the revisions it lacks."""

    revision: str
    missing: tuple[str, ...]


def standing(engine: Engine) -> Standing:
    """Where a database is; SettingsInvalid where a newer program than this one has made it."""
    with engine.connect() as connection:
        return _standing(connection)


def require(engine: Engine, bring_up: Callable[[], object] | None) -> None:
    """See to it that the database is at HEAD: nothing to do, or `bring_up`; SettingsInvalid where that is not given."""
    found = standing(engine)
    if found.missing and bring_up is None:
        raise SettingsInvalid(
            f"the database is at revision {found.revision}, this program needs {HEAD}: run `freshrank migrate up`, "
            f"or set migrate_at_start"
        )
    if found.missing and bring_up is not None:
        bring_up()


def bring_up(engine: Engine) -> tuple[str, ...]:
    """Bring a database to HEAD; the revisions it lacked. An empty one is made as it is at HEAD. Tables from the time
    before revisions are taken over as they are. Processes that start together stand in line, and all but the first find
    nothing left to do."""
    with _alone(engine) as connection:
        now = _standing(connection)
        if now.revision != BASE or not _make(connection):
            step_up(connection)
    return now.missing


def step_up(connection: Connection) -> None:
    """One revision after the other, up to HEAD, in the caller's transaction."""
    if _standing(connection).missing:
        from alembic import command

        command.upgrade(config(connection), HEAD)


def _make(connection: Connection) -> bool:
    """All tables at once, as the revisions would make them (a test compares both), unless one of them is there."""
    if not metadata.tables.keys().isdisjoint(inspect(connection).get_table_names()):
        return False
    metadata.create_all(connection, checkfirst=False)
    connection.execute(insert(counters).values(name="rejected_bytes", value=0))
    number = Column("version_num", String(32), nullable=False)
    version = Table(
        VERSION_TABLE, MetaData(), number, PrimaryKeyConstraint(number, name=f"{VERSION_TABLE}_pkc")
    )  # as Alembic makes it
    version.create(connection, checkfirst=True)
    connection.execute(insert(version).values(version_num=HEAD))
    return True


def take_down(engine: Engine, revision: str) -> None:
    """Bring a database back to an earlier revision; BASE: to no tables at all."""
    with _alone(engine) as connection:
        wanted = _before(_standing(connection).revision, revision)
        from alembic import command

        command.downgrade(config(connection), wanted)


def before(engine: Engine, revision: str = "") -> str:
    """The earlier revision of that name (empty: one step back); BadRequest where the database cannot go there."""
    return _before(standing(engine).revision, revision)


def _before(now: str, revision: str) -> str:
    steps = (BASE, *REVISIONS)
    earlier = steps[: steps.index(now)]
    if not earlier or (revision and revision not in earlier):
        raise BadRequest(f"the database is at {now}; before that there is {', '.join(earlier) or 'nothing'}")
    return revision or earlier[-1]


def config(connection: Connection, metadata: MetaData | None = None) -> Config:
    """What Alembic needs to know; with `metadata` it can compare the tables, too."""
    from alembic.config import Config

    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    made.attributes.update(connection=connection, metadata=metadata)
    return made


def _standing(connection: Connection) -> Standing:
    if not inspect(connection).has_table(VERSION_TABLE):
        return Standing(BASE, REVISIONS)
    revision = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar() or BASE
    steps = (BASE, *REVISIONS)
    if revision not in steps:
        raise SettingsInvalid(
            f"the database was made by a newer freshrank (revision {revision}; this program knows up to {HEAD}): "
            f"install that one, or let that one bring it back with `freshrank migrate down --to {HEAD}`"
        )
    return Standing(revision, steps[steps.index(revision) + 1 :])


@contextmanager
def _alone(engine: Engine) -> Iterator[Connection]:
    """A transaction beside which nobody else changes tables: it holds SQLite's write lock, or a PostgreSQL advisory
    lock that ends with it. Both databases undo half a change."""
    with engine.begin() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": LOCK_NUMBER})
        yield connection
