# Every source, filter and scorer against what its port promises, over a shop of films with hand-worked answers.
from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from itertools import pairwise, permutations

import numpy as np
import pytest
from serving_world import HandRelease, film_table, proposed, query, user

from models.batches import RankingExamples, Sequences
from models.config import ModelConfig
from models.fit import assemble, fit_reranker, fit_tower
from models.release import ModelRelease
from models.vocabulary import Vocabulary
from services.candidates import filters, sources
from services.candidates.vectors import ItemVectors
from services.domain import UserState
from services.mix import Mix
from services.ports import CandidateSource, Filter, Scorer
from services.ranking.scorers import AttentionScorer, RetrievalOrderScorer
from services.signals import MODEL_FEATURES

EVERYTHING = ("s1", "s2", "s3", "s4", "l1", "l2", "l3", "l4", "gone", "cold", "plain", "never heard of")
STRANGER = UserState("zoe")


@pytest.fixture(scope="session")
def tiny_release() -> ModelRelease:
    """A real release, small and hardly trained: what it prefers does not matter here, how it behaves does."""
    rng = np.random.default_rng(7)
    vocabulary = Vocabulary(("s1", "s2", "s3", "s4", "l1", "l2", "l3", "l4"), ("click", "hide"))
    config = ModelConfig(effort="demo", width=16, text_width=4, heads=2, history=8, epochs_max=1, reranker_epochs_max=1)
    users, count = np.repeat(np.arange(20), 6), 120
    rows, times = rng.integers(1, 9, count), np.arange(count, dtype=np.int64) + 1_700_000_000
    actions, positive = np.ones(count, dtype=np.int16), np.ones(count, dtype=np.bool_)
    sequences = Sequences.of_events(users, rows, actions, positive, times)
    text = np.concatenate([np.zeros((1, 3)), rng.normal(size=(8, 3))]).astype(np.float32)
    tower = fit_tower(sequences, vocabulary, text, config, device="cpu")
    width = len(MODEL_FEATURES)
    examples = RankingExamples(
        rng.integers(1, 9, (20, 8)).astype(np.int32), np.ones((20, 8), np.int16),
        np.full((20, 8), 1_700_000_000, np.int64), np.full(20, 1_700_000_900, np.int64),
        rng.integers(1, 9, (20, 5)).astype(np.int32), rng.normal(size=(20, 5, width)).astype(np.float32),
        rng.normal(size=(20, 5)).astype(np.float32), np.eye(5, dtype=np.float32)[rng.integers(0, 5, 20)],
        np.ones(20, np.float32),
    )  # fmt: skip
    reranker = fit_reranker(tower, examples, config)
    return assemble("tiny", tower, reranker, MODEL_FEATURES, "ranking_v1", "hand", 0, {})


def a_history(release: object) -> ItemVectors:
    vectors = ItemVectors(release, film_table())  # type: ignore[arg-type]
    vectors.load()
    return vectors


# ------------------------------------------------------------------------------------------------- sources


class SourceContract(ABC):
    """What holds for every CandidateSource."""

    ask = query()

    @pytest.fixture
    @abstractmethod
    def source(self) -> CandidateSource: ...

    def test_it_proposes_something_to_a_user_with_a_history(self, source: CandidateSource) -> None:
        assert source.candidates(self.ask, user("s1", "l1"))

    def test_it_is_deterministic(self, source: CandidateSource) -> None:
        assert source.candidates(self.ask, user("s1", "l1")) == source.candidates(self.ask, user("s1", "l1"))

    def test_it_keeps_its_limit_and_proposes_nothing_twice(self, source: CandidateSource) -> None:
        found = source.candidates(replace(self.ask, limit=1), user("s1"))
        item_ids = [candidate.item_id for candidate in found]
        assert len(item_ids) <= max(source.limit, 1)
        assert len(item_ids) == len(set(item_ids))

    def test_a_smaller_limit_gives_the_same_beginning(self, source: CandidateSource) -> None:
        few = replace(source, limit=2)  # type: ignore[type-var]
        found = source.candidates(replace(self.ask, limit=1), user("s1"))
        assert tuple(few.candidates(replace(self.ask, limit=1), user("s1"))) == tuple(found[:2])

    def test_ranks_count_from_zero_and_scores_never_rise(self, source: CandidateSource) -> None:
        found = source.candidates(self.ask, user("s1", "l1"))
        assert [candidate.rank for candidate in found] == list(range(len(found)))
        assert all(a.score >= b.score for a, b in pairwise(found))
        assert all(np.isfinite(candidate.score) and candidate.source == source.name for candidate in found)

    def test_a_stranger_is_no_error(self, source: CandidateSource) -> None:
        assert isinstance(source.candidates(self.ask, STRANGER), tuple | list)


