# The second of the three functions: each stage fails in turn, and what the slate says then. Hand-worked, in memory.
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from serving_world import NOW_US, HandRelease, film_table, query, stages_of, user

from services.candidates.vectors import ItemVectors
from services.domain import HISTORY_MAX, Candidate, Dropped, Query, Scored, StageUnavailable, UserState
from services.item_parts import CardPart, ItemChanged, VectorPart
from services.memory import MemoryFeatureStore, MemorySlateLog
from services.ranking.arrange import TopByScore
from services.recommend import Stages, anonymous_user, recommend
from services.signals import Scores


@dataclass(frozen=True)
class Dead:
    """Any stage, when it does not answer."""

    name: str = "dead"
    limit: int = 1

    def read(self, user_id: str) -> UserState:
        raise StageUnavailable("the store does not answer")

    def candidates(self, query: Query, user: UserState) -> Sequence[Candidate]:
        raise StageUnavailable("the source does not answer")

    def score(self, query: Query, user: UserState, candidates: Sequence[Candidate]) -> Scores:
        raise StageUnavailable("the scorer does not answer")


@pytest.fixture
def slates() -> MemorySlateLog:
    return MemorySlateLog()


@pytest.fixture
def stages(slates: MemorySlateLog) -> Stages:
    rows = {"ada": user("s1"), "lou": user("l1", hidden=("l2",), user_id="lou")}
    return stages_of(film_table(), MemoryFeatureStore(rows), HandRelease(), slates)


def ids(slate) -> list[str]:
    return [pick.item_id for pick in slate.items]


def test_a_space_fan_gets_space_films_and_the_new_one_first(stages: Stages) -> None:
    # Cosines to 0 degrees: cold 0, s2 5, s3 10, s4 15; then love films, l4 at 75 degrees the nearest of them.
    slate = recommend(query(), stages)
    assert ids(slate) == ["cold", "s2", "s3", "s4", "l4"]
    assert [pick.rank for pick in slate.items] == [0, 1, 2, 3, 4]
    assert (slate.release_id, slate.items_as_of, slate.degraded) == ("hand", stages.items_as_of, ())
    assert slate.user_row_time_us == NOW_US - 60_000_000


def test_the_reason_names_the_source_and_for_co_visits_the_item_it_started_from(stages: Stages) -> None:
    reasons = {pick.item_id: (pick.source, pick.reason) for pick in recommend(query(), stages).items}
    assert reasons["s3"][0] == "covisits"
    assert reasons["s3"][1].kind == "because_you_clicked"
    assert reasons["s3"][1].item_ids == ("s1",)
    assert reasons["s3"][1].text == "Because you picked Film s1"
    assert reasons["s2"][0] == "faiss"
    assert reasons["s2"][1].kind == "for_you"
    assert reasons["s2"][1].item_ids == ()


def test_a_user_never_seen_gets_what_is_trending_and_new(stages: Stages) -> None:
    slate = recommend(query(user_id="nobody", limit=20), stages)
    assert {pick.source for pick in slate.items} == {"trending", "new"}
    assert set(ids(slate)) == {"s1", "s2", "s3", "s4", "l1", "l2", "l3", "l4", "cold", "plain"}
    assert slate.user_row_time_us == 0


def test_before_the_first_release_trending_leads_and_the_answer_says_that_there_is_none(slates: MemorySlateLog) -> None:
    # Weights 1.0 / (10 + rank) for trending against 0.4 / (10 + rank) for new ones.
    slate = recommend(query(user_id="nobody"), stages_of(film_table(), MemoryFeatureStore(), None, slates))
    assert ids(slate) == ["s1", "l1", "s2", "l2", "plain"]
    assert slate.release_id is None
    assert slate.degraded == ()


def test_an_item_that_arrives_now_is_found_by_its_text(stages: Stages) -> None:
    items, release = film_table(), HandRelease()
    vectors = ItemVectors(release, items)
    vectors.load()
    assert vectors.cold_ids == ("cold",)
    items.apply([
        ItemChanged("born", CardPart("Born", ["Love"], True, False, 0, 0, NOW_US), 90),
        ItemChanged("born", VectorPart("hand", b"\x00\x00\x00\x3c\x00\x00"), 91),  # float16 0, 1, 0
    ])  # fmt: skip
    vectors.add(items.take_new_vectors())
    found = vectors.nearest(vectors.of(["l1"])[0], 2)
    assert found.item_ids == ["born", "l1"]


def test_a_newer_text_replaces_the_older_and_another_encoders_is_passed_over() -> None:
    items = film_table()
    vectors = ItemVectors(HandRelease(), items, "hand")
    vectors.load()
    for encoder, *values in (("hand", 1, 0), ("other", 0, 1, 0)):  # too short; of another encoder, if as long
        items.apply([ItemChanged("cold", VectorPart(encoder, np.array(values, dtype="<f2").tobytes()), 90)])
        vectors.add(items.take_new_vectors())
        vectors.load()
        assert vectors.of(["cold"]).tolist() == [[1.0, 0.0]]
    items.apply([ItemChanged("cold", VectorPart("hand", np.array([0, 1, 0], dtype="<f2").tobytes()), 91)])
    vectors.add(items.take_new_vectors())
    assert vectors.of(["cold"]).tolist() == [[0.0, 1.0]]
    assert vectors.cold_ids == ("cold",)


