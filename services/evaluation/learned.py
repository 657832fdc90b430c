"""Lists to learn from: what was shown before the judged lists and what was clicked of it, or, where nobody kept that,
lists made of the events.

Real lists come from a file of their own, from the time before a cut, or from the events themselves where these hold
impressions. Made lists are each click beside titles that were alive about then: half of them what others clicked, half
any. They say what somebody clicked, but not what they passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.domain import SECOND_US, BadRequest, KindRules, from_us
from services.evaluation.cases import cut_time
from services.evaluation.files import DEFAULT_KIND
from services.evaluation.shown import ShownLists
from services.ports import FeatureHistory
from services.training.columns import EventColumns
from services.training.served import IMPRESSION_KIND, ServedLists, ServedRules

LISTS_MIN = 200
"""With fewer real lists that hold a click and something passed over, lists are made of the events."""
ALIVE_CLICKS = 2000
"""How many clicks before and after a click say what was alive then."""
NEGATIVES = 8
TOGETHER_US = 60 * SECOND_US
SAME_CLICK_S = 1800


@dataclass(frozen=True, slots=True)
class Made:
    """Lists made of events, one per click: the place of the click among the events, int64 [R], and beside it the codes
    of titles that were alive, int64 [R, NEGATIVES]."""

    places: NDArray[np.int64]
    beside: NDArray[np.int64]


def split(judged: ShownLists, events: EventColumns, cut: str) -> tuple[ShownLists, ShownLists, EventColumns]:
    """The lists before a cut, those from it on, and the events before it. Raises BadRequest where one is empty."""
    times = np.sort(judged.time_us)
    cut_us = cut_time(_at(times, events), cut)
    before = np.flatnonzero(judged.time_us < cut_us)
    after = np.flatnonzero(judged.time_us >= cut_us)
    kept = events.before(cut_us)
    if len(kept) == 0:
        raise BadRequest(f"--cut {cut} leaves no event to learn from")
    return judged.take(before), judged.take(after), kept


def check_before(path: Path, learned: ShownLists, judged: ShownLists) -> None:
    """Raises BadRequest where a list to learn from is not older than every judged one."""
    last, first = int(learned.time_us.max()), int(judged.time_us.min())
    if last >= first:
        raise BadRequest(
            f"--learn-from {path} ends at {from_us(last):%Y-%m-%d %H:%M:%S}, but the first judged list is of "
            f"{from_us(first):%Y-%m-%d %H:%M:%S}: what is learned from must end before what is judged begins"
        )


def useful(lists: ShownLists) -> ShownLists:
    """The lists that teach something: with a click and something passed over, in the order of their times."""
    some = np.flatnonzero((lists.clicks > 0) & (lists.clicks < lists.sizes))
    return lists.take(some[np.argsort(lists.time_us[some], kind="stable")])


def with_clicks(events: EventColumns, lists: ShownLists, rules: KindRules) -> tuple[EventColumns, int]:
    """The events and the clicks of the lists that are not among them (the same user on the same item within half an
    hour), and how many these are."""
    owners, items = lists.owners[lists.clicked], lists.items[lists.clicked]
    users, times = lists.users[owners], lists.time_us[owners]
    missing = ~_among(events, users, items, times)
    if not missing.any():
        return events, 0
    kinds = events.kinds if DEFAULT_KIND in events.kinds else (*events.kinds, DEFAULT_KIND)
    count = int(missing.sum())
    occurred = np.concatenate([events.occurred_us, times[missing]])
    order = np.argsort(occurred, kind="stable")
    weight = rules.signed_weight(DEFAULT_KIND, None) or 1.0

    def joined(old: NDArray[np.generic], new: NDArray[np.generic]) -> NDArray[np.generic]:
        return np.concatenate([old, new.astype(old.dtype)])[order]

    return EventColumns(
        events.user_ids, events.item_ids, kinds,
        joined(events.user_codes, users[missing]),  # type: ignore[arg-type]
        joined(events.item_codes, items[missing]),  # type: ignore[arg-type]
        joined(events.kind_codes, np.full(count, kinds.index(DEFAULT_KIND))),  # type: ignore[arg-type]
        occurred[order],
        joined(events.weight, np.full(count, weight)),  # type: ignore[arg-type]
    ), count  # fmt: skip


def answers_among(events: EventColumns, judged: ShownLists) -> int:
    """How many clicks of the judged lists stand among the events."""
    owners = judged.owners[judged.clicked]
    return int(_among(events, judged.users[owners], judged.items[judged.clicked], judged.time_us[owners]).sum())


def of_impressions(events: EventColumns) -> ShownLists:
    """Events of kind impression as lists: what one user was shown, with what they clicked, without a minute's pause."""
    shown = np.array([kind == IMPRESSION_KIND for kind in events.kinds] or [False])[events.kind_codes]
    kept = np.flatnonzero(shown | events.positive)
    order = kept[np.lexsort((events.occurred_us[kept], events.user_codes[kept]))]
    users, times = events.user_codes[order].astype(np.int64), events.occurred_us[order]
    fresh = np.ones(len(order), dtype=np.bool_)
    fresh[1:] = (users[1:] != users[:-1]) | (times[1:] - times[:-1] > TOGETHER_US)
    starts = np.flatnonzero(fresh)
    size = len(events.item_ids)
    pairs = (np.cumsum(fresh) - 1) * size + events.item_codes[order]
    keys, place = np.unique(pairs, return_inverse=True)
    clicked = np.bincount(place, events.positive[order], minlength=len(keys)) > 0
    offsets = np.concatenate([[0], np.cumsum(np.bincount(keys // size, minlength=len(starts)))]).astype(np.int64)
    count = len(keys)
    return ShownLists(
        events.user_ids, events.item_ids, users[starts], times[starts], offsets, keys % size, clicked,
        np.zeros(count, dtype=np.int16), np.full(count, np.nan, dtype=np.float32),
    )  # fmt: skip


def made_of(events: EventColumns, published: Sequence[tuple[int, int]], lists_max: int, seed: int) -> Made:
    """A list per positive event, of the newest `lists_max`. `published`: `(time, item code)` of what has a date. What
    the user takes at any time is not put beside a click."""
    rng = np.random.default_rng(seed)
    positive = np.flatnonzero(events.positive)
    items = events.item_codes[positive].astype(np.int64)
    first = max(0, len(positive) - lists_max)
    chosen = np.arange(first, len(positive))
    dated = np.array(sorted(published), dtype=np.int64).reshape(-1, 2)
    low, high = np.maximum(chosen - ALIVE_CLICKS, 0), np.minimum(chosen + ALIVE_CLICKS, len(positive))
    of_others = items[low[:, None] + (rng.random((len(chosen), NEGATIVES)) * (high - low)[:, None]).astype(np.int64)]
    beside = of_others
    for start in range(0, len(chosen), ALIVE_CLICKS):  # any that are alive, each as likely: by blocks of clicks
        block = slice(start, min(start + ALIVE_CLICKS, len(chosen)))
        alive = np.unique(items[low[block].min() : high[block].max()])
        since, until = events.occurred_us[positive[[low[block].min(), high[block].max() - 1]]].tolist()
        new = dated[np.searchsorted(dated[:, 0], since) : np.searchsorted(dated[:, 0], until), 1]
        alive = np.union1d(alive, new)
        beside[block, NEGATIVES // 2 :] = rng.choice(alive, (block.stop - block.start, NEGATIVES - NEGATIVES // 2))
    size = len(events.item_ids)
    taken = np.unique(events.user_codes[positive].astype(np.int64) * size + items)
    users = events.user_codes[positive[chosen]].astype(np.int64)
    own = np.isin(users[:, None] * size + beside, taken)
    beside = np.where(own, -1, beside)
    return Made(positive[chosen], beside)


class ServedByFile:
    """Lists of a file as lists that were served: the reranker learns from them point-in-time, as from slates."""

    def __init__(self, lists: ShownLists, history: FeatureHistory, seed: int) -> None:
        self._lists = lists
        self._history = history
        self._seed = seed

    def __call__(self, since_us: int, until_us: int, rules: ServedRules) -> ServedLists:
        """The lists asked for in `[since_us, until_us)`, the newest `lists_max` that teach something."""
        asked = np.flatnonzero((self._lists.time_us >= since_us) & (self._lists.time_us < until_us))
        lists = useful(self._lists.take(asked))
        lists = lists.take(np.arange(max(0, len(lists) - rules.lists_max), len(lists)))
        user_ids = tuple(lists.user_ids[code] for code in lists.users.tolist())
        rows = self._history.users_at(user_ids, lists.time_us - 1)
        rng = np.random.default_rng(self._seed)
        items, taken, places = [], [], []
        for start, stop in zip(lists.offsets[:-1].tolist(), lists.offsets[1:].tolist(), strict=True):
            some = _kept(lists.clicked[start:stop], rules.picks_max, rng) + start
            items.append(tuple(lists.item_ids[code] for code in lists.items[some].tolist()))
            taken.append(tuple(lists.clicked[some].tolist()))
            places.append(tuple(lists.position[some].tolist()))
        return ServedLists(
            user_ids, rows.row_time_us, lists.time_us, lists.time_us, tuple(items), tuple(taken), len(asked),
            places=tuple(places),
        )  # fmt: skip


def _kept(clicked: NDArray[np.bool_], most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Of a list as many as an example holds: what was clicked, and any of the others."""
    if len(clicked) <= most:
        return np.arange(len(clicked))
    hits, others = np.flatnonzero(clicked), np.flatnonzero(~clicked)
    room = max(most - len(hits), 1)
    return np.sort(np.concatenate([hits[: most - 1], rng.choice(others, min(room, len(others)), replace=False)]))


def _among(
    events: EventColumns, users: NDArray[np.int64], items: NDArray[np.int64], times_us: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which of some clicks stand among the positive events."""
    liked = np.flatnonzero(events.positive)
    size = len(events.item_ids)
    pairs = events.user_codes[liked].astype(np.int64) * size + events.item_codes[liked]
    known, place = np.unique(pairs, return_inverse=True)
    first_s = int(min(events.occurred_us.min(initial=0), times_us.min(initial=0))) // SECOND_US
    last_s = int(max(events.occurred_us.max(initial=0), times_us.max(initial=0))) // SECOND_US
    span = last_s - first_s + 4 * SAME_CLICK_S
    keys = np.sort(place * span + events.occurred_us[liked] // SECOND_US - first_s + SAME_CLICK_S)
    asked = users * size + items
    at = np.searchsorted(known, asked)
    found = at < len(known)
    found[found] = known[at[found]] == asked[found]
    wanted = at * span + times_us // SECOND_US - first_s + SAME_CLICK_S
    some: NDArray[np.bool_] = np.searchsorted(keys, wanted - SAME_CLICK_S) < np.searchsorted(
        keys, wanted + SAME_CLICK_S, side="right"
    )
    return found & some


def _at(times_us: NDArray[np.int64], events: EventColumns) -> EventColumns:
    """Events that stand at the times of lists, for `cut_time`."""
    none = np.zeros(len(times_us))
    return EventColumns(
        events.user_ids, events.item_ids, events.kinds, none.astype(np.int32), none.astype(np.int32),
        none.astype(np.int16), times_us, none.astype(np.float32),
    )  # fmt: skip
