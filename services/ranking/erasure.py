"""Reasons that hold: an item of the history is named only if the score falls when the user never touched it.

Attention says where a model looked, not what its score hangs on (Jain & Wallace 2019, arXiv:1902.10186), so the items
that were looked at most are taken out of the row, one at a time, and everything is worked out anew from what is left:
the features, the user vector and with it the retrieval score, the reranker. All rows go through in one forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import compress, islice

import numpy as np
from numpy.typing import NDArray

from models.batches import History
from services.domain import SECOND_US, Candidate, Explanation, LookedAt, Pick, Query, Reason, Scored, UserState, to_us
from services.items import ItemTable
from services.ranking.scorers import ProbedModel, UserReading, VectorReader, Vectors, together_of
from services.recommend import items_of
from services.signals import TOGETHER_STARTS, HistoryBlock, model_features, ranking_features_of

ATTENDED = 5
"""So many of the items that a pick looks at most are erased."""
PICKS_AT_ONCE = 10
EXPLAIN_S_MAX = 0.05
"""What explaining may add to an answer; picks that there is no time for keep the reason of their source."""
KEPT_REASONS = ("explored", "similar_to")
"""Drawn by lot, or asked for by an item: no history is why they are there."""


@dataclass(frozen=True, slots=True)
class ErasureProbe:
    """Probe of the scorer of a release. `clock` gives seconds, for the deadline alone."""

    release: ProbedModel
    items: ItemTable
    vectors: VectorReader
    clock: Callable[[], float]

    def explain(
        self, query: Query, user: UserState, picks: tuple[Pick, ...], scored: Sequence[Scored]
    ) -> tuple[tuple[Pick, ...], bool]:
        """Probe."""
        if not user.events:
            return picks, True
        started = self.clock()
        candidates = {each.candidate.item_id: each.candidate for each in scored}
        explained: list[Pick] = []
        for start in range(0, len(picks), PICKS_AT_ONCE):
            if start and self.clock() - started > EXPLAIN_S_MAX:
                return (*explained, *picks[start:]), False
            some = picks[start : start + PICKS_AT_ONCE]
            explained += self._explained(query, user, some, [candidates[pick.item_id] for pick in some])
        return tuple(explained), True

    def shares(self, query: Query, user: UserState, candidates: Sequence[Candidate]) -> Vectors:
        """Probe. Where the retrieval score orders, nothing is looked at: the shares are those of cosines above 0."""
        history = self.vectors.reading(query, user).history
        vectors = self.vectors.of([each.item_id for each in candidates])
        if self.release.reranks:
            by_event = self.release.attention(history, to_us(query.asked_at) // SECOND_US, vectors)
        else:
            likeness = np.maximum(vectors @ history.vectors.T, 0.0)
            total = np.maximum(likeness.sum(axis=1, keepdims=True), 1e-9)
            by_event = np.concatenate([np.zeros((len(candidates), 1)), likeness / total], axis=1)
        item_of = _item_of_event(user)
        shares = np.zeros((len(candidates), 1 + len(items_of(user))), dtype=np.float32)
        shares[:, 0] = by_event[:, 0]
        newest_first = by_event[:, :0:-1]  # as events are; histories are oldest first
        for place, code in enumerate(item_of.tolist()):
            shares[:, 1 + code] += newest_first[:, place]
        return shares

    def without(
        self, query: Query, user: UserState, candidates: Sequence[Candidate], erased: Sequence[frozenset[str]]
    ) -> Vectors:
        """Probe."""
        codes = {item_id: code for code, item_id in enumerate(items_of(user))}
        item_of = _item_of_event(user)
        kept = np.ones((len(erased), len(item_of)), dtype=np.bool_)
        for number, item_ids in enumerate(erased):
            kept[number] = ~np.isin(item_of, [codes[item_id] for item_id in item_ids])
        history, row = self.vectors.reading(query, user).history, self.items.history(user)
        histories = [_some(history, mask[::-1]) for mask in kept]
        rows = [_some_of_row(row, mask) for mask in kept]
        user_vectors = self.release.user_vectors(histories, to_us(query.asked_at) // SECOND_US)
        together = self._together_without(user, [each.item_id for each in candidates], erased, kept)
        return self._scores(query, candidates, histories, rows, user_vectors, together)

    def with_history_of(
        self, query: Query, user: UserState, candidates: Sequence[Candidate], other: UserState
    ) -> Vectors:
        """Probe."""
        own = self.vectors.reading(query, user)
        others = self.vectors.reading(query, other).history
        together = together_of(self.items, other, [each.item_id for each in candidates])
        rows = [self.items.history(other)]
        scores = self._scores(query, candidates, [others], rows, own.user_vector[None], together[None])
        only: Vectors = scores[0]
        return only

    def by_retrieval(self, query: Query, user: UserState, candidates: Sequence[Candidate]) -> Vectors:
        """Probe."""
        reading: UserReading = self.vectors.reading(query, user)
        return self.vectors.of([each.item_id for each in candidates]) @ reading.user_vector

    def _scores(
        self,
        query: Query,
        candidates: Sequence[Candidate],
        histories: Sequence[History],
        rows: Sequence[HistoryBlock],
        user_vectors: Vectors,
        together: Vectors,
    ) -> Vectors:
        """[B, C] of B histories, the rows that they come from, the user vectors [B, D] that they give, and how strongly
        co-visits lead to the candidates [B, C]."""
        item_ids = [each.item_id for each in candidates]
        now_us = to_us(query.asked_at)
        block, vectors = self.items.block(item_ids), self.vectors.of(item_ids)
        features = model_features(ranking_features_of(rows, block, now_us), together)
        return self.release.rerank_rows(histories, now_us // SECOND_US, vectors, features, user_vectors @ vectors.T)

    def _together_without(
        self,
        user: UserState,
        item_ids: Sequence[str],
        erased: Sequence[frozenset[str]],
        kept: NDArray[np.bool_],
    ) -> Vectors:
        """How strongly the co-visits of each row that is left lead to the candidates, [B, C]; worked out anew only
        where one of the items that they start from is gone."""
        starts = frozenset(islice(dict.fromkeys(e.item_id for e in user.events if e.weight > 0), TOGETHER_STARTS))
        whole = together_of(self.items, user, item_ids)
        left = (tuple(compress(user.events, mask.tolist())) for mask in kept)
        found = [
            together_of(self.items, replace(user, events=events), item_ids) if starts & gone else whole
            for gone, events in zip(erased, left, strict=True)
        ]
        return np.stack(found)

    def _explained(
        self, query: Query, user: UserState, picks: Sequence[Pick], candidates: Sequence[Candidate]
    ) -> list[Pick]:
        item_ids = items_of(user)
        shares = self.shares(query, user, candidates)
        attended = np.argsort(-shares[:, 1:], axis=1, kind="stable")[:, :ATTENDED]
        erased = np.unique(attended)
        scores = self.without(
            query, user, candidates, [frozenset(), *(frozenset([item_ids[code]]) for code in erased.tolist())]
        )
        drops = np.zeros((len(picks), len(item_ids)))
        drops[:, erased] = (scores[0] - scores[1:]).T
        liked = _liked(user)
        return [
            self._with_reason(pick, item_ids, shares[place], attended[place], drops[place], liked)
            for place, pick in enumerate(picks)
        ]

    def _with_reason(
        self,
        pick: Pick,
        item_ids: tuple[str, ...],
        shares: Vectors,
        attended: NDArray[np.int64],
        drops: NDArray[np.float64],
        liked: frozenset[str],
    ) -> Pick:
        """The pick with the item whose erasure costs it most; its reason stays where most attention went to nothing or
        no score falls."""
        looked_at = tuple(
            LookedAt(item_ids[code], self.items.title(item_ids[code]), float(shares[1 + code]), float(drops[code]))
            for code in attended.tolist()
        )
        at_nothing = float(shares[0])
        best = max((each for each in looked_at if each.item_id in liked), key=lambda each: each.drop, default=None)
        told = looked_at if self.release.reranks else ()
        silent = at_nothing > max(each.share for each in looked_at) or pick.reason.kind in KEPT_REASONS
        if best is None or best.drop <= 0 or silent:
            return replace(pick, explanation=Explanation(None, told, at_nothing))
        reason = Reason("because_you_clicked", (best.item_id,), f"Because you picked {best.title}")
        return replace(pick, reason=reason, explanation=Explanation(best.drop, told, at_nothing))


def _item_of_event(user: UserState) -> NDArray[np.int64]:
    """The place of each event's item in `items_of(user)`, newest event first. int64 [H]"""
    codes = {item_id: code for code, item_id in enumerate(items_of(user))}
    return np.array([codes[each.item_id] for each in user.events], dtype=np.int64)


def _liked(user: UserState) -> frozenset[str]:
    """The items whose newest event is positive: nobody is told that they picked what they hid."""
    newest = {each.item_id: each.weight for each in reversed(user.events)}
    return frozenset(item_id for item_id, weight in newest.items() if weight > 0)


def _some(history: History, kept: NDArray[np.bool_]) -> History:
    return History(history.vectors[kept], history.actions[kept], history.times_s[kept])


def _some_of_row(row: HistoryBlock, kept: NDArray[np.bool_]) -> HistoryBlock:
    return HistoryBlock(row.item_hash[kept], row.occurred_us[kept], row.weight[kept], row.categories[kept])
