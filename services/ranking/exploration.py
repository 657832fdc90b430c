"""Exploration: some places of a list show items outside it to learn about them, drawn with a chance that is known.

How promising an item is, is read off Beta(clicks + 1, skips + 19): its mean plus one standard deviation, so that what
was shown little counts as better than it has proved to be. Thompson sampling (Thompson 1933) would draw from the Beta,
and nobody could say with which chance an item won. Here the promise is fixed and the draw is Gumbel's (the highest
log-chance plus Gumbel noise), which is a draw from the softmax: the propensity of what is shown is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.ranking.diversity import CategoryCap
from services.signals import CLICK_RATE_PRIOR, COUNTERS, HALF_LIVES_US, decayed

Floats = NDArray[np.float64]

SHARPNESS = 2.0
"""The chance goes by the promise to this power: one of 35 for what was shown 100 times in vain, beside a new item."""
OVER_24H = 1
"""Counts that halve in 24 h lose 2.8 % an hour, the nearest kept to the 2 % (0.98) of the design."""


class Drawn(NamedTuple):
    """An item that won a place, by its place among the candidates, and the chance with which it was drawn for it."""

    place: int
    propensity: float


def explored_ranks(limit: int, every: int) -> range:
    """The ranks of a list that explore: the last of every `every`; none in a shorter list, or where that is 0."""
    return range(every - 1, limit, every) if every else range(0)


def log_promise(counts: NDArray[np.float32], at_us: NDArray[np.int64], now_us: int) -> Floats:
    """How promising items are, as the logarithm of their share in a draw, float64 [n], of their counts [n, C]."""
    now = decayed(counts, at_us, now_us).astype(np.float64)
    impressions, clicks = (now[:, _column(name)] for name in ("impressions", "clicks"))
    skips = np.maximum(impressions - clicks, 0.0)  # where impressions are not counted a click is no skip either
    taken, passed = clicks + CLICK_RATE_PRIOR[0], skips + (CLICK_RATE_PRIOR[1] - CLICK_RATE_PRIOR[0])
    shown = taken + passed
    mean = taken / shown
    deviation = np.sqrt(taken * passed / (shown * shown * (shown + 1.0)))
    return np.asarray(SHARPNESS * np.log(mean + deviation), dtype=np.float64)


def chances(log_shares: Floats, open_to: NDArray[np.bool_]) -> Floats:
    """The softmax over those that are open, 0 for the others; float64 [n]. At least one is open."""
    shares = np.exp(np.where(open_to, log_shares - log_shares[open_to].max(), -np.inf))
    return np.asarray(shares / shares.sum(), dtype=np.float64)


def drawn(
    places: Sequence[int], log_shares: Floats, count: int, seed: int, cap: CategoryCap | None = None
) -> tuple[Drawn, ...]:
    """At most `count` of the candidates `places` [n], each once and within the cap, drawn one after the other; each
    propensity is that of this draw, given the ones before it.

    One set of noise serves all draws: the highest of what is left is again a draw from the softmax of what is left.
    """
    noisy = log_shares + np.random.default_rng(seed & (2**64 - 1)).gumbel(size=len(places))
    left = np.ones(len(places), dtype=np.bool_)
    winners: list[Drawn] = []
    while len(winners) < count:
        if cap is not None:
            left &= np.fromiter((cap.fits(place) for place in places), dtype=np.bool_, count=len(places))
        if not left.any():
            break
        winner = int(np.where(left, noisy, -np.inf).argmax())
        winners.append(Drawn(places[winner], float(chances(log_shares, left)[winner])))
        left[winner] = False
        if cap is not None:
            cap.take(places[winner])
    return tuple(winners)


def _column(counter: str) -> int:
    return COUNTERS.index(counter) * len(HALF_LIVES_US) + OVER_24H
