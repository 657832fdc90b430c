"""What a policy would have been worth, from the log of another one that kept its propensities.

A row that shows what the policy would have chosen counts the more, the less likely the logging policy was to show it:
IPS (inverse propensity scoring, Horvitz and Thompson 1952), and the self-normalised SNIPS (Swaminathan and Joachims
2015), which is off by a little and varies much less. No weight counts more than WEIGHT_MAX times the mean of those that
count at all; with weights that are a share of one policy in another that mean is about 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.evaluation.intervals import Interval, resampled
from services.evaluation.measures import PerCase

WEIGHT_MAX = 10.0
Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Value:
    """The clicks per row that a policy would have had, by both estimators, with how many rows of equal weight would
    say as much (Kish), and how many rows count at all."""

    ips: Interval
    snips: Interval
    effective: float
    matched: int


def value_of(weights: Numbers, clicked: NDArray[np.bool_], owners: NDArray[np.int64]) -> Value:
    """Of the weights of N logged rows (0: the policy would not have shown it) and their clicks. Resampled by `owners`,
    the list of each row. All 0 where nothing counts."""
    some = weights > 0
    if not some.any():
        nothing = Interval(0.0, 0.0, 0.0)
        return Value(nothing, nothing, 0.0, 0)
    clipped = np.minimum(weights, WEIGHT_MAX * weights[some].mean())
    lists = int(owners.max()) + 1
    rows = np.bincount(owners, minlength=lists).astype(np.float64)
    above = np.bincount(owners, clipped * clicked, minlength=lists).astype(np.float64)
    below = np.bincount(owners, clipped, minlength=lists).astype(np.float64)
    means = [PerCase(_ratio(above, weight), weight) for weight in (rows, below)]
    ips, snips = (each.interval() for each in resampled(means))
    return Value(ips, snips, float(clipped.sum() ** 2 / np.square(clipped).sum()), int(some.sum()))


def weights_of_choice(chosen: NDArray[np.int64], shown: NDArray[np.int64], propensity: NDArray[np.float32]) -> Numbers:
    """Of a policy that always shows its choice: 1 over the propensity where that was shown, 0 elsewhere."""
    given = propensity.astype(np.float64)
    return np.where(chosen == shown, 1.0 / np.where(given > 0, given, 1.0), 0.0)


def _ratio(above: Numbers, below: Numbers) -> Numbers:
    return np.asarray(np.divide(above, below, out=np.zeros_like(above), where=below > 0), dtype=np.float64)
