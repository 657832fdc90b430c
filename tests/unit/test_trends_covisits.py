"""Items seen together: pairs, bounds and cosines, with numbers worked out by hand."""

from __future__ import annotations

import pytest

from services.domain import DAY_US
from services.trends.covisits import EPOCH_US, RECENT_MAX, Pairs, Recent, Row, Users, merged, similar


def test_a_user_pairs_a_new_item_with_the_five_before_it() -> None:
    users = Users()
    for place, item_id in enumerate("abcdefg"):
        others = users.met("u", item_id, place)
    assert others == (("f", 5), ("e", 4), ("d", 3), ("c", 2), ("b", 1))


def test_meeting_an_item_again_moves_it_to_the_front_and_never_pairs_it_with_itself() -> None:
    users = Users()
    for place, item_id in enumerate("aba"):
        others = users.met("u", item_id, place)
    assert others == (("b", 1),)
    stored = users.unstored()["u"]
    assert (stored.item_ids, stored.times_us) == (["a", "b"], [2, 1])


def test_users_beyond_the_bound_are_forgotten_only_once_they_are_stored() -> None:
    users = Users(users_max=2)
    for user_id in ("u", "v", "w"):
        users.met(user_id, "a", 0)
    assert "u" in users
    users.stored()
    assert "u" not in users
    assert "v" in users
    assert not users.unstored()


def test_recent_items_loaded_from_the_store_go_on() -> None:
    users = Users()
    users.load({"u": Recent(list("edcba"), [5, 4, 3, 2, 1])})
    assert len(users.met("u", "f", 6)) == RECENT_MAX


def test_a_pair_counts_in_both_directions_and_less_the_further_apart() -> None:
    pairs = Pairs()
    pairs.add("b", EPOCH_US, (("a", EPOCH_US), ("c", EPOCH_US - 7 * DAY_US)))
    assert pairs.weights == {"b": {"a": 1.0, "c": 0.5}, "a": {"b": 1.0}, "c": {"b": 0.5}}


def test_a_pair_thirty_days_younger_weighs_twice() -> None:
    pairs = Pairs()
    pairs.add("b", EPOCH_US + 30 * DAY_US, (("a", EPOCH_US + 30 * DAY_US),))
    assert pairs.weights["a"]["b"] == 2.0


def test_a_row_beyond_twice_its_bound_keeps_the_strongest_ties_by_id() -> None:
    row = merged(Row(["a", "b"], [1.0, 3.0]), {"a": 1.0, "d": 2.0, "c": 2.0, "e": 0.5}, keep=2)
    assert row == Row(["b", "a"], [3.0, 2.0])
    assert merged(Row(["a"], [1.0]), {"b": 1.0}, keep=1).item_ids == ["a", "b"], "two are not more than twice one"


def test_similar_items_are_cosines_shrunk_by_ten_pairs() -> None:
    row = similar(6.0, Row(["a", "b"], [4.0, 6.0]), {"a": 6.0, "b": 90.0}, EPOCH_US, limit=2)
    # a: 4 / sqrt(16 * 16) = 0.25; b: 6 / sqrt(16 * 100) = 0.15: the item that goes with everything comes second
    assert row.item_ids == ["a", "b"]
    assert row.weights == pytest.approx([0.25, 0.15])
    assert similar(6.0, Row(["a", "b"], [4.0, 6.0]), {"a": 6.0, "b": 90.0}, EPOCH_US, limit=1).item_ids == ["a"]
