"""Reasons by erasure, on a hand-made release whose scores can be worked out: space films near 0 degrees, love films
near 90, a user's vector is the mean of what they clicked, a score its cosine-like product with the candidate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from serving_world import NOW, NOW_US, HandRelease, film_table, proposed, query, user

from models.batches import History
from services.candidates.filters import standard_filters
from services.candidates.sources import GivenSource
from services.candidates.vectors import ItemVectors
from services.commands.look import print_slate
from services.domain import Candidate, Interaction, Pick, Reason, Scored, Slate, UserState
from services.items import ItemTable
from services.memory import MemoryFeatureStore, MemorySlateLog
from services.ranking.arrange import TopByScore
from services.ranking.erasure import ErasureProbe
from services.ranking.scorers import AttentionScorer
from services.recommend import Stages, recommend
from services.signals import RANKING_FEATURES

HISTORY_LENGTH = RANKING_FEATURES.index("user_history_length")


@dataclass(frozen=True)
class ProbedRelease(HandRelease):
    """Looks at nothing by `at_nothing`, and at the newest event by the rest, whatever the candidate is."""

    ordered: bool = True
    at_nothing: float = 0.1
    by_feature: int | None = None
    asked: list[int] = field(default_factory=list)

    @property
    def reranks(self) -> bool:
        return self.ordered

    def rerank(self, history, now_s, candidate_vectors, features, retrieval_score) -> np.ndarray:
        return self._scored(features, retrieval_score)

    def rerank_rows(self, histories, now_s, candidate_vectors, features, retrieval_score) -> np.ndarray:
        assert len(histories) == len(features) == len(retrieval_score)
        self.asked.append(len(histories))
        return self._scored(features, retrieval_score)

    def attention(self, history: History, now_s: int, candidate_vectors: np.ndarray) -> np.ndarray:
        shares = np.zeros((len(candidate_vectors), len(history.times_s) + 1), dtype=np.float32)
        shares[:, 0], shares[:, -1] = self.at_nothing, 1 - self.at_nothing
        return shares

    def _scored(self, features: np.ndarray, retrieval_score: np.ndarray) -> np.ndarray:
        return retrieval_score if self.by_feature is None else features[..., self.by_feature]


class Clock:
    """Every look at it costs `step_s`."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.at, self.step_s = 0.0, step_s

    def __call__(self) -> float:
        self.at += self.step_s
        return self.at


def _probe(release: ProbedRelease | None = None, clock: Callable[[], float] | None = None) -> ErasureProbe:
    items, release = film_table(), release or ProbedRelease()
    return ErasureProbe(release, items, ItemVectors(release, items), clock or Clock())


def _explained(probe: ErasureProbe, row: UserState, *item_ids: str, kind: str = "trending_in") -> list[Pick]:
    candidates = proposed(*item_ids, source="trending")
    reason = Reason(kind, (), "Popular now")  # type: ignore[arg-type]
    picks = tuple(Pick(c.item_id, n, 0.5, c.source, reason) for n, c in enumerate(candidates))
    explained, complete = probe.explain(query(), row, picks, [Scored(each, 0.5) for each in candidates])
    assert complete
    return list(explained)


def test_the_item_without_which_the_score_falls_most_is_the_reason_whatever_was_looked_at_most() -> None:
    (pick,) = _explained(_probe(), user("s1", "l1"), "s2")  # l1 is newest: all the attention goes there
    # With both: (cos 5 + cos 85) / 2 = .5417; without s1 cos 85 = .0872; without l1 cos 5 = .9962.
    assert pick.reason == Reason("because_you_clicked", ("s1",), "Because you picked Film s1")
    assert pick.explanation is not None
    assert pick.explanation.drop == pytest.approx(0.5417 - 0.0872, abs=1e-4)
    looked_at = {each.item_id: (each.share, each.drop) for each in pick.explanation.looked_at}
    assert looked_at["l1"] == (pytest.approx(0.9), pytest.approx(0.5417 - 0.9962, abs=1e-4))
    assert looked_at["s1"][0] == 0.0
    assert pick.explanation.at_nothing == pytest.approx(0.1)


def test_every_candidate_has_a_reason_of_its_own_and_all_rows_go_through_at_once() -> None:
    release = ProbedRelease()
    space, love = _explained(_probe(release), user("s1", "l1"), "s3", "l3")
    assert (space.reason.item_ids, love.reason.item_ids) == (("s1",), ("l1",))
    assert release.asked == [3]  # the whole row, without s1, without l1


def test_where_most_attention_goes_to_nothing_the_reason_is_what_the_source_says() -> None:
    (pick,) = _explained(_probe(ProbedRelease(at_nothing=0.6)), user("s1", "l1"), "s2")
    assert pick.reason.kind == "trending_in"
    assert pick.explanation is not None
    assert pick.explanation.drop is None
    assert pick.explanation.at_nothing == pytest.approx(0.6)


def test_without_a_score_that_falls_the_reason_is_what_the_source_says() -> None:
    of_item = RANKING_FEATURES.index("item_age_days")  # nothing that the user did changes it: every drop is 0
    (pick,) = _explained(_probe(ProbedRelease(by_feature=of_item)), user("s1", "l1"), "s2")
    assert pick.reason.kind == "trending_in"
    assert pick.explanation is not None
    assert pick.explanation.drop is None


@pytest.mark.parametrize("kind", ["explored", "similar_to"])
def test_what_was_drawn_by_lot_or_asked_for_by_an_item_keeps_its_reason(kind: str) -> None:
    (pick,) = _explained(_probe(), user("s1", "l1"), "s2", kind=kind)
    assert pick.reason.kind == kind


