"""Metrics of shown lists against numbers worked out by hand."""

from __future__ import annotations

from math import log2

import numpy as np
import pytest

from models.metrics import calibration_error
from services.evaluation.clicks import auc, best_threshold, over_rows, per_list


def clicks(*flags: int) -> np.ndarray:
    return np.array(flags, dtype=np.bool_)


def test_auc_counts_pairs_and_ties_half() -> None:
    # Clicked .9 and .4, not .5, .4, .1: .9 wins 3; .4 wins 1, ties 1: 4.5 of 6.
    scores = np.array([0.9, 0.4, 0.5, 0.4, 0.1])
    assert auc(scores, clicks(1, 1, 0, 0, 0), np.ones(5)) == pytest.approx(4.5 / 6)
    # A row that counts twice is two rows: with .5 twice, .9 wins 4, .4 wins 1 and ties 1: 5.5 of 8.
    assert auc(scores, clicks(1, 1, 0, 0, 0), np.array([1.0, 1, 2, 1, 1])) == pytest.approx(5.5 / 8)
    assert auc(scores, clicks(1, 1, 1, 1, 1), np.ones(5)) == 0.5


def test_group_auc_mrr_and_ndcg_are_means_over_lists_with_a_click() -> None:
    scores = np.array([3.0, 2.0, 1.0, 1.0, 2.0, 5.0])
    found = per_list(scores, clicks(0, 1, 1, 1, 0, 0), np.array([0, 3, 5, 6]))
    # First list: places 2 and 3 clicked. Second: place 2 of 2. The third has no click and says nothing.
    assert found["gauc"].values.tolist() == [0.0, 0.0, 0.0]
    assert found["gauc"].weights.tolist() == [1.0, 1.0, 0.0]
    assert found["mrr"].values.tolist() == pytest.approx([(1 / 2 + 1 / 3) / 2, 1 / 2, 0.0])
    first = (1 / log2(3) + 1 / log2(4)) / (1 + 1 / log2(3))
    assert found["ndcg@5"].values.tolist() == pytest.approx([first, 1 / log2(3), 0.0])
    assert found["ndcg@10"].weights.tolist() == [1.0, 1.0, 0.0]


def test_a_list_of_one_item_says_nothing_about_ranking() -> None:
    assert per_list(np.array([1.0, 2.0]), clicks(1, 0), np.array([0, 1, 2])) == {}


def test_ndcg_ends_at_its_depth() -> None:
    scores = -np.arange(7, dtype=np.float64)
    found = per_list(scores, clicks(0, 0, 0, 0, 0, 1, 0), np.array([0, 7]))
    assert found["ndcg@5"].values.tolist() == [0.0]
    assert found["ndcg@10"].values.tolist() == pytest.approx([1 / log2(7)])


def test_equal_scores_share_their_places_so_that_a_constant_never_flatters() -> None:
    for at in range(3):
        found = per_list(np.zeros(3), clicks(*(int(n == at) for n in range(3))), np.array([0, 3]))
        assert found["mrr"].values.tolist() == pytest.approx([(1 + 1 / 2 + 1 / 3) / 3])
        assert found["gauc"].values.tolist() == [0.5]


def test_the_calibration_error_is_the_mean_gap_of_the_bins() -> None:
    # 30 rows, 15 bins of two: all say .5; the bins' click rates are 1, 0 and 0.5 in turn: gaps .5, .5, 0.
    clicked = clicks(*([1, 1, 0, 0, 1, 0] * 5))
    assert calibration_error(np.full(30, 0.5), clicked, np.ones(30)) == pytest.approx(1 / 3)


def test_the_best_threshold_is_that_of_the_best_f1() -> None:
    # From .6 on: 3 called, 2 right of 2 clicks: precision 2/3, recall 1, F1 .8; from .9 on F1 is 2/3.
    found = best_threshold(np.array([0.9, 0.8, 0.6, 0.1, 0.1]), clicks(1, 0, 1, 0, 0), np.ones(5))
    assert found == {
        "accuracy": pytest.approx(4 / 5), "precision": pytest.approx(2 / 3), "recall": 1.0, "f1": pytest.approx(0.8),
    }  # fmt: skip
    # .1 stands three times: all of them are called clicks, or none.
    tied = best_threshold(np.array([0.1, 0.1, 0.1]), clicks(1, 0, 0), np.ones(3))
    assert (tied["precision"], tied["recall"], tied["f1"]) == (pytest.approx(1 / 3), 1.0, pytest.approx(0.5))


def test_chances_are_judged_by_what_they_promise() -> None:
    clicked = clicks(1, 0, 0, 0)
    found = over_rows(np.array([2.0, 1.0, 0.0, -1.0]), np.full(4, 0.5), clicked, np.array([0, 0, 1, 1]))
    assert found["auc"].value == 1.0
    assert found["pcoc"].value == 2.0  # 4 halves promised, 1 click came
    assert found["brier"].value == 0.25
    assert found["auc"].interval().low <= 1.0
    assert "pcoc" not in over_rows(np.array([2.0, 1.0, 0.0, -1.0]), None, clicked, np.array([0, 0, 1, 1]))


def test_an_interval_draws_users_with_all_that_they_were_shown() -> None:
    # Of ann's lists the clicked item always stands first, of bob's never: by users any mean from 0 to 1 is possible.
    scores, users = np.tile([1.0, 0.0], 100), np.repeat([7, 9], 100)
    clicked = np.concatenate([np.tile([True, False], 50), np.tile([False, True], 50)])
    found = over_rows(scores, None, clicked, users)["auc"]
    assert found.value == 0.5
    assert (found.interval().low, found.interval().high) == (0.0, 1.0)
