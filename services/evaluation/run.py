"""One evaluation: files, cases, models one by one, and what came out of it as lines of `metrics.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.batches import Progress
from models.metrics import MISSING
from models.text import HashingEncoder, TextEncoder, open_encoder
from services.bounds import BOUNDED, Bounds
from services.domain import BadRequest, KindRules
from services.evaluation.cases import Cases, Protocol, Seen, leave_one_out, of_targets, temporal
from services.evaluation.files import Data, Item, read_data
from services.evaluation.intervals import Interval, Resampled, by_user, mean_over_seeds, resampled
from services.evaluation.measures import Mask, Measures, PerCase, gains
from services.evaluation.ranking import Board, Made, Ranked
from services.evaluation.reasons import SLICE, Measured, means_of
from services.evaluation.replay import replay
from services.evaluation.stream import Features, Retrain
from services.evaluation.tuning import choices_of, tuned
from services.evaluation.variants import Variant

if TYPE_CHECKING:
    from models.config import BlockName, Effort, ModelConfig, Pretrain, Size
    from models.news import NewsConfig
    from services.training.evaluate import StagesFor

TRAINED = ("tower", "pipeline")
OF_LISTS = ("news",)
"""Trained models that score shown lists only."""
BASELINES = ("popularity", "trending", "itemknn", "ease", "last-click")
AT = (10, 20, 200)
SEEDS = 3


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be measured. `models`: names, a baseline with its setting behind a colon where it is not to be tuned.
    `against`: the model that all others are compared with; None: the best of the baselines. `block` and `size`: of the
    tower; no size: by that of the data."""

    events: Path
    items: Path
    protocol: Protocol
    models: tuple[str, ...]
    targets: Path | None = None
    cut: str | None = None
    seen: Seen = "drop"
    at: tuple[int, ...] = AT
    seeds: int = SEEDS
    history_min: int | None = None
    against: str | None = None
    impressions: Path | None = None
    block: BlockName = "ligr"
    size: Size | None = None
    features: Features | None = None
    retrain: Retrain | None = None
    variants: tuple[Variant, ...] = ()
    learn_from: Path | None = None
    attacks: tuple[str, ...] = ()
    pretrain: Pretrain = "none"
    labels: float = 1.0

    @property
    def named(self) -> tuple[str, ...]:
        """All that is measured, in the order it is shown."""
        return (*self.models, *(variant.name for variant in self.variants))


@dataclass(frozen=True, slots=True)
class Means:
    """What training needs beside the data. `model` None: hyper-parameters by the size of the data, with a tower of
    `block`s and of `size`. `explained_max`: cases on whose lists the pipeline's reasons are measured."""

    stages_for: StagesFor
    effort: Effort
    text_encoder: str
    device: str
    threads: int
    text_batch_max: int
    model: ModelConfig | None = None
    block: BlockName = "ligr"
    size: Size | None = None
    open_encoder: Callable[[str], TextEncoder] = open_encoder
    news: NewsConfig | None = None
    bounds: Bounds = BOUNDED
    pretrain: Pretrain = "none"
    labels: float = 1.0
    explained_max: int = 200

    def processes(self) -> int:
        """How many processes ask the questions of many cases: as many as threads train, one beside a GPU."""
        from models.device import pick_device

        return max(1, self.threads) if pick_device(self.device).type == "cpu" else 1

    def told(self, seeds: int) -> str:
        """How models are trained, for people."""
        shape = f"tower {self.block}" + (f" {self.size}" if self.size else "")
        learned = "" if self.labels == 1.0 else f", targets of {self.labels:g} of the users"
        learned += "" if self.pretrain == "none" else f", pre-trained: {self.pretrain}"
        return f"effort {self.effort}, {shape}, text encoder {self.text_encoder}{learned}, seeds 1 to {seeds}"


@dataclass(frozen=True, slots=True)
class Line:
    """One number. `metric` of a comparison is `ndcg@10 - MODEL`: the paired difference to that model."""

    model: str
    slice: str
    metric: str
    value: float
    low: float
    high: float
    seeds: int
    users: int


@dataclass(frozen=True, slots=True)
class Report:
    """What one evaluation found: `facts` in words by name (`test_set` is its hash), `settings` by model."""

    wanted: Wanted
    facts: Mapping[str, str]
    settings: Mapping[str, str]
    against: str | None
    lines: tuple[Line, ...]