def test_an_item_whose_newest_event_is_a_hide_is_no_reason() -> None:
    row = user("l1", "s1")
    hide = Interaction(NOW_US - 1_000_000, 5, "s1", "hide", None, -1.0)
    (pick,) = _explained(_probe(), replace(row, events=(hide, *row.events)), "s2")
    assert pick.reason.kind == "trending_in"


def test_all_events_on_an_item_are_erased_together() -> None:
    (pick,) = _explained(_probe(), user("s1", "l1", "s1"), "s2")
    assert pick.explanation is not None
    assert pick.explanation.drop == pytest.approx((2 * 0.9962 + 0.0872) / 3 - 0.0872, abs=1e-4)


def test_an_erased_event_is_gone_from_the_features_too() -> None:
    probe = _probe(ProbedRelease(by_feature=HISTORY_LENGTH))
    (pick,) = _explained(probe, user("s1", "l1"), "s2")
    assert pick.explanation is not None
    assert pick.explanation.drop == pytest.approx(np.log1p(2) - np.log1p(1))
    nothing_left = probe.without(query(), user("s1", "l1"), proposed("s2"), [frozenset({"s1", "l1"})])
    assert nothing_left.tolist() == [[0.0]]


def test_nothing_erased_gives_the_scores_that_are_served() -> None:
    items, release, row = film_table(), ProbedRelease(), user("s1", "l2", "s4")
    vectors, candidates = ItemVectors(release, items), proposed("s2", "l1", "plain")
    served = AttentionScorer(release, items, vectors).score(query(), row, candidates).values
    probed = ErasureProbe(release, items, vectors, Clock()).without(query(), row, candidates, [frozenset()])
    assert probed[0].tolist() == list(served)


def test_with_another_history_the_retrieval_score_stays_the_users_own() -> None:
    row, other, candidates = user("s1"), user("l1", "l2", user_id="bob"), proposed("s2")
    assert _probe().with_history_of(query(), row, candidates, other).tolist() == [pytest.approx(0.9962, abs=1e-4)]
    by_length = _probe(ProbedRelease(by_feature=HISTORY_LENGTH))
    assert by_length.with_history_of(query(), row, candidates, other).tolist() == [pytest.approx(np.log1p(2))]


def test_a_release_that_does_not_rerank_has_looked_at_nothing_but_is_explained_all_the_same() -> None:
    (pick,) = _explained(_probe(ProbedRelease(ordered=False, at_nothing=0.9)), user("s1", "l1"), "s2")
    assert pick.reason.item_ids == ("s1",)
    assert pick.explanation is not None
    assert pick.explanation.looked_at == ()


def test_a_stranger_has_no_history_to_be_a_reason() -> None:
    (pick,) = _explained(_probe(), UserState("new"), "s2")
    assert (pick.reason.kind, pick.explanation) == ("trending_in", None)


def _stages(items: ItemTable, probe: ErasureProbe | None, scorer: AttentionScorer) -> Stages:
    features = MemoryFeatureStore({"ada": user("s1", "l1")})
    return Stages(
        "hand", 1, features, (GivenSource(),), standard_filters(items), scorer, TopByScore(items), MemorySlateLog(),
        probe=probe,
    )  # fmt: skip


def test_a_list_that_there_is_no_time_to_explain_keeps_its_reasons_and_says_so() -> None:
    items, release = film_table(), ProbedRelease()
    vectors = ItemVectors(release, items)
    scorer = AttentionScorer(release, items, vectors)
    among = ("s2", "s3", "s4", "l2", "l3", "l4", *(f"more{n}" for n in range(8)))
    asked = query(among=among, limit=14, seen="keep", reasons="erasure")
    in_time = recommend(asked, _stages(items, ErasureProbe(release, items, vectors, Clock(0.04)), scorer))
    assert [pick.explanation is not None for pick in in_time.items] == [True] * 14
    assert in_time.degraded == ()
    late = recommend(asked, _stages(items, ErasureProbe(release, items, vectors, Clock(0.06)), scorer))
    assert [pick.explanation is not None for pick in late.items] == [True] * 10 + [False] * 4
    assert late.degraded == ("explanations",)
    assert late.items[13].reason.kind == "for_you"
    unasked = recommend(
        replace(asked, reasons="source"), _stages(items, ErasureProbe(release, items, vectors, Clock()), scorer)
    )
    assert all(pick.explanation is None for pick in unasked.items)
    assert recommend(asked, _stages(items, None, scorer)).degraded == ()  # before the first release
    assert [each.item_id for each in in_time.items] == [each.item_id for each in unasked.items]


def test_shares_are_told_by_item_and_nothing_first() -> None:
    candidates: tuple[Candidate, ...] = proposed("s2")
    shares = _probe().shares(query(), user("s1", "l1", "s1"), candidates)  # items newest first: s1, l1
    assert shares.tolist() == [[pytest.approx(0.1), pytest.approx(0.9), 0.0]]


def test_the_command_line_shows_the_drop_and_apart_from_it_what_was_looked_at(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    (pick,) = _explained(_probe(), user("s1", "l1"), "s2")
    slate = Slate("r", "ada", "hand", 1, 1, (pick,), (), (), NOW)
    print_slate(slate, {"s2": "Film s2"}, "")
    told = capsys.readouterr().out
    for each in ("Because you picked Film s1", "0.4545", "looked at (no reason)", "Film l1 90%", "nothing 10%"):
        assert each in told
    print_slate(replace(slate, items=(replace(pick, explanation=None),)), {"s2": "Film s2"}, "")
    assert "looked at" not in capsys.readouterr().out
