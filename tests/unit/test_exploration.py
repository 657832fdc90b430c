"""Places that explore: who may win them, with which chance, and that the chance that is stated is the true one."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest
from serving_world import NOW_US, HandRelease, film_table, query, stages_of, user

from services.domain import Candidate, Pick, Scored, UserState
from services.item_parts import CardPart, ItemChanged, StatsPart
from services.items import ItemTable
from services.memory import MemoryFeatureStore, MemorySlateLog
from services.mix import EXPLORED, Mix
from services.ranking.arrange import TopByScore
from services.ranking.exploration import chances, drawn, explored_ranks, log_promise
from services.recommend import Stages, recommend

NOBODY = UserState("x")
COUNTS = {"i0": (0, 0), "i1": (100, 10), "i2": (100, 0), "i3": (20, 1), "i4": (0, 0), "i5": (400, 8)}
"""Impressions and clicks of six items, best first by score."""


@cache
def plain_table() -> ItemTable:
    return table()


def table(categories: dict[str, list[str]] | None = None) -> ItemTable:
    made = ItemTable()
    for seq, (item_id, (shown, clicked)) in enumerate(COUNTS.items(), start=1):
        made.apply([
            ItemChanged(item_id, StatsPart([0, shown, 0, 0, clicked, 0, 0, 0, 0], NOW_US), seq),
            ItemChanged(item_id, CardPart(item_id, (categories or {}).get(item_id, []), True, False, 0, 0, 0), seq),
        ])  # fmt: skip
    return made


def listed(request_id: str, limit: int, every: int, items: ItemTable | None = None, **given) -> tuple[Pick, ...]:
    scored = [Scored(Candidate(item_id, "faiss", 0.0, n), 1.0 - n / 10) for n, item_id in enumerate(COUNTS)]
    arrange = TopByScore(items or plain_table(), Mix(explore_every=every))
    return arrange(query(request_id=request_id, limit=limit, **given), NOBODY, scored)


def explored(picks: tuple[Pick, ...]) -> list[Pick]:
    return [pick for pick in picks if pick.source == EXPLORED]


# ------------------------------------------------------------------------------------- which places, who


def test_the_last_place_of_every_ten_explores_and_a_shorter_list_does_not() -> None:
    assert list(explored_ranks(20, 10)) == [9, 19]
    assert list(explored_ranks(19, 10)) == [9]
    assert list(explored_ranks(9, 10)) == []
    assert list(explored_ranks(500, 0)) == []


def test_one_place_shows_what_is_not_in_the_list_and_says_so() -> None:
    picks = listed("r", limit=3, every=3)
    assert [pick.item_id for pick in picks[:2]] == ["i0", "i1"]
    assert (picks[2].rank, picks[2].source, picks[2].reason.kind) == (2, "explored", "explored")
    assert picks[2].item_id in {"i2", "i3", "i4", "i5"}
    assert picks[2].score == 1.0 - int(picks[2].item_id[1]) / 10  # its own score, whatever place it has
    assert [pick.propensity for pick in picks[:2]] == [1.0, 1.0]
    assert 0 < picks[2].propensity < 1


def test_an_equal_request_gives_an_equal_list_and_others_differ() -> None:
    assert listed("r", 3, 3) == listed("r", 3, 3)
    assert len({listed(f"r{n}", 3, 3)[2].item_id for n in range(50)}) > 1


def test_where_everything_is_shown_anyway_nothing_explores_and_the_last_left_over_is_certain() -> None:
    assert not explored(listed("r", limit=12, every=6))
    (only,) = explored(listed("r", limit=6, every=6))
    assert (only.item_id, only.rank, only.propensity) == ("i5", 5, 1.0)


def test_what_is_not_recorded_and_a_list_of_the_callers_explore_nothing() -> None:
    assert not explored(listed("r", 3, 3, record=False))
    assert explored(listed("r", 3, 3, record=False, explore=True))
    assert not explored(listed("r", 3, 3, explore=False))
    assert not explored(listed("r", 3, 3, among=("i0", "i1", "i2", "i3"), explore=True))
    assert not explored(listed("r", 3, 0, explore=True))  # nobody has said how many places


def test_a_place_that_explores_keeps_the_cap() -> None:
    items = table({"i0": ["A"], "i1": ["B"], "i2": ["A"], "i3": ["B"], "i4": ["C"], "i5": ["C"]})
    won = [listed(f"r{n}", 4, 4, items, category_cap=1) for n in range(40)]
    # i0, i1, i4 are shown for their score; nothing else fits.
    assert {tuple(pick.item_id for pick in picks) for picks in won} == {("i0", "i1", "i4")}
    won = [listed(f"r{n}", 3, 3, items, category_cap=1) for n in range(40)]
    assert {picks[2].item_id for picks in won} == {"i4", "i5"}
    stated = next(picks[2].propensity for picks in won if picks[2].item_id == "i4")
    assert stated == pytest.approx(promise("i4") / (promise("i4") + promise("i5")))


# ----------------------------------------------------------------------------------------------- chances


def promise(item_id: str) -> float:
    """The share of an item, worked out by the book: Beta(clicks + 1, skips + 19), mean plus deviation, squared."""
    impressions, clicks = COUNTS[item_id]
    a, b = clicks + 1, impressions - clicks + 19
    mean, variance = a / (a + b), a * b / ((a + b) ** 2 * (a + b + 1))
    return (mean + variance**0.5) ** 2


def test_the_promise_of_an_item_is_its_expected_rate_and_one_deviation() -> None:
    block = table().block(list(COUNTS))
    found = np.exp(log_promise(block.counts, block.counts_at_us, NOW_US))
    assert found == pytest.approx([promise(item_id) for item_id in COUNTS], rel=1e-5)
    assert found[1] > found[0] > found[5] > found[2]  # clicked; unknown; little clicked; shown in vain


def test_what_was_shown_in_vain_gets_another_chance_as_time_passes() -> None:
    # After a day half of the 100 impressions count: Beta(1, 69) instead of Beta(1, 119).
    block = table().block(["i2"])
    later = np.exp(log_promise(block.counts, block.counts_at_us, NOW_US + 24 * 3600 * 1_000_000))[0]
    mean, variance = 1 / 70, 69 / (70**2 * 71)
    assert later == pytest.approx((mean + variance**0.5) ** 2, rel=1e-5)


def test_clicks_that_nobody_counted_impressions_of_are_no_skips() -> None:
    counts = np.array([[0, 0, 0, 0, 5, 0, 0, 0, 0]], dtype=np.float32)
    mean, variance = 6 / 25, 6 * 19 / (25**2 * 26)
    assert np.exp(log_promise(counts, np.array([NOW_US]), NOW_US))[0] == pytest.approx((mean + variance**0.5) ** 2)


def test_chances_sum_to_one_over_those_that_are_open() -> None:
    found = chances(np.array([0.0, np.log(3.0), 900.0, -900.0]), np.array([True, True, False, True]))
    assert found.tolist() == pytest.approx([0.25, 0.75, 0.0, 0.0])
    assert found.sum() == pytest.approx(1.0)


def test_the_stated_propensities_sum_to_one_over_the_candidates_and_are_those_of_the_draw() -> None:
    stated: dict[str, float] = {}
    for n in range(400):
        (pick,) = explored(listed(f"r{n}", 3, 3))
        assert stated.setdefault(pick.item_id, pick.propensity) == pick.propensity  # whoever asks
    total = sum(promise(item_id) for item_id in ("i2", "i3", "i4", "i5"))
    assert stated == pytest.approx({i: promise(i) / total for i in ("i2", "i3", "i4", "i5")}, rel=1e-5)
    assert sum(stated.values()) == pytest.approx(1.0)


def test_items_win_as_often_as_their_propensities_say() -> None:
    # Chi-square over 4 items, 3 degrees of freedom: above 16.27 once in 1,000 sets of request ids.
    asked = 2000
    won, stated = Counter[str](), dict[str, float]()
    for n in range(asked):
        (pick,) = explored(listed(f"request-{n}", 3, 3))
        won[pick.item_id] += 1
        stated[pick.item_id] = pick.propensity
    assert sum((won[i] - asked * p) ** 2 / (asked * p) for i, p in stated.items()) < 16.27


def test_of_two_places_the_second_is_drawn_from_what_the_first_left() -> None:
    shares = np.log([0.5, 0.3, 0.2])
    pairs = Counter[tuple[int, int]]()
    asked = 3000
    for seed in range(asked):
        first, second = drawn([0, 1, 2], shares, 2, seed)
        pairs[first.place, second.place] += 1
        assert first.propensity == pytest.approx(np.exp(shares[first.place]))
        assert second.propensity == pytest.approx(np.exp(shares[second.place]) / (1 - first.propensity))
    expected = {(a, b): np.exp(shares[a] + shares[b]) / (1 - np.exp(shares[a])) for a, b in pairs}
    assert len(expected) == 6
    # 5 degrees of freedom: above 20.5 once in 1,000.
    assert sum((pairs[p] - asked * e) ** 2 / (asked * e) for p, e in expected.items()) < 20.5


# ------------------------------------------------------------------------------------------ served lists


@pytest.fixture
def slates() -> MemorySlateLog:
    return MemorySlateLog()


@pytest.fixture
def stages(slates: MemorySlateLog) -> Stages:
    rows = MemoryFeatureStore({"ada": user("s1", hidden=("l2",))})
    return stages_of(film_table(), rows, HandRelease(), slates, Mix(explore_every=2))


def test_what_is_hidden_seen_or_not_to_be_had_is_never_explored(stages: Stages) -> None:
    slates = [recommend(query(request_id=f"r{n}", limit=4), stages) for n in range(300)]
    won = {pick.item_id for slate in slates for pick in explored(slate.items)}
    assert {"s1", "l2", "gone"} & won == set()
    assert len(won) >= 5  # of the seven others but the two that lead every list


def test_a_recorded_list_keeps_what_was_explored_and_more_of_it_comes_without_repeats(
    stages: Stages, slates: MemorySlateLog
) -> None:
    first = recommend(query(request_id="one", limit=4, diversity=0.3), stages)
    shown = frozenset(pick.item_id for pick in first.items)
    second = recommend(query(request_id="two", limit=4, diversity=0.3, exclude=shown), stages)
    assert slates.slates == [first, second]
    assert [pick.rank for pick in first.items] == [0, 1, 2, 3]
    assert [pick.rank for pick in explored(first.items)] == [1, 3]
    assert len(shown) == 4
    assert not shown & {pick.item_id for pick in second.items}