def evaluate(wanted: Wanted, rules: KindRules, means: Means, progress: Progress) -> Report:
    """Raises BadRequest where the files or what is wanted of them make no sense."""
    check(wanted)
    progress(0, 1, "reading")
    data = read_data(wanted.events, wanted.items, wanted.targets, rules)
    progress(1, 1, "reading")
    made = (replay if wanted.protocol == "replay" else _at_cases)(
        wanted, data, _named(wanted, BASELINES), _named(wanted, TRAINED), means, progress
    )
    described, by = described_by(data)
    measures = Measures(made.cases, described, wanted.at, any(item.categories for item in data.items))
    against = wanted.against or _best_baseline(made.ranked, made.cases, wanted)
    ordered = {model: made.ranked[model] for model in wanted.named}
    lines = _Lines(measures, made.cases, against).of(ordered)
    lines += tuple(
        Line("pipeline", SLICE, name, value, low, high, len(made.reasons), users)
        for name, (value, low, high, users) in means_of(made.reasons).items()
    )
    return Report(wanted, {**facts_of(data, made.cases, by), **made.facts}, made.settings, against, lines)


def _at_cases(
    wanted: Wanted, data: Data, baselines: Sequence[str], learned: Sequence[str], means: Means, progress: Progress
) -> Made:
    """All models on the cases of a protocol that trains once."""
    cases = cases_of(wanted, data)
    board = Board(cases, max(wanted.at))
    ranked: dict[str, list[Ranked]] = {}
    settings: dict[str, str] = {}
    for model in baselines:
        name, _, given = model.partition(":")
        found = tuned(cases, choices_of(name, given or None), wanted.protocol, progress, f"tuning {name}")
        settings[model] = found.setting
        ranked[model] = [board.rank(found.ranker, progress, f"ranking by {model}")]
    trusted: Sequence[Measured] = ()
    if learned:
        from services.evaluation.trained import Trainer

        trainer = Trainer(data.items, cases, means, progress)
        for seed in range(1, wanted.seeds + 1):
            for model, made in trainer.ranked(board, learned, seed, wanted.variants).items():
                ranked.setdefault(model, []).append(made)
                settings[model] = means.told(seed)
        trusted = trainer.reasons
    return Made(cases, ranked, settings, {}, trusted)


def _named(wanted: Wanted, among: Sequence[str]) -> list[str]:
    """The wanted models whose name is one of these."""
    return [model for model in wanted.models if model.partition(":")[0] in among]


def check(wanted: Wanted) -> None:
    """Raises BadRequest where the choices do not fit together; before any file is read."""
    _check_models(wanted)
    if len(set(wanted.models)) < len(wanted.models) or not wanted.models:
        raise BadRequest(f"--models names each model once, not {', '.join(wanted.models) or 'none'}")
    if wanted.variants and wanted.protocol == "replay":
        raise BadRequest("variants of the pipeline (--diversity, --category-cap, --without) do not go with replay")
    if wanted.variants and "pipeline" not in wanted.models:
        raise BadRequest(
            "--diversity, --category-cap and --without change the model pipeline, which is not in --models"
        )
    if wanted.against is not None and wanted.against not in wanted.models:
        raise BadRequest(f"--against {wanted.against} is none of --models")
    if wanted.impressions is not None:
        if wanted.learn_from is not None and wanted.cut is not None:
            raise BadRequest("--learn-from FILE and --cut both say which lists are learned from: give one of them")
        return
    if wanted.learn_from is not None:
        raise BadRequest("--learn-from FILE goes with --impressions FILE only")
    if (wanted.protocol == "targets") != (wanted.targets is not None):
        raise BadRequest("--targets FILE goes with --protocol targets, and only with it")
    if wanted.cut is not None and wanted.protocol not in ("temporal", "replay"):
        raise BadRequest("--cut goes with --protocol temporal or replay only")
    for option, chosen in (("--features", wanted.features), ("--retrain", wanted.retrain)):
        if chosen is not None and wanted.protocol != "replay":
            raise BadRequest(f"{option} goes with --protocol replay only")


def _check_models(wanted: Wanted) -> None:
    for model in wanted.models:
        name, colon, given = model.partition(":")
        if name not in TRAINED + OF_LISTS + BASELINES:
            raise BadRequest(f"there is no model {name!r}; there are {', '.join((*TRAINED, *OF_LISTS, *BASELINES))}")
        if name in OF_LISTS and wanted.impressions is None:
            raise BadRequest(f"the model {name} scores shown lists: it goes with --impressions FILE")
        if colon and name not in BASELINES:
            raise BadRequest(f"{model}: only a baseline has a setting behind a colon")
        if colon:
            choices_of(name, given)


def cases_of(wanted: Wanted, data: Data) -> Cases:
    """The cases of a protocol that trains once."""
    least = {} if wanted.history_min is None else {"history_min": wanted.history_min}
    if wanted.protocol == "temporal":
        return temporal(data.events, wanted.cut or "0.8", wanted.seen, **least)
    if wanted.protocol == "leave-one-out":
        return leave_one_out(data.events, wanted.seen, **least)
    return of_targets(data.events, data.targets, wanted.seen, **least)


