"""How fresh things are: ages of what became servable, in a window that forgets, and the objective they are held to.

An age runs from the moment the log took a message (`accepted_at`) to the first moment at which a read shows its effect.
Everything is counted by the batch: a few array operations, however many events it holds. No clock is read here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import ceil
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.domain import MICROSECOND, SECOND_US, PartHealth
from services.telemetry import AGE_SECONDS, AGES, CLOCK_AHEAD

Part = Literal["row", "card", "stats", "vector"]
PARTS: tuple[Part, ...] = ("row", "card", "stats", "vector")
Origin = Literal["live", "history"]
LIVE = timedelta(minutes=10)
"""What came into the log within ten minutes of its happening is live; the rest (an import, a phone back from a week
without network, a message mended later) is history: measured beside it, never judged."""
LIVE_US = LIVE // MICROSECOND
SLOT_US = 10 * SECOND_US
STEP = 1.1
EDGES_US = np.round(1000 * STEP ** np.arange(159)).astype(np.int64)
"""Ages are counted in steps of a tenth from 1 ms to about an hour: a percentile is at most 10 % above the true one."""
_EXPORTED_US = np.array([round(s * SECOND_US) for s in AGE_SECONDS], dtype=np.int64)
BIN_US = 10_000
BINS_MAX = 512
STALLED_S = 5.0


class Slot(msgspec.Struct, array_like=True):
    """Ages seen within the 10 s of number `number` since 1970: how many in each step of EDGES_US (only where there are
    any), how many within the objective, and the greatest."""

    number: int
    counts: dict[int, int]
    within: int
    most_us: int


class Window(msgspec.Struct, array_like=True):
    """The slots of one part and origin, oldest first."""

    part: Part
    origin: Origin
    slots: list[Slot]


class Arrivals(msgspec.Struct, array_like=True):
    """When messages were accepted, for whoever sees their effect later: times rounded down to a bin, and how many live
    and how many old messages came in each."""

    times_us: list[int]
    live: list[int]
    history: list[int]


@dataclass(frozen=True, slots=True)
class Arrived:
    """Arrivals whose effect on a part of the item table has become visible."""

    part: Part
    arrivals: Arrivals


@dataclass(frozen=True, slots=True)
class Objective:
    """`share` of the live events shall be in their user's row within `age_ms`, over the last `window_s`."""

    age_ms: int = 1000
    share: float = 0.99
    window_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Figures:
    """The window of one part and origin over all processes; ages are None where nothing came."""

    part: Part
    origin: Origin
    events: int
    within_share: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float | None


@dataclass(slots=True)
class _Counted:
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(EDGES_US) + 1, dtype=np.int64))
    within: int = 0
    most_us: int = 0


class Ages:
    """What one process measures. Thread-safe; memory is bounded by the window."""

    def __init__(self, objective: Objective = Objective()) -> None:
        self._within_us = objective.age_ms * 1000
        self._slots_kept = ceil(objective.window_s * SECOND_US / SLOT_US) + 1
        self._lock = threading.Lock()
        self._windows: dict[tuple[Part, Origin], dict[int, _Counted]] = {}

    def observe(self, part: Part, accepted_us: NDArray[np.int64], live: NDArray[np.bool_], at_us: int) -> None:
        """Messages accepted then, visible at `at_us`; `live` says which count as live."""
        ones = np.ones(len(accepted_us), dtype=np.int64)
        self._add(part, "live", accepted_us[live], ones[live], at_us)
        self._add(part, "history", accepted_us[~live], ones[~live], at_us)

    def observe_arrived(self, arrived: Iterable[Arrived], at_us: int) -> None:
        """Arrivals visible at `at_us`."""
        for each in arrived:
            times = np.array(each.arrivals.times_us, dtype=np.int64)
            self._add(each.part, "live", times, np.array(each.arrivals.live, dtype=np.int64), at_us)
            self._add(each.part, "history", times, np.array(each.arrivals.history, dtype=np.int64), at_us)

    def windows(self) -> list[Window]:
        """What is in the window now, to be told to others."""
        with self._lock:
            return [
                Window(part, origin, [_told(number, slot) for number, slot in sorted(slots.items())])
                for (part, origin), slots in self._windows.items()
            ]

    def _add(
        self, part: Part, origin: Origin, accepted_us: NDArray[np.int64], messages: NDArray[np.int64], at_us: int
    ) -> None:
        total = int(messages.sum())
        if not total:
            return
        ages = at_us - accepted_us
        ahead = int(messages[ages < 0].sum())
        if ahead:  # the clock of whoever accepted is ahead of ours: no age is below zero
            CLOCK_AHEAD.labels(part).inc(ahead)
            ages = np.maximum(ages, 0)
        counted = np.bincount(np.searchsorted(EDGES_US, ages), messages, len(EDGES_US) + 1).astype(np.int64)
        exported = np.bincount(np.searchsorted(_EXPORTED_US, ages), messages, len(_EXPORTED_US) + 1)
        AGES.labels(part, origin).observe_counts(exported.tolist(), float(ages @ messages) / SECOND_US)
        number = at_us // SLOT_US
        with self._lock:
            slots = self._windows.setdefault((part, origin), {})
            for old in [each for each in slots if each <= number - self._slots_kept]:
                del slots[old]
            slot = slots.setdefault(number, _Counted())
            slot.counts += counted
            slot.within += int(messages[ages <= self._within_us].sum())
            slot.most_us = max(slot.most_us, int(ages[messages > 0].max()))


