"""The ranking features, each against a value worked out by hand; and that knowledge from the future cannot enter."""

from __future__ import annotations

import numpy as np
import pytest

from services.domain import DAY_US, HOUR_US, SECOND_US
from services.signals import (
    CATEGORIES_MAX,
    COUNTS_WIDTH,
    CROSS_FEATURES,
    ITEM_FEATURES,
    RANKING_FEATURES,
    USER_FEATURES,
    HistoryBlock,
    ItemBlock,
    category_interest,
    click_rate,
    cross_features,
    decayed,
    decayed_column,
    item_features,
    ranking_features,
    session_length,
    user_features,
)

NOW = 20_000 * DAY_US


def categories(*rows: tuple[int, ...]) -> np.ndarray:
    return np.array([[*row, *[0] * (CATEGORIES_MAX - len(row))] for row in rows], dtype=np.int32).reshape(
        -1, CATEGORIES_MAX
    )


def history(*events: tuple[int, int, float, tuple[int, ...]]) -> HistoryBlock:
    """Events as (item hash, age in µs, weight, categories), newest first."""
    return HistoryBlock(
        np.array([e[0] for e in events], dtype=np.int64),
        np.array([NOW - e[1] for e in events], dtype=np.int64),
        np.array([e[2] for e in events], dtype=np.float32),
        categories(*[e[3] for e in events]),
    )


def block(hashes: list[int], counts: np.ndarray | None = None, at_us: int = NOW, published_us: int = 0) -> ItemBlock:
    size = len(hashes)
    return ItemBlock(
        np.array(hashes, dtype=np.int64),
        np.zeros((size, COUNTS_WIDTH), np.float32) if counts is None else counts,
        np.full(size, at_us, np.int64),
        np.full(size, published_us, np.int64),
        categories(*[(1,)] * size),
    )


def test_counts_halve_after_their_half_life_and_never_grow() -> None:
    counts = np.full((2, COUNTS_WIDTH), 8.0, dtype=np.float32)
    at_us = np.array([NOW - DAY_US, NOW + DAY_US], dtype=np.int64)
    got = decayed(counts, at_us, NOW)
    # one day: 24 half-lives of 1 h, one of 24 h, a seventh of 7 d
    assert got[0, :3] == pytest.approx([8 / 2**24, 4.0, 8 * 2 ** (-1 / 7)], rel=1e-5)
    assert got[1].tolist() == [8.0] * COUNTS_WIDTH


def test_a_click_rate_starts_at_its_prior_and_stays_below_one_without_impressions() -> None:
    clicks, shown = np.array([0, 9, 100], np.float32), np.array([0, 180, 0], np.float32)
    assert click_rate(clicks, shown).tolist() == pytest.approx([1 / 20, 10 / 200, 101 / 120])


def test_a_session_ends_at_a_gap_of_half_an_hour() -> None:
    minutes = [1, 5, 20, 60, 61]
    occurred = np.array([NOW - m * 60 * SECOND_US for m in minutes], dtype=np.int64)
    assert session_length(occurred, NOW) == 3
    assert session_length(occurred, NOW + HOUR_US) == 0


def test_user_features_count_positives_per_window() -> None:
    features = dict(
        zip(
            USER_FEATURES,
            user_features(
                history((1, 30 * 60 * SECOND_US, 1, ()), (2, 2 * HOUR_US, -1, ()), (3, 3 * DAY_US, 1, ())), NOW
            ),
            strict=True,
        )
    )
    assert features["user_positive_1h"] == pytest.approx(np.log1p(1))
    assert features["user_positive_24h"] == pytest.approx(np.log1p(1))
    assert features["user_positive_7d"] == pytest.approx(np.log1p(2))
    assert features["user_negative_share"] == pytest.approx(1 / 3)
    assert features["user_hours_since_last"] == pytest.approx(np.log1p(0.5))
    assert features["user_session_length"] == pytest.approx(np.log1p(1))
    assert features["user_is_stranger"] == 0


def test_a_stranger_has_only_the_flag() -> None:
    assert user_features(history(), NOW).tolist() == [0, 0, 0, 0, 0, 0, 0, 1]
    assert not cross_features(history(), block([1, 2]), NOW).any()


def test_item_features_know_an_unknown_age() -> None:
    known = dict(zip(ITEM_FEATURES, item_features(block([1], published_us=NOW - 3 * DAY_US), NOW)[0], strict=True))
    unknown = dict(zip(ITEM_FEATURES, item_features(block([1]), NOW)[0], strict=True))
    assert known["item_age_days"] == pytest.approx(np.log1p(3))
    assert (known["item_age_is_unknown"], unknown["item_age_is_unknown"], unknown["item_age_days"]) == (0, 1, 0)


def test_category_interest_is_the_decayed_share_of_likes_and_dislikes() -> None:
    mine = history((1, 0, 1, (1,)), (2, 30 * DAY_US, -2, (2, 3)))
    liked, disliked = category_interest(mine, categories((4,)), NOW)
    # strengths: 1 and -2 halved = -1, so each side holds half of the total
    assert liked.tolist() == pytest.approx([0, 0.5, 0, 0, 0])
    assert disliked.tolist() == pytest.approx([0, 0, 0.5, 0.5, 0])


def test_cross_features_count_the_candidate_in_the_history() -> None:
    mine = history((7, HOUR_US, 1, (1,)), (7, 3 * HOUR_US, 1, (1,)), (8, 4 * HOUR_US, 1, (2,)))
    got = cross_features(mine, block([7, 9]), NOW)
    names = dict(zip(CROSS_FEATURES, got[0], strict=True))
    assert names["item_times_in_history"] == pytest.approx(np.log1p(2))
    assert names["item_hours_since_in_history"] == pytest.approx(np.log1p(1))
    assert names["category_overlap_newest"] == 1
    assert got[1, 3:].tolist() == [0, 0]


def test_the_numbering_of_categories_does_not_matter() -> None:
    one = ranking_features(history((1, 0, 1, (1,)), (2, 0, 1, (2,))), block([5]), NOW)
    renumbered = block([5])
    renumbered.categories[renumbered.categories == 1] = 9
    other = ranking_features(history((1, 0, 1, (9,)), (2, 0, 1, (4,))), renumbered, NOW)
    assert one.tolist() == other.tolist()


def test_every_feature_is_finite_and_named() -> None:
    counts = np.random.default_rng(0).uniform(0, 1e6, (3, COUNTS_WIDTH)).astype(np.float32)
    got = ranking_features(history((1, -HOUR_US, 1, (1, 2))), block([1, 2, 3], counts, NOW - DAY_US, NOW + DAY_US), NOW)
    assert got.shape == (3, len(RANKING_FEATURES))
    assert got.dtype == np.float32
    assert np.isfinite(got).all()


def test_one_column_decays_as_it_does_beside_the_others() -> None:
    rng = np.random.default_rng(1)
    counts = rng.random((5, COUNTS_WIDTH)).astype(np.float32) * 100
    at_us = rng.integers(0, 10 * DAY_US, 5)
    for column in range(COUNTS_WIDTH):
        alone = decayed_column(counts, at_us, 5 * DAY_US, column)
        assert alone.tolist() == decayed(counts, at_us, 5 * DAY_US)[:, column].tolist()
