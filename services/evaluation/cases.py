"""Protocols: which events may be learned from, and the cases that are judged, each with the moment it is asked at."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from services.domain import BadRequest, WireError, to_us
from services.evaluation.files import Target
from services.fields import parse_time
from services.training.columns import EventColumns

Protocol = Literal["leave-one-out", "temporal", "targets", "replay"]
Seen = Literal["drop", "keep"]
PROTOCOLS: tuple[Protocol, ...] = ("leave-one-out", "temporal", "targets", "replay")
CUT = "0.8"
HISTORY_MIN: dict[Protocol, int] = {"leave-one-out": 1, "temporal": 5, "targets": 0, "replay": 0}
COLD_USER_EVENTS = 5
"""Who has fewer events before the case is a cold user."""


@dataclass(frozen=True, slots=True)
class Cases:
    """What is judged. `train`: the events that may be learned from, in time order. Case n: `users[n]` is asked for at
    `until_us[n]`, knows the training events strictly before it (`history[n]` of them) and wants `targets[n]`. int64 [N]

    `judged` bool [N]: counts in the part `all`; the others are cold users, shown apart. `streamed`: nothing in `train`
    from a case's moment on may be known to it, whoever answers; otherwise all of it may be learned from."""

    train: EventColumns
    users: NDArray[np.int64]
    targets: NDArray[np.int64]
    until_us: NDArray[np.int64]
    history: NDArray[np.int64]
    judged: NDArray[np.bool_]
    seen: Seen
    streamed: bool = False

    def __len__(self) -> int:
        return len(self.users)

    @property
    def hash(self) -> str:
        """SHA-256 of the test set: a line `user, item, moment` per case, in the order of these lines."""
        users, items = self.train.user_ids, self.train.item_ids
        rows = zip(self.users.tolist(), self.targets.tolist(), self.until_us.tolist(), strict=True)
        lines = sorted(f"{users[user]}\t{items[item]}\t{until_us}" for user, item, until_us in rows)
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


class Histories:
    """What each user had done by a time: items of their events that are not neutral, oldest first."""

    def __init__(self, events: EventColumns, liked: bool = False) -> None:
        kept = np.flatnonzero(events.weight > 0 if liked else events.weight != 0)
        order = kept[np.argsort(events.user_codes[kept], kind="stable")]
        self._items = events.item_codes[order].astype(np.int64)
        self._times = events.occurred_us[order]
        self._offsets = np.searchsorted(events.user_codes[order], np.arange(len(events.user_ids) + 1))

    def before(self, user: int, until_us: int) -> NDArray[np.int64]:
        """Item codes, repetitions included."""
        first, last = self._offsets[user : user + 2]
        return self._items[first : first + np.searchsorted(self._times[first:last], until_us)]


def temporal(events: EventColumns, cut: str, seen: Seen, history_min: int = HISTORY_MIN["temporal"]) -> Cases:
    """Everything is frozen at the cut; the target is each user's first positive event from then on (with `drop`: the
    first on an item new to them)."""
    cut_us = cut_time(events, cut)
    train = events.before(cut_us)
    after = events.since(cut_us)
    after = after.keep(after.positive)
    if seen == "drop":
        after = after.keep(~np.isin(pairs_of(after), pairs_of(train.keep(train.weight != 0))))
    users, first = np.unique(after.user_codes.astype(np.int64), return_index=True)  # the first in time
    targets = after.item_codes[first].astype(np.int64)
    return _cases(train, users, targets, np.full(len(users), cut_us), seen, history_min)