class TestFaissSource(SourceContract):
    @pytest.fixture
    def source(self) -> CandidateSource:
        vectors = a_history(HandRelease())
        return sources.FaissSource(film_table(), vectors)

    def test_the_nearest_come_first_the_item_without_training_among_them(self, source: CandidateSource) -> None:
        # The user stands at 0 degrees: cold lies at 0, s2 at 5, s3 at 10; s1 itself was seen and is passed over.
        found = source.candidates(query(), user("s1"))
        assert [candidate.item_id for candidate in found][:3] == ["cold", "s2", "s3"]

    def test_with_a_category_only_its_items_come(self, source: CandidateSource) -> None:
        found = source.candidates(query(categories=frozenset({"Love"})), user("s1"))
        assert [candidate.item_id for candidate in found] == ["l4", "l3", "l2", "l1"]

    def test_a_stranger_gets_nothing_from_it(self, source: CandidateSource) -> None:
        assert source.candidates(query(), STRANGER) == ()

    def test_what_is_excluded_is_made_up_for_so_later_pages_are_as_full_as_the_first(self) -> None:
        source = sources.FaissSource(film_table(), a_history(HandRelease()), limit=2)
        shown = frozenset({"cold", "s2", "s3", "s4"})
        assert [c.item_id for c in source.candidates(query(limit=1), user("s1"))] == ["cold", "s2"]
        assert [c.item_id for c in source.candidates(query(limit=1, exclude=shown), user("s1"))] == ["l4", "l3"]


class TestFaissSourceWithARealRelease(SourceContract):
    @pytest.fixture
    def source(self, tiny_release: ModelRelease) -> CandidateSource:
        return sources.FaissSource(film_table(), a_history(tiny_release))


class TestCovisitSource(SourceContract):
    @pytest.fixture
    def source(self) -> CandidateSource:
        return sources.CovisitSource(film_table())

    def test_it_names_the_item_that_led_furthest(self, source: CandidateSource) -> None:
        # Newest first: s2 -> s4 with 2/1; s1 -> s3 with 2/2 and s4 with 1/2. So s4 = 2.5 from s2, s3 = 1 from s1.
        found = source.candidates(query(), user("s1", "s2"))
        assert [(c.item_id, c.score, c.started_from) for c in found] == [("s4", 2.5, "s2"), ("s3", 1.0, "s1")]


class TestTrendingSource(SourceContract):
    @pytest.fixture
    def source(self) -> CandidateSource:
        return sources.TrendingSource(film_table())

    def test_most_clicks_first_without_what_cannot_be_had(self, source: CandidateSource) -> None:
        found = source.candidates(query(), STRANGER)
        assert [candidate.item_id for candidate in found] == ["s1", "l1", "s2", "l2", "plain"]

    def test_what_the_user_took_is_passed_over_and_with_keep_it_is_not(self, source: CandidateSource) -> None:
        assert [c.item_id for c in source.candidates(query(), user("s1"))] == ["l1", "s2", "l2", "plain"]
        assert source.candidates(query(seen="keep"), user("s1"))[0].item_id == "s1"


class TestNewSource(SourceContract):
    @pytest.fixture
    def source(self) -> CandidateSource:
        return sources.NewSource(film_table())

    def test_the_newest_comes_first(self, source: CandidateSource) -> None:
        assert [c.item_id for c in source.candidates(query(), STRANGER)][:3] == ["cold", "l4", "l3"]


