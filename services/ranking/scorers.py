"""The scorers: a finite score for each candidate that does not depend on its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.batches import History
from services.domain import SECOND_US, Candidate, Query, UserState, to_us
from services.items import ItemTable
from services.signals import Known, Scores, model_features, ranking_features

Vectors = NDArray[np.float32]

SOURCE_WEIGHTS = {"given": 2.0, "related": 2.0, "covisits": 1.5, "faiss": 1.2, "trending": 1.0, "new": 0.4}
RANK_SMOOTHING = 10.0


class RankingModel(Protocol):
    """What the attention scorer needs of a release."""

    def rerank(
        self, history: History, now_s: int, candidate_vectors: Vectors, features: Vectors, retrieval_score: Vectors
    ) -> Vectors:
        """Scores of C candidates: vectors [C, D], features [C, F], retrieval_score [C] -> [C]."""


class ProbedModel(RankingModel, Protocol):
    """What asking for other histories needs of it."""

    @property
    def reranks(self) -> bool:
        """Whether the reranker orders; else the retrieval score does, and nothing is looked at."""

    def user_vectors(self, histories: Sequence[History], now_s: int) -> Vectors:
        """float32 [B, D]."""

    def rerank_rows(
        self,
        histories: Sequence[History],
        now_s: int,
        candidate_vectors: Vectors,
        features: Vectors,
        retrieval_score: Vectors,
    ) -> Vectors:
        """`rerank` of the same candidates for B histories: features [B, C, F], retrieval_score [B, C] -> [B, C]."""

    def attention(self, history: History, now_s: int, candidate_vectors: Vectors) -> Vectors:
        """The shares of nothing (first) and of each event, [C, H + 1]."""


class UserReading(Protocol):
    """A user as the release reads them."""

    @property
    def history(self) -> History: ...

    @property
    def user_vector(self) -> Vectors:
        """float32 [D]."""


class VectorReader(Protocol):
    """Vectors by id under the same release."""

    def of(self, item_ids: Sequence[str]) -> Vectors:
        """float32 [n, D], zeros where nothing is known."""

    def reading(self, query: Query, user: UserState) -> UserReading:
        """The user's history and vector at the time of the question."""


@dataclass(frozen=True, slots=True)
class AttentionScorer:
    """The release's reranker over the user's history, the counters and the retrieval score.

    Items related to one item, asked for by a stranger, keep their order: there is no taste to rank them by.
    """

    release: RankingModel
    items: ItemTable
    vectors: VectorReader
    name: str = "attention"

    def score(self, query: Query, user: UserState, candidates: Sequence[Candidate]) -> Scores:
        """Scorer."""
        if query.like is not None and not user.events:
            return Scores([_by_rank(candidate) for candidate in candidates])
        item_ids = [candidate.item_id for candidate in candidates]
        now_us = to_us(query.asked_at)
        block = self.items.block(item_ids)
        features = ranking_features(self.items.history(user), block, now_us)
        reading = self.vectors.reading(query, user)
        vectors = self.vectors.of(item_ids)
        known_to_model = model_features(features, together_of(self.items, user, item_ids))
        scores = self.release.rerank(
            reading.history, now_us // SECOND_US, vectors, known_to_model, vectors @ reading.user_vector
        )
        assert bool(np.isfinite(scores).all()), f"{self.name} gave a score that is no number"
        from_history = query.record and query.user_id is not None and not query.recent  # a row that can be joined again
        written = features.astype("<f4", copy=False).tobytes() if from_history else b""
        known = Known(block.as_of, block.as_of_us, written, features.shape[1])
        return Scores(scores.tolist(), known)


@dataclass(frozen=True, slots=True)
class RetrievalOrderScorer:
    """Before the first release: a fixed weight per source, falling with the rank that the source gave."""

    name: str = "retrieval_order"

    def score(self, query: Query, user: UserState, candidates: Sequence[Candidate]) -> Scores:  # noqa: ARG002
        """Scorer."""
        return Scores([_by_rank(candidate) for candidate in candidates])


def together_of(items: ItemTable, user: UserState, item_ids: Sequence[str]) -> Vectors:
    """How strongly co-visits of the user's newest items lead to each of some items. float32 [n]"""
    found = items.together(user)
    leads = map(found.get, item_ids)
    return np.fromiter((0.0 if lead is None else lead.total for lead in leads), np.float32, len(item_ids))


def _by_rank(candidate: Candidate) -> float:
    return SOURCE_WEIGHTS.get(candidate.source, 1.0) / (RANK_SMOOTHING + candidate.rank)
