"""replay: features built anew beside the live ones, compared, and swapped in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from services.commands.edge import Json, answer, bars, existing, moment, settings_of, table
from services.commands.run import stop_on_signals

if TYPE_CHECKING:
    import threading

    from services.wiring import Home

Name = Annotated[str, typer.Argument(help="The name of the rows.", metavar="NAME")]
Handover = Annotated[float, typer.Option("--handover-s", min=0, help="Longest wait for a running consumer.")]
UNSUPPORTED = {
    "trends": "counts are sums that live in SQL with the place in the log, not rows that can stand beside each other; "
    "an empty home with the archive's files imported (`freshrank import`) counts anew",
    "archive": "the archive is what a replay reads",
    "catalogue": "cards are made of item changes by coordinate; send the items again (PUT) to make them anew",
}


def register(app: typer.Typer) -> None:
    """Add the command and what stands below it."""
    group = typer.Typer(
        invoke_without_command=True,
        rich_markup_mode=None,
        epilog="Example: freshrank replay --from 2026-11-01T00:00Z --consumer features --into v2",
    )
    group.callback()(replay)
    group.command("compare", epilog="Example: freshrank replay compare v2")(compare)
    group.command("swap", epilog="Example: freshrank replay swap v2")(swap)
    group.command("list", epilog="Example: freshrank replay list")(listed)
    group.command("drop", epilog="Example: freshrank replay drop v1")(drop)
    app.add_typer(group, name="replay", epilog="Example: freshrank replay --consumer features --into v2")


def replay(
    context: typer.Context,
    into: Annotated[
        str | None, typer.Option(help="Name of the new rows; `live` builds the live ones anew, in place.")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--from", help="Events that occurred since then (ISO 8601; default: all).")
    ] = None,
    consumer: Annotated[str, typer.Option(help="Whose state is built anew: features.")] = "features",
    follow: Annotated[bool, typer.Option("--follow", help="Feed them until they are swapped in, or Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """Build features anew.

    Beside the live ones, by the settings as they are now, from everything that was accepted. Broken off, the same
    command goes on.
    """
    if context.invoked_subcommand is not None:
        return
    from services import replay as work
    from services.domain import BadRequest
    from services.features.namespaces import IN_PLACE

    if consumer != "features":
        raise BadRequest(f"{consumer} cannot be replayed: {UNSUPPORTED.get(consumer, 'there is no such consumer')}")
    if into is None:
        raise BadRequest("name the new rows: --into v2 (or --into live to build the live ones anew)")
    begin = _moment_of(since)
    with _opened(context) as (home, stopping):
        with bars(not as_json) as progress:
            rows = work.build(home, into, begin, stopping, progress)
        done = not stopping.is_set()
        if done and follow and into != IN_PLACE:
            _say(f"{into} is level with the log and is kept so. In another window: freshrank replay swap {into}")
            work.follow(home, rows, stopping)
    fields = {"name": into, "source": rows.source, "done": done}
    if not done:
        answer(as_json, fields, lambda: _say(f"Stopped; the same command goes on with {into} where it was."))
    elif into == IN_PLACE:
        answer(as_json, fields, lambda: _say("The live rows hold everything again."))
    else:
        told = f"{into} holds everything. freshrank replay compare {into}; freshrank replay swap {into}"
        answer(as_json, fields, lambda: _say(told))


def compare(
    context: typer.Context,
    name: Name,
    users: Annotated[int, typer.Option(min=1, help="Most users looked at.")] = 1_000_000,
    as_json: Json = False,
) -> None:
    """New rows beside the live ones.

    How many are equal, and why others are not; row times are left out.
    """
    from services import replay as work

    with _opened(context) as (home, _):
        found = work.compare_rows(home, name, users)
    share = found.equal / found.rows if found.rows else 1.0
    fields = {
        "rows": found.rows, "equal": found.equal, "share": round(share, 6), "unexplained": found.unexplained,
        "causes": dict(found.causes), "examples": dict(found.examples),
    }  # fmt: skip

    def text() -> None:
        _say(f"{found.equal} of {found.rows} rows are equal ({share:.2%}).")
        if found.causes:
            table("", ("cause", "rows"), sorted(found.causes.items()))
            table("Some of them", ("user", "why"), [(user_id, ", ".join(why)) for user_id, why in found.examples])

    answer(as_json, fields, text)


def swap(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="The rows that become live.", metavar="[NAME]")] = None,
    back: Annotated[bool, typer.Option("--back", help="The rows that were live before.")] = False,
    handover_s: Handover = 15.0,
    as_json: Json = False,
) -> None:
    """Make rows live.

    Fed until they are level with the log, then switched at once. Running servers and consumers come over by themselves.
    """
    from services import replay as work
    from services.domain import BadRequest

    if (name is None) != back:
        raise BadRequest("name the rows, or say --back")
    with _opened(context) as (home, stopping):
        before = home.rows.namespaces.live().name
        previous = home.rows.namespaces.previous()
        chosen = name or (previous.name if previous else "")
        if not chosen:
            raise BadRequest("there is no way back: no other rows were live")
        with bars(not as_json) as progress:
            taken = work.swap(home, chosen, stopping, progress, handover_s)
    fields = {"live": chosen, "before": before, "taken_over": taken}

    def text() -> None:
        _say(f"{chosen} is live. The way back: freshrank replay swap --back. To forget: freshrank replay drop {before}")
        if not taken:
            _say(
                f"No features consumer took over within {handover_s:g} s; `freshrank run` carries on where this ended."
            )

    answer(as_json, fields, text)


def listed(context: typer.Context, as_json: Json = False) -> None:
    """Every set of user rows.

    Which is live, how far each is, what it is made by.
    """
    from services import replay as work

    with _opened(context) as (home, _):
        rows = work.standings(home)
        definitions = [home.rows.made_by(each.namespace) for each in rows]
    names = ("name", "live", "lag", "events of a row", "since", "built", "as the settings say")
    shown = [
        (
            each.namespace.name, "yes" if each.namespace.live else "", each.lag, made_by.events_max,
            moment(made_by.since_us) if made_by.since_us else "the beginning",
            moment(each.namespace.caught_up_us) if each.namespace.created_us else "as it came",
            "yes" if each.follows_settings else "no",
        )
        for each, made_by in zip(rows, definitions, strict=True)
    ]  # fmt: skip
    answer(as_json, {"rows": [dict(zip(names, row, strict=True)) for row in shown]}, lambda: table("", names, shown))


def drop(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """Forget rows that are not live."""
    from services import replay as work

    with _opened(context) as (home, _):
        work.drop(home, name)
    answer(as_json, {"dropped": name}, lambda: _say(f"{name} is forgotten."))


@contextmanager
def _opened(context: typer.Context) -> Iterator[tuple[Home, threading.Event]]:
    """The instance, and the order to stop; told to stop while it waits for a store, a command ends with a sentence."""
    from services import wiring
    from services.domain import StageUnavailable
    from services.patience import Stopped

    settings = existing(settings_of(context, "replay"))
    settings = settings.model_copy(update={"kafka_instance_id": ""})  # a guest in the group: it takes no member's place
    stopping = stop_on_signals()
    with wiring.open_home(settings) as home:
        try:
            yield home, stopping
        except Stopped:
            raise StageUnavailable("stopped while waiting for a store that is away; nothing is lost") from None


def _moment_of(text: str | None) -> datetime | None:
    """The time of `--from`, in UTC where it names no zone."""
    from services.domain import BadRequest

    if text is None:
        return None
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        raise BadRequest(f"--from {text!r} is no time; write it like 2026-11-01T00:00Z") from None
    return read if read.tzinfo else read.replace(tzinfo=UTC)


def _say(sentence: str) -> None:
    sys.stdout.write(sentence + "\n")
    sys.stdout.flush()
