"""evaluate: models and baselines measured on plain files, or the live release on its newest events."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from services.commands.edge import Json, answer, bars, existing, settings_of, table

if TYPE_CHECKING:
    from services.domain import Metric
    from services.evaluation.run import Report, Wanted
    from services.evaluation.variants import Variant

Name = TypeVar("Name", bound=str)
PROTOCOLS = ("temporal", "leave-one-out", "targets", "replay")
FEATURES = ("live", "hourly", "daily", "frozen")
SEEN = ("drop", "keep")
RETRAIN = ("never", "1h", "1d", "7d")
MODELS = "tower,pipeline,popularity,trending,itemknn,ease,last-click"
MODELS_OF_LISTS = f"news,{MODELS}"
ATTACKED = "pipeline,popularity,trending"
ONLY_OF_CASES = (
    "protocol", "targets", "seen", "at", "history_min", "features", "retrain", "attack", "diversity",
    "category_cap", "without",
)  # fmt: skip

Protocol = Annotated[
    str | None,
    typer.Option(help="Cases: temporal (the default: frozen at a cut), leave-one-out, targets, replay (a stream)."),
]
Events = Annotated[
    Path | None, typer.Option(help="Events: user_id,item_id,timestamp[,kind,value]; csv (also gz) or parquet.")
]
Items = Annotated[
    Path | None, typer.Option(help="Items: item_id,title[,text,categories,published_at]; categories a|b.")
]
Targets = Annotated[Path | None, typer.Option(help="For targets: user_id,item_id[,timestamp].")]
Impressions = Annotated[
    Path | None,
    typer.Option(
        help="Judge shown lists instead: impression_id,user_id,timestamp,item_id,clicked[,position,propensity]."
    ),
]
LearnFrom = Annotated[
    Path | None, typer.Option(help="Shown lists to learn from, of before those of --impressions; the same columns.")
]
Recipe = Annotated[
    str | None, typer.Option(help="A known data set (open-bandit): its files are made in --out, and judged.")
]
Folder = Annotated[Path | None, typer.Option(help="Where the data set of --recipe lies.")]
Cut = Annotated[
    str | None,
    typer.Option(
        help="A time, or for temporal a share of the time span (default 0.8), for replay a share of the events (0.9). "
        "With --impressions: what lies before is learned from."
    ),
]
Features = Annotated[
    str | None,
    typer.Option(help="For replay, what a case knows: live (if not given), hourly, daily (UTC), frozen (at the cut)."),
]
Retrain = Annotated[
    str | None,
    typer.Option(help="For replay, train anew on all consumed: never (if not given), every 1h, 1d or 7d."),
]
Seen = Annotated[str | None, typer.Option(help="What a user has had: drop (if not given) or keep.")]
HistoryMin = Annotated[
    int | None, typer.Option(min=0, help="Events before it that a judged case has: 5, 1 or 0 by protocol.")
]
Models = Annotated[
    str | None,
    typer.Option(
        help=f"Of {MODELS} (the default: all), with --impressions also news; tuned, or set: popularity:7d, ease:300."
    ),
]
Blocks = Annotated[str | None, typer.Option(help="What the tower is made of: ligr (if not given), sasrec or hstu.")]
Size = Annotated[str | None, typer.Option(help="How large a tower: small, base or large; by the data if not given.")]
Against = Annotated[str | None, typer.Option(help="Whom the others are compared with; the best baseline if not given.")]
Attack = Annotated[
    str | None, typer.Option(help="Attack the training events and say what lists become: spam,shilling:1%,shilling:3%.")
]
Pretrain = Annotated[
    str | None, typer.Option(help="Before the tower is fitted: none (if not given), masked or contrastive.")
]
Labels = Annotated[
    float | None, typer.Option(min=0.0001, max=1.0, help="Share of the users whose events are targets; 1 if not given.")
]
Diversity = Annotated[
    str | None, typer.Option(help="Also the pipeline with each of these diversities (0 to 1, by commas), as asked.")
]
CategoryCap = Annotated[str | None, typer.Option(help="Also the pipeline with each of these caps per category.")]
Without = Annotated[
    str | None, typer.Option(help="Also the pipeline without each of faiss,covisits,trending,new; trained once.")
]
Seeds = Annotated[
    int | None, typer.Option(min=1, help="Trainings of tower and pipeline, 3 if not given; setting `effort` each.")
]
At = Annotated[str | None, typer.Option(help="Depths that are measured, 10,20,200 if not given.")]
TextEncoder = Annotated[
    str | None, typer.Option(help="auto, hashing, none, a folder or a hub id; the setting text_encoder if not given.")
]
Out = Annotated[Path | None, typer.Option(help="Folder for metrics.json, run.json and report.html.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: freshrank evaluate --events e.csv --items i.csv --protocol temporal --out report")(
        evaluate
    )


def evaluate(  # noqa: PLR0913
    context: typer.Context,
    protocol: Protocol = None,
    events: Events = None,
    items: Items = None,
    targets: Targets = None,
    impressions: Impressions = None,
    learn_from: LearnFrom = None,
    recipe: Recipe = None,
    folder: Folder = None,
    cut: Cut = None,
    features: Features = None,
    retrain: Retrain = None,
    seen: Seen = None,
    history_min: HistoryMin = None,
    models: Models = None,
    blocks: Blocks = None,
    size: Size = None,
    against: Against = None,
    diversity: Diversity = None,
    category_cap: CategoryCap = None,
    without: Without = None,
    seeds: Seeds = None,
    attack: Attack = None,
    pretrain: Pretrain = None,
    labels: Labels = None,
    at: At = None,
    text_encoder: TextEncoder = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Measure models on files, or the live release.

    With --events: models on plain files, the whole catalogue ranked for every case; no instance is needed. Without: the
    live release of the home on its newest events, beside windowed popularity and item-kNN.
    """
    from services.domain import BadRequest

    if protocol is not None and protocol not in PROTOCOLS:
        raise BadRequest(f"there is no protocol {protocol!r}; there are {', '.join(PROTOCOLS)}")
    if recipe is not None or folder is not None:
        given = {"--events": events, "--items": items, "--impressions": impressions, "--learn-from": learn_from}
        events, items, impressions = _made_by(recipe, folder, out, given)
    if impressions is not None:
        _refuse(_options(context, ONLY_OF_CASES), "does not go with --impressions FILE")
    if events is None:
        of_files = set(context.params) - {"protocol", "events", "as_json", "recipe", "folder"}
        _refuse(_options(context, of_files), "goes with --events FILE, which is not given")
        _live(context, protocol or "temporal", as_json)
        return
    if items is None or out is None:
        missing = "--items FILE" if items is None else "--out DIR"
        raise BadRequest(f"--events goes with {missing}, which is not given")
    from models.config import BLOCK_NAMES, PRETRAIN, SIZES
    from services.evaluation.run import Wanted

    of_all = MODELS_OF_LISTS if impressions else ATTACKED if attack else MODELS
    wanted = Wanted(
        events, items, protocol or "temporal", _listed(models or of_all),  # type: ignore[arg-type]
        targets, cut, _one_of("--seen", seen or "drop", SEEN),  # type: ignore[arg-type]
        _depths(at or "10,20,200"), seeds or 3, history_min=history_min, against=against, impressions=impressions,
        features=_given("--features", features, FEATURES), retrain=_given("--retrain", retrain, RETRAIN),  # type: ignore[arg-type]
        attacks=_listed(attack or ""), labels=labels or 1.0, variants=_variants(diversity, category_cap, without),
        pretrain=_one_of("--pretrain", pretrain or "none", PRETRAIN),
        block=_one_of("--blocks", blocks or "ligr", BLOCK_NAMES), size=_one_of("--size", size, SIZES) if size else None,
        learn_from=learn_from,
    )  # fmt: skip
    _files(context, wanted, out, as_json, text_encoder)


