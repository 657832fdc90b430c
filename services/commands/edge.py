"""What every command shares: the settings of this call, how an answer is printed, and progress bars."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from services.settings import Settings

Progress = Callable[[int, int, str], None]
"""Called as `progress(done, total, text)`; total 0 means: not known."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Bars = Annotated[bool, typer.Option("--bars", help="Progress bars on stderr also with --json.")]
Fields = Mapping[str, object]
PAPER_WIDTH = 140
"""Columns of what is not written to a terminal."""


@dataclass(frozen=True, slots=True)
class Edge:
    """The options given before the command's name."""

    home: Path | None


def settings_of(context: typer.Context, service: str = "cli", log_level: str | None = "warning") -> Settings:
    """The settings of this call, and logs switched on; `log_level` None leaves it to the settings."""
    from services.settings import load_settings
    from services.telemetry import configure_logs

    home = context.obj.home if isinstance(context.obj, Edge) else None
    if home is not None:
        os.environ["FRESHRANK_HOME"] = str(home)  # processes started from here see the same home
    settings = load_settings()
    configure_logs(log_level or settings.log_level, service)
    return settings


def existing(settings: Settings) -> Settings:
    """The settings again; BadRequest where their home holds no instance, so that looking at one never makes one."""
    from services.domain import BadRequest

    if not any((settings.home / mark).exists() for mark in ("bus.db", "bus.kafka")):
        raise BadRequest(f"there is no instance at {settings.home}; `freshrank import` or `freshrank run` makes one")
    return settings


def checked_user(user_id: str) -> str:
    """The id of a user as it may be; BadRequest where it is none."""
    from services.domain import BadRequest, WireError
    from services.fields import check_id

    try:
        check_id("user_id", user_id.strip())
    except WireError as error:
        raise BadRequest(error.detail) from None
    return user_id


def now() -> datetime:
    """The clock of the edge; nothing below reads one."""
    return datetime.now(UTC)


def answer(as_json: bool, fields: Fields, text: Callable[[], None]) -> None:
    """Print the fields as one JSON document, or the text."""
    if as_json:
        sys.stdout.write(json.dumps(fields, default=plain) + "\n")
    else:
        text()


def plain(value: object) -> object:
    """A value as JSON can hold it."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, tuple | set | frozenset):
        return list(value)
    fields = getattr(type(value), "__dataclass_fields__", None)
    if fields is not None:
        return {name: getattr(value, name) for name in fields}
    return str(value)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on stdout."""
    from rich.table import Table

    drawn = Table(*columns, title=title or None, title_justify="left", title_style="bold", header_style="bold")
    for row in rows:
        drawn.add_row(*(str(each) for each in row))
    paper().print(drawn)


def paper(stderr: bool = False) -> Console:
    """Where text is written to: as wide as the terminal, or PAPER_WIDTH where it is none."""
    from rich.console import Console

    console = Console(stderr=stderr)
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(stderr=stderr, width=PAPER_WIDTH)


@contextmanager
def bars(shown: bool = True) -> Iterator[Progress]:
    """Progress bars on stderr, one per step (the text up to its first comma); silent where `shown` is false."""
    if not shown:
        yield _silent
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, int] = {}

        def report(done: int, total: int, text: str) -> None:
            step = text.split(",", maxsplit=1)[0]
            if step not in tasks:
                tasks[step] = progress.add_task(text, total=total or None)
            task = TaskID(tasks[step])
            progress.update(task, description=text, completed=done, total=total or None)

        yield report


def moment(us: int) -> str:
    """A stored time for a reader; `never` for 0."""
    from services.domain import from_us

    return f"{from_us(us):%Y-%m-%d %H:%M:%S} UTC" if us else "never"


def age(seconds: float) -> str:
    """How long ago, in the two units that matter."""
    for unit, length, part, parts in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} {int(seconds % length // parts)} {part}"
    return f"{seconds:.1f} s"


def _silent(_done: int, _total: int, _text: str) -> None:
    """Progress that nobody watches."""