def are_live(logged_us: NDArray[np.int64], occurred_us: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which messages came into the log while what they tell of was young."""
    return np.asarray(logged_us - occurred_us <= LIVE_US, dtype=np.bool_)


def microseconds(moments: Sequence[datetime]) -> NDArray[np.int64]:
    """The moments in µs since 1970, int64 [n]."""
    seconds = np.fromiter((moment.timestamp() for moment in moments), np.float64, len(moments))
    return np.rint(seconds * SECOND_US).astype(np.int64)


def arrived(part: Part, moments: Sequence[tuple[datetime, bool]]) -> Arrived:
    """What is told of messages: when each was accepted, and whether it is live."""
    accepted_us = microseconds([accepted_at for accepted_at, _ in moments])
    return Arrived(part, binned(accepted_us, np.array([live for _, live in moments], dtype=np.bool_)))


def binned(accepted_us: NDArray[np.int64], live: NDArray[np.bool_]) -> Arrivals:
    """The arrivals in bins of 10 ms, wider ones where that would be more than BINS_MAX."""
    width = BIN_US
    while len(bins := np.unique(accepted_us // width)) > BINS_MAX:
        width *= 2
    places = np.searchsorted(bins, accepted_us // width)
    told = np.bincount(places, live, len(bins)).astype(np.int64)
    everything = np.bincount(places, minlength=len(bins))
    return Arrivals((bins * width).tolist(), told.tolist(), (everything - told).tolist())


def figures(windows: Iterable[Window], now_us: int, window_s: float) -> tuple[Figures, ...]:
    """The windows of all processes as one, by part and origin; what is older than `window_s` is left out."""
    oldest = (now_us - int(window_s * SECOND_US)) // SLOT_US
    sums: dict[tuple[Part, Origin], _Counted] = {(part, "live"): _Counted() for part in PARTS}
    for window in windows:
        total = sums.setdefault((window.part, window.origin), _Counted())
        for slot in window.slots:
            if slot.number < oldest:
                continue
            for place, count in slot.counts.items():
                total.counts[place] += count
            total.within += slot.within
            total.most_us = max(total.most_us, slot.most_us)
    return tuple(_figures(part, origin, total) for (part, origin), total in sums.items())


def judged(found: Sequence[Figures], objective: Objective, stalled_s: Mapping[str, float]) -> PartHealth:
    """Yellow, with figures, where the objective is missed by live events or the features consumer does not move."""
    waits_s = stalled_s.get("features", 0.0)
    if waits_s >= STALLED_S:
        return PartHealth("yellow", f"events wait: the features consumer has taken nothing in for {waits_s:.0f} s")
    row = next((each for each in found if (each.part, each.origin) == ("row", "live")), None)
    over = f"over the last {objective.window_s:.0f} s"
    if row is None or row.within_share is None:
        return PartHealth("green", f"no live events {over}")
    met = row.within_share >= objective.share
    said = (
        f"{row.within_share:.2%} of {row.events:,} live events were in their user's row within {objective.age_ms} ms"
        f" {over} (p99 {row.p99_ms:.0f} ms); the objective is {objective.share:.2%}"
    )
    return PartHealth("green" if met else "yellow", said)


def _told(number: int, slot: _Counted) -> Slot:
    places = np.flatnonzero(slot.counts)
    counts = dict(zip(places.tolist(), slot.counts[places].tolist(), strict=True))
    return Slot(number, counts, slot.within, slot.most_us)


def _figures(part: Part, origin: Origin, total: _Counted) -> Figures:
    events = int(total.counts.sum())
    if not events:
        return Figures(part, origin, 0, None, None, None, None, None)
    sums = np.cumsum(total.counts)

    def ms(share: float) -> float:
        place = int(np.searchsorted(sums, ceil(share * events - 1e-9)))
        edge_us = int(EDGES_US[place]) if place < len(EDGES_US) else total.most_us
        return min(edge_us, total.most_us) / 1000

    return Figures(part, origin, events, total.within / events, ms(0.5), ms(0.95), ms(0.99), total.most_us / 1000)
