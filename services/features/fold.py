"""A user's row as a function of the *set* of their events. Pure: no clock, no store.

Every list of a row keeps the greatest N of a set in which an element can only grow: an event key the newest event that
carries it, an item its newest hide, its newest hour seen. So what was dropped can never belong to a later answer, and
order, duplicates, replays and split streams give equal rows (row times aside, which tell how often a row changed).
"""

from __future__ import annotations

import struct
from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from sys import intern

from services.domain import (
    HIDDEN_MAX,
    HIDING_KINDS,
    HISTORY_MAX,
    HOUR_US,
    SEEN_MAX,
    Event,
    Interaction,
    KindRules,
    UserState,
    hash64,
    to_us,
)

_FLOAT32 = struct.Struct("<f")


@dataclass(frozen=True, slots=True)
class Folded:
    """What a stream of events made of a row: the row after each event that changed it, in order, and what was not news.

    `late` events are older than the oldest of a full history; `duplicates` the history had already.
    """

    rows: tuple[UserState, ...]
    late: int
    duplicates: int


def fold(state: UserState, interactions: Iterable[Interaction], events_max: int = HISTORY_MAX) -> UserState:
    """The row after these events; the same row when they bring nothing new."""
    return (fold_each(state, interactions, events_max).rows or (state,))[-1]


def fold_each(state: UserState, interactions: Iterable[Interaction], events_max: int = HISTORY_MAX) -> Folded:
    """The row after each of these events; a row holds the newest `events_max`.

    Row times rise strictly: the newest event, or 1 µs after the row before. All rows name `state` as the one they
    follow, because that is what is stored while they wait to be written.
    """
    row = _Row(state, events_max)
    rows: list[UserState] = []
    for each in interactions:
        if row.take(each):
            rows.append(row.state())
    return Folded(tuple(rows), row.late, row.duplicates)


def merge(stored: UserState, mine: UserState) -> UserState:
    """The union of two rows of one user, as the row that follows `stored`; `stored` itself when `mine` adds nothing.

    Its row time is above both, for both are in the offline history already.
    """
    row = _Row(stored)
    changed = [row.take(each) for each in reversed(mine.events)]
    changed += [row.see(hour, item_hash) for hour, item_hash in mine.seen]
    changed += [row.hide(at_us, item_id) for at_us, item_id in mine.hidden]
    if mine.first_seen_us:
        changed.append(row.meet(mine.first_seen_us))
    if not any(changed):
        return stored
    row.row_time_us = max(row.row_time_us, mine.row_time_us)
    return row.state()


def interaction(event: Event, rules: KindRules) -> Interaction | None:
    """The event as a row keeps it; None for a neutral or undeclared kind, which never enters a row. Rows of one process
    share the strings: thousands of users hold the same items."""
    weight = rules.signed_weight(event.kind, event.value)
    if weight == 0.0:
        return None
    value = None if event.value is None else float32(event.value)
    return Interaction(
        to_us(event.occurred_at),
        hash64(event.event_id),
        intern(event.item_id),
        intern(event.kind),
        value,
        float32(weight),
    )


@lru_cache(maxsize=4096)
def float32(number: float) -> float:
    """The number as the store gives it back; infinite where it does not fit."""
    try:
        rounded: float = _FLOAT32.unpack(_FLOAT32.pack(number))[0]
    except OverflowError:
        return float("inf") if number > 0 else float("-inf")
    return rounded


@lru_cache(maxsize=100_000)
def item_hash_of(item_id: str) -> int:
    """hash64, remembered for the items of late."""
    return hash64(item_id)


class _Row:
    """A row in the making: the lists oldest first, with what finds an entry in them."""

    __slots__ = (
        "_event_by_key", "_events", "_events_max", "_first_seen_us", "_hidden", "_hidden_at", "_hidden_state", "_seen",
        "_stored", "duplicates", "late", "row_time_us",
    )  # fmt: skip

    def __init__(self, stored: UserState, events_max: int = HISTORY_MAX) -> None:
        self._stored = stored
        self._events_max = events_max
        self.row_time_us = stored.row_time_us
        self._first_seen_us = stored.first_seen_us
        events = stored.events[:events_max]  # a row may hold more, where fewer were asked for since
        self._events = list(reversed(events))
        self._event_by_key = {each.event_key: each for each in events}
        self._hidden = list(reversed(stored.hidden))
        self._hidden_at = {item_id: at_us for at_us, item_id in stored.hidden}
        self._hidden_state: tuple[tuple[int, str], ...] | None = stored.hidden
        self._seen = stored.seen
        self.late = 0
        self.duplicates = 0

    def take(self, new: Interaction) -> bool:
        """Take one event in; whether the row changed."""
        changed = self._remember(new)
        if new.weight > 0:
            changed |= self.see(new.occurred_us // HOUR_US, item_hash_of(new.item_id))
        elif new.kind in HIDING_KINDS:
            changed |= self.hide(new.occurred_us, new.item_id)
        return self.meet(new.occurred_us) or changed

    def see(self, hour: int, item_hash: int) -> bool:
        """The newest hour at which a positive event met the item, for the SEEN_MAX newest items."""
        before, self._seen = self._seen, self._seen.taken(hour, item_hash, SEEN_MAX)
        return self._seen is not before

    def hide(self, at_us: int, item_id: str) -> bool:
        """The newest hide of the item, for the HIDDEN_MAX newest hidden items."""
        held = self._hidden_at.get(item_id)
        if held is not None:
            if held >= at_us:
                return False
            del self._hidden[bisect_left(self._hidden, (held, item_id))]
        elif len(self._hidden) == HIDDEN_MAX:
            if (at_us, item_id) < self._hidden[0]:
                return False
            del self._hidden_at[self._hidden.pop(0)[1]]
        self._hidden_at[item_id] = at_us
        insort(self._hidden, (at_us, item_id))
        self._hidden_state = None
        return True

    def meet(self, at_us: int) -> bool:
        """The oldest event ever, late ones too."""
        if self._first_seen_us and self._first_seen_us <= at_us:
            return False
        self._first_seen_us = at_us
        return True

    def state(self) -> UserState:
        """The row as it stands, with the next row time."""
        newest_us = self._events[-1].occurred_us if self._events else 0
        self.row_time_us = max(newest_us, self.row_time_us + 1)
        if self._hidden_state is None:
            self._hidden_state = tuple(self._hidden[::-1])
        return UserState(
            self._stored.user_id,
            tuple(self._events[::-1]),
            self._hidden_state,
            self._seen,
            self._first_seen_us,
            self.row_time_us,
            self._stored.row_time_us,
        )

    def _remember(self, new: Interaction) -> bool:
        held = self._event_by_key.get(new.event_key)
        if held is not None:
            if held == new or _order(held) >= _order(new):
                self.duplicates += 1
                return False
            self._events.remove(held)
        elif len(self._events) == self._events_max:
            if _order(new) < _order(self._events[0]):
                self.late += 1
                return False
            del self._event_by_key[self._events.pop(0).event_key]
        self._event_by_key[new.event_key] = new
        self._insert(new)
        return True

    def _insert(self, new: Interaction) -> None:
        events = self._events
        if not events or events[-1].occurred_us < new.occurred_us:
            events.append(new)
        else:
            insort(events, new, key=_order)


def _order(each: Interaction) -> tuple[int, int, str, str, float, float]:
    """Newest last; beyond (time, key) only to choose the same one of two events that wrongly share an id."""
    value = float("-inf") if each.value is None else each.value
    return each.occurred_us, each.event_key, each.item_id, each.kind, each.weight, value
