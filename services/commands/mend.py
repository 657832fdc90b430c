"""rejected: what could not be read, one entry whole, and back into the log with it."""

from __future__ import annotations

import base64
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.commands.edge import Json, answer, existing, now, settings_of, table

if TYPE_CHECKING:
    from services.domain import Coordinate
    from services.quarantine import Entry, Wanted

SHOWN_LENGTH_MAX = 200
Limit = Annotated[int, typer.Option(min=1, help="Most entries shown.")]
After = Annotated[int, typer.Option(min=0, help="Only entries with a number above this one.")]
Reason = Annotated[str | None, typer.Option(help="Only entries with this reason.")]
Topic = Annotated[str | None, typer.Option(help="Only entries of this topic; `events` is short for freshrank.events.")]
Since = Annotated[str | None, typer.Option(help="Only what was accepted at or after this time (ISO 8601).")]
Until = Annotated[str | None, typer.Option(help="Only what was accepted before this time.")]
Replayed = Annotated[bool | None, typer.Option("--replayed/--open", help="Only replayed ones, or only open ones.")]
Number = Annotated[int, typer.Argument(help="The entry's number, from the list.", metavar="NUMBER")]


def register(app: typer.Typer) -> None:
    """Add the command and what stands below it."""
    group = typer.Typer(
        invoke_without_command=True,
        rich_markup_mode=None,
        epilog="Example: freshrank rejected --limit 20 --json",
    )
    group.callback()(rejected)
    group.command("list", epilog="Example: freshrank rejected list --reason future --since 2026-11-01")(listed)
    group.command("show", epilog="Example: freshrank rejected show 17")(show)
    group.command("replay", epilog="Example: freshrank rejected replay 17 --set occurred_at=2026-11-23T12:00:00Z")(
        replay
    )
    app.add_typer(group, name="rejected", epilog="Example: freshrank rejected --limit 20 --json")


def rejected(  # noqa: PLR0913
    context: typer.Context,
    limit: Limit = 20,
    after: After = 0,
    reason: Reason = None,
    topic: Topic = None,
    since: Since = None,
    until: Until = None,
    replayed: Replayed = None,
    as_json: Json = False,
) -> None:
    """Messages that could not be read.

    Each is kept with its reason, place and bytes; alone it lists them, as `rejected list` does.
    """
    if context.invoked_subcommand is None:
        _list(context, limit, after, _wanted(reason, topic, since, until, replayed), as_json)


def listed(  # noqa: PLR0913
    context: typer.Context,
    limit: Limit = 20,
    after: After = 0,
    reason: Reason = None,
    topic: Topic = None,
    since: Since = None,
    until: Until = None,
    replayed: Replayed = None,
    as_json: Json = False,
) -> None:
    """The entries, oldest first.

    Bytes are shown safely, at most 200 of each.
    """
    _list(context, limit, after, _wanted(reason, topic, since, until, replayed), as_json)


def show(context: typer.Context, number: Number, as_json: Json = False) -> None:
    """One entry, whole.

    Bytes that are no text, and what a terminal would obey, are shown as escapes; --json adds them in base64.
    """
    from services import wiring

    with wiring.open_home(existing(settings_of(context))) as home:
        entry = _found(home.quarantine.get(number), number)
    fields = _fields(entry) | {
        "value": safe(entry.rejected.value),
        "base64": base64.b64encode(entry.rejected.value).decode(),
    }
    rows = [(name, "" if value is None else value) for name, value in fields.items() if name not in ("value", "base64")]

    def text() -> None:
        table("", ("what", "value"), rows)
        sys.stdout.write(f"{fields['value']}\n")

    answer(as_json, fields, text)


def replay(
    context: typer.Context,
    number: Number,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="FIELD=VALUE (or FIELD.INNER=VALUE); may be given again.")
    ] = None,
    value_file: Annotated[
        Path | None, typer.Option(help="Publish the bytes of this file instead; `-` reads stdin.")
    ] = None,
    edit: Annotated[bool, typer.Option("--edit", help="Mend the message in $EDITOR first.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Also where it was replayed before.")] = False,
    as_json: Json = False,
) -> None:
    """Publish an entry, mended or as it is.

    It must be readable now; it goes to its topic with a link to where it stood, once, and counts as accepted when it
    first was. What it says takes its place by its own time, whenever it arrives.
    """
    from services import wiring
    from services.archive.replay import Replay, with_fields

    given = existing(settings_of(context))
    with wiring.open_home(given) as home:
        entry = _found(home.quarantine.get(number), number)
        value = None if value_file is None else _bytes_of(value_file)
        if changes:
            value = with_fields(entry.rejected.value if value is None else value, _pairs(changes))
        if edit:
            value = _edited(entry.rejected.value if value is None else value)
        coordinate = Replay(home.quarantine, home.sink, now)(entry, value, again)
    fields = {"number": number, "replayed_as": str(coordinate), "replay_of": str(entry.rejected.coordinate)}
    answer(as_json, fields, lambda: _print(f"Entry {number} stands in the log again, as {place_of(coordinate)}."))


