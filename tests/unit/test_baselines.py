"""The baselines against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from services.domain import DAY_US, HOUR_US, KindRule, KindRules
from services.training.baselines import item_similarity, knn_scores, place_of, windowed_popularity
from services.training.columns import columns_of_rows

RULES = KindRules({"click": KindRule("positive"), "hide": KindRule("negative")})
END = 1_700_000_000_000_000 // HOUR_US * HOUR_US


def test_popularity_counts_positive_events_inside_the_window_only() -> None:
    rows = [
        ("u1", "a", "click", END - 7 * DAY_US - 1, None),  # a microsecond too old
        ("u1", "b", "click", END - 7 * DAY_US, None),  # just inside
        ("u2", "a", "click", END - HOUR_US, None),
        ("u3", "b", "click", END - HOUR_US, None),
        ("u3", "c", "hide", END - 1, None),  # not positive
        ("u4", "c", "click", END, None),  # not before the end
    ]
    events = columns_of_rows(rows, RULES)
    counts = dict(zip(events.item_ids, windowed_popularity(events, END, 7 * DAY_US).tolist(), strict=True))
    assert counts == {"a": 1.0, "b": 2.0, "c": 0.0}


def test_item_knn_is_the_cosine_of_the_sets_of_users() -> None:
    # a: {1, 2}, b: {1, 2, 3}, c: {3}. cos(a, b) = 2 / sqrt(6), cos(b, c) = 1 / sqrt(3), cos(a, c) = 0.
    pairs = [("1", "a"), ("1", "b"), ("2", "a"), ("2", "b"), ("3", "b"), ("3", "c"), ("3", "c")]
    events = columns_of_rows([(u, i, "click", END + n, None) for n, (u, i) in enumerate(pairs)], RULES)
    code = {item_id: number for number, item_id in enumerate(events.item_ids)}
    similarity = item_similarity(events)
    assert knn_scores(similarity, np.array([code["a"]]))[code["b"]] == pytest.approx(2 / 6**0.5)
    scores = knn_scores(similarity, np.array([code["a"], code["c"], code["c"]]))
    assert scores[code["b"]] == pytest.approx(2 / 6**0.5 + 1 / 3**0.5)
    assert scores[code["a"]] == 0.0


def test_item_knn_keeps_the_nearest_neighbours_of_each_item() -> None:
    pairs = [("1", "a"), ("1", "b"), ("2", "a"), ("2", "b"), ("3", "b"), ("3", "c")]
    events = columns_of_rows([(u, i, "click", END + n, None) for n, (u, i) in enumerate(pairs)], RULES)
    code = {item_id: number for number, item_id in enumerate(events.item_ids)}
    kept = item_similarity(events, neighbours_max=1)
    scores = knn_scores(kept, np.array([code["b"]]))
    assert scores[code["a"]] > 0.0
    assert scores[code["c"]] == 0.0


def test_a_place_leaves_out_what_is_hidden_and_loses_ties_to_lower_codes() -> None:
    scores = np.array([3.0, 2.0, 2.0, 5.0, 1.0])
    nobody = np.zeros(0, dtype=np.int64)
    assert place_of(scores, 3, nobody) == 0
    assert place_of(scores, 2, nobody) == 3
    assert place_of(scores, 2, np.array([3, 0])) == 1
    assert place_of(scores, 4, np.array([0, 1, 2, 3])) == 0
