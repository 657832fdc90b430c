"""The offline history in memory: FeatureHistory over rows held in a list, for tests, evaluation and notebooks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from services.domain import UserState
from services.signals import COUNTS_WIDTH, UserRows


class MemoryHistory:
    """Answers from what `rows` gives (rows with when they were created) and from the item counts appended to it."""

    def __init__(self, rows: Callable[[], Sequence[tuple[UserState, datetime]]]) -> None:
        self._rows = rows
        self._items: list[tuple[str, int, datetime, NDArray[np.float32]]] = []
        self._live: list[tuple[str, int, datetime, int, NDArray[np.float32]]] = []

    def append_item_stats(
        self,
        item_ids: Sequence[str],
        counts: NDArray[np.float32],
        at_us: NDArray[np.int64] | int,
        created_at: datetime,
    ) -> None:
        """Take counts [n, COUNTS_WIDTH] held at `at_us` (one time, or [n])."""
        times = np.broadcast_to(np.asarray(at_us, dtype=np.int64), (len(item_ids),))
        self._items += [(i, int(at), created_at, row) for i, at, row in zip(item_ids, times, counts, strict=True)]

    def append_item_live(
        self,
        item_ids: Sequence[str],
        counts: NDArray[np.float32],
        at_us: NDArray[np.int64],
        written_us: int,
        created_at: datetime,
    ) -> None:
        """Take counts [n, COUNTS_WIDTH] held at `at_us` [n], all written for the servers at `written_us`."""
        rows = zip(item_ids, at_us.tolist(), counts, strict=True)
        self._live += [(item_id, written_us, created_at, at, row) for item_id, at, row in rows]

    def users_at(self, user_ids: Sequence[str], times_us: NDArray[np.int64]) -> UserRows:
        """FeatureHistory."""
        by_user: dict[str, list[UserState]] = {}
        for state, _ in sorted(self._rows(), key=lambda row: (row[0].row_time_us, row[1])):
            by_user.setdefault(state.user_id, []).append(state)
        wanted = zip(user_ids, times_us.tolist(), strict=True)
        return _user_rows([_newest(by_user.get(user_id, []), at) for user_id, at in wanted])

    def items_at(
        self, item_ids: Sequence[str], times_us: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """FeatureHistory."""
        by_item: dict[str, list[tuple[int, NDArray[np.float32]]]] = {}
        for item_id, at_us, _, counts in sorted(self._items, key=lambda row: (row[1], row[2])):
            by_item.setdefault(item_id, []).append((at_us, counts))
        found = np.zeros((len(item_ids), COUNTS_WIDTH), dtype=np.float32)
        stamps = np.zeros(len(item_ids), dtype=np.int64)
        for place, (item_id, at_us) in enumerate(zip(item_ids, times_us.tolist(), strict=True)):
            rows = by_item.get(item_id, [])
            index = bisect_right(rows, at_us, key=lambda row: row[0])
            if index:
                stamps[place], found[place] = rows[index - 1]
        return found, stamps

    def live_items_at(
        self, item_ids: Sequence[str], times_us: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        """FeatureHistory."""
        counts = np.zeros((len(item_ids), COUNTS_WIDTH), dtype=np.float32)
        stamps, written = np.zeros(len(item_ids), dtype=np.int64), np.zeros(len(item_ids), dtype=np.int64)
        for place, (item_id, time_us) in enumerate(zip(item_ids, times_us.tolist(), strict=True)):
            rows = [row for row in self._live if row[0] == item_id and row[1] <= time_us]
            if rows:
                _, written[place], _, stamps[place], counts[place] = max(rows, key=lambda row: row[1:3])
        return counts, stamps, written


def _newest(rows: Sequence[UserState], at_us: int) -> UserState:
    index = bisect_right(rows, at_us, key=lambda state: state.row_time_us)
    return rows[index - 1] if index else UserState("")


def _user_rows(states: Sequence[UserState]) -> UserRows:
    items: dict[str, int] = {}
    kinds: dict[str, int] = {}
    events = [each for state in states for each in state.events]
    return UserRows(
        np.cumsum([0, *(len(state.events) for state in states)], dtype=np.int64),
        np.array([state.row_time_us for state in states], dtype=np.int64),
        np.array([items.setdefault(each.item_id, len(items)) for each in events], dtype=np.int32),
        tuple(items),
        np.array([kinds.setdefault(each.kind, len(kinds)) for each in events], dtype=np.int16),
        tuple(kinds),
        np.array([each.occurred_us for each in events], dtype=np.int64),
        np.array([each.weight for each in events], dtype=np.float32),
    )
