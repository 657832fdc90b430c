"""Lists, metrics, parts and intervals of `freshrank evaluate` against numbers worked out by hand."""

from __future__ import annotations

from math import log2

import numpy as np
import pytest
from evaluation_world import cases_of, events_of

from models.metrics import MISSING
from services.evaluation.cases import Cases, Seen
from services.evaluation.intervals import by_user, mean_over_seeds, resampled
from services.evaluation.measures import Measures, PerCase, distances, entropies, gini, unpopular_weights
from services.evaluation.ranking import NOBODY, Board, Ranked

EVENTS = events_of([("u1", "c", 0), ("u2", "c", 1), ("u3", "b", 2), ("me", "d", 3)])


class Fixed:
    """The same scores of a, b, c, d, e for everybody."""

    def __init__(self, *scores: float) -> None:
        self.of = scores

    def scores(self, cases: Cases, places: np.ndarray) -> np.ndarray:
        return np.array([self.of] * len(places))


def lists(depth: int, seen: Seen, *scores: float) -> tuple[list[int], list[list[str]]]:
    cases = cases_of(EVENTS, [("me", "a", 9), ("me", "d", 9), ("new", "e", 9)], seen)
    ranked = Board(cases, depth).rank(Fixed(*scores), lambda *_: None, "")
    named = [[cases.train.item_ids[i] for i in row if i != NOBODY] for row in ranked.lists.tolist()]
    return ranked.places.tolist(), named


def test_the_whole_catalogue_is_ranked_without_what_the_user_has_had() -> None:
    places, named = lists(5, "drop", 1.0, 5.0, 4.0, 9.0, 3.0)
    assert named == [["b", "c", "e", "a"], ["b", "c", "e", "a"], ["d", "b", "c", "e", "a"]]
    assert places == [3, MISSING, 3]  # me has had d, so the second case cannot be met
    assert lists(5, "keep", 1.0, 5.0, 4.0, 9.0, 3.0)[0] == [4, 0, 3]


def test_equal_scores_go_by_popularity_and_then_by_id() -> None:
    # Clicks: c 2, b 1, d 1, a 0, e 0.
    assert lists(5, "keep", 1.0, 1.0, 1.0, 1.0, 1.0)[1][0] == ["c", "b", "d", "a", "e"]
    assert lists(3, "keep", 1.0, 0.0, 1.0, 1.0, 0.0)[1][0] == ["c", "d", "a"]
    assert lists(2, "drop", 0.0, 0.0, 0.0, 7.0, -1.0)[1] == [["c", "b"], ["c", "b"], ["d", "c"]]


def test_a_target_below_the_list_is_missing() -> None:
    assert lists(2, "keep", 1.0, 2.0, 3.0, 4.0, 5.0)[0] == [MISSING, 1, 0]


def test_metrics_of_places_worked_out_by_hand() -> None:
    cases = cases_of(EVENTS, [("me", "a", 9), ("u1", "b", 9), ("u2", "e", 9)])
    ranked = Ranked(np.array([0, 2, MISSING]), np.array([[0, 1, 2], [0, 2, 1], [0, 1, NOBODY]]))
    found = Measures(cases, np.zeros((5, 1), dtype=np.float32), [1, 3]).per_case(ranked)
    mean = {name: float(each.values.mean()) for name, each in found.items()}
    assert mean["hr@1"] == pytest.approx(1 / 3)
    assert mean["hr@3"] == pytest.approx(2 / 3)
    assert mean["ndcg@1"] == pytest.approx(1 / 3)
    assert mean["ndcg@3"] == pytest.approx((1 + 1 / log2(4)) / 3)
    assert mean["mrr"] == pytest.approx((1 + 1 / 3) / 3)
    assert "ild@3" not in found  # nothing is known to tell items apart by
    every = np.ones(3, dtype=np.bool_)
    # At 1: a three times of five items, all others never. At 2: a 3, b 2, c 1, d and e 0: the ten differences of two
    # sum to 1 + 2 + 3 + 3 + 1 + 2 + 2 + 1 + 1 + 0 = 16, and 16 / (5 items * 6 times shown) = 8 / 15.
    assert Measures(cases, np.zeros((5, 1), dtype=np.float32), [1, 2]).exposure(ranked, every) == {
        "coverage@1": 1 / 5, "gini@1": pytest.approx(4 / 5), "coverage@2": 3 / 5, "gini@2": pytest.approx(8 / 15),
    }  # fmt: skip


def test_the_entropy_of_a_list_is_that_of_its_categories_each_item_shared_out_over_its_own() -> None:
    # Items a {x}, b {y}, c {x, y}, d {}. [a, b]: half and half, 1 bit. [a, c]: x 3/4, y 1/4. [a]: 0. [d]: unknown.
    half = np.sqrt(0.5)
    described = np.array([[1, 0], [0, 1], [half, half], [0, 0]], dtype=np.float32)
    values, weights = entropies(described, np.array([[0, 1], [0, 2], [0, NOBODY], [3, NOBODY]]))
    assert values == pytest.approx([1.0, 0.75 * log2(4 / 3) + 0.25 * 2, 0.0, 0.0])
    assert weights.tolist() == [1.0, 1.0, 1.0, 0.0]