class TestRelatedSource(SourceContract):
    ask = query(like="s1")

    @pytest.fixture
    def source(self) -> CandidateSource:
        return sources.RelatedSource(film_table(), a_history(HandRelease()))

    def test_near_ones_and_those_taken_together_come_in_turn_and_name_the_start(self, source: CandidateSource) -> None:
        # Near s1: cold, s2, s3, s4 ...; together with s1: s3, s4. In turn: cold, s3, s2, s4.
        found = source.candidates(query(like="s1"), STRANGER)
        assert [candidate.item_id for candidate in found][:4] == ["cold", "s3", "s2", "s4"]
        assert {candidate.started_from for candidate in found} == {"s1"}

    def test_it_answers_only_when_it_is_asked_for_items_like_one(self, source: CandidateSource) -> None:
        assert source.candidates(query(), user("s1")) == ()


class TestRelatedSourceBeforeTheFirstRelease(SourceContract):
    ask = query(like="s1")

    @pytest.fixture
    def source(self) -> CandidateSource:
        return sources.RelatedSource(film_table(), None)


class TestGivenSource(SourceContract):
    ask = query(among=("l1", "s1", "l1", "nobody knows me"))

    @pytest.fixture
    def source(self) -> CandidateSource:
        return sources.GivenSource()

    def test_it_proposes_the_list_as_it_was_given_each_once(self, source: CandidateSource) -> None:
        assert [c.item_id for c in source.candidates(self.ask, STRANGER)] == ["l1", "s1", "nobody knows me"]


def test_every_source_has_its_suite() -> None:
    made = {type(each).__name__ for each in sources.standard_sources(film_table(), a_history(HandRelease()))}
    assert made == {name.removeprefix("Test") for name in globals() if name.startswith("Test")} & made


