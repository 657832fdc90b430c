"""What is measured of shown lists: do clicked items score above the others, and is a score a chance of a click."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from models.metrics import calibration
from services.evaluation.intervals import Resampled
from services.evaluation.measures import PerCase

Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]
RESAMPLES_OF_ROWS = 200
DEPTHS = (5, 10)


def per_list(scores: Numbers, clicked: Flags, offsets: NDArray[np.int64]) -> dict[str, PerCase]:
    """Means over the lists of two items or more with a click; list n has the rows `offsets[n] : offsets[n + 1]`. Group
    AUC only where not all was clicked. Equal scores share their places' worth. What no list says is left out."""
    count = len(offsets) - 1
    names = ("gauc", "mrr", *(f"ndcg@{k}" for k in DEPTHS))
    values = {name: np.zeros(count) for name in names}
    weights = {name: np.zeros(count) for name in names}
    for n, (start, stop) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        own, wanted = scores[start:stop], clicked[start:stop]
        hits = int(wanted.sum())
        if hits == 0 or len(own) < 2:
            continue
        if hits < len(own):
            values["gauc"][n], weights["gauc"][n] = auc(own, wanted, np.ones(len(own))), 1.0
        worth = {"mrr": 1.0 / np.arange(1, len(own) + 1)}
        discount = 1.0 / np.log2(np.arange(2, len(own) + 2))
        worth |= {f"ndcg@{k}": np.where(np.arange(len(own)) < k, discount, 0.0) for k in DEPTHS}
        for name, of_place in worth.items():
            best = of_place[:hits].sum() if name != "mrr" else float(hits)
            values[name][n], weights[name][n] = float(_shared(own, of_place)[wanted].sum()) / best, 1.0
    return {name: PerCase(values[name], weights[name]) for name in names if weights[name].any()}


def over_rows(
    scores: Numbers, chances: Numbers | None, clicked: Flags, offsets: NDArray[np.int64]
) -> dict[str, Resampled]:
    """Metrics of all rows at once, resampled by lists. `chances`: where the scores are chances of a click."""
    lists = len(offsets) - 1
    owner = np.repeat(np.arange(lists), np.diff(offsets))
    rng = np.random.default_rng(1)
    even = np.full(lists, 1.0 / lists)
    found = _whole(scores, chances, clicked, np.ones(len(scores)))
    drawn: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(RESAMPLES_OF_ROWS):
        weights = rng.multinomial(lists, even).astype(np.float64)[owner]
        for name, value in _whole(scores, chances, clicked, weights).items():
            drawn[name].append(value)
    return {name: Resampled(value, np.array(drawn[name])) for name, value in found.items()}


def auc(scores: Numbers, clicked: Flags, weights: Numbers) -> float:
    """The chance that a clicked row scores above another one, equal scores counting half; 0.5 with one kind only."""
    order = np.argsort(scores, kind="stable")
    above, below = np.where(clicked, weights, 0.0)[order], np.where(clicked, 0.0, weights)[order]
    starts = np.flatnonzero(np.concatenate([[True], np.diff(scores[order]) > 0]))
    hits, misses = np.add.reduceat(above, starts), np.add.reduceat(below, starts)
    total = hits.sum() * misses.sum()
    won = (hits * (np.cumsum(misses) - misses / 2)).sum()
    return float(won / total) if total > 0 else 0.5


def best_threshold(scores: Numbers, clicked: Flags, weights: Numbers) -> dict[str, float]:
    """Accuracy, precision, recall and F1 where all from some score on are called clicks: that with the best F1."""
    order = np.argsort(-scores, kind="stable")
    weight, hit = weights[order], (weights * clicked)[order]
    ends = np.flatnonzero(np.concatenate([np.diff(scores[order]) < 0, [True]]))  # equal scores are called the same
    called, right = np.cumsum(weight)[ends], np.cumsum(hit)[ends]
    total, clicks = float(weight.sum()), float(hit.sum())
    f1 = 2 * right / np.maximum(called + clicks, 1e-12)
    n = int(np.argmax(f1))
    precision, recall = right[n] / max(called[n], 1e-12), right[n] / max(clicks, 1e-12)
    accuracy = (total - called[n] - clicks + 2 * right[n]) / max(total, 1e-12)
    return {"accuracy": float(accuracy), "precision": float(precision), "recall": float(recall), "f1": float(f1[n])}


def _whole(scores: Numbers, chances: Numbers | None, clicked: Flags, weights: Numbers) -> Mapping[str, float]:
    found = {"auc": auc(scores, clicked, weights)}
    if chances is not None:
        found |= {
            **calibration(chances, clicked, weights),
            **best_threshold(scores, clicked, weights),
        }
    return found


def _shared(scores: Numbers, of_place: Numbers) -> Numbers:
    """What each row gets of the places' worth, best score first; rows of equal score share theirs evenly."""
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(scores[order]) < 0]))
    sizes = np.diff(np.concatenate([starts, [len(scores)]]))
    found = np.empty(len(scores))
    found[order] = np.repeat(np.add.reduceat(of_place, starts) / sizes, sizes)
    return found
