"""How far the pipeline's reasons can be trusted, over some of the cases: a slice `reasons` of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.batches import Progress
from services.domain import Query, from_us
from services.evaluation.cases import Cases
from services.evaluation.intervals import mean_over_seeds, resampled
from services.evaluation.measures import PerCase
from services.recommend import Stages
from services.training.faithfulness import ITEMS_MIN, faithfulness

if TYPE_CHECKING:
    from models.release import ModelRelease

SLICE = "reasons"
Measured = Mapping[str, NDArray[np.float64]]


def measured(
    release: ModelRelease,
    cases: Cases,
    moments: Sequence[tuple[int, NDArray[np.int64]]],
    stages_at: Callable[[ModelRelease, int], Stages],
    seed: int,
    progress: Progress,
    processes: int = 1,
    cases_max: int = 200,
) -> Measured:
    """How far a release's reasons can be trusted, over the sampled cases; `stages_at` builds the stages of a release at
    a moment."""
    from models.blank import with_random_reranker

    blank, chosen, parts = with_random_reranker(release, seed), sampled_cases(cases, cases_max), []
    for moment, some in moments:
        queries = [query_of(cases, case) for case in some[np.isin(some, chosen)].tolist()]
        if queries:
            probe = stages_at(blank, moment).probe if release.reranks else None
            parts.append(faithfulness(stages_at(release, moment), probe, queries, seed, progress, processes))
    return joined(parts)


def sampled_cases(cases: Cases, cases_max: int) -> NDArray[np.int64]:
    """`cases_max` of the judged cases with history enough, by lot, in their order."""
    fit = np.flatnonzero(cases.judged & (cases.history >= ITEMS_MIN))
    chosen = np.random.default_rng(1).permutation(fit)[:cases_max]
    return np.sort(chosen)


def query_of(cases: Cases, case: int) -> Query:
    """What a case asks."""
    asked_at = from_us(int(cases.until_us[case]))
    return Query(f"case-{case}", str(case), 1, asked_at, seen=cases.seen, record=False)


def joined(parts: Sequence[Measured]) -> Measured:
    """What was measured moment by moment, as one."""
    parts = [part for part in parts if part]
    sizes = [len(next(iter(part.values()))) for part in parts]
    names = dict.fromkeys(name for part in parts for name in part)
    missing = [np.full(size, np.nan) for size in sizes]
    return {
        name: np.concatenate([part.get(name, none) for part, none in zip(parts, missing, strict=True)])
        for name in names
    }


def means_of(seeds: Sequence[Measured]) -> dict[str, tuple[float, float, float, int]]:
    """The mean of every measure over users and seeds, where 95 % of its resampled means lie, and over how many users
    that is."""
    names = list(dict.fromkeys(name for seed in seeds for name in seed))
    size = max((len(each) for seed in seeds for each in seed.values()), default=0)
    if not size:
        return {}
    metrics = [mean_over_seeds([_per_case(seed.get(name, np.full(size, np.nan))) for seed in seeds]) for name in names]
    found = zip(names, metrics, resampled(metrics), strict=True)
    intervals = [(name, each.interval(), int((metric.weights > 0).sum())) for name, metric, each in found]
    return {name: (i.value, i.low, i.high, users) for name, i, users in intervals}


def _per_case(values: NDArray[np.float64]) -> PerCase:
    known = ~np.isnan(values)
    return PerCase(np.where(known, values, 0.0), known.astype(np.float64))
