"""What counts, and how much: pure state of the trends consumer. No SQL, no clock.

An hour's counts are exact sums: each event adds its weight at the end of its hour, in whole units of 2^-32. So the
counts of an hour depend on the set of events only, never on their order, on batches or on partitions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from services.bounds import ONCE_US
from services.domain import HOUR_US
from services.signals import COUNTERS, COUNTS_WIDTH, HALF_LIVES_US

FOREVER_US = 2**62
RING_MAX = 100_000
CHUNK = 1000
UNIT = 2**32
IMPRESSION, CLICK, CONVERSION = range(len(COUNTERS))
_HALF_LIVES_H = np.tile(np.asarray(HALF_LIVES_US, dtype=np.float64), len(COUNTERS)) / HOUR_US

Counts = NDArray[np.float64]
Key = tuple[int, int, int]
"""One entry of the ring: event key, key of (user, item, kind), and when it was counted in µs (0: not counted)."""


class Once:
    """Which events of a partition count: each event key once, and each (user, item, kind) once in 30 min.

    Remembers the last `ring_max` events of the partition; older ones are forgotten with all they held.
    """

    def __init__(self, ring_max: int = RING_MAX, entries: Iterable[Key] = (), written: int = 0) -> None:
        self._ring_max = ring_max
        self._ring: deque[Key] = deque()
        self._known: set[int] = set()
        self._counted: dict[int, int] = {}
        for entry in entries:
            self._append(entry)
        self._stored = written
        self.written = written

    def knows(self, event_key: int) -> bool:
        """Whether this very event was here before."""
        return event_key in self._known

    def since_last_us(self, pair_key: int, occurred_us: int) -> int:
        """How far from the last counted event of a (user, item, kind) this time is; far more than a day: none known."""
        last_us = self._counted.get(pair_key)
        return FOREVER_US if last_us is None else abs(occurred_us - last_us)

    def counts(self, event_key: int, pair_key: int, occurred_us: int) -> bool:
        """Whether this event counts; remembers it either way (but an event that was here before leaves no trace)."""
        if event_key in self._known:
            return False
        last_us = self._counted.get(pair_key)
        fresh = last_us is None or abs(occurred_us - last_us) >= ONCE_US
        self._append((event_key, pair_key, occurred_us if fresh else 0))
        self.written += 1
        return fresh

    def unstored(self) -> Iterator[tuple[int, tuple[Key, ...]]]:
        """The chunks that changed since `stored`, whole: running number and entries."""
        first = self._stored // CHUNK
        tail = list(_last(self._ring, min(self.written - first * CHUNK, len(self._ring))))
        start = self.written - len(tail)
        for number in range(start // CHUNK, -(-self.written // CHUNK)):
            chunk = tail[max(0, number * CHUNK - start) : (number + 1) * CHUNK - start]
            if chunk:
                yield number, tuple(chunk)

    def stored(self) -> None:
        """What `unstored` returned is durable."""
        self._stored = self.written

    def slots(self) -> int:
        """How many chunks a ring can touch: chunk `number` may overwrite chunk `number - slots()`."""
        return self._ring_max // CHUNK + 2

    def _append(self, entry: Key) -> None:
        event_key, pair_key, counted_us = entry
        self._ring.append(entry)
        self._known.add(event_key)
        if counted_us:
            self._counted[pair_key] = counted_us
        if len(self._ring) > self._ring_max:
            old_event, old_pair, old_counted_us = self._ring.popleft()
            self._known.discard(old_event)
            if old_counted_us and self._counted.get(old_pair) == old_counted_us:
                del self._counted[old_pair]


@dataclass(frozen=True, slots=True)
class HourCounts:
    """Sums of distinct (item, hour) pairs: `item_ids` [n], `hours` int64 [n], `units` int64 [n, COUNTS_WIDTH]."""

    item_ids: tuple[str, ...]
    hours: NDArray[np.int64]
    units: NDArray[np.int64]


class Deltas:
    """The counted events since the last flush."""

    def __init__(self) -> None:
        self._item_ids: list[str] = []
        self._occurred_us: list[int] = []
        self._counters: list[int] = []
        self._votes: list[float] = []

    def __len__(self) -> int:
        return len(self._item_ids)

    def add(self, item_id: str, occurred_us: int, counter: int, vote: float = 1.0) -> None:
        """One event of IMPRESSION, CLICK or CONVERSION, and how much of one it is."""
        self._item_ids.append(item_id)
        self._occurred_us.append(occurred_us)
        self._counters.append(counter)
        self._votes.append(vote)

    def sums(self) -> HourCounts:
        """The sums per item and hour, ordered by first appearance of the item, then by hour."""
        numbers: dict[str, int] = {}
        codes = np.fromiter((numbers.setdefault(i, len(numbers)) for i in self._item_ids), np.int64, len(self))
        occurred = np.asarray(self._occurred_us, dtype=np.int64)
        hours = occurred // HOUR_US
        pairs, place = np.unique(codes << 32 | hours, return_inverse=True)
        left_us = ((hours + 1) * HOUR_US - occurred)[:, None]
        kept = np.exp2(-left_us / np.asarray(HALF_LIVES_US, dtype=np.float64)) * np.asarray(self._votes)[:, None]
        units = np.rint(kept * UNIT).astype(np.int64)
        sums = np.zeros((len(pairs), COUNTS_WIDTH), dtype=np.int64)
        columns = np.asarray(self._counters, dtype=np.int64)[:, None] * len(HALF_LIVES_US) + np.arange(
            len(HALF_LIVES_US)
        )
        np.add.at(sums, (place[:, None], columns), units)
        item_ids = tuple(numbers)
        return HourCounts(tuple(item_ids[c] for c in (pairs >> 32).tolist()), pairs & 0xFFFFFFFF, sums)


@dataclass(frozen=True, slots=True)
class Standing:
    """Decayed counts [COUNTS_WIDTH] of one item as of the end of an hour."""

    hour: int
    counts: Counts


NOTHING = Standing(0, np.zeros(COUNTS_WIDTH))


def cumulated(bases: Sequence[Standing], sums: HourCounts) -> Counts:
    """The counts [n, COUNTS_WIDTH] after each of the n hours: what stood before decays, the hour's sums are added.

    The hours of an item stand together, rising; `bases` holds, for each of them, what stood before its item's first.
    """
    if not sums.item_ids:
        return np.zeros((0, COUNTS_WIDTH))
    first = np.asarray([True, *(here != there for here, there in pairwise(sums.item_ids))])
    starts = np.flatnonzero(first)
    rank = np.arange(len(first)) - np.repeat(starts, np.diff(np.append(starts, len(first))))
    before = np.append(0, sums.hours[:-1])
    before[starts] = [bases[start].hour for start in starts.tolist()]
    assert (sums.hours > before).all(), "hours of an item must rise and lie after its base"
    kept = np.exp2(-(sums.hours - before)[:, None] / _HALF_LIVES_H)
    counts: Counts = sums.units / UNIT
    counts[starts] += kept[starts] * np.asarray([bases[start].counts for start in starts.tolist()])
    by_rank = np.argsort(rank, kind="stable")
    edges = np.searchsorted(rank[by_rank], np.arange(1, int(rank.max()) + 2))
    for begin, end in pairwise(edges.tolist()):
        rows = by_rank[begin:end]
        counts[rows] += kept[rows] * counts[rows - 1]
    return counts


def decayed_hours(counts: Counts, hours: float) -> Counts:
    """Counts [COUNTS_WIDTH] after some hours; a negative number looks back (exact while nothing happened since)."""
    later: Counts = counts * np.exp2(-hours / _HALF_LIVES_H)
    return later


def end_us(hour: int) -> int:
    """The end of an hour: the first microsecond that is not in it, and the stamp of its row."""
    return (hour + 1) * HOUR_US


def _last(ring: deque[Key], count: int) -> Iterator[Key]:
    """The last `count` entries, oldest first."""
    newest = [ring[-place] for place in range(1, count + 1)]
    return reversed(newest)