def facts_of(data: Data, cases: Cases, described: str) -> dict[str, str]:
    """What was measured on, for people."""
    train = cases.train
    return {
        "test_set": cases.hash,
        "events": f"{len(data.events):,}",
        "training events": f"{len(train):,}",
        "users": f"{len(data.events.user_ids):,}",
        "catalogue": f"{len(data.events.item_ids):,} items, {len(data.items):,} of them in the items file",
        "cases": f"{int(cases.judged.sum()):,} judged, {int((~cases.judged).sum()):,} more of cold users",
        "distance within lists": described,
    }


def described_by(data: Data) -> tuple[NDArray[np.float32], str]:
    """What the distance of two items is measured by: their categories, or where the file has none their texts."""
    place = {item_id: code for code, item_id in enumerate(data.events.item_ids)}
    if any(item.categories for item in data.items):
        return _by_categories(data.items, place), "cosine of categories"
    vectors = np.zeros((len(place), HashingEncoder().width), dtype=np.float32)
    codes = [place[item.item_id] for item in data.items]
    vectors[codes] = HashingEncoder().embed([f"{item.title} {item.text}" for item in data.items])
    return vectors, "cosine of hashed words of title and text"


def _by_categories(items: Sequence[Item], place: Mapping[str, int]) -> NDArray[np.float32]:
    names = {name: n for n, name in enumerate(sorted({name for item in items for name in item.categories}))}
    vectors = np.zeros((len(place), len(names)), dtype=np.float32)
    for item in items:
        vectors[place[item.item_id], [names[name] for name in item.categories]] = 1.0
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(np.divide(vectors, lengths, out=vectors, where=lengths > 0), dtype=np.float32)


def _best_baseline(ranked: Mapping[str, Sequence[Ranked]], cases: Cases, wanted: Wanted) -> str | None:
    """The baseline with the highest NDCG at 10 (or the first depth), the first of equals; None without baselines."""
    k = 10 if 10 in wanted.at else wanted.at[0]
    found = {m: float(gains(np.where(cases.judged, r[0].places, MISSING), k).sum()) for m, r in ranked.items()}
    return max(_named(wanted, BASELINES), key=found.__getitem__, default=None)


class _Lines:
    """Ranked lists as lines: each model's values, and its differences to one of them."""

    def __init__(self, measures: Measures, cases: Cases, against: str | None) -> None:
        self._measures = measures
        self._against = against
        self._users = cases.users

    def of(self, ranked: Mapping[str, Sequence[Ranked]]) -> tuple[Line, ...]:
        """Model by model, part by part."""
        metrics = {model: self._over_seeds(seeds) for model, seeds in ranked.items()}
        found: dict[tuple[str, str], list[Line]] = {}
        for part, mask in self._measures.parts().items():
            users = len(np.unique(self._users[mask]))
            resamples = _resamples(metrics, mask, self._users[mask])
            for model, seeds in ranked.items():
                named = {name: resamples[model, name].interval() for name in metrics[model]}
                named |= self._coverage(mask, seeds)
                if self._against is not None and model != self._against:
                    named |= {
                        f"{name} - {self._against}": resamples[model, name].less(resamples[self._against, name])
                        for name in metrics[model]
                    }
                found[model, part] = [
                    Line(model, part, name, each.value, each.low, each.high, len(seeds), users)
                    for name, each in named.items()
                ]
        parts = self._measures.parts()
        return tuple(line for model in ranked for part in parts for line in found[model, part])

    def _over_seeds(self, seeds: Sequence[Ranked]) -> dict[str, PerCase]:
        measured = [self._measures.per_case(each) for each in seeds]
        return {name: mean_over_seeds([each[name] for each in measured]) for name in measured[0]}

    def _coverage(self, mask: Mask, seeds: Sequence[Ranked]) -> dict[str, Interval]:
        """The mean over the seeds, between the least and the most of them: no mean over users, so no bootstrap."""
        found = [self._measures.exposure(each, mask) for each in seeds]
        values = {name: [each[name] for each in found] for name in found[0]}
        return {name: Interval(float(np.mean(of)), min(of), max(of)) for name, of in values.items()}


def _resamples(
    metrics: Mapping[str, Mapping[str, PerCase]], mask: Mask, users: NDArray[np.int64]
) -> dict[tuple[str, str], Resampled]:
    """Every metric of every model over the same resamples of the users of a part."""
    named = [(model, name) for model, of in metrics.items() for name in of]
    cut = [by_user(PerCase(metrics[m][name].values[mask], metrics[m][name].weights[mask]), users) for m, name in named]
    return dict(zip(named, resampled(cut), strict=True))