def print_metrics(title: str, metrics: tuple[Metric, ...]) -> None:
    """Metrics as tables: a line per model and part, a column per name; what has other names stands in a table of its
    own, a line per number."""
    models = dict.fromkeys(each.model for each in metrics)
    names_of = {model: tuple(dict.fromkeys(m.name for m in metrics if m.model == model)) for model in models}
    names = names_of[metrics[0].model] if metrics else ()
    lines = list(dict.fromkeys((m.model, m.part, m.users) for m in metrics if names_of[m.model] == names))
    values = {(each.model, each.part, each.users, each.name): f"{each.value:.4f}" for each in metrics}
    rows = [
        (model, part, users, *(values.get((model, part, users, name), "") for name in names))
        for model, part, users in lines
    ]
    table(title, ("model", "part", "users", *names), rows)
    others = [(m.model, m.part, m.users, m.name, f"{m.value:.4f}") for m in metrics if names_of[m.model] != names]
    if others:
        table("", ("of", "part", "users", "what", "value"), others)


def _live(context: typer.Context, protocol: str, as_json: bool) -> None:
    from services import learning
    from services.domain import BadRequest

    if protocol != "temporal":
        raise BadRequest(f"the live release is measured by the protocol temporal; {protocol} goes with --events FILE")
    settings = existing(settings_of(context, "evaluate"))
    with bars(not as_json) as progress:
        metrics = learning.evaluate(settings, progress)
    answer(as_json, {"protocol": protocol, "metrics": metrics}, lambda: print_metrics(protocol, metrics))


