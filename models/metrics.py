"""Ranking metrics from the place of the wanted item. Places count from 0; an item not in the list is at `MISSING`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MISSING = 2**31 - 1
BINS = 15
RESAMPLES = 1000


def places(scores: NDArray[np.float32], wanted: NDArray[np.integer]) -> NDArray[np.int64]:
    """The place of column `wanted[b]` in each row of `scores` [B, C], best first. A tie is lost to the columns before:
    equal scores never flatter. int64 [B]"""
    own = scores[np.arange(len(scores)), wanted][:, None]
    columns = np.arange(scores.shape[1])[None, :]
    ahead = (scores > own) | ((scores == own) & (columns < np.asarray(wanted)[:, None]))
    return np.asarray(ahead.sum(axis=1), dtype=np.int64)


def hit_ratio(places_found: NDArray[np.int64], k: int) -> float:
    """Share of the wanted items in the first k. 0.0 of none."""
    return _mean((places_found < k).astype(np.float64))


def ndcg(places_found: NDArray[np.int64], k: int) -> float:
    """Mean of 1 / log2(place + 2) in the first k, 0 beyond: NDCG with one wanted item. 0.0 of none."""
    return _mean(np.where(places_found < k, 1.0 / np.log2(places_found + 2.0), 0.0))


def mrr(places_found: NDArray[np.int64]) -> float:
    """Mean of 1 / (place + 1), 0 where MISSING. 0.0 of none."""
    return _mean(np.where(places_found < MISSING, 1.0 / (places_found + 1.0), 0.0))


def auc_by_list(
    scores: NDArray[np.floating], clicked: NDArray[np.bool_], offsets: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Within each list (rows `offsets[n] : offsets[n + 1]`) the chance that what was clicked scores above what was
    not, equal scores counting half; NaN where a list holds only one kind. float64 [lists]"""
    lists = len(offsets) - 1
    owner = np.repeat(np.arange(lists), np.diff(offsets))
    order = np.lexsort((scores, owner))
    value, own, hit = scores[order], owner[order], clicked[order]
    fresh = np.ones(len(order), dtype=np.bool_)
    fresh[1:] = (own[1:] != own[:-1]) | (value[1:] > value[:-1])
    starts = np.flatnonzero(fresh)
    sizes = np.diff(np.append(starts, len(order)))
    rank = np.repeat(starts + (sizes - 1) / 2.0, sizes) - offsets[own]  # from 0, equal scores share their ranks' mean
    clicks = np.bincount(own, hit, minlength=lists)
    others = np.diff(offsets) - clicks
    above = np.bincount(own, rank * hit, minlength=lists) - clicks * (clicks - 1) / 2.0
    found: NDArray[np.float64] = np.full(lists, np.nan)
    np.divide(above, clicks * others, out=found, where=clicks * others > 0)
    return found


def calibration(
    chances: NDArray[np.float64], taken: NDArray[np.bool_], weights: NDArray[np.float64]
) -> dict[str, float]:
    """How far the chances of some rows are from what came of them: ECE, PCOC (promised over taken) and Brier score."""
    total = max(float(weights.sum()), 1e-12)
    return {
        "ece": calibration_error(chances, taken, weights),
        "pcoc": float((weights * chances).sum()) / max(float((weights * taken).sum()), 1.0),  # of a resample with none
        "brier": float((weights * (chances - taken) ** 2).sum()) / total,
    }


def calibration_error(chances: NDArray[np.float64], taken: NDArray[np.bool_], weights: NDArray[np.float64]) -> float:
    """ECE: the mean distance of chance and share of takers within BINS bins of equally many rows."""
    bins = np.array_split(np.argsort(chances, kind="stable"), BINS)
    gaps = [abs(float((weights[rows] * (chances[rows] - taken[rows])).sum())) for rows in bins if len(rows)]
    return sum(gaps) / max(float(weights.sum()), 1e-12)


def mean_and_interval(values: NDArray[np.float64], seed: int) -> tuple[float, float, float]:
    """The mean of some cases' values and where 95 % of its resampled means lie (bootstrap). Zeros of none."""
    if len(values) == 0:
        return 0.0, 0.0, 0.0
    rng = np.random.default_rng(seed)
    even = np.full(len(values), 1.0 / len(values))
    means = [float(rng.multinomial(len(values), even) @ values) / len(values) for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else 0.0
