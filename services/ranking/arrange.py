"""The order of a slate: best score first, ties by item id, so equal inputs give equal slates."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from services.domain import Pick, Query, Scored, UserState
from services.items import ItemTable
from services.ranking.reasons import reason_for


@dataclass(frozen=True, slots=True)
class TopByScore:
    """Arranger: the `query.limit` best, each with its reason."""

    items: ItemTable

    def __call__(self, query: Query, user: UserState, scored: Sequence[Scored]) -> tuple[Pick, ...]:  # noqa: ARG002
        """Arranger."""
        best = heapq.nsmallest(query.limit, scored, key=lambda each: (-each.score, each.candidate.item_id))
        return tuple(
            Pick(
                each.candidate.item_id, rank, each.score, each.candidate.source,
                reason_for(query, each.candidate, self.items.title),
            )
            for rank, each in enumerate(best)
        )  # fmt: skip
