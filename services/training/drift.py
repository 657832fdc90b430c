"""How fast what is liked passes: read from the events themselves, so that nobody has to say it for their data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.domain import DAY_US
from services.training.columns import EventColumns

FOREVER_DAYS = 1e6
"""A half-life this long weighs all events of any log alike."""
HALF_LIVES_DAYS = (1.0, 3.0, 7.0, 15.0, 30.0, 60.0, 120.0, 365.0, FOREVER_DAYS)
TARGETS_PER_POPULARITY = 2.0
"""A tower may learn from targets this many times older than the clicks that tell what is popular: taste passes slower
than what is on. On film ratings popularity is likeliest with a half-life of 7 days, the tower best with 15."""
LEAST_DAYS = 15.0
ASKED_MAX = 5000
STEPS = 40
SMOOTHING = 0.05
"""The share of a popularity that is spread evenly, so that an item that nobody took lately is not impossible."""


def target_half_life_days(events: EventColumns) -> float:
    """The half-life by which targets should lose weight: TARGETS_PER_POPULARITY times that of the decayed popularity
    under which the newest tenth of the positive events is likeliest, at least LEAST_DAYS; FOREVER_DAYS where age says
    nothing."""
    best = popularity_half_life_days(events)
    return best if best == FOREVER_DAYS else max(LEAST_DAYS, TARGETS_PER_POPULARITY * best)


def popularity_half_life_days(events: EventColumns) -> float:
    """Of HALF_LIVES_DAYS the one whose decayed popularity makes the newest tenth of the positive events likeliest, each
    by what came before its STEPS-th of that time. The longest of equals."""
    liked = events.keep(events.positive)
    if len(liked) < 2:
        return FOREVER_DAYS
    first = int(len(liked) * 0.9)
    asked = np.unique(np.linspace(first, len(liked) - 1, min(ASKED_MAX, len(liked) - first)).astype(np.int64))
    found = [(_likelihood(liked, asked, days), days) for days in HALF_LIVES_DAYS]
    return max(found)[1]


def _likelihood(liked: EventColumns, asked: NDArray[np.int64], half_life_days: float) -> float:
    """The mean log chance of the events at `asked` under decayed popularity as of the step before each."""
    items, times = liked.item_codes, liked.occurred_us
    counts = np.zeros(len(liked.item_ids))
    done, as_of_us, total = 0, int(times[0]), 0.0
    for step in np.array_split(asked, min(STEPS, len(asked))):
        until = int(step[0])
        now_us = int(times[until])
        counts *= np.exp2(-(now_us - as_of_us) / DAY_US / half_life_days)
        age_days = (now_us - times[done:until]) / DAY_US
        counts += np.bincount(items[done:until], np.exp2(-age_days / half_life_days), minlength=len(counts))
        done, as_of_us = until, now_us
        share = (1 - SMOOTHING) * counts[items[step]] / max(counts.sum(), 1e-12) + SMOOTHING / len(counts)
        total += float(np.log(share).sum())
    return total / len(asked)
