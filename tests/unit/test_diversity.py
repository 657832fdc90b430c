"""Lists that are spread out and capped, against lists worked out by hand; how long that takes."""

from __future__ import annotations

import numpy as np
import pytest
from serving_world import NOW_US, film_table, query

from services.domain import Candidate, Query, Scored, UserState
from services.item_parts import CardPart, ItemChanged, VectorPart
from services.items import ItemTable
from services.mix import POOL, Mix
from services.ranking.arrange import TopByScore
from services.ranking.diversity import CategoryCap, by_score, likeness_of, spread_out

NOBODY = UserState("x")
SCORES = np.array([10, 9, 8, 0], dtype=np.float32)  # 1, .9, .8, 0 of the pool
TWINS = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=np.float32)  # 0 and 1 are the same


def listed(arrange: TopByScore, scores: dict[str, float], asked: Query) -> list[str]:
    scored = [Scored(Candidate(item_id, "given", 0.0, 0), score) for item_id, score in scores.items()]
    return [pick.item_id for pick in arrange(asked, NOBODY, scored)]


def shop(count: int, width: int = 384) -> tuple[ItemTable, list[Scored]]:
    """Items with a text and two of 20 categories each, and a score each."""
    rng = np.random.default_rng(1)
    table = ItemTable()
    texts = rng.normal(size=(count, width)).astype("<f2")
    for n in range(count):
        categories = [f"c{c}" for c in rng.choice(20, 2, replace=False)]
        table.apply([
            ItemChanged(f"i{n:03}", CardPart(f"Item {n}", categories, True, False, NOW_US - n, 0, NOW_US), 2 * n + 1),
            ItemChanged(f"i{n:03}", VectorPart("hand", texts[n].tobytes()), 2 * n + 2),
        ])  # fmt: skip
    return table, [Scored(Candidate(f"i{n:03}", "faiss", 0.0, n), float(rng.random())) for n in range(count)]


# ---------------------------------------------------------------------------------------------- by hand


def test_a_twin_of_what_is_picked_already_comes_after_what_is_unlike_it() -> None:
    # d = .3: after 0 the values are .63 - .3 = .33 for 1, .56 - 0 for 2, 0 for 3; then 1 with .33 before 3 with 0.
    assert spread_out(SCORES, TWINS, 4, 0.3) == [0, 2, 1, 3]
    # d = .5: 1 has .45 - .5 < 0, so even the worst comes before it.
    assert spread_out(SCORES, TWINS, 4, 0.5) == [0, 2, 3, 1]


def test_what_points_away_from_a_pick_is_better_still_than_what_has_nothing_to_do_with_it() -> None:
    # Scores are 1, .9 and 0 of the pool. d = .9: after 0, 1 has .09 - 0 and 2 has 0 + .9 * .2. d = .5: .45 and .1.
    likeness = np.array([[1, 0, -0.2], [0, 1, 0], [-0.2, 0, 1]], dtype=np.float32)
    scores = np.array([10, 9, 0], dtype=np.float32)
    assert spread_out(scores, likeness, 2, 0.9) == [0, 2]
    assert spread_out(scores, likeness, 2, 0.5) == [0, 1]


def test_without_diversity_the_order_is_that_of_the_scores_and_with_nothing_else_the_best_still_leads() -> None:
    assert spread_out(SCORES, TWINS, 4, 0.0) == [0, 1, 2, 3]
    assert spread_out(SCORES, TWINS, 3, 1.0) == [0, 2, 3]
    assert spread_out(np.ones(3, dtype=np.float32), np.eye(3, dtype=np.float32), 3, 0.3) == [0, 1, 2]


@pytest.mark.parametrize("diversity", [0.0, 0.3, 0.7, 1.0])
def test_a_shorter_list_is_the_beginning_of_a_longer_one(diversity: float) -> None:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(30, 8)).astype(np.float32)
    likeness = likeness_of(vectors, lambda: np.zeros((30, 6), dtype=np.int32))
    scores = np.sort(rng.random(30).astype(np.float32))[::-1]
    whole = spread_out(scores, likeness, 30, diversity)
    assert sorted(whole) == list(range(30))
    assert all(spread_out(scores, likeness, limit, diversity) == whole[:limit] for limit in (1, 7, 20))


def test_likeness_is_the_cosine_of_texts_and_of_categories_where_a_text_is_missing() -> None:
    texts = np.array([[2, 0], [3, 4], [0, 0], [0, 0]], dtype=np.float32)
    categories = np.array([[1, 0, 0], [2, 3, 0], [1, 2, 0], [0, 0, 0]], dtype=np.int32)
    found = likeness_of(texts, lambda: categories)
    assert found[0, 1] == pytest.approx(0.6)
    assert found[0, 2] == pytest.approx(1 / np.sqrt(2))  # {1} and {1, 2}
    assert found[1, 2] == pytest.approx(0.5)  # {2, 3} and {1, 2}
    assert found[3].tolist() == [0, 0, 0, 0]