def test_a_release_never_takes_the_vectors_of_another_encoder() -> None:
    items = film_table()
    vectors = ItemVectors(HandRelease(), items, "tuned")
    vectors.load()
    vectors.add([("hand", "cold")])
    assert vectors.cold_ids == ()
    items.apply([ItemChanged("cold", VectorPart("tuned", np.array([0, 1, 0], dtype="<f2").tobytes()), 90)])
    vectors.load()
    assert vectors.of(["cold"]).tolist() == [[0.0, 1.0]]


def test_an_unreadable_store_gives_a_strangers_list_that_says_so(stages: Stages) -> None:
    slate = recommend(query(limit=20), replace(stages, features=Dead()))
    assert slate.degraded == ("features",)
    assert "s1" in ids(slate)  # which ada has seen, but that cannot be known now


@pytest.mark.parametrize("place", range(6))
def test_a_dead_source_is_named_and_the_others_answer(stages: Stages, place: int) -> None:
    sources = list(stages.sources)
    sources[place] = Dead(sources[place].name)
    slate = recommend(query(), replace(stages, sources=tuple(sources)))
    assert slate.degraded == (sources[place].name,)
    assert len(slate.items) == 5


def test_a_dead_scorer_leaves_the_order_of_retrieval(stages: Stages) -> None:
    slate = recommend(query(), replace(stages, scorer=Dead("attention")))
    assert slate.degraded == ("attention",)
    assert ids(slate)[:2] == ["s3", "s4"]  # the co-visits of s1, the first source that has anything


def test_with_everything_dead_there_is_still_an_answer(stages: Stages) -> None:
    dead = tuple(Dead(source.name) for source in stages.sources)
    slate = recommend(query(), replace(stages, features=Dead(), sources=dead, scorer=Dead("attention")))
    assert slate.items == ()
    assert slate.degraded == ("features", "given", "related", "covisits", "faiss", "trending", "new")


def test_what_was_dropped_is_named_with_its_dropper(stages: Stages) -> None:
    slate = recommend(query(user_id="lou", among=("l1", "l2", "s1"), exclude=frozenset({"s1"})), stages)
    assert slate.dropped == (Dropped("s1", "excluded"), Dropped("l1", "seen"))
    assert ids(slate) == ["l2"]


def test_ranking_a_list_returns_all_of_it_best_first(stages: Stages) -> None:
    among = ("plain", "l2", "gone", "s3", "s1", "never heard of")
    slate = recommend(query(among=among, seen="keep", limit=100), stages)
    # s1 0 degrees, s3 10, l2 85; three without a vector score 0 and stand in the order of their ids.
    assert ids(slate) == ["s1", "s3", "l2", "gone", "never heard of", "plain"]


def test_a_hidden_item_never_comes(stages: Stages) -> None:
    assert "l2" not in ids(recommend(query(user_id="lou", limit=50), stages))


def test_recent_items_stand_in_for_a_history_the_last_one_newest(stages: Stages) -> None:
    slate = recommend(query(user_id=None, recent=("l1", "s1")), stages)
    assert "s1" not in ids(slate)
    assert "l1" not in ids(slate)
    assert {pick.reason.item_ids for pick in slate.items if pick.source == "covisits"} == {("s1",), ("l1",)}


def test_the_row_of_a_visitor_is_clicks_a_second_apart_newest_first() -> None:
    made = anonymous_user(query(user_id=None, recent=("a", "b")))
    assert [(e.item_id, NOW_US - e.occurred_us, e.kind, e.weight) for e in made.events] == [
        ("b", 1_000_000, "click", 1.0),
        ("a", 2_000_000, "click", 1.0),
    ]
    assert len(anonymous_user(query(recent=tuple(f"i{n}" for n in range(500)))).events) == HISTORY_MAX


def test_items_like_one_come_by_nearness_for_a_stranger_and_by_taste_for_a_user(stages: Stages) -> None:
    stranger = recommend(query(user_id=None, like="s1"), stages)
    assert ids(stranger)[:4] == ["cold", "s3", "s2", "s4"]
    assert {(p.source, p.reason.kind, p.reason.item_ids) for p in stranger.items} == {
        ("related", "similar_to", ("s1",))
    }
    assert ids(recommend(query(user_id="lou", like="s1"), stages))[0] == "l3"  # nearest of them to the love fan


def test_a_probe_is_not_recorded_and_a_question_is(stages: Stages, slates: MemorySlateLog) -> None:
    recommend(query(record=False), stages)
    assert slates.slates == []
    slate = recommend(query(), stages)
    assert slates.slates == [slate]


def test_equal_scores_are_ordered_by_item_id_so_equal_inputs_give_equal_slates() -> None:
    arrange = TopByScore(film_table())
    scored = [Scored(Candidate(item_id, "given", 0.0, 0), 1.0) for item_id in ("s2", "l1", "s1")]
    assert [p.item_id for p in arrange(query(limit=2), UserState("x"), scored)] == ["l1", "s1"]


def test_a_scorer_that_answers_short_is_our_mistake_and_fails_loudly(stages: Stages) -> None:
    @dataclass(frozen=True)
    class Short:
        name: str = "short"

        def score(self, query: Query, user: UserState, candidates: Sequence[Candidate]) -> Scores:
            return Scores([1.0])

    with pytest.raises(AssertionError, match="short scored 1 of"):
        recommend(query(), replace(stages, scorer=Short()))
