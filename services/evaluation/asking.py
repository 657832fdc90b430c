"""Many questions to one release, some at a time: the lists that `recommend` gives one by one, with the forwards of the
models batched.

Each question goes through `recommend` and the stages that serve, at its own moment of the item table, but on a release
that puts off its two forwards: user vectors are worked out before (a row depends on no answer), scores after. The
last stage, `arrange`, therefore comes when the item table has moved on by up to one batch; an arranger that read what
changes with every event would know too much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.batched import Asked, reranked, user_vectors
from models.batches import History
from models.release import ModelRelease
from services.candidates.vectors import ItemVectors
from services.domain import SECOND_US, Pick, Query, Scored, UserState, to_us
from services.items import ItemTable
from services.recommend import recommend
from services.training.cutoff import FrozenRows
from services.training.evaluate import StagesFor

Vectors = NDArray[np.float32]


@dataclass(slots=True)
class _Turn:
    """The question that is being answered: what the tower said, and what the reranker was asked."""

    user_vector: Vectors
    asked: Asked | None = None
    scored: Sequence[Scored] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class _Deferred(ModelRelease):
    """A release whose forwards are done elsewhere."""

    turn: _Turn

    @staticmethod
    def of(release: ModelRelease) -> _Deferred:
        parts: dict[str, Any] = {each.name: getattr(release, each.name) for each in fields(release) if each.init}
        return _Deferred(**parts, turn=_Turn(np.zeros(release.width, dtype=np.float32)))

    def user_vector(self, history: History, now_s: int) -> Vectors:  # noqa: ARG002
        """The one that was worked out before."""
        return self.turn.user_vector

    def rerank(
        self, history: History, now_s: int, candidate_vectors: Vectors, features: Vectors, retrieval_score: Vectors
    ) -> Vectors:
        """Nothing yet; what was asked is kept."""
        self.turn.asked = Asked(history, now_s, candidate_vectors, features, retrieval_score)
        return np.zeros(len(candidate_vectors), dtype=np.float32)


class Asking:
    """One release over an item table that changes between the questions."""

    def __init__(self, release: ModelRelease, items: ItemTable, stages_for: StagesFor) -> None:
        self._release = release
        deferred = _Deferred.of(release)
        self._turn = deferred.turn
        self._rows: dict[str, UserState] = {}
        stages = stages_for(deferred, items, FrozenRows(self._rows))
        self._arrange = stages.arrange
        self._stages = replace(stages, arrange=self._put_off)
        self._vectors = ItemVectors(deferred, items)
        self._vectors.load()

    def item_vectors(self, item_ids: Sequence[str]) -> Vectors:
        """float32 [n, D], zeros where nothing is known."""
        return self._vectors.of(item_ids)

    def user_vectors(self, questions: Sequence[tuple[Query, UserState]]) -> Vectors:
        """What each user wants at the time of the question. [n, D]"""
        histories = [self._vectors.reading(query, row).history for query, row in questions]
        return user_vectors(self._release, histories, [to_us(query.asked_at) // SECOND_US for query, _ in questions])

    def begin(self, query: Query, row: UserState, user_vector: Vectors) -> Begun:
        """The candidates of a question and what they would be ranked by, as the item table stands now."""
        turn = self._turn
        turn.user_vector, turn.asked, turn.scored = user_vector, None, ()
        assert query.user_id is not None, "a question of the stream is a user's"
        self._rows[query.user_id] = row
        slate = recommend(query, self._stages)
        del self._rows[query.user_id]
        assert not slate.degraded, f"{query.request_id} was answered without {slate.degraded}"
        return Begun(query, row, turn.asked, turn.scored)

    def finish(self, begun: Sequence[Begun]) -> list[tuple[Pick, ...]]:
        """The answers."""
        waiting = [each.asked for each in begun if each.asked is not None]
        chances = iter(reranked(self._release, waiting))
        picks = []
        for each in begun:
            scored = each.scored
            if each.asked is not None:
                pairs = zip(scored, next(chances).tolist(), strict=True)
                scored = [Scored(before.candidate, score) for before, score in pairs]
            picks.append(self._arrange(each.query, each.row, scored))
        return picks

    def _put_off(self, query: Query, user: UserState, scored: Sequence[Scored]) -> tuple[Pick, ...]:  # noqa: ARG002
        self._turn.scored = scored
        return ()


@dataclass(frozen=True, slots=True)
class Begun:
    """A question whose candidates are found but not ranked; `asked` None: there is nothing for the reranker to do."""

    query: Query
    row: UserState
    asked: Asked | None
    scored: Sequence[Scored]
