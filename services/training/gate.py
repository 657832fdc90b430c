"""Where the judged slice starts, and the decision: may the challenger go live?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.domain import DAY_US, BadRequest, Metric
from services.training.columns import EventColumns

USERS_MIN = 500
USERS_TO_JUDGE = 30
RELATIVE_LOSS_MAX = 0.01
EVENTS_MIN = 50


@dataclass(frozen=True, slots=True)
class Gate:
    """How a slice is chosen: the newest `share` of the events, at most `days_max` long, at least `users_min` users
    where there are that many, at most `users_max` of them asked."""

    share: float = 0.05
    days_max: float = 7.0
    users_min: int = USERS_MIN
    users_max: int = 2500


@dataclass(frozen=True, slots=True)
class Slice:
    """What is judged on: for each user the first positive event at or after the cut on an item new to them.

    `user_codes`, `target_codes` (items) int64 [n]; `known` bool [n]: the user had events before the cut.
    """

    cut_us: int
    until_us: int
    user_codes: NDArray[np.int64]
    target_codes: NDArray[np.int64]
    known: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.user_codes)


def choose_cut(events: EventColumns, gate: Gate, live_until_us: int) -> int:
    """The time before which everything may be trained on. Never before `live_until_us` (0: no live release).

    Raises BadRequest when nothing is left to train on or to judge on.
    """
    if len(events) < EVENTS_MIN:
        raise BadRequest(f"{len(events)} events are too few to train on; send at least {EVENTS_MIN}")
    times = events.occurred_us
    newest = int(times[-1])
    if live_until_us > newest:
        raise BadRequest("no event is newer than the live release's data: nothing to learn or to judge on")
    by_share = int(times[int(len(times) * (1.0 - gate.share))])
    cut = max(by_share, newest - int(gate.days_max * DAY_US))
    cut = min(cut, _start_with_users(events, gate.users_min))
    return max(cut, live_until_us, int(times[0]) + 1)


def slice_after(events: EventColumns, cut_us: int, users_max: int, seed: int) -> Slice:
    """The slice that starts at the cut; more than `users_max` users are sampled."""
    before = events.before(cut_us)
    met = before.keep(before.weight != 0)  # what was merely shown is still new
    taken = _pairs(met, met.user_codes, met.item_codes)
    after = events.since(cut_us)
    after = after.keep(after.positive)
    fresh = after.keep(~np.isin(_pairs(after, after.user_codes, after.item_codes), taken))
    users, first = np.unique(fresh.user_codes.astype(np.int64), return_index=True)  # return_index: the first in time
    if len(users) > users_max:
        chosen = np.sort(np.random.default_rng(seed).choice(len(users), users_max, replace=False))
        users, first = users[chosen], first[chosen]
    known = np.isin(users, before.user_codes)
    until_us = int(events.occurred_us[-1]) + 1 if len(events) else cut_us
    return Slice(cut_us, until_us, users, fresh.item_codes[first].astype(np.int64), known)


def decide(
    challenger: tuple[Metric, ...],
    live: tuple[Metric, ...] | None,
    popularity: tuple[Metric, ...],
    faults: tuple[str, ...],
) -> tuple[bool, str]:
    """Promote or not, and why in one sentence. `faults` are weights that are not finite and smoke queries that failed.

    Without a live release a sound challenger is promoted; otherwise NDCG@10 must be at least the live one's less 1 %.
    """
    if faults:
        return False, f"not promoted: {'; '.join(faults)}"
    ours, users = ndcg_of(challenger)
    theirs, _ = ndcg_of(popularity)
    word = "above" if ours > theirs else "not above"
    beside = f"NDCG@10 {ours:.4f} over {users} users, {word} 7-day popularity ({theirs:.4f})"
    if live is None:
        return True, f"promoted as the first release: {beside}"
    if users < USERS_TO_JUDGE:
        return False, f"not promoted: only {users} users did something new since the cut, {USERS_TO_JUDGE} are needed"
    before, _ = ndcg_of(live)
    if ours >= before * (1.0 - RELATIVE_LOSS_MAX):
        return True, f"promoted: {beside}; the live release has {before:.4f} on the same slice"
    return False, f"not promoted: {beside}; the live release has {before:.4f} on the same slice"


def ndcg_of(metrics: tuple[Metric, ...]) -> tuple[float, int]:
    """NDCG@10 over all users of a slice, and how many they are."""
    found = [(m.value, m.users) for m in metrics if m.part == "all" and m.name == "ndcg@10"]
    return found[0] if found else (0.0, 0)


def _start_with_users(events: EventColumns, users_min: int) -> int:
    """The latest start such that `users_min` users have a positive event from then on (or all of them)."""
    last = np.full(len(events.user_ids), -1, dtype=np.int64)
    positive = events.positive
    np.maximum.at(last, events.user_codes[positive], events.occurred_us[positive])
    newest_first = np.sort(last[last >= 0])[::-1]
    if len(newest_first) == 0:
        raise BadRequest("there is no positive event: declare the kinds of your events in the setting `kinds`")
    middle = int(events.occurred_us[len(events) // 2])  # few users: half of the events still go into training
    return max(int(newest_first[min(users_min, len(newest_first)) - 1]), middle)


def _pairs(events: EventColumns, users: NDArray[np.int32], items: NDArray[np.int32]) -> NDArray[np.int64]:
    return users.astype(np.int64) * len(events.item_ids) + items
