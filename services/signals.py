"""Every ranking feature as one pure function of (user row, now, item knowledge), for server and trainer alike.

Shapes: C candidates, H history events, K categories an item can have (padded with 0, which is no category).
Only numpy here; no clock, no store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.domain import DAY_US, HOUR_US, SECOND_US, UserState

HALF_LIVES_US = (HOUR_US, DAY_US, 7 * DAY_US)
COUNTERS = ("impressions", "clicks", "conversions")
COUNTS_WIDTH = len(COUNTERS) * len(HALF_LIVES_US)
"""Width of a row of counts: impressions over 1 h, 24 h, 7 d, then clicks over the three, then conversions."""

SESSION_GAP_US = 30 * 60 * SECOND_US
CATEGORIES_MAX = 6
CATEGORY_HALF_LIFE_US = 30 * DAY_US

USER_FEATURES = (
    "user_positive_1h",
    "user_positive_24h",
    "user_positive_7d",
    "user_history_length",
    "user_negative_share",
    "user_hours_since_last",
    "user_session_length",
    "user_is_stranger",
)
ITEM_FEATURES = (
    "item_clicks_1h",
    "item_clicks_24h",
    "item_clicks_7d",
    "item_impressions_24h",
    "item_conversions_7d",
    "item_click_rate_24h",
    "item_click_rate_7d",
    "item_click_trend",
    "item_age_days",
    "item_age_is_unknown",
)
CROSS_FEATURES = (
    "category_liked",
    "category_disliked",
    "category_overlap_newest",
    "item_times_in_history",
    "item_hours_since_in_history",
)
RANKING_FEATURES = USER_FEATURES + ITEM_FEATURES + CROSS_FEATURES
"""What the feature store knows: joined again at a row's and a table's time they are the same."""

SOURCE_FEATURES = ("taken_together",)
MODEL_FEATURES = RANKING_FEATURES + SOURCE_FEATURES
"""What a reranker is given: besides, how strongly co-visits of the user's newest items lead to a candidate. Co-visits
of a past moment are not kept, so training works them out from the events before it, and parity leaves them out."""

TOGETHER_STARTS = 10
"""How many of the newest positive items of a history lead to co-visits."""
TOGETHER_PER_START = 25
"""How many of the strongest co-visits of each are looked at."""

CLICK_RATE_PRIOR = (1.0, 20.0)
"""Beta prior of a click rate, as clicks and impressions: one click in twenty shown, until counts say otherwise."""


@dataclass(frozen=True, slots=True)
class ItemBlock:
    """What is known of C candidates, as parallel arrays.

    `counts` float32 [C, COUNTS_WIDTH], decayed to `counts_at_us` int64 [C] (0: never counted);
    `published_us` int64 [C] (0: unknown); `categories` int32 [C, K]; `item_hash` int64 [C], hash64 of the ids.
    The numbering of categories is the caller's; 0 is none; it must be the one of the history's categories too.
    `as_of` and `as_of_us` say what the table knew that it came from: its newest change, and when its newest counts were
    written.
    """

    item_hash: NDArray[np.int64]
    counts: NDArray[np.float32]
    counts_at_us: NDArray[np.int64]
    published_us: NDArray[np.int64]
    categories: NDArray[np.int32]
    as_of: int = 0
    as_of_us: int = 0


@dataclass(frozen=True, slots=True)
class HistoryBlock:
    """A user's row as arrays, newest first: `item_hash`, `occurred_us` int64 [H], `weight` float32 [H],
    `categories` int32 [H, K]."""

    item_hash: NDArray[np.int64]
    occurred_us: NDArray[np.int64]
    weight: NDArray[np.float32]
    categories: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class UserRows:
    """R user rows in columns, as a point-in-time join returns them; row r holds the events `offsets[r]:offsets[r + 1]`,
    newest first. A stranger's row is empty with `row_time_us` 0.

    `offsets` int64 [R + 1], `row_time_us` int64 [R]; per event: `item_codes` int32 into `item_ids`, `kind_codes` int16
    into `kinds`, `occurred_us` int64, `weight` float32.
    """

    offsets: NDArray[np.int64]
    row_time_us: NDArray[np.int64]
    item_codes: NDArray[np.int32]
    item_ids: tuple[str, ...]
    kind_codes: NDArray[np.int16]
    kinds: tuple[str, ...]
    occurred_us: NDArray[np.int64]
    weight: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Known:
    """What scores were worked out from: the state of the item knowledge, and the features of each candidate in the
    order scored, `width` float32 little-endian each; none where nobody will record them."""

    items_as_of: int
    items_as_of_us: int
    features: bytes = b""
    width: int = 0

    def features_of(self, places: Sequence[int]) -> bytes:
        """The features of some candidates, by their place in the order scored."""
        size = 4 * self.width
        return b"".join(self.features[place * size : (place + 1) * size] for place in places)


@dataclass(frozen=True, slots=True)
class Scores:
    """As many scores as candidates, in their order. `known` is None for a scorer that reads no features."""

    values: Sequence[float]
    known: Known | None = None


def decayed(counts: NDArray[np.float32], at_us: NDArray[np.int64], now_us: int) -> NDArray[np.float32]:
    """Counts [C, COUNTS_WIDTH] decayed from each row's `at_us` to `now_us`; a future stamp counts as now."""
    age_us = np.maximum(now_us - at_us, 0).astype(np.float64)[:, None]
    half_lives = np.tile(np.asarray(HALF_LIVES_US, dtype=np.float64), len(COUNTERS))[None, :]
    return (counts * np.exp2(-age_us / half_lives)).astype(np.float32)