def place_of(at: Coordinate) -> str:
    """Where a message stands, or stood when the API refused it: such a one never came into the log."""
    return f"{at.topic}, refused by the API" if at.log_id == "api" else f"{at.topic}/{at.partition}@{at.offset}"


def safe(value: bytes) -> str:
    """Bytes as a text that a terminal only shows: what is no UTF-8 or no printable character stands as an escape."""
    text = value.decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def _list(context: typer.Context, limit: int, after: int, wanted: Wanted, as_json: bool) -> None:
    from services import wiring

    with wiring.open_home(existing(settings_of(context))) as home:
        entries = home.quarantine.list(limit, after, wanted)
        counts, forgotten = dict(home.quarantine.count()), home.quarantine.forgotten()
    shown = [_fields(entry) | {"value": safe(entry.rejected.value[:SHOWN_LENGTH_MAX])} for entry in entries]
    names = ("number", "reason", "detail", "place", "accepted_at", "replayed_at", "value")
    rows = [["" if each[name] is None else each[name] for name in names] for each in shown]
    title = f"{sum(counts.values())} rejected" + (f", {forgotten} older ones let go to make room" if forgotten else "")
    answer(as_json, {"counts": counts, "forgotten": forgotten, "rejected": shown}, lambda: table(title, names, rows))


def _fields(entry: Entry) -> dict[str, object]:
    each = entry.rejected
    return {
        "number": entry.number, "reason": each.reason, "detail": each.detail, "place": place_of(each.coordinate),
        "coordinate": str(each.coordinate), "topic": each.coordinate.topic,
        "key": None if each.key is None else safe(each.key.encode("utf-8", "surrogateescape")),
        "accepted_at": each.accepted_at, "size": each.size, "kept": len(each.value),
        "replayed_at": entry.replayed_at, "replayed_as": None if entry.replayed_as is None else str(entry.replayed_as),
    }  # fmt: skip


def _wanted(
    reason: str | None, topic: str | None, since: str | None, until: str | None, replayed: bool | None
) -> Wanted:
    from services.quarantine import Wanted, topic_named

    topic = None if topic is None else topic_named(topic)
    return Wanted(reason, topic, _time("since", since), _time("until", until), replayed)


def _time(name: str, given: str | None) -> datetime | None:
    from services.domain import BadRequest, WireError
    from services.fields import parse_time

    try:
        return None if given is None else parse_time(given, name)
    except WireError as error:
        raise BadRequest(error.detail) from None


def _found(entry: Entry | None, number: int) -> Entry:
    from services.domain import BadRequest

    if entry is None:
        raise BadRequest(f"there is no entry {number}; `freshrank rejected list` shows what there is")
    return entry


def _pairs(changes: Sequence[str]) -> dict[str, str]:
    from services.domain import BadRequest

    for each in changes:
        if "=" not in each or each.startswith("="):
            raise BadRequest(f"--set {each!r} is refused: it must be FIELD=VALUE")
    return dict(each.split("=", 1) for each in changes)


def _bytes_of(path: Path) -> bytes:
    return sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()


def _edited(value: bytes) -> bytes:
    """The bytes as the editor leaves them, without the line end that it may have added."""
    from services.domain import BadRequest

    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not editor:
        raise BadRequest("no editor is named by EDITOR; use --set or --value-file")
    with tempfile.NamedTemporaryFile(prefix="freshrank-", suffix=".json") as file:
        file.write(value)
        file.flush()
        ended = subprocess.run([*shlex.split(editor), file.name], check=False).returncode
        edited = Path(file.name).read_bytes().rstrip(b"\r\n")  # by name: many editors replace the file
    if ended != 0 or not edited:
        raise BadRequest(f"{editor} ended with {ended} and left {len(edited)} bytes; nothing was replayed")
    return edited


def _print(sentence: str) -> None:
    sys.stdout.write(f"{sentence}\n")
