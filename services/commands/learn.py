"""retrain, evaluate: the model's life."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from services.commands.edge import Bars, Json, answer, bars, existing, settings_of, table

if TYPE_CHECKING:
    from services.domain import Metric


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: freshrank retrain --effort demo")(retrain)
    app.command(epilog="Example: freshrank evaluate --protocol temporal --json")(evaluate)


def retrain(
    context: typer.Context,
    effort: Annotated[str | None, typer.Option(help="Arithmetic budget: demo, normal or full.")] = None,
    as_json: Json = False,
    show_bars: Bars = False,
) -> None:
    """Train and judge a release.

    It is trained on all events but the newest, judged on those, and promoted if it holds.
    """
    from services import processes

    settings = settings_of(context, "retrain")
    if effort is not None:
        from services.settings import load_settings

        settings = load_settings(effort=effort)
    with bars(show_bars or not as_json) as progress:
        verdict = processes.retrain(settings, progress)
    outcome = "promoted" if verdict.promoted else "not promoted"
    answer(
        as_json,
        {
            "release_id": verdict.release_id,
            "promoted": verdict.promoted,
            "reason": verdict.reason,
            "learned_from": verdict.learned_from,
            "metrics": verdict.metrics,
        },
        lambda: say(f"Release {verdict.release_id} is {outcome}: {verdict.reason}\n{verdict.learned_from}".rstrip()),
    )


def evaluate(
    context: typer.Context,
    protocol: Annotated[str, typer.Option(help="How: temporal (features frozen at the cut).")] = "temporal",
    as_json: Json = False,
) -> None:
    """Measure the live release.

    Asked on the newest events, beside windowed popularity and item-kNN.
    """
    from services import processes
    from services.domain import BadRequest

    if protocol != "temporal":
        raise BadRequest(f"there is no protocol {protocol!r}; there is temporal")
    settings = existing(settings_of(context, "evaluate"))
    with bars(not as_json) as progress:
        metrics = processes.evaluate(settings, progress)
    answer(as_json, {"protocol": protocol, "metrics": metrics}, lambda: print_metrics(protocol, metrics))


def print_metrics(title: str, metrics: tuple[Metric, ...]) -> None:
    """Metrics as a table: a line per model and part, a column per name."""
    names = list(dict.fromkeys(each.name for each in metrics))
    lines = list(dict.fromkeys((each.model, each.part, each.users) for each in metrics))
    values = {(each.model, each.part, each.users, each.name): f"{each.value:.4f}" for each in metrics}
    rows = [
        (model, part, users, *(values.get((model, part, users, name), "") for name in names))
        for model, part, users in lines
    ]
    table(title, ("model", "part", "users", *names), rows)


def say(sentence: str) -> None:
    """One sentence on stdout."""
    sys.stdout.write(sentence.rstrip(".") + ".\n")
