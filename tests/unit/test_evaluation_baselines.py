"""The baselines of `freshrank evaluate` against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from evaluation_world import DAY, cases_of, events_of

from services.domain import BadRequest
from services.evaluation.baselines import Ease, ItemKnn, LastClick, Popularity, Trending, days_us
from services.evaluation.cases import Cases
from services.evaluation.tuning import choices_of, tuned
from services.training.baselines import item_similarity


def by_item(cases: Cases, scores: np.ndarray) -> dict[str, float]:
    return {i: round(float(s), 6) for i, s in zip(cases.train.item_ids, scores, strict=True) if s}


def test_windowed_popularity_counts_from_the_window_s_start_to_just_before_the_moment() -> None:
    events = events_of([("u1", "a", 0), ("u2", "a", 1 * DAY), ("u3", "b", 7 * DAY), ("u3", "c", 8 * DAY)])
    cases = cases_of(events, [("u9", "a", 8 * DAY), ("u9", "a", 9 * DAY)])
    scores = Popularity(days_us(7)).scores(cases, np.array([0, 1]))
    assert by_item(cases, scores[0]) == {"a": 1.0, "b": 1.0}  # [day 1, day 8): c is at the moment itself
    assert by_item(cases, scores[1]) == {"b": 1.0, "c": 1.0}
    assert by_item(cases, Popularity(None).scores(cases, np.array([0]))[0]) == {"a": 2.0, "b": 1.0, "c": 1.0}


def test_decayed_popularity_halves_an_event_with_every_half_life() -> None:
    events = events_of([("u1", "a", 0), ("u2", "a", 2 * DAY), ("u3", "b", 3 * DAY)])
    cases = cases_of(events, [("u9", "a", 3 * DAY), ("u9", "a", 4 * DAY)])
    scores = Trending(days_us(1)).scores(cases, np.array([0, 1]))
    assert by_item(cases, scores[0]) == {"a": 0.125 + 0.5}
    assert by_item(cases, scores[1]) == {"a": 0.0625 + 0.25, "b": 0.5}


def test_item_knn_adds_the_cosines_of_the_newest_items_of_the_history() -> None:
    # a: {1, 2}, b: {1, 2, 3}, c: {3, me}. cos(a, b) = 2 / sqrt(6), cos(b, c) = 1 / sqrt(6), cos(a, c) = 0.
    pairs = [("1", "a"), ("1", "b"), ("2", "a"), ("2", "b"), ("3", "b"), ("3", "c"), ("me", "c")]
    events = events_of([(user, item, at) for at, (user, item) in enumerate(pairs)])
    cases = cases_of(events, [("me", "a", 100), ("1", "a", 100)])
    whole = ItemKnn(item_similarity(events), newest=10).scores(cases, np.array([0, 1]))
    assert by_item(cases, whole[0]) == {"b": round(1 / 6**0.5, 6)}
    # The history of 1 is a, b: a from b, b from a, c from b.
    assert by_item(cases, whole[1]) == {"a": 0.816497, "b": 0.816497, "c": 0.408248}
    newest = ItemKnn(item_similarity(events), newest=1).scores(cases, np.array([1]))
    assert by_item(cases, newest[0]) == {"a": 0.816497, "c": 0.408248}


def test_item_knn_with_few_neighbours_keeps_the_nearest() -> None:
    pairs = [("1", "a"), ("1", "b"), ("2", "a"), ("2", "b"), ("3", "b"), ("3", "c"), ("me", "b")]
    events = events_of([(user, item, at) for at, (user, item) in enumerate(pairs)])
    cases = cases_of(events, [("me", "a", 100)])
    found = {}
    for given in ("1", "2"):
        ranker = choices_of("itemknn", given)[0].fit(events)
        found[given] = set(by_item(cases, ranker.scores(cases, np.array([0]))[0]))
    assert found == {"1": {"a"}, "2": {"a", "c"}}


def test_ease_is_the_closed_form_of_two_items_worked_out_by_hand() -> None:
    # Users {a, b}, {a, b}, {a}: XᵀX = [[3, 2], [2, 2]]; with λ = 1 [[4, 2], [2, 3]], determinant 8,
    # P = 1/8 [[3, -2], [-2, 4]]; B[i, j] = -P[i, j] / P[j, j]: B[a, b] = 2/4, B[b, a] = 2/3.
    events = events_of([("1", "a", 0), ("1", "b", 1), ("2", "a", 2), ("2", "b", 3), ("3", "a", 4), ("3", "a", 5)])
    cases = cases_of(events, [("1", "a", 1), ("1", "a", 100)])
    scores = Ease(events, 1.0).scores(cases, np.array([0, 1]))
    assert by_item(cases, scores[0]) == {"b": 0.5}  # by then 1 had taken a alone
    assert by_item(cases, scores[1]) == {"a": 0.666667, "b": 0.5}


def test_ease_beyond_its_bound_takes_the_items_with_most_users_and_says_what_it_left_out() -> None:
    events = events_of([("1", "a", 0), ("1", "b", 1), ("2", "b", 2), ("2", "c", 3), ("3", "b", 4), ("3", "c", 5)])
    bounded = Ease(events, 1.0, items_max=2)
    assert bounded.left_out == 1
    cases = cases_of(events, [("1", "a", 100)])
    # Of b and c: XᵀX + I = [[4, 2], [2, 3]], as above; 1 has a, which takes no part, and b.
    assert by_item(cases, bounded.scores(cases, np.array([0]))[0]) == {"c": 0.5}


def test_last_click_counts_who_stood_near_the_last_item_either_way_round() -> None:
    rows = [("1", "a", 0), ("1", "b", 1), ("1", "c", 2), ("2", "b", 3), ("2", "c", 4), ("3", "x", 5), ("3", "b", 6)]
    events = events_of(rows)
    cases = cases_of(events, [("3", "a", 100), ("9", "a", 100)])
    near = LastClick(cases.train, lags=1, half_life_us=math.inf).scores(cases, np.array([0, 1]))
    assert by_item(cases, near[0]) == {"a": 1.0, "c": 2.0, "x": 1.0}
    assert by_item(cases, near[1]) == {}  # a stranger has no last click
    two = LastClick(events, lags=2, half_life_us=math.inf).scores(cases_of(events, [("3", "a", 6)]), np.array([0]))
    assert by_item(cases, two[0]) == {"b": 1.0}  # before its last click, 3 had x alone


def test_last_click_decays_by_the_later_event_of_a_pair() -> None:
    events = events_of([("1", "a", 0), ("1", "b", 0), ("2", "a", DAY), ("2", "c", DAY), ("3", "a", DAY)])
    cases = cases_of(events, [("3", "a", 2 * DAY)])
    scores = LastClick(events, lags=1, half_life_us=DAY).scores(cases, np.array([0]))
    found = by_item(cases, scores[0])
    assert found["c"] == pytest.approx(2 * found["b"], rel=1e-5)


def test_what_is_not_given_is_chosen_on_the_training_events_alone() -> None:
    # Every day everybody takes the item of that day: a window of a day is right, all time is wrong.
    rows = [(f"u{n}", f"i{day:02d}", day * DAY + n + day) for day in range(20) for n in range(30)]
    events = events_of(rows)
    cases = cases_of(events, [(f"u{n}", "i19", 20 * DAY) for n in range(30)])
    found = tuned(cases, choices_of("popularity", None), "temporal", lambda *_: None, "")
    assert found.setting == "window 1d"
    assert tuned(cases, choices_of("popularity", "30d"), "temporal", lambda *_: None, "").setting == "window 30d"


@pytest.mark.parametrize(
    "spec", ["popularity:7", "popularity:0d", "trending:all", "itemknn:0", "ease:-1", "last-click:x"]
)
def test_a_setting_that_makes_no_sense_is_refused_in_a_sentence(spec: str) -> None:
    name, _, given = spec.partition(":")
    with pytest.raises(BadRequest, match=f"{spec}: what stands behind the colon is"):
        choices_of(name, given)
