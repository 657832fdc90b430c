"""The command line `freshrank`: what an operator lives with. Each command's work is in `services/commands/`."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from services.commands import bring, judge, keep, learn, look, mend, migrate, replay, run, status, tell
from services.commands.edge import Edge
from services.domain import BadRequest, FreshrankError, SettingsInvalid


def _version(on: bool) -> None:
    if on:
        sys.stdout.write(f"freshrank {version('freshrank')}\n")
        raise typer.Exit


app = typer.Typer(
    name="freshrank",
    help="Clicks in, fresh recommendations out.",
    epilog="Example: freshrank demo --once",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
for family in (tell, bring, run, learn, judge, look, status, mend, replay, keep, migrate):
    family.register(app)


@app.callback()
def root(
    context: typer.Context,
    home: Annotated[
        Path | None, typer.Option(help="Folder of the instance (default: FRESHRANK_HOME, else ./.freshrank).")
    ] = None,
    show_version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_version, help="Print the version."),
    ] = False,
) -> None:
    """Options that stand before the command's name."""
    assert not show_version
    context.obj = Edge(home)


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point: one clear sentence and a code for a mistake, never a stack of frames.

    Codes: 1 something outside did not work, 2 a mistake in the call or the settings.
    """
    try:
        app(args=arguments)
    except (SettingsInvalid, BadRequest) as error:
        _end(str(error), 2)
    except FreshrankError as error:
        _end(str(error), 1)
    except (OSError, sqlite3.Error) as error:
        _end(_outside(error), 1)
    except Exception as error:
        if type(error).__module__ != "sqlalchemy.exc":  # imported only by commands that open the database
            raise
        _end(_outside(error), 1)


def _end(sentence: str, code: int) -> None:
    sys.stderr.write(f"freshrank: {sentence}\n")
    sys.exit(code)


def _outside(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]


if __name__ == "__main__":
    main()
