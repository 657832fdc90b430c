"""The trends in memory: what the consumer counts, kept in dicts instead of SQL tables, for one stream in time order.

The rules are the consumer's own (`counters`, `covisits`); only where the state lies differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from services.bounds import BOUNDED, Bounds, Share
from services.item_parts import CovisitsPart, ItemChanged
from services.trends.consumer import stats_part
from services.trends.counters import (
    NOTHING,
    RING_MAX,
    HourCounts,
    Once,
    Standing,
    cumulated,
)
from services.trends.covisits import Pairs, Row, Users, merged, shrunk_cosines
from services.trends.tally import IMPRESSION_KIND, Action, Tally

Hour = tuple[int, NDArray[np.int64]]
"""An hour and what was counted in it, in units [COUNTS_WIDTH]."""


class MemoryTrends:
    """Item counts and co-visits. Events come in time order; a flush tells what they changed."""

    def __init__(self, covisits_items_max: int = 50, ring_max: int = RING_MAX, bounds: Bounds = BOUNDED) -> None:
        self._limit = covisits_items_max
        self._once = Once(ring_max)
        self._users = Users()
        self._share = Share()
        self._bounds = bounds
        self._tally = Tally()
        self._closed: dict[str, Standing] = {}
        self._open: dict[str, Hour] = {}
        self._met: dict[str, Met] = {}
        self._totals = np.zeros(1024)
        self._newest_us = 0

    def take(self, event_key: int, user_id: str, item_id: str, kind: str, weight: float, occurred_us: int) -> None:
        """One event with the signed weight of its kind. Impressions are events here: there are no slates."""
        assert occurred_us >= self._newest_us, f"an event of {occurred_us} after one of {self._newest_us}"
        self._newest_us = occurred_us
        if weight > 0 or kind == IMPRESSION_KIND:
            action = Action(event_key, user_id, item_id, kind, occurred_us, weight > 0)
            self._tally.take(action, self._once, self._share, self._users, self._bounds)

    def flush(self, seq: int) -> list[ItemChanged]:
        """What changed since the last flush, numbered `seq`, as the change feed would say it."""
        if not len(self._tally.deltas):
            return []
        deltas, pairs = self._tally.deltas, self._tally.pairs
        self._tally = Tally()
        self._once.stored()
        self._users.stored()
        return self._counts(deltas.sums(), seq) + self._covisits(pairs, seq)

    def _counts(self, sums: HourCounts, seq: int) -> list[ItemChanged]:
        rows = self._with_open_hours(sums)
        after = cumulated([self._closed.get(item_id, NOTHING) for item_id in rows.item_ids], rows)
        changes = []
        places = range(len(rows.item_ids))
        for item_id, of_item in groupby(places, key=rows.item_ids.__getitem__):
            *before, last = of_item
            hours = rows.hours
            if before:
                self._closed[item_id] = Standing(int(hours[before[-1]]), after[before[-1]])
            self._open[item_id] = (int(hours[last]), rows.units[last])
            standing = Standing(int(hours[last]), after[last])
            changes.append(ItemChanged(item_id, stats_part(standing, self._newest_us, self._newest_us), seq))
        return changes

    def _with_open_hours(self, sums: HourCounts) -> HourCounts:
        """The sums with what the open hour of each of their items held before, its hours rising."""
        item_ids: list[str] = []
        hours: list[int] = []
        units: list[NDArray[np.int64]] = []
        for item_id, hour, counted in zip(sums.item_ids, sums.hours.tolist(), sums.units, strict=True):
            held = self._open.pop(item_id, None)
            if held is not None and held[0] < hour:
                item_ids.append(item_id)
                hours.append(held[0])
                units.append(held[1])
            item_ids.append(item_id)
            hours.append(hour)
            units.append(counted + held[1] if held is not None and held[0] == hour else counted)
        return HourCounts(tuple(item_ids), np.array(hours, dtype=np.int64), np.stack(units))

    def _covisits(self, pairs: Pairs, seq: int) -> list[ItemChanged]:
        for item_id in pairs.weights:
            if item_id not in self._met:
                self._met[item_id] = Met(len(self._met))
        if len(self._met) > len(self._totals):
            self._totals = np.concatenate([self._totals, np.zeros(max(len(self._totals), len(self._met)))])
        for item_id, met in pairs.weights.items():
            mine = self._met[item_id]
            self._totals[mine.number] += sum(met.values())
            mine.add({other: (self._met[other].number, weight) for other, weight in met.items()}, 2 * self._limit)
        changes = []
        for item_id in pairs.weights:
            mine = self._met[item_id]
            near = mine.near(self._totals, self._newest_us, self._limit)
            changes.append(ItemChanged(item_id, CovisitsPart(near.item_ids, near.weights), seq))
        return changes


class Met:
    """The items seen together with one item, as the consumer's `Row`, in arrays that are changed in place."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._item_ids: list[str] = []
        self._places: dict[str, int] = {}
        self._numbers = np.zeros(8, dtype=np.int64)
        self._weights = np.zeros(8)

    def add(self, met: Mapping[str, tuple[int, float]], keep: int) -> None:
        """`covisits.merged`, for others given by their number and weight."""
        for item_id, (number, weight) in met.items():
            place = self._places.setdefault(item_id, len(self._item_ids))
            if place == len(self._item_ids):
                self._item_ids.append(item_id)
                if place == len(self._weights):
                    self._numbers = np.concatenate([self._numbers, np.zeros_like(self._numbers)])
                    self._weights = np.concatenate([self._weights, np.zeros_like(self._weights)])
                self._numbers[place] = number
            self._weights[place] += weight
        if len(self._item_ids) > 2 * keep:
            self._keep_strongest(keep)

    def near(self, totals: NDArray[np.float64], now_us: int, limit: int) -> Row:
        """`covisits.similar`, of the totals of all items by number."""
        used = len(self._item_ids)
        others = totals[self._numbers[:used]]
        cosines = shrunk_cosines(totals[self.number], self._weights[:used], others, now_us)
        top = np.argsort(-cosines, kind="stable")[:limit]
        return Row([self._item_ids[place] for place in top.tolist()], cosines[top].tolist())

    def _keep_strongest(self, keep: int) -> None:
        numbers = dict(zip(self._item_ids, self._numbers.tolist(), strict=False))
        kept = merged(Row(self._item_ids, self._weights[: len(self._item_ids)].tolist()), {}, keep)
        self._item_ids = kept.item_ids
        self._places = {item_id: place for place, item_id in enumerate(kept.item_ids)}
        self._numbers[:keep] = [numbers[item_id] for item_id in kept.item_ids]
        self._weights[:keep], self._weights[keep:] = kept.weights, 0.0
