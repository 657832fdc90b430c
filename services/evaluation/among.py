"""Scores of only what was shown: a list of some dozen items needs no scores of the whole catalogue."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.batches import Progress
from services.evaluation.baselines import Popularity, Ranker, Scores, Trending
from services.evaluation.cases import Cases
from services.evaluation.ranking import SCORES_AT_ONCE
from services.evaluation.shown import ShownLists

LOWEST = -1e12
"""What may not be shown was: it comes last."""


def scores_shown(ranker: Ranker, cases: Cases, lists: ShownLists, progress: Progress, text: str) -> Scores:
    """The score of every shown item, in their order; case n is list n. float64 [M]"""
    if isinstance(ranker, Popularity):
        return _popular(ranker, cases, lists)
    if isinstance(ranker, Trending):
        return _trending(ranker, cases, lists)
    found = np.zeros(len(lists.items))
    by_time = np.argsort(cases.until_us, kind="stable")
    step = max(1, min(256, SCORES_AT_ONCE // len(cases.train.item_ids)))
    for start in range(0, len(cases), step):
        some = by_time[start : start + step]
        for row, case in zip(ranker.scores(cases, some), some.tolist(), strict=True):
            shown = slice(lists.offsets[case], lists.offsets[case + 1])
            found[shown] = row[lists.items[shown]]
        progress(start + len(some), len(cases), text)
    return np.maximum(found, LOWEST)


def _popular(ranker: Popularity, cases: Cases, lists: ShownLists) -> Scores:
    """Positive events of each shown item within the window before its list: two look-ups in the items' event times."""
    liked = cases.train.keep(cases.train.positive)
    if ranker.window_us is None:
        return np.bincount(liked.item_codes, minlength=len(liked.item_ids))[lists.items].astype(np.float64)
    keys = np.sort(_keys(liked.item_codes, np.arange(len(liked)), len(liked)))
    last = np.searchsorted(liked.occurred_us, lists.time_us)[lists.owners]
    first = np.searchsorted(liked.occurred_us, lists.time_us - ranker.window_us)[lists.owners]
    until = np.searchsorted(keys, _keys(lists.items, last, len(liked)))
    since = np.searchsorted(keys, _keys(lists.items, first, len(liked)))
    return (until - since).astype(np.float64)


def _trending(ranker: Trending, cases: Cases, lists: ShownLists) -> Scores:
    """Each item's decayed count just after each of its events; a shown item's is that of the last one, decayed on."""
    liked = cases.train.keep(cases.train.positive)
    order = np.argsort(liked.item_codes, kind="stable")
    items, times = liked.item_codes[order].astype(np.int64), liked.occurred_us[order]
    counts = np.ones(len(items))
    starts = np.flatnonzero(np.concatenate([[True], items[1:] != items[:-1]]))
    lengths = np.diff(np.append(starts, len(items)))
    for number in range(1, int(lengths.max(initial=0))):  # the n-th events of all items at once
        rows = starts[lengths > number] + number
        counts[rows] += counts[rows - 1] * np.exp2(-(times[rows] - times[rows - 1]) / ranker.half_life_us)
    keys = _keys(items, order, len(liked))
    last = np.searchsorted(liked.occurred_us, lists.time_us)[lists.owners]
    row = np.searchsorted(keys, _keys(lists.items, last, len(liked))) - 1
    known = (row >= 0) & (items[row] == lists.items)
    age_us = lists.time_us[lists.owners] - times[row]
    return np.where(known, counts[row] * np.exp2(-age_us / ranker.half_life_us), 0.0)


def _keys(items: NDArray[np.integer], places: NDArray[np.integer], events: int) -> NDArray[np.int64]:
    """Item and place in the order of time as one number that sorts by both."""
    return np.asarray(items.astype(np.int64) * (events + 1) + places, dtype=np.int64)
