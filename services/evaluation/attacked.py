"""The served list under attack: what clean users are shown before and after, and where the pushed items stand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from models.batches import Progress
from services.domain import BadRequest, KindRules
from services.evaluation.attacks import Attack, attack_of, injected
from services.evaluation.baselines import Popularity, Ranker, Trending
from services.evaluation.cases import Cases, Histories
from services.evaluation.files import Data, read_data
from services.evaluation.intervals import Interval, mean_over_seeds, resampled
from services.evaluation.measures import PerCase, gains
from services.evaluation.ranking import Board, Ranked
from services.evaluation.run import TRAINED, Line, Means, Report, Wanted, cases_of, check, facts_of
from services.evaluation.trained import Trainer
from services.evaluation.tuning import choices_of, tuned
from services.training.trust import votes

DEPTH = 10
BASELINES = ("popularity", "trending")
Measured = Mapping[str, PerCase]


def evaluate_attacks(wanted: Wanted, rules: KindRules, means: Means, progress: Progress) -> Report:
    """Each model fitted on the training events as they are, and once more with each attack among them, all with the
    same bounds (`means.bounds`). Raises BadRequest where it makes no sense."""
    attacks = _checked(wanted)
    progress(0, 1, "reading")
    data = read_data(wanted.events, wanted.items, None, rules)
    cases = cases_of(wanted, data)
    rankers, settings = _baselines(wanted, cases, progress)
    learned = [model for model in wanted.models if model in TRAINED]
    settings |= dict.fromkeys(learned, means.told(wanted.seeds))
    found: dict[tuple[str, str, str], list[Measured]] = {}
    facts: dict[str, str] = {}
    world = _World(data, means, rankers, learned, progress)
    for seed in range(1, wanted.seeds + 1):
        before = world.ranked(cases, seed)
        for attack in attacks:
            made = injected(cases.train, attack, int(cases.until_us[0]), seed)
            after = world.ranked(replace(cases, train=made.train), seed)
            events = len(made.train) - len(cases.train)
            facts[attack.name] = f"{made.accounts:,} accounts, {events:,} events, {len(made.targets)} pushed items"
            for when, lists in (("before", before), ("after", after)):
                for model, ranked in lists.items():
                    measured = _measured(cases, ranked, made.targets)
                    found.setdefault((attack.name, model, when), []).append(measured)
    facts = {**facts_of(data, cases, "not measured"), **facts, "bounds": str(means.bounds)}
    lines = _lines(found, cases, wanted, attacks)
    return Report(wanted, facts, settings, None, lines)


class _World:
    """What ranks the cases of one set of training events after the other."""

    def __init__(
        self, data: Data, means: Means, rankers: Mapping[str, Ranker], learned: Sequence[str], progress: Progress
    ) -> None:
        self._data = data
        self._means = means
        self._rankers = rankers
        self._learned = learned
        self._progress = progress
        self._trainer: Trainer | None = None

    def ranked(self, cases: Cases, seed: int) -> Mapping[str, Ranked]:
        """The lists of every model."""
        board = Board(cases, DEPTH)
        counted = votes(cases.train, self._means.bounds)
        found = {
            model: board.rank(replace(ranker, votes=counted), self._progress, f"ranking by {model}")  # type: ignore[type-var]
            for model, ranker in self._rankers.items()
        }
        if self._learned:
            texts = None if self._trainer is None else self._trainer.texts
            self._trainer = Trainer(self._data.items, cases, self._means, self._progress, texts=texts)
            found |= self._trainer.ranked(board, self._learned, seed)
        return found


def _checked(wanted: Wanted) -> tuple[Attack, ...]:
    check(wanted)
    attacks = tuple(attack_of(name) for name in wanted.attacks)
    if wanted.protocol != "temporal":
        raise BadRequest("--attack goes with --protocol temporal only")
    for model in wanted.models:
        if model.partition(":")[0] not in (*TRAINED, *BASELINES):
            raise BadRequest(f"--attack measures {', '.join((*TRAINED, *BASELINES))}, not {model}")
    return attacks


def _baselines(wanted: Wanted, cases: Cases, progress: Progress) -> tuple[dict[str, Ranker], dict[str, str]]:
    """The baselines and their settings, tuned before any attack."""
    rankers: dict[str, Ranker] = {}
    settings: dict[str, str] = {}
    for model in wanted.models:
        name, _, given = model.partition(":")
        if name in BASELINES:
            found = tuned(cases, choices_of(name, given or None), "temporal", progress, f"tuning {name}")
            assert isinstance(found.ranker, Popularity | Trending), name
            rankers[model], settings[model] = found.ranker, found.setting
    return rankers, settings


def _measured(cases: Cases, ranked: Ranked, targets: NDArray[np.int64]) -> Measured:
    """By case: quality, whether the list holds a pushed item, and the share of the pushed items that it holds, of those
    the user has not taken."""
    every = np.ones(len(cases))
    taken = Histories(cases.train)
    pairs = zip(cases.users.tolist(), cases.until_us.tolist(), strict=True)
    open_to = np.array(
        [[t not in had for t in targets.tolist()] for had in (set(taken.before(*p).tolist()) for p in pairs)]
    )
    listed = (ranked.lists[:, :DEPTH, None] == targets[None, None, :]).any(axis=1)  # [N, targets]
    weights = open_to.sum(axis=1).astype(np.float64)
    return {
        f"ndcg@{DEPTH}": PerCase(gains(ranked.places, DEPTH), every),
        f"hr@{DEPTH}": PerCase((ranked.places < DEPTH).astype(np.float64), every),
        f"exposure@{DEPTH}": PerCase(listed.any(axis=1).astype(np.float64), every),
        f"target-hr@{DEPTH}": PerCase((listed & open_to).sum(axis=1) / np.maximum(weights, 1.0), weights),
    }


def _lines(
    found: Mapping[tuple[str, str, str], Sequence[Measured]], cases: Cases, wanted: Wanted, attacks: Sequence[Attack]
) -> tuple[Line, ...]:
    lines: list[Line] = []
    users = int(np.count_nonzero(cases.judged))
    for attack in attacks:
        for model in wanted.models:
            before, after = (found[attack.name, model, when] for when in ("before", "after"))
            for name, each in _compared(before, after, cases.judged):
                lines.append(Line(model, attack.name, name, each.value, each.low, each.high, len(before), users))
    return tuple(lines)


def _compared(
    before: Sequence[Measured], after: Sequence[Measured], judged: NDArray[np.bool_]
) -> Iterator[tuple[str, Interval]]:
    """Of each metric: under attack, before it, their paired difference, and the quotient where there was anything."""
    for name in before[0]:
        means = [mean_over_seeds([seed[name] for seed in of]) for of in (before, after)]
        was, now = resampled([PerCase(each.values[judged], each.weights[judged]) for each in means])
        difference = now.less(was)
        yield name, now.interval()
        yield f"{name} before", was.interval()
        yield f"{name} - before", difference
        if was.value > 0:
            relative = (1.0 + part / was.value for part in (difference.value, difference.low, difference.high))
            yield f"{name} / before", Interval(*relative)
