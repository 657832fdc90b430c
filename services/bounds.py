"""How much one user may move what everybody sees: the vote of a positive event, between 0 and 1.

A user has a day's worth of votes; who uses more is taken for a machine and has none on the next day either. A newcomer
counts for little where newcomers are the fewer: accounts made for an attack are new, and cheap.

Two views of one rule: `Record` and `Share` event by event, as the stream comes, and `votes_of` over a log in columns.
They agree on events in time order; of late ones the stream knows what had come by then. No clock, no store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.domain import DAY_US, SECOND_US

ONCE_US = 30 * 60 * SECOND_US
"""An equal action (user, item, kind) within this time of one that counted does not count."""
NEWCOMER_US = 7 * DAY_US
AWAY_US = 60 * DAY_US
"""Who was away for so long is a newcomer again: nobody has to be remembered for ever."""
DAYS_REMEMBERED = 3

Codes = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Bounds:
    """`events_per_day_max`: positive events of a user and day (UTC) that count; 0: any number. `newcomer_weight`: what
    an event counts of a user known for less than NEWCOMER_US, where newcomers have made less than half of the events;
    1: as much as any other."""

    events_per_day_max: int = 100
    newcomer_weight: float = 0.05


BOUNDED = Bounds()
UNBOUNDED = Bounds(0, 1.0)


class Record(msgspec.Struct, array_like=True):
    """What is remembered of a user: since when they are known, their newest event, and how many positive events they
    had on the days touched last, the last one first."""

    since_us: int = 0
    newest_us: int = 0
    days: list[int] = []
    events: list[int] = []

    def met(self, occurred_us: int) -> bool:
        """A positive event, whether it will count or not. Whether the user is a newcomer at it."""
        if self.newest_us == 0 or occurred_us - self.newest_us >= AWAY_US:
            self.since_us = occurred_us
        self.since_us = min(self.since_us, occurred_us)
        self.newest_us = max(self.newest_us, occurred_us)
        day, before = occurred_us // DAY_US, 0
        if day in self.days:
            place = self.days.index(day)
            before = self.events.pop(place)
            del self.days[place]
        self.days.insert(0, day)
        self.events.insert(0, before + 1)
        del self.days[DAYS_REMEMBERED:], self.events[DAYS_REMEMBERED:]
        return occurred_us - self.since_us < NEWCOMER_US

    def within(self, bounds: Bounds) -> bool:
        """Whether the event met last is one of those of its day that count."""
        most = bounds.events_per_day_max
        if most == 0:
            return True
        yesterday = self.days[0] - 1
        before = self.events[self.days.index(yesterday)] if yesterday in self.days else 0
        return self.events[0] <= most and before <= most


class Share(msgspec.Struct, array_like=True):
    """Of the events of a partition that counted and repeated none of the last 24 h, how many were newcomers'.

    Of the first NEWCOMER_US (since `since_us`) none is told: everybody was new then."""

    newcomers: int = 0
    events: int = 0
    since_us: int = 0

    def weight(self, newcomer: bool, occurred_us: int, since_last_us: int, bounds: Bounds) -> float:
        """What the next event weighs, `since_last_us` after an equal action; it is one of them from then on."""
        self.since_us = self.since_us or occurred_us
        few, again = 2 * self.newcomers < self.events, since_last_us < DAY_US
        if not again and occurred_us - self.since_us >= NEWCOMER_US:
            self.newcomers += newcomer
            self.events += 1
        if newcomer and few and bounds.newcomer_weight < 1.0:
            return 0.0 if again else bounds.newcomer_weight
        return 1.0


def votes_of(
    users: Codes,
    items: Codes,
    kinds: Codes,
    occurred_us: NDArray[np.int64],
    positive: NDArray[np.bool_],
    bounds: Bounds,
) -> NDArray[np.float64]:
    """The vote of each of N events in time order: 0 of one that is not positive, repeated or above the day's. [N]"""
    votes = np.zeros(len(users))
    places = np.flatnonzero(positive)
    if not len(places):
        return votes
    owners: NDArray[np.int64] = users[places].astype(np.int64)
    times = occurred_us[places]
    again, again_today = repeated(owners, items[places], kinds[places], times)
    counted = ~again & within_day(owners, times, bounds.events_per_day_max)
    places, newcomer, again_today = places[counted], newcomers(owners, times)[counted], again_today[counted]
    light = newcomer & few(newcomer, times[counted], ~again_today) & (bounds.newcomer_weight < 1.0)
    votes[places] = np.where(light, np.where(again_today, 0.0, bounds.newcomer_weight), 1.0)
    return votes