def test_where_all_are_shown_as_often_there_is_no_inequality() -> None:
    assert gini(np.array([2, 2, 2])) == pytest.approx(0.0)
    assert gini(np.zeros(3, dtype=np.int64)) == 0.0


def test_the_debiased_mean_shares_the_weight_of_targets_that_stand_out() -> None:
    # Items are targets of 8, 1, 1, 1 cases: Q1 = 1, Q3 = 2.75, so at most 2.75 + 1.5 * 1.75 = 5.375 cases count.
    targets = np.array([0] * 8 + [1, 2, 3])
    weights = unpopular_weights(targets, np.ones(11, dtype=np.bool_))
    assert weights[:8] == pytest.approx([5.375 / 8] * 8)
    assert weights[8:].tolist() == [1.0, 1.0, 1.0]


def test_the_distance_within_a_list_is_the_mean_over_its_pairs_of_described_items() -> None:
    half = 0.5**0.5
    described = np.array([[1, 0], [1, 0], [half, half], [0, 1], [0, 0]], dtype=np.float32)
    values, weights = distances(described, np.array([[0, 1, NOBODY], [0, 2, 3], [0, 4, NOBODY]]))
    # [0, 2, 3]: pairs 1 - √½, 1, 1 - √½. The last list has one described item: it says nothing.
    assert values.tolist() == pytest.approx([0.0, (3 - 2 * half) / 3, 0.0], abs=1e-6)
    assert weights.tolist() == [1.0, 1.0, 0.0]


def test_parts_by_what_was_known_of_target_and_user() -> None:
    rows = [("old", item, at) for at, item in enumerate("abcde")] + [("young", "a", 5)]
    cases = cases_of(events_of(rows), [("old", "a", 9), ("young", "n", 9), ("new", "b", 9)])
    judged = np.array([True, True, False])
    cases = Cases(cases.train, cases.users, cases.targets, cases.until_us, cases.history, judged, "drop")
    parts = Measures(cases, np.zeros((6, 1), dtype=np.float32), [10]).parts()
    assert {name: mask.tolist() for name, mask in parts.items()} == {
        "all": [True, True, False], "warm items": [True, False, False], "cold items": [False, True, False],
        "warm users": [True, False, False], "cold users": [False, True, True],
    }  # fmt: skip


def of(values: list[float], weights: list[float] | None = None) -> PerCase:
    return PerCase(np.array(values), np.array(weights or [1.0] * len(values)))


def test_the_interval_of_a_mean_is_that_of_the_normal_law_for_many_cases() -> None:
    # 1,000 cases, half of them 1: the standard error is sqrt(.25 / 1000) = .0158, so 95 % lie within .031.
    found = resampled([of([0.0, 1.0] * 500)])[0].interval()
    assert found.value == 0.5
    assert found.low == pytest.approx(0.469, abs=0.005)
    assert found.high == pytest.approx(0.531, abs=0.005)


def test_a_difference_is_paired_so_a_small_steady_gain_is_sure() -> None:
    noisy = np.random.default_rng(2).random(500)
    above, here, turned = resampled([of((noisy + 0.01).tolist()), of(noisy.tolist()), of(noisy[::-1].tolist())])
    steady = above.less(here)
    assert (steady.low, steady.high) == (pytest.approx(0.01), pytest.approx(0.01))
    none = here.less(turned)
    assert none.low < 0.0 < none.high


def test_weights_count_in_means_and_intervals() -> None:
    found = resampled([of([1.0, 0.0, 0.0, 0.0], [3.0, 1.0, 0.0, 0.0])])[0].interval()
    assert found.value == 0.75
    assert (found.low, found.high) == (0.0, 1.0)


def test_the_mean_over_seeds_is_taken_case_by_case() -> None:
    assert mean_over_seeds([of([1.0, 0.0]), of([0.0, 0.0])]).values.tolist() == [0.5, 0.0]
    mixed = mean_over_seeds([of([0.4], [1.0]), of([0.0], [0.0])])
    assert (mixed.values.tolist(), mixed.weights.tolist()) == ([0.4], [0.5])


def test_a_resample_draws_users_with_all_their_cases() -> None:
    # Two users: one with three cases of 1, one with a case of 0. By case the mean is 3/4, by user all or nothing can be
    # drawn: both of the first (1), both of the second (0), one of each (3/4).
    by_case, users = of([1.0, 1.0, 1.0, 0.0]), np.array([4, 4, 4, 9])
    found = resampled([by_user(by_case, users)])[0]
    assert found.value == 0.75
    assert set(found.means.tolist()) == {0.0, 0.75, 1.0}
    weighted = by_user(of([1.0, 0.0, 0.5], [1.0, 3.0, 2.0]), np.array([2, 2, 1]))
    assert (weighted.values.tolist(), weighted.weights.tolist()) == ([0.5, 0.25], [2.0, 4.0])
