"""import: events and items from files into the log, and on into the features."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from services.commands.edge import Bars, Json, Progress, answer, bars, now, settings_of

if TYPE_CHECKING:
    from services.archive.importer import Imported
    from services.archive.recipes import ImportSource

EXIT_INTERRUPTED = 130
CONSUMERS = ("features", "trends", "archive", "catalogue")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("import", epilog="Example: freshrank import clicks.csv.gz --map user_id=customer --items shop.jsonl")(
        bring
    )


def bring(  # noqa: PLR0913 (each one is an option)
    context: typer.Context,
    files: Annotated[
        list[Path] | None, typer.Argument(help="Files of events: csv, jsonl or parquet, also .gz.", metavar="[FILE]...")
    ] = None,
    items: Annotated[list[Path] | None, typer.Option("--items", help="A file of items; may be repeated.")] = None,
    maps: Annotated[
        list[str] | None, typer.Option("--map", help="ours=theirs: the column that holds a field; may be repeated.")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="ours=value: the same in every row, as kind=purchase."),
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="A known data set: movietweetings or online-retail.")] = None,
    folder: Annotated[Path | None, typer.Option(help="The folder of the recipe's files.")] = None,
    shift_to: Annotated[
        str | None, typer.Option(help="now or a time: when the last event shall be; all times move.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Run the consumers until all is in.")] = True,
    as_json: Json = False,
    show_bars: Bars = False,
) -> None:
    """Import files of events and items.

    They are published in the order of time. When `freshrank run` runs on this home, its consumers take them in; else
    the consumers run here until nothing is left. A file of which not one row could be read ends it with code 1.
    """
    from services import processes, wiring
    from services.archive.importer import import_sources
    from services.domain import FreshrankError
    from services.supervisor import holder_of

    settings = settings_of(context)
    sources = _sources(tuple(files or ()), tuple(items or ()), tuple(maps or ()), tuple(sets or ()), recipe, folder)
    asked_at = now()
    with _interruptible() as stopping, bars(show_bars or not as_json) as progress:
        with wiring.open_home(settings) as home:
            done = import_sources(
                sources,
                home.sink,
                asked_at,
                work=settings.home / "import",
                rejects_path=settings.home / "rejects" / f"{asked_at:%Y%m%d-%H%M%S}.jsonl",
                shift_to=_moment(shift_to, asked_at),
                progress=_heeding(stopping, progress),
            )
        if wait and holder_of(settings.home) is None:
            processes.run_consumer(settings, CONSUMERS, stopping.is_set, True, progress)
        if stopping.is_set():
            raise Interrupted(
                f"interrupted: {done.events:,} events and {done.items:,} items are in the log, not all taken in yet;"
                f" `freshrank run`, or `freshrank consume {' '.join(CONSUMERS)} --until-caught-up`, goes on"
            )
    answer(as_json, {name: getattr(done, name) for name in done.__dataclass_fields__}, lambda: _print(done))
    if done.unread:
        raise FreshrankError(f"not one row of {', '.join(map(str, done.unread))} could be read")


class Interrupted(Exception):
    """Ctrl-C or SIGTERM came; says how far the import is."""


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, instead of tearing a write apart; Interrupted ends the command by 130."""
    stopping = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    except Interrupted as interrupted:
        sys.stderr.write(f"freshrank: {interrupted}\n")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _heeding(stopping: threading.Event, progress: Progress) -> Progress:
    """Progress that ends the import between two of its steps once it shall stop."""

    def told(done: int, total: int, text: str) -> None:
        if stopping.is_set():
            raise Interrupted(f"interrupted while {text}; the same import again brings in the rest")
        progress(done, total, text)

    return told


def _sources(
    files: tuple[Path, ...],
    items: tuple[Path, ...],
    maps: tuple[str, ...],
    sets: tuple[str, ...],
    name: str | None,
    folder: Path | None,
) -> tuple[ImportSource, ...]:
    from services.archive.reading import DataFile
    from services.archive.recipes import RECIPES, event_source, item_source, parse_mapping, recipe
    from services.domain import BadRequest

    if name is not None:
        if files or items or maps:
            raise BadRequest("a recipe knows its files and columns: give --recipe and --folder only")
        return recipe(name, folder or Path())
    if not files and not items:
        raise BadRequest("name at least one file of events or --items, or a --recipe")
    for path in (*files, *items):
        if not path.is_file():
            known = path.name.lower() if path.name.lower() in RECIPES else ""
            hint = f"; that data set is brought in by --recipe {known} --folder FOLDER" if known else ""
            raise BadRequest(f"there is no file {path}{hint}")
    mapping, constants = parse_mapping(maps), parse_mapping(sets)
    events = tuple(event_source(DataFile(path), mapping, constants) for path in files)
    mapping_of_items = {} if files else mapping
    return (*(item_source(DataFile(path), mapping_of_items) for path in items), *events)


def _moment(given: str | None, asked_at: datetime) -> datetime | None:
    from services.domain import BadRequest, WireError
    from services.fields import parse_time

    if given is None or given == "now":
        return None if given is None else asked_at
    try:
        return parse_time(given, "--shift-to")
    except WireError as error:
        raise BadRequest(error.detail) from None


def _print(done: Imported) -> None:
    rejected = sum(done.rejected.values())
    sys.stdout.write(f"{done.events:,} events and {done.items:,} items are in")
    sys.stdout.write(f", {done.first:%Y-%m-%d} to {done.last:%Y-%m-%d}.\n" if done.first and done.last else ".\n")
    if done.skipped:
        sys.stdout.write(f"{done.skipped:,} rows are no events and were left out.\n")
    if rejected:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(done.rejected.items()))
        sys.stdout.write(f"{rejected:,} rows could not be read ({reasons}); they stand in {done.rejects_path}.\n")
