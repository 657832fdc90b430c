"""What was known at the cut: the item table and the user rows that a judged pipeline may see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from services.bounds import BOUNDED, Bounds
from services.domain import (
    DAY_US,
    HIDDEN_MAX,
    HIDING_KINDS,
    HOUR_US,
    SEEN_MAX,
    BadRequest,
    Interaction,
    Seen,
    UserState,
    hash64,
)
from services.item_parts import CovisitsPart, ItemChanged, StatsPart
from services.items import ItemTable
from services.ports import FeatureHistory
from services.training.columns import EventColumns
from services.training.trust import votes

COVISIT_LAGS = 5
COVISIT_HALF_LIFE_US = 30 * DAY_US
COVISIT_GAP_HALF_LIFE_US = 7 * DAY_US
COVISIT_SHRINK = 10.0
"""Co-visits as the trends consumer keeps them: these four are its constants."""
COVISITS_PER_ITEM = 50


class ItemsAtCut:
    """The live item table, turned back: counts from the feature history, co-visits from the events before the cut.

    Cards and text vectors are today's: a title does not change with time. An item published after the cut is not
    servable at the cut by its own date. One without a date was born with its first card or its first event; what was
    born after the cut is not new at the cut (or the newest items would be those that nobody had heard of).
    """

    def __init__(self, live_items: Callable[[], ItemTable], history: FeatureHistory, bounds: Bounds = BOUNDED) -> None:
        self._live_items = live_items
        self._history = history
        self._bounds = bounds

    def __call__(self, before: EventColumns, cut_us: int) -> ItemTable:
        """A table of its own, which the caller may keep."""
        table = self._live_items()
        item_ids = tuple(dict.fromkeys((*table.item_ids(), *before.item_ids)))
        counts, stamps = self._history.items_at(item_ids, np.full(len(item_ids), cut_us, dtype=np.int64))
        together = covisits(before, cut_us, self._bounds)
        seq = table.as_of
        nothing = CovisitsPart([], [])
        table.apply(
            change
            for place, item_id in enumerate(item_ids)
            for change in (
                ItemChanged(item_id, StatsPart(counts[place].tolist(), int(stamps[place])), seq),
                ItemChanged(item_id, together.get(item_id, nothing), seq),
            )
        )
        table.set_births(item_ids, _births(table.births(item_ids), item_ids, before, cut_us))
        return table


def _births(
    known_us: NDArray[np.int64], item_ids: Sequence[str], before: EventColumns, cut_us: int
) -> NDArray[np.int64]:
    """When each item was born, as far as was known at the cut; 0: not yet. [n]"""
    codes, first = np.unique(before.item_codes, return_index=True)  # events are in the order of time
    met_us = dict(
        zip((before.item_ids[code] for code in codes.tolist()), before.occurred_us[first].tolist(), strict=True)
    )
    first_us = np.array([met_us.get(item_id, 0) for item_id in item_ids], dtype=np.int64)
    born_us = np.where((first_us > 0) & ((known_us == 0) | (known_us >= cut_us)), first_us, known_us)
    return np.where(born_us < cut_us, born_us, 0)


def covisits(before: EventColumns, cut_us: int, bounds: Bounds = BOUNDED) -> dict[str, CovisitsPart]:
    """What servers would have been told of items taken together by the events before the cut, strongest first."""
    rows, columns, cosines = together_pairs(before, cut_us, votes(before, bounds))
    together: dict[str, CovisitsPart] = {}
    changes = np.concatenate([[True], rows[1:] != rows[:-1], [True]]) if len(rows) else np.zeros(0, dtype=np.bool_)
    for start, stop in pairwise(np.flatnonzero(changes).tolist()):
        names = [before.item_ids[code] for code in columns[start:stop].tolist()]
        together[before.item_ids[int(rows[start])]] = CovisitsPart(names, cosines[start:stop].tolist())
    return together


def together_pairs(
    before: EventColumns, cut_us: int, vote: NDArray[np.float64] | None = None, per_item: int = COVISITS_PER_ITEM
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Item codes, the items taken together with them and the shrunk cosines of the pairs, by item and then strongest
    first: a pair's weight over both items' weight with anything. Weights are those of the live co-visits.

    `vote` [N]: how much each event counts, 0 takes it out; the later one of a pair decides. None: all the same."""
    believed = before.positive if vote is None else before.positive & (vote > 0)
    liked, vote = before.keep(believed), None if vote is None else vote[believed]
    rows, columns, weights = _pairs(liked, cut_us, COVISIT_LAGS, COVISIT_HALF_LIFE_US, COVISIT_GAP_HALF_LIFE_US, vote)
    totals = np.bincount(rows, weights=weights, minlength=len(before.item_ids)) + COVISIT_SHRINK
    return _strongest(rows, columns, weights / np.sqrt(totals[rows] * totals[columns]), per_item)


