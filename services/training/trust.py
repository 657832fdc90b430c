"""Whose events training believes: the votes that the trends consumer counts, and which events the models are taught."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.bounds import Bounds, few, newcomers, votes_of, within_day
from services.domain import DAY_US
from services.training.columns import EventColumns

USUAL_TIMES_MAX = 3
"""A user's day is unusual above so many times what nine in ten days hold: a first visit of 300 ratings is usual where
people rate like that."""
BORNE_OUT_TIMES = 3
BORNE_OUT_AT_LEAST = 5


def votes(events: EventColumns, bounds: Bounds) -> NDArray[np.float64]:
    """How much each event counts in item counts and co-visits, as the trends consumer counts it. [N]"""
    return votes_of(
        events.user_codes, events.item_codes, events.kind_codes, events.occurred_us, events.positive, bounds
    )


def taught(events: EventColumns, bounds: Bounds) -> NDArray[np.bool_]:
    """Which positive events the models are taught to foretell; all are read as history. bool [N]

    Not what a user does beyond an unusual day, nor what newcomers (where they are the fewer) do more than others bear
    out: of an item, at most BORNE_OUT_TIMES as many of their events as the others' so far would have brought by the
    log's own share of newcomers, and BORNE_OUT_AT_LEAST more. A weight would throw away most of a log that newcomers
    made.
    """
    places = np.flatnonzero(events.positive)
    users, times = events.user_codes[places].astype(np.int64), events.occurred_us[places]
    believed = np.ones(len(places), dtype=np.bool_)
    if bounds.events_per_day_max:
        believed &= within_day(users, times, max(bounds.events_per_day_max, _usual(users, times)))
    if bounds.newcomer_weight < 1.0:
        new = newcomers(users, times)[believed]
        doubted = new & few(new, times[believed])
        believed[np.flatnonzero(believed)[doubted]] = _borne_out(events.item_codes[places][believed], doubted)
    found = np.zeros(len(events), dtype=np.bool_)
    found[places[believed]] = True
    return found


def labelled(events: EventColumns, share: float, seed: int) -> NDArray[np.bool_]:
    """The events of a share of the users, by lot: what remains to be foretold where labels are few. bool [N]"""
    users = np.unique(events.user_codes[events.positive])
    chosen = np.random.default_rng(seed).choice(users, max(1, round(share * len(users))), replace=False)
    return np.isin(events.user_codes, chosen)


def _usual(users: NDArray[np.int64], times: NDArray[np.int64]) -> int:
    """USUAL_TIMES_MAX what nine in ten of the days of users hold."""
    _, sizes = np.unique(users << 32 | times // DAY_US, return_counts=True)
    return int(USUAL_TIMES_MAX * np.quantile(sizes, 0.9)) if len(sizes) else 0


def _borne_out(items: NDArray[np.int32], new: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of the doubtful events (`new`) among N events in time order: which the others before bear out. [new.sum()]"""
    by_newcomers = np.count_nonzero(new) / max(1, int(np.count_nonzero(~new)))
    order = np.argsort(items, kind="stable")
    fresh = np.ones(len(order), dtype=np.bool_)
    fresh[1:] = items[order][1:] != items[order][:-1]
    run = np.cumsum(fresh) - 1
    so_far = np.empty((2, len(order)), dtype=np.int64)
    for row, mask in enumerate((new, ~new)):
        summed = np.cumsum(mask[order])
        before: NDArray[np.int64] = (summed - mask[order])[np.flatnonzero(fresh)]
        so_far[row, order] = summed - before[run]
    allowed = BORNE_OUT_TIMES * by_newcomers * so_far[1] + BORNE_OUT_AT_LEAST
    return np.asarray(so_far[0] <= allowed)[new]
