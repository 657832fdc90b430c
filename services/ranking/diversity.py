"""Diversity: maximal marginal relevance (Carbonell and Goldstein 1998) with a hard cap per category.

The next pick has the highest (1 - d) * score - d * (likeness to the pick most like it), the scores of the pool brought
to 0..1. The first pick is always the best by score, and a shorter list is the beginning of a longer one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Categories = NDArray[np.int32]


class CategoryCap:
    """At most `most` picks of any category, `exempt` ones aside. An item counts in each of its categories [n, K] (0:
    none); one without any always fits."""

    def __init__(self, categories: Categories, most: int, exempt: frozenset[int] = frozenset()) -> None:
        uncounted = exempt | {0}
        self._of = [[number for number in row if number not in uncounted] for row in categories.tolist()]
        self._most = most
        self._picked: Counter[int] = Counter()

    def fits(self, place: int) -> bool:
        """Whether one more of its categories may be picked."""
        return all(self._picked[number] < self._most for number in self._of[place])

    def take(self, place: int) -> None:
        """It was picked."""
        self._picked.update(self._of[place])


def by_score(count: int, limit: int, cap: CategoryCap | None, start: int = 0) -> list[int]:
    """The first `limit` places of `range(start, count)` that fit."""
    if cap is None:
        return list(range(start, min(count, start + limit)))
    picks: list[int] = []
    for place in range(start, count):
        if len(picks) == limit:
            break
        if cap.fits(place):
            cap.take(place)
            picks.append(place)
    return picks


def spread_out(
    scores: Floats, likeness: Floats, limit: int, diversity: float, cap: CategoryCap | None = None
) -> list[int]:
    """The places of at most `limit` picks, in their order, of a pool with scores [n], best first, and likenesses
    [n, n]; `diversity` in 0..1."""
    worth = np.float32(1.0 - diversity) * _from_0_to_1(scores)
    beside = worth - np.float32(diversity) * likeness  # row p: what everything is worth once p is picked, for p alone
    value = np.full(len(scores), np.inf, dtype=np.float32)
    picks: list[int] = []
    while len(picks) < limit:
        pick = int(value.argmax())
        if value[pick] == -np.inf:
            break
        if cap is None or cap.fits(pick):
            picks.append(pick)
            np.minimum(value, beside[pick], out=value)
            if cap is not None:
                cap.take(pick)
        value[pick] = -np.inf
    return picks


def likeness_of(texts: Floats, categories: Callable[[], Categories]) -> Floats:
    """The cosine of each two items [n, n]: of their texts [n, T] where both have one, else of their categories [n, K],
    which are only asked for then; each of an item's categories counts alike."""
    products: Floats = texts @ texts.T
    lengths = np.sqrt(np.einsum("nn->n", products))
    known = lengths > 0
    scale = (1.0 / np.where(known, lengths, 1.0)).astype(np.float32)
    alike: Floats = products * (scale[:, None] * scale)
    if known.all():
        return alike
    both: NDArray[np.bool_] = known[:, None] & known
    return np.where(both, alike, _of_categories(categories()))


def _of_categories(categories: Categories) -> Floats:
    numbers, place = np.unique(categories, return_inverse=True)
    carried = np.zeros((len(categories), len(numbers)), dtype=np.float32)
    np.put_along_axis(carried, place.reshape(categories.shape), 1.0, axis=1)
    carried[:, numbers == 0] = 0.0
    lengths = np.sqrt(carried.sum(axis=1))
    units: Floats = (carried / np.where(lengths > 0, lengths, 1.0)[:, None]).astype(np.float32)
    found: Floats = units @ units.T
    return found


def _from_0_to_1(scores: Floats) -> Floats:
    least, most = scores.min(), scores.max()
    return np.zeros_like(scores) if least == most else (scores - least) / (most - least)