def within_day(users: NDArray[np.int64], occurred_us: NDArray[np.int64], most: int) -> NDArray[np.bool_]:
    """Which of N events in time order are among the first `most` of a day that follows on no day with more. [N]"""
    if most == 0:
        return np.ones(len(users), dtype=np.bool_)
    number, before = number_on_day(users, occurred_us)
    return (number <= most) & (before <= most)


def repeated(
    users: Codes, items: Codes, kinds: Codes, occurred_us: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of N events in time order come within ONCE_US of an equal one that counted, and which of the others come
    within a day of the last such. [N], [N]"""
    found = np.zeros(len(users), dtype=np.bool_)
    order = np.lexsort((occurred_us, kinds, items, users))  # stable: equal times stay in their order
    same = np.zeros(len(order), dtype=np.bool_)
    now, before = order[1:], order[:-1]
    same[1:] = (users[now] == users[before]) & (items[now] == items[before]) & (kinds[now] == kinds[before])
    close = np.zeros(len(order), dtype=np.bool_)
    close[1:] = same[1:] & (occurred_us[now] - occurred_us[before] < ONCE_US)
    counted_us = 0
    for place in np.flatnonzero(close).tolist():  # what follows closely: the one before it counted, or an earlier one
        if not close[place - 1]:
            counted_us = int(occurred_us[order[place - 1]])
        time_us = int(occurred_us[order[place]])
        if time_us - counted_us < ONCE_US:
            found[order[place]] = True
        else:
            counted_us = time_us
    today = np.zeros(len(users), dtype=np.bool_)
    order = order[~found[order]]
    now, before = order[1:], order[:-1]
    same = (users[now] == users[before]) & (items[now] == items[before]) & (kinds[now] == kinds[before])
    today[now] = same & (occurred_us[now] - occurred_us[before] < DAY_US)
    return found, today


def newcomers(users: NDArray[np.int64], occurred_us: NDArray[np.int64]) -> NDArray[np.bool_]:
    """At which of N events in time order the user has been known for less than NEWCOMER_US. [N]"""
    order = np.argsort(users, kind="stable")
    times, who = occurred_us[order], users[order]
    fresh = np.ones(len(order), dtype=np.bool_)
    fresh[1:] = (who[1:] != who[:-1]) | (times[1:] - times[:-1] >= AWAY_US)
    since = times[np.flatnonzero(fresh)][np.cumsum(fresh) - 1]
    found = np.zeros(len(order), dtype=np.bool_)
    found[order] = times - since < NEWCOMER_US
    return found


def number_on_day(users: NDArray[np.int64], occurred_us: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Of N events in time order: the how-manieth of its user's day each is (from 1), and how many that user had on the
    day before. int64 [N], [N]"""
    order = np.argsort(users, kind="stable")
    who, day = users[order], occurred_us[order] // DAY_US
    fresh = np.ones(len(order), dtype=np.bool_)
    fresh[1:] = (who[1:] != who[:-1]) | (day[1:] != day[:-1])
    starts = np.flatnonzero(fresh)
    run = np.cumsum(fresh) - 1
    sizes = np.diff(np.append(starts, len(order)))
    adjacent = np.zeros(len(starts), dtype=np.bool_)
    adjacent[1:] = (who[starts[1:]] == who[starts[:-1]]) & (day[starts[1:]] == day[starts[:-1]] + 1)
    yesterday = np.where(adjacent, np.append(0, sizes[:-1]), 0)
    number, before = np.empty(len(order), dtype=np.int64), np.empty(len(order), dtype=np.int64)
    number[order] = np.arange(len(order)) - starts[run] + 1
    before[order] = yesterday[run]
    return number, before


def few(
    newcomer: NDArray[np.bool_], occurred_us: NDArray[np.int64], first: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """At which of N events in time order newcomers had made less than half of those before (of the `first` ones that
    are no repetition), the first NEWCOMER_US left out. [N]"""
    if not len(occurred_us):
        return np.zeros(0, dtype=np.bool_)
    told = occurred_us - occurred_us[0] >= NEWCOMER_US
    if first is not None:
        told &= first
    return np.asarray(2 * _before(told & newcomer) < _before(told), dtype=np.bool_)


def _before(marked: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many of those before each are marked. [N]"""
    return np.asarray(np.cumsum(marked) - marked, dtype=np.int64)
