"""migrate: the tables of the metadata database, to this program's revision or back to an earlier one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from services.commands.edge import Json, answer, settings_of

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from services.settings import Settings


class Step(StrEnum):
    """Where to."""

    STATUS = "status"
    UP = "up"
    DOWN = "down"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: freshrank migrate up")(migrate)


def migrate(
    context: typer.Context,
    step: Annotated[Step, typer.Argument(help="status: where it is; up: to this program's; down: back.")] = Step.STATUS,
    to: Annotated[str, typer.Option(help="Revision to go down to (default: one step; base: no tables).")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before going down.")] = False,
    as_json: Json = False,
) -> None:
    """Change the tables of the metadata database.

    A start does `up` by itself where migrate_at_start is set. Go down before an older program is installed.
    """
    from services.migrations import revisions
    from services.settings import without_secrets

    settings = settings_of(context)
    where = str(without_secrets(settings.database_url)) or str(settings.home / "meta.db")
    with _database(settings) as engine:
        before = revisions.standing(engine)
        if step is Step.UP:
            revisions.bring_up(engine)
        elif step is Step.DOWN:
            _take_down(settings, engine, where, to, yes)
        after = revisions.standing(engine)
    answer(
        as_json,
        {"database": where, "before": before.revision, "revision": after.revision, "missing": list(after.missing)},
        lambda: _say(where, before.revision, after.revision, after.missing),
    )


def _take_down(settings: Settings, engine: Engine, where: str, to: str, yes: bool) -> None:
    from services.domain import BadRequest
    from services.migrations import revisions
    from services.supervisor import RunLock

    wanted = revisions.before(engine, to)
    lost = "every table and all that is in them" if wanted == revisions.BASE else "what newer revisions have added"
    if not yes and not typer.confirm(f"Take {where} down to {wanted}? It loses {lost}."):
        raise BadRequest("nothing was changed")
    with nullcontext() if settings.database_url else RunLock(settings.home):
        revisions.take_down(engine, wanted)


@contextmanager
def _database(settings: Settings) -> Iterator[Engine]:
    from services import wiring
    from services.domain import BadRequest

    if not settings.database_url and not (settings.home / "meta.db").exists():
        raise BadRequest(f"there is no instance at {settings.home}; `freshrank import` or `freshrank run` makes one")
    engine = wiring.metadata_as_it_is(settings)
    try:
        yield engine
    finally:
        engine.dispose()


def _say(where: str, before: str, revision: str, missing: tuple[str, ...]) -> None:
    moved = f"went from {before} to {revision}" if before != revision else f"is at {revision}"
    lacks = f"; it lacks {', '.join(missing)}" if missing else ""
    sys.stdout.write(f"{where} {moved}{lacks}.\n")
