"""retrain, tune-text, parity: the model's life."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from services.commands.edge import Bars, Json, answer, bars, existing, now, settings_of, table

if TYPE_CHECKING:
    from services.domain import Verdict
    from services.settings import Settings
    from services.training.parity import Parity


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: freshrank retrain --effort demo")(retrain)
    app.command(name="tune-text", epilog="Example: freshrank tune-text --effort demo")(tune_text)
    app.command(epilog="Example: freshrank parity --sample 500 --since 2026-11-01T00:00Z")(parity)


IF_NEW = "Only if events came since the newest release was judged, as a scheduled run does."
Effort = Annotated[str | None, typer.Option(help="Arithmetic budget: demo, normal or full.")]


def retrain(
    context: typer.Context,
    effort: Effort = None,
    if_new: Annotated[bool, typer.Option("--if-new", help=IF_NEW)] = False,
    as_json: Json = False,
    show_bars: Bars = False,
) -> None:
    """Train and judge a release.

    It is trained on all events but the newest, judged on those, and promoted if it holds.
    """
    from services import learning

    settings = settings_of(context, "retrain")
    if if_new and not learning.has_news(settings):
        told = "no event came since the newest release was judged: nothing to learn"
        answer(as_json, {"release_id": None, "promoted": False, "reason": told}, lambda: say(f"Not trained: {told}"))
        return
    _learn(settings, effort, as_json, show_bars, learning.retrain)


def tune_text(context: typer.Context, effort: Effort = None, as_json: Json = False, show_bars: Bars = False) -> None:
    """Tune the text encoder on behaviour, and train and judge a release on it.

    Low-rank adapters (needs the package peft) bring the texts near of what people take one after the other. All items
    are embedded anew; encoder, vectors and models go live as one release, or not at all. On a GPU where there is one.
    """
    from services import learning

    _learn(existing(settings_of(context, "tune-text")), effort, as_json, show_bars, learning.tune_text)


def _learn(
    settings: Settings,
    effort: str | None,
    as_json: bool,
    show_bars: bool,
    run: Callable[[Settings, Callable[[int, int, str], None]], Verdict],
) -> None:
    if effort is not None:
        from services.settings import load_settings

        settings = load_settings(effort=effort)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave through every `with`: the run is written down
    with bars(show_bars or not as_json) as progress:
        verdict = run(settings, progress)
    outcome = "promoted" if verdict.promoted else "not promoted"
    answer(
        as_json,
        {
            "release_id": verdict.release_id,
            "promoted": verdict.promoted,
            "reason": verdict.reason,
            "learned_from": verdict.learned_from,
            "rerank": verdict.rerank,
            "told": verdict.told,
            "metrics": verdict.metrics,
        },
        lambda: say(f"Release {verdict.release_id} is {outcome}: {verdict.reason}\n{verdict.learned_from}".rstrip()),
    )


def parity(
    context: typer.Context,
    sample: Annotated[int, typer.Option(min=1, help="Most lists to compare.")] = 200,
    since: Annotated[str | None, typer.Option(help="Lists served since then; a day ago when left out.")] = None,
    as_json: Json = False,
) -> None:
    """Compare the features that served lists recorded with those that training would join for them.

    All should agree; every difference is named with its cause.
    """
    from services import learning
    from services.fields import parse_time

    settings = existing(settings_of(context, "parity"))
    begin = now() - timedelta(days=1) if since is None else parse_time(since, "since")
    report = learning.parity(settings, sample, begin)
    answer(as_json, {"share": report.share, **fields_of(report)}, lambda: print_parity(report))


def fields_of(report: Parity) -> dict[str, object]:
    """A report by the names of its fields."""
    from dataclasses import asdict

    return asdict(report)


def print_parity(report: Parity) -> None:
    """The share in a sentence, then what does not agree."""
    if report.share is None:
        say("No list that recorded features was served since then: nothing to compare")
        return
    lists = f"{report.agreed:,} of {report.compared:,} lists ({report.picks:,} picks)"
    say(f"{lists} have the very features that training would join for them: {report.share:.2%}")
    if report.causes:
        table("What differs", ("lists", "cause"), [(count, cause) for cause, count in sorted(report.causes.items())])
        rows = [(d.request_id, d.item_id, d.feature, f"{d.served:g}", f"{d.joined:g}") for d in report.differences]
        table("For example", ("request", "item", "feature", "served", "joined"), rows[:10])


def say(sentence: str) -> None:
    """One sentence on stdout."""
    sys.stdout.write(sentence.rstrip(".") + ".\n")