def decayed_column(
    counts: NDArray[np.float32], at_us: NDArray[np.int64], now_us: int, column: int
) -> NDArray[np.float32]:
    """One column of what `decayed` gives, at a ninth of its cost. [C]"""
    age_us = np.maximum(now_us - at_us, 0).astype(np.float64)
    half_life_us = HALF_LIVES_US[column % len(HALF_LIVES_US)]
    return (counts[:, column] * np.exp2(-age_us / half_life_us)).astype(np.float32)


def click_rate(clicks: NDArray[np.float32], impressions: NDArray[np.float32]) -> NDArray[np.float32]:
    """Smoothed click rate; clicks without recorded impressions count as one impression each, so it stays below 1."""
    shown = np.maximum(impressions, clicks)
    rate = (clicks + CLICK_RATE_PRIOR[0]) / (shown + CLICK_RATE_PRIOR[1])
    return rate.astype(np.float32, copy=False)


def user_features(history: HistoryBlock, now_us: int) -> NDArray[np.float32]:
    """The USER_FEATURES of one user at `now_us`, [len(USER_FEATURES)]."""
    length = len(history.occurred_us)
    if length == 0:
        return np.array([0, 0, 0, 0, 0, 0, 0, 1], dtype=np.float32)
    age_us = np.maximum(now_us - history.occurred_us, 0)
    positive = history.weight > 0
    in_window = [float(np.count_nonzero(positive & (age_us <= window))) for window in HALF_LIVES_US]
    return np.array(
        [
            *(np.log1p(count) for count in in_window),
            np.log1p(length),
            1.0 - positive.mean(),
            np.log1p(age_us[0] / HOUR_US),
            np.log1p(session_length(history.occurred_us, now_us)),
            0.0,
        ],
        dtype=np.float32,
    )


def session_length(occurred_us: NDArray[np.int64], now_us: int) -> int:
    """Events of the running session (newest first): 0 when the newest is more than SESSION_GAP_US ago."""
    gaps = np.diff(np.concatenate(([now_us], occurred_us)))
    broken = np.flatnonzero(-gaps > SESSION_GAP_US)
    return int(broken[0]) if len(broken) else len(occurred_us)


def item_features(items: ItemBlock, now_us: int) -> NDArray[np.float32]:
    """The ITEM_FEATURES of C candidates at `now_us`, [C, len(ITEM_FEATURES)]."""
    counts = decayed(items.counts, items.counts_at_us, now_us)
    _, shown_24h, shown_7d, clicks_1h, clicks_24h, clicks_7d, _, _, bought_7d = counts.T
    unknown = items.published_us == 0
    age_days = np.maximum(now_us - items.published_us, 0) / DAY_US
    return np.stack(
        [
            np.log1p(clicks_1h),
            np.log1p(clicks_24h),
            np.log1p(clicks_7d),
            np.log1p(shown_24h),
            np.log1p(bought_7d),
            click_rate(clicks_24h, shown_24h),
            click_rate(clicks_7d, shown_7d),
            (clicks_24h + 0.1) / (clicks_7d + 1.0),
            np.where(unknown, 0.0, np.log1p(age_days)),
            unknown,
        ],
        axis=1,
    ).astype(np.float32)


