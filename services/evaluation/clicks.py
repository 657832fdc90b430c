"""What is measured of shown lists: do clicked items score above the others, and is a score a chance of a click."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from models.metrics import BINS, auc_by_list
from services.evaluation.intervals import Resampled
from services.evaluation.measures import PerCase

Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]
RESAMPLES_OF_ROWS = 200
RESAMPLES_MIN = 50
ROWS_RESAMPLED = 200_000_000
"""Of more than a million rows fewer resamples are drawn: their metrics hardly vary."""
DEPTHS = (5, 10)


def per_list(scores: Numbers, clicked: Flags, offsets: NDArray[np.int64]) -> dict[str, PerCase]:
    """Means over the lists of two items or more with a click; list n has the rows `offsets[n] : offsets[n + 1]`. Group
    AUC only where not all was clicked. Equal scores share their places' worth. What no list says is left out."""
    lists, sizes = len(offsets) - 1, np.diff(offsets)
    owner = np.repeat(np.arange(lists), sizes)
    hits = np.bincount(owner[clicked], minlength=lists)
    some = (hits > 0) & (sizes > 1)
    within = auc_by_list(scores, clicked, offsets)
    known = np.isfinite(within)
    found = {"gauc": PerCase(np.where(known, within, 0.0), known.astype(np.float64))}
    order = np.lexsort((-scores, owner))
    own, value = owner[order], scores[order]
    fresh = np.ones(len(order), dtype=np.bool_)
    fresh[1:] = (own[1:] != own[:-1]) | (value[1:] != value[:-1])
    starts = np.flatnonzero(fresh)
    counts = np.diff(np.append(starts, len(order)))
    places = np.arange(len(order)) - offsets[own]
    longest = np.arange(1, int(sizes.max(initial=1)) + 1)
    worth = {"mrr": 1.0 / longest}
    worth |= {f"ndcg@{k}": np.where(longest <= k, 1.0 / np.log2(longest + 1.0), 0.0) for k in DEPTHS}
    for name, of_place in worth.items():
        shared = np.repeat(np.add.reduceat(of_place[places], starts) / counts, counts)
        gained = np.bincount(own, shared * clicked[order], minlength=lists)
        best = hits if name == "mrr" else np.concatenate([[0.0], np.cumsum(of_place)])[hits]
        values = np.divide(gained, best, out=np.zeros(lists), where=some)
        found[name] = PerCase(values, some.astype(np.float64))
    return {name: each for name, each in found.items() if each.weights.any()}


def over_rows(
    scores: Numbers, chances: Numbers | None, clicked: Flags, users: NDArray[np.int64]
) -> dict[str, Resampled]:
    """Metrics of all rows at once, resampled by the `users` they were shown to (int64 [M]): rows of one user are no
    independent evidence. `chances`: where the scores are chances of a click."""
    rows = _Rows(scores, clicked, chances)
    _, owner = np.unique(users[rows.order], return_inverse=True)
    count = int(owner.max()) + 1
    rng = np.random.default_rng(1)
    even = np.full(count, 1.0 / count)
    found = rows.measured(np.ones(len(scores)))
    drawn: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(max(RESAMPLES_MIN, min(RESAMPLES_OF_ROWS, ROWS_RESAMPLED // max(len(scores), 1)))):
        weights = rng.multinomial(count, even).astype(np.float64)[owner]
        for name, value in rows.measured(weights).items():
            drawn[name].append(value)
    return {name: Resampled(value, np.array(drawn[name])) for name, value in found.items()}


def auc(scores: Numbers, clicked: Flags, weights: Numbers) -> float:
    """The chance that a clicked row scores above another one, equal scores counting half; 0.5 with one kind only."""
    rows = _Rows(scores, clicked, None)
    return rows.auc(weights[rows.order])


def best_threshold(scores: Numbers, clicked: Flags, weights: Numbers) -> dict[str, float]:
    """Accuracy, precision, recall and F1 where all from some score on are called clicks: that with the best F1."""
    rows = _Rows(scores, clicked, None)
    return rows.best_threshold(weights[rows.order])


class _Rows:
    """Rows sorted once by their scores, lowest first, to be measured under many weights (in this order)."""

    def __init__(self, scores: Numbers, clicked: Flags, chances: Numbers | None) -> None:
        self.order = np.argsort(scores, kind="stable")
        value = scores[self.order]
        self._hit = clicked[self.order].astype(np.float64)
        self._starts = np.flatnonzero(np.concatenate([[True], np.diff(value) > 0]))
        self._chances = None if chances is None else chances[self.order]
        sizes = np.full(BINS, len(scores) // BINS) + (np.arange(BINS) < len(scores) % BINS)
        self._bins = np.concatenate([[0], np.cumsum(sizes[sizes > 0])[:-1]])

    def measured(self, weights: Numbers) -> Mapping[str, float]:
        """Everything there is to measure."""
        found = {"auc": self.auc(weights)}
        if self._chances is not None:
            clicks = max(float((weights * self._hit).sum()), 1.0)  # a resample may hold none
            found |= {
                "ece": self.calibration_error(weights),
                "pcoc": float((weights * self._chances).sum()) / clicks,
                "brier": float((weights * (self._chances - self._hit) ** 2).sum() / weights.sum()),
                **self.best_threshold(weights),
            }
        return found

    def auc(self, weights: Numbers) -> float:
        """See the function of this name."""
        hit = weights * self._hit
        hits, both = np.add.reduceat(hit, self._starts), np.add.reduceat(weights, self._starts)
        misses = both - hits
        total = hits.sum() * misses.sum()
        won = (hits * (np.cumsum(misses) - misses / 2)).sum()
        return float(won / total) if total > 0 else 0.5

    def calibration_error(self, weights: Numbers) -> float:
        """See the function of this name."""
        assert self._chances is not None, "scores that are no chances have no calibration"
        gaps = np.add.reduceat(weights * (self._chances - self._hit), self._bins)
        return float(np.abs(gaps).sum() / max(float(weights.sum()), 1e-12))

    def best_threshold(self, weights: Numbers) -> dict[str, float]:
        """See the function of this name."""
        of_equal = np.add.reduceat(weights, self._starts)[::-1]  # equal scores are called the same; highest first
        called = np.cumsum(of_equal)
        right = np.cumsum(np.add.reduceat(weights * self._hit, self._starts)[::-1])
        total, clicks = float(called[-1]), float(right[-1])
        f1 = 2 * right / np.maximum(called + clicks, 1e-12)
        n = int(np.argmax(f1))
        precision, recall = right[n] / max(called[n], 1e-12), right[n] / max(clicks, 1e-12)
        accuracy = (total - called[n] - clicks + 2 * right[n]) / max(total, 1e-12)
        return {"accuracy": float(accuracy), "precision": float(precision), "recall": float(recall), "f1": float(f1[n])}
