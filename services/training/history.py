"""The feature history computed from events in memory: the point-in-time answers for a file that no store has seen.

It keeps the promises of `FeatureHistory`: rows hold the newest `events_max` positive and negative events up to the time
asked, item counts are stamped at the end of their hour.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.bounds import BOUNDED, Bounds, repeated
from services.domain import HISTORY_MAX, HOUR_US
from services.signals import COUNTS_WIDTH, HALF_LIVES_US, UserRows
from services.training.columns import EventColumns
from services.training.trust import votes

CONVERSION_KIND = "purchase"
IMPRESSION_KIND = "impression"


class EventsHistory:
    """A FeatureHistory over the events of one log."""

    def __init__(self, events: EventColumns, events_max: int = HISTORY_MAX, bounds: Bounds = BOUNDED) -> None:
        kept = np.flatnonzero(events.weight != 0)
        order = kept[np.lexsort((events.occurred_us[kept], events.user_codes[kept]))]
        self._events = events
        self._events_max = events_max
        self._order = order
        self._times = events.occurred_us[order]
        self._user_offsets = np.searchsorted(events.user_codes[order], np.arange(len(events.user_ids) + 1))
        self._user_code = {user_id: code for code, user_id in enumerate(events.user_ids)}
        self._item_code = {item_id: code for code, item_id in enumerate(events.item_ids)}
        self._hours = _HourCounts(events, bounds)

    def users_at(self, user_ids: Sequence[str], times_us: NDArray[np.int64]) -> UserRows:
        """FeatureHistory."""
        starts = np.zeros(len(user_ids), dtype=np.int64)
        ends = np.zeros(len(user_ids), dtype=np.int64)
        for place, (user_id, time_us) in enumerate(zip(user_ids, times_us.tolist(), strict=True)):
            code = self._user_code.get(user_id)
            if code is not None:
                first, last = self._user_offsets[code : code + 2]
                ends[place] = first + np.searchsorted(self._times[first:last], time_us, side="right")
                starts[place] = max(first, ends[place] - self._events_max)
        lengths = ends - starts
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        places = self._order[np.repeat(ends, lengths) - 1 - within]  # newest first
        events = self._events
        newest = np.where(lengths > 0, self._times[np.maximum(ends - 1, 0)] if len(self._times) else 0, 0)
        return UserRows(
            offsets, newest.astype(np.int64), events.item_codes[places], events.item_ids,
            events.kind_codes[places], events.kinds, events.occurred_us[places], events.weight[places],
        )  # fmt: skip

    def items_at(
        self, item_ids: Sequence[str], times_us: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """FeatureHistory."""
        codes = np.array([self._item_code.get(item_id, -1) for item_id in item_ids], dtype=np.int64)
        return self._hours.at(codes, times_us)

    def live_items_at(
        self, item_ids: Sequence[str], times_us: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        """FeatureHistory: as if a server had been told the counts of every hour at its end."""
        counts, stamps = self.items_at(item_ids, times_us)
        return counts, stamps, stamps


class _HourCounts:
    """Decayed counts per item, one row per hour in which something was counted, stamped at the hour's end."""

    def __init__(self, events: EventColumns, bounds: Bounds) -> None:
        counted, column, vote = _counted(events, bounds)
        items = events.item_codes[counted].astype(np.int64)
        stamps = (events.occurred_us[counted] // HOUR_US + 1) * HOUR_US
        order = np.lexsort((stamps, items))
        items, stamps, column, vote = items[order], stamps[order], column[order], vote[order]
        age_us = (stamps - events.occurred_us[counted][order]).astype(np.float64)
        fresh = np.ones(len(items), dtype=np.bool_)
        fresh[1:] = (items[1:] != items[:-1]) | (stamps[1:] != stamps[:-1])
        row = np.cumsum(fresh) - 1
        counts = np.zeros((int(fresh.sum()), COUNTS_WIDTH))
        for place, half_life in enumerate(HALF_LIVES_US):
            shrunk = vote * np.exp2(-age_us / half_life)
            for kind in range(3):
                of_kind = (column & (1 << kind)) > 0
                np.add.at(counts[:, kind * len(HALF_LIVES_US) + place], row[of_kind], shrunk[of_kind])
        self._items, self._stamps = items[fresh], stamps[fresh]
        self._counts = _accumulated(self._items, self._stamps, counts)
        self._offsets = np.searchsorted(self._items, np.arange(len(events.item_ids) + 1))

    def at(
        self, codes: NDArray[np.int64], times_us: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The newest row of each item stamped at or before its time; code -1 is an unknown item."""
        counts = np.zeros((len(codes), COUNTS_WIDTH), dtype=np.float32)
        stamps = np.zeros(len(codes), dtype=np.int64)
        for place, (code, time_us) in enumerate(zip(codes.tolist(), times_us.tolist(), strict=True)):
            if code >= 0:
                first, last = self._offsets[code : code + 2]
                row = first + np.searchsorted(self._stamps[first:last], time_us, side="right") - 1
                if row >= first:
                    counts[place], stamps[place] = self._counts[row], self._stamps[row]
        return counts, stamps


def _counted(events: EventColumns, bounds: Bounds) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The events that count, the bits of the counters that each adds to (impression 1, click 2, conversion 4), and how
    much: a positive one its vote, an impression 1 unless it repeats another."""
    bought, shown = (np.array([each == kind for each in events.kinds] or [False])[events.kind_codes] for kind in
                     (CONVERSION_KIND, IMPRESSION_KIND))  # fmt: skip
    weights = votes(events, bounds)
    seen = np.flatnonzero(shown & ~events.positive)
    again, _ = repeated(
        events.user_codes[seen], events.item_codes[seen], events.kind_codes[seen], events.occurred_us[seen]
    )
    weights[seen] = ~again
    bits = np.where(events.positive, np.where(bought, 6, 2), 1)
    counted = np.flatnonzero(weights > 0)
    return counted, bits[counted], weights[counted]


def _accumulated(
    items: NDArray[np.int64], stamps: NDArray[np.int64], counts: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Each row plus the decayed rows before it of the same item: the n-th rows of all items at once, n rising."""
    half_lives = np.tile(np.asarray(HALF_LIVES_US, dtype=np.float64), COUNTS_WIDTH // len(HALF_LIVES_US))
    starts = np.flatnonzero(np.concatenate([[True], items[1:] != items[:-1]])) if len(items) else items
    lengths = np.diff(np.concatenate([starts, [len(items)]]))
    for number in range(1, int(lengths.max(initial=0))):
        rows = starts[lengths > number] + number
        gap_us = (stamps[rows] - stamps[rows - 1]).astype(np.float64)[:, None]
        counts[rows] += counts[rows - 1] * np.exp2(-gap_us / half_lives[None, :])
    return counts.astype(np.float32)