def cross_features(history: HistoryBlock, items: ItemBlock, now_us: int) -> NDArray[np.float32]:
    """The CROSS_FEATURES of one user with C candidates at `now_us`, [C, len(CROSS_FEATURES)]."""
    crossed = np.zeros((len(items.item_hash), len(CROSS_FEATURES)), dtype=np.float32)
    if len(history.item_hash) == 0:
        return crossed
    liked, disliked = category_interest(history, items.categories, now_us)
    crossed[:, 0] = _summed(liked, items.categories)
    crossed[:, 1] = _summed(disliked, items.categories)
    newest = np.zeros_like(liked)
    newest[history.categories[0]] = 1.0
    newest[0] = 0.0
    crossed[:, 2] = _summed(newest, items.categories)
    same = items.item_hash[:, None] == history.item_hash[None, :]  # [C, H]
    times = same.sum(axis=1)
    last_us = np.where(same, history.occurred_us[None, :], 0).max(axis=1)
    crossed[:, 3] = np.log1p(times)
    crossed[:, 4] = np.where(times > 0, np.log1p(np.maximum(now_us - last_us, 0) / HOUR_US), 0.0)
    return crossed


def category_interest(
    history: HistoryBlock, categories: NDArray[np.int32], now_us: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Liked and disliked share of each category number, decayed by CATEGORY_HALF_LIFE_US; category 0 stays 0."""
    width = int(max(history.categories.max(initial=0), categories.max(initial=0))) + 1
    age_us = np.maximum(now_us - history.occurred_us, 0)
    strength = history.weight * np.exp2(-age_us / CATEGORY_HALF_LIFE_US)
    total = float(np.abs(strength).sum()) or 1.0
    sides = []
    for side in (np.maximum(strength, 0), np.maximum(-strength, 0)):
        per_place = np.repeat(side / total, history.categories.shape[1])
        interest = np.bincount(history.categories.ravel(), weights=per_place, minlength=width)
        interest[0] = 0.0
        sides.append(interest.astype(np.float32))
    return sides[0], sides[1]


def ranking_features(history: HistoryBlock, items: ItemBlock, now_us: int) -> NDArray[np.float32]:
    """All RANKING_FEATURES of one user with C candidates at `now_us`, float32 [C, len(RANKING_FEATURES)]."""
    found: NDArray[np.float32] = ranking_features_of([history], items, now_us)[0]
    return found


def ranking_features_of(histories: Sequence[HistoryBlock], items: ItemBlock, now_us: int) -> NDArray[np.float32]:
    """`ranking_features` of B histories with the same candidates; what the items alone say is worked out once.
    float32 [B, C, len(RANKING_FEATURES)]"""
    shape = len(items.item_hash), len(USER_FEATURES)
    of_items = item_features(items, now_us)
    found = [
        (np.broadcast_to(user_features(each, now_us), shape), of_items, cross_features(each, items, now_us))
        for each in histories
    ]
    return np.stack([np.concatenate(parts, axis=1) for parts in found])


def model_features(known: NDArray[np.float32], together: NDArray[np.float32]) -> NDArray[np.float32]:
    """The MODEL_FEATURES of candidates from their RANKING_FEATURES [..., F] and the strength that co-visits lead to
    them with [...]; its square root, because the weak ones differ most."""
    return np.concatenate([known, np.sqrt(together)[..., None]], axis=-1).astype(np.float32, copy=False)


def history_arrays(user: UserState) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """`occurred_us` int64 [H] and `weight` float32 [H] of a row, newest first."""
    occurred = np.fromiter((each.occurred_us for each in user.events), dtype=np.int64, count=len(user.events))
    weight = np.fromiter((each.weight for each in user.events), dtype=np.float32, count=len(user.events))
    return occurred, weight


def _summed(interest: NDArray[np.float32], categories: NDArray[np.int32]) -> NDArray[np.float32]:
    summed: NDArray[np.float32] = interest[categories].sum(axis=1)
    return summed
