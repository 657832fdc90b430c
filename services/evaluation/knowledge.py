"""What freshrank knows at a moment of a stream, in memory: user rows and the item table, brought forward event by event
by the very functions that fold and count when it serves. Nothing is ever worked out anew."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from services.bounds import BOUNDED, Bounds
from services.domain import Interaction, UserState
from services.evaluation.cases import Cases
from services.evaluation.files import Item
from services.features.fold import fold
from services.item_parts import CardPart, ItemChanged, VectorPart
from services.items import ItemTable
from services.training.columns import EventColumns
from services.training.cutoff import FrozenRows
from services.trends.memory import MemoryTrends

FLUSH_EVENTS = 50_000
"""Events that are counted together where many are to be taken in, as the consumer's `trends_flush_events`."""


class Rows:
    """The user rows that the fold has made of the events so far. An event's key is its place."""

    def __init__(self, events: EventColumns) -> None:
        self._events = events
        self._taken = 0
        self._rows: dict[int, UserState] = {}

    def advance(self, place: int) -> None:
        """Consume what stands before a place of the events."""
        e = self._events
        news: dict[int, list[Interaction]] = defaultdict(list)
        for n in range(self._taken, place):
            if e.weight[n] != 0:
                news[int(e.user_codes[n])].append(interaction_at(e, n))
        for user, interactions in news.items():
            self._rows[user] = fold(self.of(user), interactions)
        self._taken = max(self._taken, place)

    def of(self, user: int) -> UserState:
        """The row of a user code."""
        return self._rows.get(user) or UserState(self._events.user_ids[user])


class Items:
    """The item table: cards and text vectors of the file, counts and co-visits of the events so far. An item that the
    file gives no birth is born with its first event; one that is not in the file is unknown until then."""

    def __init__(
        self,
        events: EventColumns,
        items: Sequence[Item],
        vectors: Mapping[str, VectorPart],
        bounds: Bounds = BOUNDED,
    ) -> None:
        self.table = ItemTable()
        self._events = events
        self._by_id = {item.item_id: item for item in items}
        self._trends = MemoryTrends(bounds=bounds)
        self._taken = 0
        self._flushes = 0
        self._unborn = set(self._by_id)
        self.table.apply(ItemChanged(item.item_id, _card(item, 0), 0) for item in items)
        self.table.apply(ItemChanged(item_id, part, 0) for item_id, part in vectors.items())

    def advance(self, place: int, together: int = FLUSH_EVENTS) -> None:
        """Consume what stands before a place of the events, so many at a time: those become known at one moment."""
        while self._taken < place:
            until = min(place, self._taken + together)
            changes = [change for n in range(self._taken, until) for change in self._take(n)]
            self._flushes += 1
            self.table.apply(changes + self._trends.flush(self._flushes))
            self._taken = until

    def _take(self, n: int) -> list[ItemChanged]:
        e = self._events
        item_id, occurred_us = e.item_ids[e.item_codes[n]], int(e.occurred_us[n])
        self._trends.take(
            n, e.user_ids[e.user_codes[n]], item_id, e.kinds[e.kind_codes[n]], float(e.weight[n]), occurred_us
        )
        if item_id not in self._unborn:
            return []
        self._unborn.remove(item_id)
        return [ItemChanged(item_id, _card(self._by_id[item_id], occurred_us), 0)]


def interaction_at(events: EventColumns, n: int) -> Interaction:
    """The event at a place as a row keeps it; its key is the place, so equal times keep their order."""
    return Interaction(
        int(events.occurred_us[n]), n, events.item_ids[events.item_codes[n]], events.kinds[events.kind_codes[n]],
        None, float(events.weight[n]),
    )  # fmt: skip


def _card(item: Item, created_us: int) -> CardPart:
    return CardPart(item.title, list(item.categories), True, False, item.published_us, 0, created_us)


class CaseRows(FrozenRows):
    """The row of each case, by the case's number: made of the training events that it knows, when it is asked for."""

    def __init__(self, cases: Cases, length: int) -> None:
        super().__init__({})
        self._cases, self._length = cases, length
        self._places = _of_users(cases)
        self._last = UserState("")

    def read(self, user_id: str) -> UserState:
        """FeatureStore."""
        if self._last.user_id != user_id:
            self._last = _row(self._cases, int(user_id), self._places[int(user_id)], self._length)
        return self._last


def _of_users(cases: Cases) -> list[NDArray[np.int64]]:
    """The places of the training events that each case knows, oldest first."""
    events = cases.train
    kept = np.flatnonzero(events.weight != 0)
    order = kept[np.argsort(events.user_codes[kept], kind="stable")]
    offsets = np.searchsorted(events.user_codes[order], np.arange(len(events.user_ids) + 1))
    starts = offsets[cases.users].tolist()
    return [order[first : first + size] for first, size in zip(starts, cases.history.tolist(), strict=True)]


def _row(cases: Cases, case: int, places: NDArray[np.int64], length: int) -> UserState:
    """The row that the fold makes of these events; an event's key is its place, so equal times keep their order."""
    events = cases.train
    return fold(UserState(str(case)), (interaction_at(events, n) for n in places.tolist()), length)
