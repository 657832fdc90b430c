"""95 % intervals by the bootstrap over users: the same resamples for all models, so differences are paired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.evaluation.measures import PerCase

RESAMPLES = 1000
AT_ONCE = 8_000_000
LOW, HIGH = 2.5, 97.5


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and where 95 % of its resampled means lie."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Resampled:
    """The mean of a metric, and its means over each resample of the cases, float64 [RESAMPLES]."""

    value: float
    means: NDArray[np.float64]

    def interval(self) -> Interval:
        """Of the mean."""
        return _interval(self.value, self.means)

    def less(self, other: Resampled) -> Interval:
        """Of the difference to another metric over the same resamples."""
        return _interval(self.value - other.value, self.means - other.means)


def resampled(metrics: Sequence[PerCase], seed: int = 1) -> list[Resampled]:
    """Every metric over the same RESAMPLES draws, with replacement, of all its cases (or users, where it was taken by
    user). All have the same."""
    cases = len(metrics[0].values)
    above = np.stack([each.values * each.weights for each in metrics], axis=1)
    below = np.stack([each.weights for each in metrics], axis=1)
    rng = np.random.default_rng(seed)
    even = np.full(cases, 1.0 / cases)
    step = max(1, AT_ONCE // cases)
    parts = []
    for start in range(0, RESAMPLES, step):
        drawn = rng.multinomial(cases, even, size=min(step, RESAMPLES - start)).astype(np.float64)
        parts.append(_ratio(drawn @ above, drawn @ below))
    means, values = np.concatenate(parts), _ratio(above.sum(axis=0), below.sum(axis=0))
    return [Resampled(float(value), column) for value, column in zip(values, means.T, strict=True)]


def mean_over_seeds(seeds: Sequence[PerCase]) -> PerCase:
    """Each case's value averaged over the seeds; a case counts as much as it does in the seeds on average."""
    weights = np.mean([each.weights for each in seeds], axis=0)
    above = np.mean([each.values * each.weights for each in seeds], axis=0)
    return PerCase(_ratio(above, weights), weights)


def by_user(of_cases: PerCase, users: NDArray[np.int64]) -> PerCase:
    """One value per user, in the order of their codes: the mean over the user's cases, counting as much as they do. So
    a resample draws users, with all their cases: those of one user are no independent evidence."""
    _, place = np.unique(users, return_inverse=True)
    weights = np.bincount(place, of_cases.weights).astype(np.float64)
    above = np.bincount(place, of_cases.values * of_cases.weights).astype(np.float64)
    return PerCase(_ratio(above, weights), weights)


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """The quotient, 0 where there is nothing to divide by."""
    return np.asarray(np.divide(above, below, out=np.zeros_like(above), where=below > 0), dtype=np.float64)


def _interval(value: float, means: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(means, [LOW, HIGH])
    return Interval(value, float(low), float(high))
