"""Logits into chances: a strictly rising map, fitted on lists that no weight was fitted to.

A reranker's logit orders candidates; as a chance it is too sure of itself, and it knows the share of takers among the
candidates it was fitted to, not among those it is asked about. A temperature and a shift mend both (Platt 1999; Guo et
al. 2017, arXiv:1706.04599); with labels in plenty the map bends where the data says so (isotonic, Zadrozny & Elkan
2002). Because it rises strictly, the order of candidates stays what it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

TAKEN_MIN = 10
"""With fewer takers among the lists nothing is fitted."""
BENT_FROM_TAKEN = 50_000
BENDS = 200
SLOPE_MIN = 0.02
STEPS = 50
STIFFNESS = 1.0
"""A slope is pulled towards 1 as if by so many takers: a few lists must not turn it far."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Log-odds of a logit: straight lines through the points `(logits[n], log_odds[n])`, both strictly rising, and with
    `slope` (above 0) beyond them. With one point: a temperature `1 / slope` and a shift. `lists` it was fitted on; 0:
    nothing was fitted, the logit is taken for the log-odds. `sampled`: those lists were sampled, nobody saw them."""

    slope: float = 1.0
    logits: tuple[float, ...] = (0.0,)
    log_odds: tuple[float, ...] = (0.0,)
    lists: int = 0
    sampled: bool = False

    @staticmethod
    def read(said: Mapping[str, Any] | None) -> Calibration:
        """What a manifest says; one that says nothing is of a release made before there was any."""
        if said is None:
            return UNFITTED
        points = {name: tuple(float(each) for each in said[name]) for name in ("logits", "log_odds")}
        read = Calibration(**{**said, **points})
        if not (read.slope > 0 and _rises(read.logits) and _rises(read.log_odds)):
            raise ValueError("a calibration that does not rise would change the order")
        return read

    def chances(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """The chances of some logits, in (0, 1). Same shape."""
        odds = self.of(logits.astype(np.float64))
        return np.asarray(1.0 / (1.0 + np.exp(-np.clip(odds, -80.0, 80.0))), dtype=np.float32)

    def of(self, logits: Numbers) -> Numbers:
        """The log-odds of some logits. Same shape."""
        first, last = self.logits[0], self.logits[-1]
        inside = np.interp(logits, self.logits, self.log_odds)
        beyond = np.minimum(logits - first, 0.0) + np.maximum(logits - last, 0.0)
        return np.asarray(inside + self.slope * beyond, dtype=np.float64)


UNFITTED = Calibration()
"""The logit is the log-odds."""


def calibrated(logits: Numbers, taken: NDArray[np.bool_], weights: Numbers, lists: int, sampled: bool) -> Calibration:
    """Fitted to N rows of so many lists. `weights` [N]: how many rows of what will be asked each stands for, so that
    sampled negatives count as many as they were drawn from."""
    takers = int(np.count_nonzero(taken))
    if takers < TAKEN_MIN or takers == len(taken):
        return UNFITTED
    slope, shift = _platt(logits, taken.astype(np.float64), weights)
    straight = Calibration(slope, (0.0,), (shift,), lists, sampled)
    return _bent(straight, logits, taken, weights) if takers > BENT_FROM_TAKEN else straight


def _platt(logits: Numbers, taken: Numbers, weights: Numbers) -> tuple[float, float]:
    """The slope and shift with the highest likelihood, by Newton's method with halved steps."""
    inputs = np.stack([logits, np.ones_like(logits)], axis=1)
    rate = float((weights * taken).sum() / weights.sum())
    found = np.array([1.0, np.log(rate / (1 - rate)) - float(np.average(logits, weights=weights))])
    pull = STIFFNESS * float(np.average(np.square(logits - logits.mean()), weights=weights))

    def loss(at: Numbers) -> float:
        odds = inputs @ at
        unlikely = float((weights * (np.logaddexp(0.0, odds) - taken * odds)).sum())
        return unlikely + pull * (float(at[0]) - 1.0) ** 2 / 2

    for _ in range(STEPS):
        chances = 1.0 / (1.0 + np.exp(-np.clip(inputs @ found, -80.0, 80.0)))
        slopes = inputs.T @ (weights * (chances - taken)) + np.array([pull * (found[0] - 1.0), 0.0])
        spread = weights * chances * (1.0 - chances)
        bend = inputs.T @ (inputs * spread[:, None]) + np.diag([pull, 0.0]) + 1e-9 * np.eye(2)
        step, before = np.linalg.solve(bend, slopes), loss(found)
        while loss(found - step) > before and np.abs(step).max() > 1e-9:
            step /= 2
        found = found - step
        if np.abs(step).max() < 1e-7:
            break
    slope = max(float(found[0]), SLOPE_MIN)  # a logit that says nothing, or the wrong thing, must still not turn
    return slope, float(found[1])


def _bent(straight: Calibration, logits: Numbers, taken: NDArray[np.bool_], weights: Numbers) -> Calibration:
    """Isotonic: the takers' share in up to BENDS bins with equally many takers, pooled until it rises."""
    order = np.argsort(logits, kind="stable")
    x, hit, weight = logits[order], (weights * taken)[order], weights[order]
    bins = np.minimum((np.cumsum(taken[order]) * BENDS) // (int(taken.sum()) + 1), BENDS - 1)
    starts = np.flatnonzero(np.concatenate([[True], np.diff(bins) > 0]))
    sums = (np.add.reduceat(each, starts) for each in (weight * x, hit, weight))
    blocks: list[tuple[float, float, float]] = []
    for block in zip(*(each.tolist() for each in sums), strict=True):
        blocks.append(block)
        while len(blocks) > 1 and blocks[-2][1] * blocks[-1][2] >= blocks[-1][1] * blocks[-2][2]:
            last, before = blocks.pop(), blocks.pop()
            blocks.append((before[0] + last[0], before[1] + last[1], before[2] + last[2]))
    inner = [(moment / mass, hits / mass) for moment, hits, mass in blocks if 0 < hits < mass]
    points = [(at, float(np.log(share / (1 - share)))) for at, share in inner]
    if len(points) < 2 or not (_rises([at for at, _ in points]) and _rises([odds for _, odds in points])):
        return straight
    return replace(straight, logits=tuple(at for at, _ in points), log_odds=tuple(odds for _, odds in points))


def _rises(points: tuple[float, ...] | list[float]) -> bool:
    return len(points) > 0 and all(np.isfinite(points)) and all(np.diff(points) > 0)