def covisit_pairs(
    before: EventColumns, cut_us: int, lags: int, half_life_us: float, per_item: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Item codes, co-visited item codes and how often they stood within `lags` positive events of each other, decayed,
    by item and then strongest first."""
    return _strongest(*_pairs(before, cut_us, lags, half_life_us, np.inf), per_item)


def _pairs(
    before: EventColumns,
    cut_us: int,
    lags: int,
    half_life_us: float,
    gap_half_life_us: float,
    votes: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    liked = before.keep(before.positive)
    order = np.lexsort((liked.occurred_us, liked.user_codes))
    vote = np.ones(len(order)) if votes is None else votes[order]
    users, items, times = liked.user_codes[order], liked.item_codes[order].astype(np.int64), liked.occurred_us[order]
    size = max(len(before.item_ids), 1)
    keys, strengths = [], []
    for lag in range(1, lags + 1):
        one, other = items[:-lag], items[lag:]
        real = (users[:-lag] == users[lag:]) & (one != other)
        one, other, later = one[real], other[real], times[lag:][real]
        gap_us = later - times[:-lag][real]
        strength = vote[lag:][real] * np.exp2(-(cut_us - later) / half_life_us - gap_us / gap_half_life_us)
        keys += [one * size + other, other * size + one]
        strengths += [strength, strength]
    pairs, place = np.unique(np.concatenate(keys), return_inverse=True)
    weights = np.bincount(place, weights=np.concatenate(strengths), minlength=len(pairs)).astype(np.float64)
    return pairs // size, pairs % size, weights


def _strongest(
    rows: NDArray[np.int64], columns: NDArray[np.int64], weights: NDArray[np.float64], per_item: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The strongest `per_item` of each row, ties to the lower column. Pairs come in the order of their columns."""
    order = np.lexsort((-weights, rows))
    rows, columns, weights = rows[order], columns[order], weights[order]
    kept = np.arange(len(rows)) - np.searchsorted(rows, rows, side="left") < per_item
    return rows[kept], columns[kept], weights[kept]


class FrozenRows:
    """A FeatureStore of user rows as they stood at one time; it refuses to be written to."""

    def __init__(self, rows: dict[str, UserState]) -> None:
        self._rows = rows

    def read(self, user_id: str) -> UserState:
        """FeatureStore."""
        return self._rows.get(user_id) or UserState(user_id)

    def read_many(self, user_ids: Sequence[str]) -> tuple[UserState, ...]:
        """FeatureStore."""
        return tuple(self.read(user_id) for user_id in user_ids)

    def write(self, states: Sequence[UserState]) -> tuple[str, ...]:
        """FeatureStore: refused, all of it."""
        raise BadRequest(f"rows frozen for judging were written to: {len(states)}")

    def append_history(self, states: Sequence[UserState], created_at: object) -> None:
        """FeatureStore: refused, all of it."""
        raise BadRequest(f"rows frozen for judging were written to at {created_at}: {len(states)}")


def rows_at(history: FeatureHistory, before: EventColumns, user_codes: NDArray[np.int64], cut_us: int) -> FrozenRows:
    """The rows of some users just before the cut: their events by the point-in-time join, what they have seen and
    hidden by the events before the cut."""
    user_ids = [before.user_ids[code] for code in user_codes.tolist()]
    rows = history.users_at(user_ids, np.full(len(user_ids), cut_us - 1, dtype=np.int64))
    seen, hidden = _seen_and_hidden(before, user_codes)
    states: dict[str, UserState] = {}
    for place, user_id in enumerate(user_ids):
        events = tuple(
            Interaction(
                int(rows.occurred_us[n]), n, rows.item_ids[rows.item_codes[n]], rows.kinds[rows.kind_codes[n]],
                None, float(rows.weight[n]),
            )
            for n in range(int(rows.offsets[place]), int(rows.offsets[place + 1]))
        )  # fmt: skip
        code = int(user_codes[place])
        states[user_id] = UserState(
            user_id,
            events,
            hidden.get(code, ()),
            seen.get(code, Seen()),
            events[-1].occurred_us if events else 0,
            int(rows.row_time_us[place]),
        )
    return FrozenRows(states)


def _seen_and_hidden(
    before: EventColumns, user_codes: NDArray[np.int64]
) -> tuple[dict[int, Seen], dict[int, tuple[tuple[int, str], ...]]]:
    hiding = np.array([kind in HIDING_KINDS for kind in before.kinds] or [False])[before.kind_codes]
    of_interest = np.isin(before.user_codes, user_codes) & (before.positive | hiding)
    seen: dict[int, dict[int, int]] = {}
    hidden: dict[int, dict[str, int]] = {}
    hashes = [hash64(item_id) for item_id in before.item_ids]
    for place in np.flatnonzero(of_interest)[::-1].tolist():  # newest first
        user, item = int(before.user_codes[place]), int(before.item_codes[place])
        occurred_us = int(before.occurred_us[place])
        if hiding[place]:
            hidden.setdefault(user, {}).setdefault(before.item_ids[item], occurred_us)
        else:
            seen.setdefault(user, {}).setdefault(hashes[item], occurred_us // HOUR_US)
    return (
        {u: _newest_seen(each) for u, each in seen.items()},
        {u: tuple((us, item_id) for item_id, us in list(each.items())[:HIDDEN_MAX]) for u, each in hidden.items()},
    )


def _newest_seen(hours: dict[int, int]) -> Seen:
    """Of the hour of each item's hash."""
    return Seen.of(sorted(((hour, key) for key, hour in hours.items()), reverse=True)[:SEEN_MAX])
