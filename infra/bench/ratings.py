"""Generated ratings in the shape of MovieLens-1M: what the training of a tower is measured on.

6,040 users, 3,416 items, about a million events. What is known of the real ones and kept here: at least 20 events a
user, half of the users under a hundred, the longest over two thousand; few items taken by many; most users done in one
sitting, events seconds apart, many at the same second; no item twice. What comes next leans on what came before: a user
goes through groups of items in an order of their own; items of a group follow each other in an order that all share.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.batches import Sequences

USERS, ITEMS, GROUPS = 6_040, 3_416, 60
LEAST, MOST = 20, 2_000
START_S, SPAN_S, DAY_S = 956_703_932, 89_000_000, 86_400


def ratings(seed: int, users: int = USERS) -> Sequences:
    """The events of so many users, user after user."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(LEAST + rng.lognormal(4.33, 1.137, users), LEAST, MOST).astype(np.int64)
    groups = rng.integers(0, GROUPS, ITEMS)
    popularity = -1.05 * np.log(np.arange(ITEMS) + 30.0)
    rows, times_s = [], []
    for length in lengths.tolist():
        taken = _taken(rng, length, groups, popularity)
        rows.append(taken + 1)
        times_s.append(_times_s(rng, length))
    count = int(lengths.sum())
    return Sequences(
        np.concatenate(rows).astype(np.int32),
        np.ones(count, dtype=np.int16),
        np.ones(count, dtype=np.bool_),
        np.concatenate(times_s),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def texts(seed: int, width: int = 128) -> NDArray[np.float32]:
    """A text vector for each row. [ITEMS + 1, width]"""
    found = np.zeros((ITEMS + 1, width), dtype=np.float32)
    found[1:] = np.random.default_rng(seed).normal(size=(ITEMS, width))
    return found


def _taken(
    rng: np.random.Generator, length: int, groups: NDArray[np.int64], popularity: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Different items by popularity and taste (Gumbel's way of drawing without putting back), in a user's order."""
    taste = rng.normal(0.0, 1.5, GROUPS)
    keys = popularity + taste[groups] + rng.gumbel(size=ITEMS)
    taken = np.argpartition(-keys, length)[:length]
    turn = rng.permutation(GROUPS)[groups[taken]]
    return np.asarray(taken[np.argsort(turn + taken / ITEMS + rng.normal(0.0, 0.3, length))], dtype=np.int64)


def _times_s(rng: np.random.Generator, length: int) -> NDArray[np.int64]:
    """One sitting, of which one in fifty events is the first of another day's, and half share their second."""
    apart = rng.exponential(25.0, length) * (rng.random(length) < 0.5)
    apart += (rng.random(length) < 0.02) * (rng.random() < 0.37) * rng.exponential(30.0 * DAY_S, length)
    times_s: NDArray[np.int64] = (START_S + rng.uniform(0, SPAN_S) + np.cumsum(apart)).astype(np.int64)
    return times_s