def _files(context: typer.Context, wanted: Wanted, out: Path, as_json: bool, text_encoder: str | None) -> None:
    from services import learning
    from services.evaluation.report import told, write

    settings = settings_of(context, "evaluate")
    if text_encoder is not None:
        settings = settings.model_copy(update={"text_encoder": text_encoder})
    with bars(not as_json) as progress:
        report = learning.evaluate_files(settings, wanted, progress)
    paths = write(report, out)
    answer(as_json, {**told(report), "files": paths, "metrics": report.lines}, lambda: _print(report, paths))


def _print(report: Report, paths: tuple[Path, ...]) -> None:
    from services.evaluation.report import compared, first_depth, overview, parts_of, trusted

    for name, fact in (*report.facts.items(), *report.settings.items()):
        sys.stdout.write(f"{name}: {fact}\n")
    depth = first_depth(report)
    for part, users in parts_of(report).items():
        table(f"\n{part}: {users:,} users", *overview(report, depth, part))
    header, rows = compared(report, depth, "all")
    if rows:
        table("\nall: differences with their paired 95 % intervals", header, rows)
    header, rows = trusted(report)
    if rows:
        table("\nHow far reasons can be trusted", header, rows)
    sys.stdout.write(f"Written: {', '.join(map(str, paths))}\n")


def _made_by(
    recipe: str | None, folder: Path | None, out: Path | None, others: Mapping[str, object]
) -> tuple[Path, Path, Path]:
    """The files of a known data set: events, items and lists. `others`: options that name files themselves."""
    from services.domain import BadRequest
    from services.evaluation.recipes import RECIPES

    if recipe is None:
        raise BadRequest("--folder goes with --recipe, which is not given")
    _refuse(others, "does not go with --recipe, which brings its own files")
    if recipe not in RECIPES:
        raise BadRequest(f"there is no recipe {recipe!r} for an evaluation; known: {', '.join(RECIPES)}")
    if folder is None or out is None:
        missing = "--folder FOLDER" if folder is None else "--out DIR"
        raise BadRequest(f"--recipe goes with {missing}, which is not given")
    return RECIPES[recipe](folder, out)


def _options(context: typer.Context, names: Collection[str]) -> dict[str, object]:
    """What was given of some options, by the name it was given by."""
    return {f"--{name.replace('_', '-')}": each for name, each in context.params.items() if name in names}


def _refuse(given: Mapping[str, object], why: str) -> None:
    """Raises BadRequest that names the first option that was given."""
    from services.domain import BadRequest

    for name, value in given.items():
        if value is not None:
            raise BadRequest(f"{name} {why}")


def _one_of(option: str, given: str, names: tuple[Name, ...]) -> Name:
    """The name that was given. Raises BadRequest where it is none of them."""
    from services.domain import BadRequest

    found = next((name for name in names if name == given), None)
    if found is None:
        raise BadRequest(f"{option} is {', '.join(names[:-1])} or {names[-1]}, not {given!r}")
    return found


def _listed(given: str) -> tuple[str, ...]:
    """Names with commas between them; none of an empty text."""
    return tuple(each.strip() for each in given.split(",") if given)


def _given(option: str, given: str | None, names: tuple[Name, ...]) -> Name | None:
    return None if given is None else _one_of(option, given, names)


def _variants(diversity: str | None, category_cap: str | None, without: str | None) -> tuple[Variant, ...]:
    from services.domain import BadRequest
    from services.evaluation.variants import variants_of

    def parts(given: str | None) -> list[str]:
        return [each.strip() for each in given.split(",")] if given else []

    try:
        diversities = [float(each) for each in parts(diversity)]
        caps = [int(each) for each in parts(category_cap)]
    except ValueError:
        raise BadRequest("--diversity and --category-cap: numbers, separated by commas") from None
    return variants_of(diversities, caps, parts(without))


def _depths(given: str) -> tuple[int, ...]:
    from services.domain import BadRequest

    depths = tuple(int(each) for each in given.split(",") if each.strip().isdecimal())
    if len(depths) != given.count(",") + 1 or min(depths) < 1:
        raise BadRequest(f"--at {given}: whole numbers above 0, separated by commas")
    return tuple(sorted(set(depths)))