def test_a_source_keeps_the_limit_of_the_mix_and_without_one_it_is_not_asked() -> None:
    mix = Mix(faiss=3, covisits=0, trending=2, new=0)
    made = sources.standard_sources(film_table(), a_history(HandRelease()), mix)
    assert [(source.name, source.limit) for source in made] == [
        ("given", 1000), ("related", 150), ("faiss", 3), ("trending", 2),
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------- filters

FILTERS = filters.standard_filters(film_table())


@pytest.mark.parametrize("part", FILTERS, ids=lambda part: part.name)
class TestFilters:
    """What holds for every Filter."""

    asks = query(exclude=frozenset({"l2"}), categories=frozenset({"Space"}))
    who = user("s1", hidden=("s3",))

    def test_it_answers_once_per_candidate(self, part: Filter) -> None:
        assert len(part.keep(self.asks, self.who, proposed(*EVERYTHING))) == len(EVERYTHING)
        assert list(part.keep(self.asks, self.who, ())) == []

    def test_it_drops_something_it_is_meant_to_drop(self, part: Filter) -> None:
        assert not all(part.keep(self.asks, self.who, proposed(*EVERYTHING)))

    def test_a_candidate_is_judged_alone_as_among_many(self, part: Filter) -> None:
        together = part.keep(self.asks, self.who, proposed(*EVERYTHING))
        alone = [part.keep(self.asks, self.who, (each,))[0] for each in proposed(*EVERYTHING)]
        assert list(together) == alone

    def test_it_is_idempotent(self, part: Filter) -> None:
        found = proposed(*EVERYTHING)
        kept = [c for c, keep in zip(found, part.keep(self.asks, self.who, found), strict=True) if keep]
        assert all(part.keep(self.asks, self.who, kept))


def test_filters_commute() -> None:
    asks, who = query(exclude=frozenset({"l2"}), categories=frozenset({"Space", "Love"})), user("s1", hidden=("s3",))
    outcomes = set()
    for order in permutations(FILTERS):
        found = proposed(*EVERYTHING)
        for part in order:
            found = tuple(c for c, keep in zip(found, part.keep(asks, who, found), strict=True) if keep)
        outcomes.add(tuple(c.item_id for c in found))
    assert outcomes == {("s2", "s4", "l1", "l3", "l4", "cold")}


@pytest.mark.parametrize(
    ("name", "dropped"),
    [("seen", {"s1"}), ("hidden", {"s3"}), ("unavailable", {"gone"}), ("excluded", {"l2", "l1"}),
     ("category", {"l1", "l2", "l3", "l4", "plain", "never heard of"})],
)  # fmt: skip
def test_each_filter_drops_what_its_name_says(name: str, dropped: set[str]) -> None:
    part = next(each for each in FILTERS if each.name == name)
    asks = query(exclude=frozenset({"l2"}), like="l1", categories=frozenset({"Space"}))
    found = proposed(*EVERYTHING)
    keep = part.keep(asks, user("s1", hidden=("s3",)), found)
    assert {c.item_id for c, kept in zip(found, keep, strict=True) if not kept} == dropped


def test_a_list_of_the_callers_own_keeps_what_is_hidden_or_gone() -> None:
    asks = query(among=("gone", "s3"), seen="keep")
    for part in FILTERS:
        assert all(part.keep(asks, user("s1", hidden=("s3",)), proposed("gone", "s3"))), part.name


# ------------------------------------------------------------------------------------------------- scorers


class ScorerContract(ABC):
    """What holds for every Scorer."""

    @pytest.fixture
    @abstractmethod
    def scorer(self) -> Scorer: ...

    def test_as_many_finite_scores_as_candidates(self, scorer: Scorer) -> None:
        for who in (user("s1", "l2"), STRANGER):
            scores = scorer.score(query(), who, proposed(*EVERYTHING)).values
            assert len(scores) == len(EVERYTHING)
            assert np.isfinite(scores).all()

    def test_permuting_candidates_permutes_scores(self, scorer: Scorer) -> None:
        found = proposed(*EVERYTHING)
        scores = scorer.score(query(), user("s1", "l2"), found).values
        turned = scorer.score(query(), user("s1", "l2"), found[::-1]).values
        assert np.allclose(scores, turned[::-1], atol=1e-6)

    def test_one_alone_scores_as_among_many(self, scorer: Scorer) -> None:
        found = proposed(*EVERYTHING)
        scores = scorer.score(query(), user("s1", "l2"), found).values
        alone = [scorer.score(query(), user("s1", "l2"), (each,)).values[0] for each in found]
        assert np.allclose(scores, alone, atol=1e-5)

    def test_the_same_question_scores_the_same(self, scorer: Scorer) -> None:
        who = user("s1", "l2")
        assert scorer.score(query(), who, proposed("s2", "l1")) == scorer.score(query(), who, proposed("s2", "l1"))


class TestRetrievalOrderScorer(ScorerContract):
    @pytest.fixture
    def scorer(self) -> Scorer:
        return RetrievalOrderScorer()


class TestAttentionScorer(ScorerContract):
    @pytest.fixture
    def scorer(self) -> Scorer:
        return AttentionScorer(HandRelease(), film_table(), a_history(HandRelease()))

    def test_a_space_fan_sees_space_first(self, scorer: Scorer) -> None:
        # The user stands at 0 degrees: scores are the cosines of 5, 85 and (the cold one) 0 degrees.
        scores = scorer.score(query(), user("s1"), proposed("s2", "l2", "cold", "plain")).values
        assert np.allclose(scores, [np.cos(np.radians(5)), np.cos(np.radians(85)), 1.0, 0.0], atol=1e-6)


class TestAttentionScorerWithARealRelease(ScorerContract):
    @pytest.fixture
    def scorer(self, tiny_release: ModelRelease) -> Scorer:
        return AttentionScorer(tiny_release, film_table(), a_history(tiny_release))

    def test_what_the_history_says_changes_the_scores(self, scorer: Scorer) -> None:
        found = proposed("s2", "s3", "l2", "l3")
        assert not np.allclose(
            scorer.score(query(), user("s1"), found).values, scorer.score(query(), user("l1"), found).values
        )
