"""The protocol `replay`: the end of the events as a stream. Each positive event on an item new to its user is a case,
asked just before it is consumed; how much of the stream a case may know is a choice.

Events of one moment stand a microsecond apart here, in the order of the file: then "before" is a matter of time alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from services.domain import DAY_US, HOUR_US, BadRequest, WireError, to_us
from services.evaluation.cases import Cases, Histories, Seen, new_to_users
from services.fields import parse_time
from services.training.columns import EventColumns

Features = Literal["live", "hourly", "daily", "frozen"]
Retrain = Literal["never", "1h", "1d", "7d"]
FEATURES: tuple[Features, ...] = ("live", "hourly", "daily", "frozen")
RETRAIN: tuple[Retrain, ...] = ("never", "1h", "1d", "7d")
CUT = "0.9"
_WHOLE_US: dict[Features, int] = {"hourly": HOUR_US, "daily": DAY_US}
_EVERY_US: dict[Retrain, int] = {"1h": HOUR_US, "1d": DAY_US, "7d": 7 * DAY_US}


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream to walk. `events`: all of them, times strictly rising; from place `start` on they are walked.

    `cases`: those measured, in time order; they may learn from what lies before `start`. Case n stands at
    `places[n]` of the events and knows the events before `known_us[n]`, which is never after its own. int64 [N]
    """

    events: EventColumns
    start: int
    cases: Cases
    places: NDArray[np.int64]
    known_us: NDArray[np.int64]

    @property
    def is_live(self) -> bool:
        """Whether every event is known at once."""
        return bool((self.known_us == self.cases.until_us).all())

    @property
    def cut_us(self) -> int:
        """The moment of the first event that is walked."""
        return int(self.events.occurred_us[self.start])


@dataclass(frozen=True, slots=True)
class Segment:
    """The cases between two trainings: their places among all cases, what was learned from when they are asked (the
    events before `until_us`), and the cases as models see them: of all events each knows what lies before its
    moment."""

    places: NDArray[np.int64]
    until_us: int
    learned: EventColumns
    asked: Cases


def stream_of(events: EventColumns, cut: str, seen: Seen, features: Features, history_min: int = 0) -> Stream:
    """Raises BadRequest where nothing is left to learn from or to judge on."""
    start = cut_place(events, cut)
    events = strictly_rising(events)
    cut_us = int(events.occurred_us[start])
    train = events.before(cut_us)
    if not train.positive.any():
        raise BadRequest(f"--cut {cut} leaves no positive event to learn from")
    wanted = events.positive.copy()
    wanted[:start] = False
    if seen == "drop":
        wanted &= new_to_users(events)
    places = np.flatnonzero(wanted)
    users = events.user_codes[places].astype(np.int64)
    until_us = events.occurred_us[places]
    histories = Histories(events)
    pairs = zip(users.tolist(), until_us.tolist(), strict=True)
    history = np.array([len(histories.before(user, until)) for user, until in pairs], dtype=np.int64)
    judged = history >= history_min
    if not judged.any():
        raise BadRequest(f"--cut {cut} leaves nobody to judge: no event after it is a case")
    targets = events.item_codes[places].astype(np.int64)
    cases = Cases(train, users, targets, until_us, history, judged, seen)
    return Stream(events, start, cases, places, known_until(until_us, cut_us, features))


def segments(stream: Stream, retrain: Retrain) -> list[Segment]:
    """The cases by the training that was the last when they are asked: at the cut, then every so often of stream time
    (where a case comes after it). Whoever is trained anew may learn from everything consumed by then."""
    cases = stream.cases
    every_us = _EVERY_US.get(retrain)
    number = np.zeros(len(cases), dtype=np.int64) if every_us is None else (cases.until_us - stream.cut_us) // every_us
    found = []
    for each in np.unique(number).tolist():
        places = np.flatnonzero(number == each)
        until_us = stream.cut_us + each * (every_us or 0)
        found.append(Segment(places, until_us, stream.events.before(until_us), as_asked(stream, places)))
    return found


def as_asked(stream: Stream, places: NDArray[np.int64]) -> Cases:
    """Some of the cases as models see them."""
    cases = stream.cases
    return Cases(
        stream.events, cases.users[places], cases.targets[places], stream.known_us[places], cases.history[places],
        cases.judged[places], cases.seen, streamed=True,
    )  # fmt: skip


def cut_place(events: EventColumns, cut: str) -> int:
    """The place of the first event walked: a share of the events (0.9), or a time (ISO 8601, epoch in s or ms)."""
    try:
        share = float(cut)
    except ValueError:
        share = 0.0
    if 0.0 < share < 1.0:
        place = round(share * len(events))
    else:
        try:
            place = int(np.searchsorted(events.occurred_us, to_us(parse_time(cut, "--cut"))))
        except WireError as error:
            raise BadRequest(f"--cut {cut}: {error.detail}, or a share of the events between 0 and 1") from None
    if not 0 < place < len(events):
        raise BadRequest(f"--cut {cut} leaves nothing to learn from or nothing to judge on")
    return place


def strictly_rising(events: EventColumns) -> EventColumns:
    """The same events, each at least a microsecond after the one before it."""
    order = np.arange(len(events))
    rising = np.maximum.accumulate(events.occurred_us - order) + order
    return EventColumns(
        events.user_ids, events.item_ids, events.kinds, events.user_codes, events.item_codes, events.kind_codes,
        rising, events.weight,
    )  # fmt: skip


def known_until(until_us: NDArray[np.int64], cut_us: int, features: Features) -> NDArray[np.int64]:
    """The moments that the knowledge of cases ends at: their own, the last full hour or UTC day, or the cut. What was
    known at the cut is always known."""
    if features == "live":
        return until_us
    if features == "frozen":
        return np.full(len(until_us), cut_us, dtype=np.int64)
    whole_us = _WHOLE_US[features]
    return np.maximum(until_us // whole_us * whole_us, cut_us)


def chunks(places: NDArray[np.int64], size: int) -> Sequence[NDArray[np.int64]]:
    """Places in their order, some at a time."""
    return [places[first : first + size] for first in range(0, len(places), size)]