def leave_one_out(events: EventColumns, seen: Seen, history_min: int = HISTORY_MIN["leave-one-out"]) -> Cases:
    """The target is each user's last positive event (with `drop`: the last on an item new to them); all that the user
    did from then on is left out, everything else may be learned from, later events of others too."""
    order = np.argsort(events.user_codes, kind="stable")
    eligible = events.positive[order]
    if seen == "drop":
        eligible &= new_to_users(events)[order]
    users = events.user_codes[order].astype(np.int64)
    done = np.cumsum(events.weight[order] != 0)
    starts = np.searchsorted(users, users)
    before = done - 1 - np.where(starts > 0, done[starts - 1], 0)  # of an eligible event: how many of its user precede
    last = np.full(len(events.user_ids), -1, dtype=np.int64)
    wanted = np.flatnonzero(eligible & (before >= 1))
    last[users[wanted]] = wanted  # the last one written stays
    chosen = last[last >= 0]
    left_out = np.zeros(len(events), dtype=np.bool_)
    left_out[order] = (last[users] >= 0) & (np.arange(len(events)) >= last[users])
    train = events.keep(~left_out)
    place = order[chosen]
    until_us = events.occurred_us[place] + 1  # equal times: what stands before the target in the file is history
    return _cases(train, users[chosen], events.item_codes[place].astype(np.int64), until_us, seen, history_min)


def of_targets(
    events: EventColumns, targets: Sequence[Target], seen: Seen, history_min: int = HISTORY_MIN["targets"]
) -> Cases:
    """The targets of a file: every event may be learned from, a case knows its user's events before its time."""
    user_code = {user_id: code for code, user_id in enumerate(events.user_ids)}
    item_code = {item_id: code for code, item_id in enumerate(events.item_ids)}
    end_us = int(events.occurred_us[-1]) + 1
    return _cases(
        events,
        np.array([user_code[each.user_id] for each in targets], dtype=np.int64),
        np.array([item_code[each.item_id] for each in targets], dtype=np.int64),
        np.array([end_us if each.time_us is None else each.time_us for each in targets], dtype=np.int64),
        seen,
        history_min,
    )


def cut_time(events: EventColumns, cut: str) -> int:
    """A cut given as a share of the time that the events span (0.8), or as a time (ISO 8601, epoch in s or ms)."""
    first_us, last_us = int(events.occurred_us[0]), int(events.occurred_us[-1])
    try:
        share = float(cut)
    except ValueError:
        share = 0.0
    if 0.0 < share < 1.0:
        cut_us = first_us + round(share * (last_us - first_us))
    else:
        try:
            cut_us = to_us(parse_time(cut, "--cut"))
        except WireError as error:
            raise BadRequest(f"--cut {cut}: {error.detail}, or a share between 0 and 1") from None
    if not first_us < cut_us <= last_us:
        raise BadRequest(f"--cut {cut} leaves nothing to learn from or nothing to judge on")
    return cut_us


def _cases(
    train: EventColumns,
    users: NDArray[np.int64],
    targets: NDArray[np.int64],
    until_us: NDArray[np.int64],
    seen: Seen,
    history_min: int,
) -> Cases:
    if not train.positive.any():
        kinds = ", ".join(train.kinds)
        raise BadRequest(f"no event that may be learned from is positive; the setting `kinds` says what {kinds} mean")
    histories = Histories(train)
    pairs = zip(users.tolist(), until_us.tolist(), strict=True)
    history = np.array([len(histories.before(user, until)) for user, until in pairs], dtype=np.int64)
    judged = history >= history_min
    shown = np.flatnonzero(judged | (history < COLD_USER_EVENTS))
    if not judged.any():
        raise BadRequest(f"nobody is left to judge: no user has a target and {history_min} events before it")
    return Cases(
        train, users[shown], targets[shown], until_us[shown].astype(np.int64), history[shown], judged[shown], seen
    )


def new_to_users(events: EventColumns) -> NDArray[np.bool_]:
    """Which events are their user's first on the item, neutral ones aside. bool [N]"""
    known = np.flatnonzero(events.weight != 0)
    _, first = np.unique(pairs_of(events)[known], return_index=True)
    fresh = np.zeros(len(events), dtype=np.bool_)
    fresh[known[first]] = True
    return fresh


def pairs_of(events: EventColumns) -> NDArray[np.int64]:
    """A number for each event that is the same for the same user and item. int64 [N]"""
    return events.user_codes.astype(np.int64) * len(events.item_ids) + events.item_codes
