"""Items seen together: pure functions and state of the trends consumer. No SQL, no clock.

A pair's weight is held as of EPOCH_US, growing with event time instead of decaying: sums then need no common "now".
With a half-life of 30 days a float64 holds that from 1950 to beyond 2090.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.bounds import Record
from services.domain import DAY_US

Floats = NDArray[np.float64]

EPOCH_US = 50 * 365 * DAY_US
HALF_LIFE_US = 30 * DAY_US
GAP_HALF_LIFE_US = 7 * DAY_US
RECENT_MAX = 5
USERS_MAX = 200_000
SHRINK = 10.0
"""Pairs seen that a cosine is shrunk by, per item, so that two items seen once are not soulmates."""


class Recent(msgspec.Struct, array_like=True):
    """The last distinct positive items of a user and when, newest first, at most RECENT_MAX; and what is remembered of
    the user. What an earlier program stored has no record: it is begun from the times."""

    item_ids: list[str]
    times_us: list[int]
    record: Record = msgspec.field(default_factory=Record)

    def __post_init__(self) -> None:
        if self.times_us and self.record.newest_us == 0:
            self.record.since_us, self.record.newest_us = min(self.times_us), max(self.times_us)


class Row(msgspec.Struct, array_like=True):
    """The items seen together with one item and their weights (held as of EPOCH_US), in the order they came."""

    item_ids: list[str]
    weights: list[float]


class Users:
    """The recent items of the users met lately; bounded, the longest unmet goes first once it is stored."""

    def __init__(self, users_max: int = USERS_MAX) -> None:
        self._users_max = users_max
        self._recent: OrderedDict[str, Recent] = OrderedDict()
        self._unstored: dict[str, Recent] = {}

    def __contains__(self, user_id: str) -> bool:
        return user_id in self._recent

    def forget_stored(self) -> None:
        """Keep only what is not durable yet: somebody else may have met the others since."""
        self._recent = OrderedDict(self._unstored)

    def load(self, recent: Mapping[str, Recent]) -> None:
        """Take in what was stored of users not met lately."""
        self._recent.update(recent)

    def met(self, user_id: str, item_id: str, occurred_us: int) -> tuple[tuple[str, int], ...]:
        """A positive event: the user's recent other items and their times; the item becomes one of them."""
        recent = self._changing(user_id)
        if item_id in recent.item_ids:
            place = recent.item_ids.index(item_id)
            del recent.item_ids[place], recent.times_us[place]
        others = tuple(zip(recent.item_ids, recent.times_us, strict=True))
        recent.item_ids.insert(0, item_id)
        recent.times_us.insert(0, occurred_us)
        del recent.item_ids[RECENT_MAX:], recent.times_us[RECENT_MAX:]
        return others

    def record(self, user_id: str) -> Record:
        """What is remembered of a user; the caller adds to it."""
        return self._changing(user_id).record

    def unstored(self) -> Mapping[str, Recent]:
        """What changed since `stored`."""
        return self._unstored

    def stored(self) -> None:
        """What changed is durable: forget the users beyond the bound."""
        self._unstored = {}
        while len(self._recent) > self._users_max:
            self._recent.popitem(last=False)

    def _changing(self, user_id: str) -> Recent:
        recent = self._recent.get(user_id)
        if recent is None:
            recent = self._recent[user_id] = Recent([], [])
        else:
            self._recent.move_to_end(user_id)
        self._unstored[user_id] = recent
        return recent


class Pairs:
    """The pairs met since the last flush, in both directions."""

    def __init__(self) -> None:
        self.weights: dict[str, dict[str, float]] = {}

    def add(self, item_id: str, occurred_us: int, others: tuple[tuple[str, int], ...], vote: float = 1.0) -> None:
        """An item met by a user who had met the others before, and how much the meeting counts."""
        if not others:
            return
        here = self.weights.setdefault(item_id, {})
        for other, other_us in others:
            gap_us = abs(occurred_us - other_us)
            grown = (max(occurred_us, other_us) - EPOCH_US) / HALF_LIFE_US
            weight = vote * 2.0 ** (grown - gap_us / GAP_HALF_LIFE_US)
            there = self.weights.setdefault(other, {})
            here[other] = here.get(other, 0.0) + weight
            there[item_id] = there.get(item_id, 0.0) + weight


def merged(stored: Row | None, met: Mapping[str, float], keep: int) -> Row:
    """A row with more pairs added; when there are more than twice `keep`, the strongest `keep` stay."""
    weights = dict(zip(stored.item_ids, stored.weights, strict=True)) if stored else {}
    for item_id, weight in met.items():
        weights[item_id] = weights.get(item_id, 0.0) + weight
    if len(weights) > 2 * keep:
        weights = dict(sorted(weights.items(), key=lambda pair: (-pair[1], pair[0]))[:keep])
    return Row(list(weights), list(weights.values()))


def similar(total: float, row: Row, totals: Mapping[str, float], now_us: int, limit: int) -> Row:
    """The row as shrunk cosines in [0, 1], strongest first, ties in the row's order."""
    others = np.asarray([totals[item_id] for item_id in row.item_ids])
    cosines = shrunk_cosines(total, np.asarray(row.weights), others, now_us)
    top = np.argsort(-cosines, kind="stable")[:limit].tolist()
    return Row([row.item_ids[place] for place in top], cosines[top].tolist())


def shrunk_cosines(total: float, weights: Floats, others: Floats, now_us: int) -> Floats:
    """The weights of pairs [n] over both items' weight with anything: `total` and `others` [n]. [n]"""
    shrink = SHRINK * 2.0 ** ((now_us - EPOCH_US) / HALF_LIFE_US)
    cosines: Floats = weights / (np.sqrt(total + shrink) * np.sqrt(others + shrink))  # the product would underflow
    return cosines
