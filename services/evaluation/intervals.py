"""95 % intervals by the bootstrap over cases: the same resamples for all models, so differences are paired."""

from __future__ import annotations

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


class Resamples:
    """The resamples of a set of cases: how often each case was drawn, float64 [RESAMPLES, N], some at a time."""

    def __init__(self, cases: int, seed: int = 1) -> None:
        self._cases = cases
        self._seed = seed

    def of(self, metrics: list[PerCase]) -> list[Interval]:
        """The interval of each metric."""
        sums = self._sums([each.values * each.weights for each in metrics], [each.weights for each in metrics])
        return [_interval(_mean(each), column) for each, column in zip(metrics, sums.T, strict=True)]

    def between(self, ours: list[PerCase], theirs: list[PerCase]) -> list[Interval]:
        """The interval of each difference, ours less theirs, over the same resamples."""
        count = len(ours)
        both = [*ours, *theirs]
        sums = self._sums([each.values * each.weights for each in both], [each.weights for each in both])
        return [
            _interval(_mean(a) - _mean(b), sums[:, n] - sums[:, count + n])
            for n, (a, b) in enumerate(zip(ours, theirs, strict=True))
        ]

    def _sums(self, values: list[NDArray[np.float64]], weights: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        """The weighted mean of each metric in each resample. [RESAMPLES, metrics]"""
        rng = np.random.default_rng(self._seed)
        above, below = np.stack(values, axis=1), np.stack(weights, axis=1)
        even = np.full(self._cases, 1.0 / self._cases)
        step = max(1, AT_ONCE // self._cases)
        parts = []
        for start in range(0, RESAMPLES, step):
            drawn = rng.multinomial(self._cases, even, size=min(step, RESAMPLES - start)).astype(np.float64)
            total = drawn @ below
            parts.append(np.where(total > 0, (drawn @ above) / np.where(total > 0, total, 1.0), 0.0))
        return np.concatenate(parts)


def mean_over_seeds(seeds: list[PerCase]) -> PerCase:
    """Each case's value averaged over the seeds; a case counts where it does in every seed on average."""
    weights = np.mean([each.weights for each in seeds], axis=0)
    above = np.mean([each.values * each.weights for each in seeds], axis=0)
    return PerCase(np.where(weights > 0, above / np.where(weights > 0, weights, 1.0), 0.0), weights)


def _mean(metric: PerCase) -> float:
    total = float(metric.weights.sum())
    return float((metric.values * metric.weights).sum()) / total if total > 0 else 0.0


def _interval(value: float, resampled: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(resampled, [LOW, HIGH])
    return Interval(value, float(low), float(high))
