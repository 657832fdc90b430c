"""The arrays of the item table, by slot: they grow by doubling, and slot 0 is the unknown item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from services.item_parts import PARTS, StatsPart
from services.signals import CATEGORIES_MAX, COUNTS_WIDTH, HALF_LIVES_US

T = TypeVar("T")

NEVER_US = 2**62
SAMPLED = 16
"""Of so many keys one is looked at to tell how high the highest are."""
CLICKS = slice(4, 6)
"""The columns of clicks over 24 h and over 7 d in a row of counts."""


class ItemColumns:
    """What is known of items, as parallel arrays; whoever derives from it fills them."""

    def __init__(self, listed_only: bool = False) -> None:
        self._listed_only = listed_only  # an item known from events alone is not shown
        self._allocate(1024)

    def _allocate(self, size: int) -> None:
        self._hashes = np.zeros(size, dtype=np.int64)
        self._seqs = np.zeros((size, len(PARTS)), dtype=np.int64)
        self._counts = np.zeros((size, COUNTS_WIDTH), dtype=np.float32)
        self._counts_at_us = np.zeros(size, dtype=np.int64)
        self._click_keys = np.full((size, CLICKS.stop - CLICKS.start), -np.inf)
        self._published_us = np.zeros(size, dtype=np.int64)
        self._expires_us = np.full(size, NEVER_US, dtype=np.int64)
        self._born_us = np.zeros(size, dtype=np.int64)
        self._shown = np.full(size, not self._listed_only, dtype=np.bool_)
        self._categories = np.zeros((size, CATEGORIES_MAX), dtype=np.int32)

    def _grow(self) -> None:
        old = self._arrays()
        used = len(self._hashes)
        self._allocate(used * 2)
        for before, after in zip(old, self._arrays(), strict=True):
            after[:used] = before

    def _arrays(self) -> tuple[NDArray[Any], ...]:
        return (
            self._hashes, self._seqs, self._counts, self._counts_at_us, self._click_keys, self._published_us,
            self._expires_us, self._born_us, self._shown, self._categories,
        )  # fmt: skip

    def _servable(self, now_us: int, slots: NDArray[np.int64] | slice) -> NDArray[np.bool_]:
        allowed: NDArray[np.bool_] = (
            self._shown[slots] & (self._expires_us[slots] > now_us) & (self._published_us[slots] <= now_us)
        )
        return allowed

    def _set_counts(self, slots: NDArray[np.int64], counts: NDArray[np.float32], at_us: NDArray[np.int64]) -> None:
        self._counts[slots] = counts
        self._counts_at_us[slots] = at_us
        self._click_keys[slots] = click_keys(counts, at_us)


def click_keys(counts: NDArray[np.float32], at_us: NDArray[np.int64]) -> NDArray[np.float64]:
    """What puts decayed clicks in order at any moment from `at_us` on, without working out the decay: the logarithm of
    the clicks over 24 h and over 7 d, and how late they were true in half-lives. [n, 2]; no click: minus infinity."""
    with np.errstate(divide="ignore"):
        strength = np.log2(counts[:, CLICKS].astype(np.float64))
    return strength + at_us[:, None] / np.asarray(HALF_LIVES_US[1:], dtype=np.float64)


def highest(keys: NDArray[np.float64], allowed: NDArray[np.bool_], limit: int) -> NDArray[np.int64]:
    """The allowed slots with the highest keys above minus infinity, ties by slot; at most `limit`, never slot 0."""
    among = np.where(allowed[1:], keys[1:], -np.inf)
    slots = _promising(among, limit) + 1
    values = -keys[slots]
    if len(slots) > limit:
        last = np.partition(values, limit - 1)[limit - 1]
        level = np.flatnonzero(values == last)
        better = np.flatnonzero(values < last)
        kept = np.concatenate([better, level[: limit - len(better)]])
        slots, values = slots[kept], values[kept]
    best: NDArray[np.int64] = slots[np.lexsort((slots, values))]
    return best


def _promising(keys: NDArray[np.float64], limit: int) -> NDArray[np.int64]:
    """Places of keys above minus infinity, the `limit` highest and those level with them among them: all that reach
    what every so many of them let expect, where those are enough. To compare all keys is cheaper than to part them,
    and this is done after every event."""
    some = keys[::SAMPLED]
    deep = 2 * limit // SAMPLED + 4
    if deep < len(some):
        reached = np.partition(some, len(some) - deep)[len(some) - deep]
        if reached > -np.inf:
            places = np.flatnonzero(keys >= reached)
            if len(places) >= limit:
                return places
    return np.flatnonzero(keys > -np.inf)


def in_turn(first: Sequence[T], second: Sequence[T]) -> list[T]:
    """Both merged, one of each in turn and the longer to its end, each thing once."""
    longest = max(len(first), len(second))
    return list(dict.fromkeys(each[n] for n in range(longest) for each in (first, second) if n < len(each)))


@dataclass(frozen=True, slots=True)
class CountsRows:
    """The counts of n parts: float32 [n, COUNTS_WIDTH], their stamps and times of writing int64 [n]."""

    counts: NDArray[np.float32]
    at_us: NDArray[np.int64]
    written_us: NDArray[np.int64]

    @staticmethod
    def of(parts: Sequence[StatsPart]) -> CountsRows:
        """In their order."""
        return CountsRows(
            np.array([each.counts for each in parts], dtype=np.float32).reshape(-1, COUNTS_WIDTH),
            np.array([each.at_us for each in parts], dtype=np.int64),
            np.array([each.written_us for each in parts], dtype=np.int64),
        )