def test_no_category_stands_above_its_cap_and_the_next_that_fits_comes_instead() -> None:
    # Categories: 0 {1}, 1 {1, 2}, 2 {2}, 3 {}; at most one of each.
    categories = np.array([[1, 0], [1, 2], [2, 0], [0, 0]], dtype=np.int32)
    assert by_score(4, 4, CategoryCap(categories, 1)) == [0, 2, 3]
    assert spread_out(SCORES, TWINS, 4, 0.3, CategoryCap(categories, 1)) == [0, 2, 3]
    assert by_score(4, 4, CategoryCap(categories, 1, exempt=frozenset({1}))) == [0, 1, 3]
    assert by_score(4, 2, CategoryCap(categories, 2)) == [0, 1]


def test_what_the_cap_leaves_out_does_not_repel_others() -> None:
    # 1 (twin of 2) is full after 0; were it counted as picked, 3 would come before 2.
    categories = np.array([[1], [1], [2], [2]], dtype=np.int32)
    likeness = np.array([[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]], dtype=np.float32)
    scores = np.array([10, 9, 8, 7], dtype=np.float32)
    assert spread_out(scores, likeness, 3, 0.7, CategoryCap(categories, 1)) == [0, 2]


# --------------------------------------------------------------------------------------------- in a list

# Space films s1..s4 and love films l1..l4 have no text here: those of a category are the same film, as it were.
LIKED = {"s1": 1.0, "s2": 0.9, "s3": 0.8, "l1": 0.3, "l2": 0.0}


def test_a_question_spreads_its_list_out_and_another_leaves_it_as_it_is() -> None:
    arrange = TopByScore(film_table())
    assert listed(arrange, LIKED, query(limit=4)) == ["s1", "s2", "s3", "l1"]
    # d = .5: after s1 the others of space have .45 - .5 and .4 - .5, l1 has .15.
    assert listed(arrange, LIKED, query(limit=4, diversity=0.5)) == ["s1", "l1", "s2", "s3"]


def test_the_instances_choice_holds_for_open_lists_and_a_question_may_differ() -> None:
    arrange = TopByScore(film_table(), Mix(diversity=0.5, category_cap=2))
    assert listed(arrange, LIKED, query(limit=4)) == ["s1", "l1", "s2", "l2"]
    assert listed(arrange, LIKED, query(limit=4, diversity=0.0, category_cap=0)) == ["s1", "s2", "s3", "l1"]
    for closed in (query(limit=5, like="cold"), query(limit=5, among=tuple(LIKED))):
        assert listed(arrange, LIKED, closed) == ["s1", "s2", "s3", "l1", "l2"]
    assert listed(arrange, LIKED, query(limit=5, among=tuple(LIKED), category_cap=1)) == ["s1", "l1"]


def test_a_category_that_is_asked_for_is_not_capped() -> None:
    arrange = TopByScore(film_table())
    assert listed(arrange, LIKED, query(limit=5, category_cap=1, categories=frozenset({"Space"}))) == [
        "s1", "s2", "s3", "l1",
    ]  # fmt: skip


def test_below_the_pool_the_order_is_that_of_the_scores_and_nothing_comes_twice() -> None:
    items, scored = shop(POOL + 30)
    asked = query(limit=POOL + 20, diversity=0.7)
    picks = TopByScore(items)(asked, NOBODY, scored)
    assert len({pick.item_id for pick in picks}) == POOL + 20
    rest = [pick.score for pick in picks[POOL:]]
    assert rest == sorted(rest, reverse=True)
    assert rest[0] < min(pick.score for pick in picks[:POOL])


def test_texts_that_point_the_same_way_are_alike_also_within_one_list() -> None:
    table = ItemTable()
    for seq, (item_id, text) in enumerate({"a": (1, 0), "b": (1, 0.1), "c": (0, 1)}.items(), start=1):
        table.apply([ItemChanged(item_id, VectorPart("hand", np.array(text, dtype="<f2").tobytes()), seq)])
    scores, asked = {"a": 1.0, "b": 0.9, "c": 0.0}, query(limit=3, diversity=0.6)
    assert listed(TopByScore(table), scores, asked) == ["a", "c", "b"]
    assert listed(TopByScore(table), scores, query(limit=3, diversity=0.1)) == ["a", "b", "c"]
