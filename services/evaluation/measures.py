"""What is measured of ranked lists, case by case, and the parts of the cases that are shown apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.evaluation.cases import COLD_USER_EVENTS, Cases
from services.evaluation.ranking import NOBODY, Ranked

Values = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class PerCase:
    """A metric as a weighted mean over cases: values and weights, float64 [N]."""

    values: Values
    weights: Values


class Measures:
    """The metrics of one set of cases at some depths. `described` float [items, F]: rows of length 1, or 0 for an item
    that nothing is known about; what the distance within lists is measured by. `by_category`: F are categories."""

    def __init__(
        self, cases: Cases, described: NDArray[np.float32], at: Sequence[int], by_category: bool = False
    ) -> None:
        self._by_category = by_category
        self._cases = cases
        self._described = described
        self._at = tuple(at)
        self._unpopular = unpopular_weights(cases.targets, cases.judged)

    def per_case(self, ranked: Ranked) -> Mapping[str, PerCase]:
        """Every metric that is a mean over cases."""
        every = np.ones(len(self._cases))
        found: dict[str, PerCase] = {}
        for k in self._at:
            gain = gains(ranked.places, k)
            found[f"hr@{k}"] = PerCase((ranked.places < k).astype(np.float64), every)
            found[f"ndcg@{k}"] = PerCase(gain, every)
            found[f"ndcg-debiased@{k}"] = PerCase(gain, self._unpopular)
            if self._described.any():
                found[f"ild@{k}"] = PerCase(*distances(self._described, ranked.lists[:, :k]))
            if self._by_category:
                found[f"entropy@{k}"] = PerCase(*entropies(self._described, ranked.lists[:, :k]))
        depth = ranked.lists.shape[1]
        found["mrr"] = PerCase(np.where(ranked.places < depth, 1.0 / (ranked.places + 1.0), 0.0), every)
        return found

    def exposure(self, ranked: Ranked, part: Mask) -> Mapping[str, float]:
        """How the first k places of the lists of a part are shared out: which share of the catalogue stands in any
        (coverage), and how unequally items stand there (Gini; 0: all as often, near 1: few of them everywhere)."""
        catalogue = len(self._cases.train.item_ids)
        found: dict[str, float] = {}
        for k in self._at:
            shown = times_shown(ranked.lists[part, :k], catalogue)
            found |= {f"coverage@{k}": float((shown > 0).mean()), f"gini@{k}": gini(shown)}
        return found

    def parts(self) -> Mapping[str, Mask]:
        """The cases by what was known: of the target (any positive event to learn from) and of the user. Cold users
        that the protocol does not judge are in no other part. Empty parts are left out."""
        cases = self._cases
        known = np.zeros(len(cases.train.item_ids), dtype=np.bool_)
        known[cases.train.item_codes[cases.train.positive]] = True
        warm = known[cases.targets]
        found = {
            "all": cases.judged,
            "warm items": cases.judged & warm,
            "cold items": cases.judged & ~warm,
            "warm users": cases.judged & (cases.history >= COLD_USER_EVENTS),
            "cold users": cases.history < COLD_USER_EVENTS,
        }
        return {name: mask for name, mask in found.items() if mask.any()}


def gains(places: NDArray[np.int64], k: int) -> Values:
    """1 / log2(place + 2) in the first k, 0 beyond: NDCG with one wanted item."""
    return np.where(places < k, 1.0 / np.log2(places + 2.0), 0.0)


def unpopular_weights(targets: NDArray[np.int64], judged: Mask) -> Values:
    """The weight of each case in the popularity-debiased mean: where an item is the target of more cases than Q3 + 1.5
    (Q3 - Q1) of the targets' case counts, its cases share that many; all others count 1."""
    items, place = np.unique(targets, return_inverse=True)
    counts = np.bincount(place[judged], minlength=len(items)).astype(np.float64)
    low, high = np.quantile(counts[counts > 0], [0.25, 0.75]) if judged.any() else (0.0, 0.0)
    most = high + 1.5 * (high - low)
    return np.minimum(1.0, most / np.maximum(counts, 1.0))[place]


def distances(described: NDArray[np.float32], lists: NDArray[np.int64]) -> tuple[Values, Values]:
    """The mean cosine distance between two items of each list, and 1 for lists with at least two described items."""
    known = np.asarray(described.any(axis=1))
    values, weights = np.zeros(len(lists)), np.zeros(len(lists))
    for number, listed in enumerate(lists):
        items = listed[listed != NOBODY]
        vectors = described[items[known[items]]].astype(np.float64)
        size = len(vectors)
        if size >= 2:
            likeness = (float(np.square(vectors.sum(axis=0)).sum()) - size) / (size * (size - 1))
            values[number], weights[number] = 1.0 - likeness, 1.0
    return values, weights


def entropies(described: NDArray[np.float32], lists: NDArray[np.int64]) -> tuple[Values, Values]:
    """The entropy of the categories of each list in bits, every item shared out evenly over its own, and 1 for lists
    with an item that has any. `described` as rows of length 1 over categories: squared they are those shares."""
    values, weights = np.zeros(len(lists)), np.zeros(len(lists))
    for number, listed in enumerate(lists):
        shares = np.square(described[listed[listed != NOBODY]].astype(np.float64)).sum(axis=0)
        shares = shares[shares > 0]
        if len(shares):
            shares /= shares.sum()
            values[number], weights[number] = -float((shares * np.log2(shares)).sum()), 1.0
    return values, weights


def times_shown(lists: NDArray[np.int64], catalogue: int) -> NDArray[np.int64]:
    """How many lists each item of the catalogue stands in. int64 [catalogue]"""
    return np.bincount(lists[lists != NOBODY], minlength=catalogue)


def gini(shown: NDArray[np.int64]) -> float:
    """The Gini coefficient of how often items are shown: half the mean difference of two of them over their mean."""
    count, total = len(shown), int(shown.sum())
    if not total:
        return 0.0
    by_rank = np.arange(1, count + 1) @ np.sort(shown)
    return float(2 * by_rank / (count * total) - (count + 1) / count)
