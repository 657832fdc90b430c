"""Scores into places and lists: the whole catalogue is ranked for every case; ties go by popularity, then by id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.batches import Progress
from models.metrics import MISSING
from services.evaluation.baselines import Ranker
from services.evaluation.cases import Cases, Histories
from services.training.columns import EventColumns

SCORES_AT_ONCE = 20_000_000
NOBODY = -1
"""What stands in a list where the catalogue has run out."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """What one model made of N cases: the place of each target (from 0; MISSING below the list, or not to be shown),
    int64 [N], and each list as item codes, best first, NOBODY at its end, int64 [N, depth]."""

    places: NDArray[np.int64]
    lists: NDArray[np.int64]


def nothing_ranked(cases: int, depth: int) -> Ranked:
    """Empty lists, to be filled."""
    return Ranked(np.full(cases, MISSING, dtype=np.int64), np.full((cases, depth), NOBODY, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Made:
    """What all models made of some cases, a `Ranked` per seed; how each was set; more to tell people, by name; and how
    far the pipeline's reasons can be trusted, measure by measure of each seed."""

    cases: Cases
    ranked: Mapping[str, Sequence[Ranked]]
    settings: Mapping[str, str]
    facts: Mapping[str, str]
    reasons: Sequence[Mapping[str, NDArray[np.float64]]] = ()


class Board:
    """Where scores become lists of one length. What a user has taken is left out where the cases say `drop`. Of equal
    scores the item with more positive events in `learned` (the training events if not given) comes first."""

    def __init__(self, cases: Cases, depth: int, learned: EventColumns | None = None) -> None:
        learned = cases.train if learned is None else learned
        liked = learned.item_codes[learned.positive]
        counts = np.bincount(liked, minlength=len(cases.train.item_ids))
        self.cases = cases
        self.depth = depth
        self._order = np.argsort(-counts, kind="stable")  # codes are in the order of ids
        self._column = np.argsort(self._order, kind="stable")
        self._taken = Histories(cases.train)

    def rank(self, ranker: Ranker, progress: Progress, text: str) -> Ranked:
        """All cases through one ranker, in the order of their moments, some at a time."""
        cases, size = self.cases, len(self.cases.train.item_ids)
        ranked = nothing_ranked(len(cases), self.depth)
        by_time = np.argsort(cases.until_us, kind="stable")
        step = max(1, min(256, SCORES_AT_ONCE // size))
        for start in range(0, len(cases), step):
            some = by_time[start : start + step]
            scores = ranker.scores(cases, some)
            assert scores.shape == (len(some), size), f"scores {scores.shape} of {len(some)} cases and {size} items"
            for row, case in enumerate(some.tolist()):
                ranked.places[case], ranked.lists[case] = self.place_and_list(scores[row], case)
            progress(start + len(some), len(cases), text)
        return ranked

    def place_and_list(self, scores: NDArray[np.float64], case: int) -> tuple[int, NDArray[np.int64]]:
        """The place of the case's target and the case's list, of scores [items]."""
        assert not np.isnan(scores).any(), "a score is not a number"
        shown = np.array(scores, dtype=np.float64)
        if self.cases.seen == "drop":
            user, until_us = int(self.cases.users[case]), int(self.cases.until_us[case])
            shown[self._taken.before(user, until_us)] = -np.inf
        shown = shown[self._order]
        best = self._best(shown)
        listed = np.full(self.depth, NOBODY, dtype=np.int64)
        listed[: len(best)] = self._order[best]
        found = np.flatnonzero(best == self._column[self.cases.targets[case]])
        return (int(found[0]) if len(found) else MISSING), listed

    def _best(self, shown: NDArray[np.float64]) -> NDArray[np.int64]:
        """The columns of the `depth` highest scores, ties to the column before; never what is not to be shown."""
        if len(shown) > self.depth:
            least = np.partition(shown, len(shown) - self.depth)[len(shown) - self.depth]
            candidates = np.flatnonzero((shown >= least) & (shown > -np.inf))
        else:
            candidates = np.flatnonzero(shown > -np.inf)
        order = np.argsort(-shown[candidates], kind="stable")
        return candidates[order[: self.depth]]
