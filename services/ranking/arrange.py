"""The order of a slate: best score first, ties by item id, so equal inputs give equal slates; where it is wanted, the
list is spread out, capped by category, and some of its places explore."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.domain import Pick, Query, Scored, UserState, hash64, to_us
from services.items import ItemTable
from services.mix import BY_SCORE, EXPLORED, POOL, Mix
from services.ranking.diversity import CategoryCap, by_score, likeness_of, spread_out
from services.ranking.exploration import Drawn, drawn, explored_ranks, log_promise
from services.ranking.reasons import TO_LEARN, reason_for


@dataclass(frozen=True, slots=True)
class TopByScore:
    """Arranger: the `query.limit` best, each with its reason, in the order of their scores or as the mix says."""

    items: ItemTable
    mix: Mix = BY_SCORE

    def __call__(self, query: Query, user: UserState, scored: Sequence[Scored]) -> tuple[Pick, ...]:  # noqa: ARG002
        """Arranger."""
        best = sorted(scored, key=lambda each: (-each.score, each.candidate.item_id))
        asked = asked_of(query, self.mix)
        ranks = explored_ranks(query.limit, asked.explore_every)
        cap = self._cap(query, best, asked.category_cap)
        places = self._exploited(best, query.limit - len(ranks), asked.diversity, cap)
        won = self._explored(query, best, places, len(ranks), cap) if ranks else ()
        explored = dict(zip(ranks, won, strict=False))
        exploited = iter(places)
        return tuple(
            self._explored_pick(best[explored[rank].place], rank, explored[rank].propensity)
            if rank in explored
            else self._pick(query, best[next(exploited)], rank)
            for rank in range(len(places) + len(won))
        )

    def _exploited(self, best: list[Scored], limit: int, diversity: float, cap: CategoryCap | None) -> list[int]:
        """The places of what is shown because it fits: the pool spread out, and what lies below it by score."""
        if not diversity:
            return by_score(len(best), limit, cap)
        pool = best[:POOL]
        item_ids = [each.candidate.item_id for each in pool]
        texts = self.items.text_vectors(item_ids)
        likeness = likeness_of(texts, lambda: self.items.block(item_ids).categories)
        scores = np.array([each.score for each in pool], dtype=np.float32)
        picks = spread_out(scores, likeness, limit, diversity, cap) if pool else []
        return picks + by_score(len(best), limit - len(picks), cap, start=POOL)

    def _explored(
        self, query: Query, best: list[Scored], places: list[int], count: int, cap: CategoryCap | None
    ) -> tuple[Drawn, ...]:
        """What explores, of all that was scored and is not shown anyway; equal requests draw equally."""
        shown = set(places)
        others = [place for place in range(len(best)) if place not in shown]
        block = self.items.block([best[place].candidate.item_id for place in others])
        promise = log_promise(block.counts, block.counts_at_us, to_us(query.asked_at))
        return drawn(others, promise, count, hash64(query.request_id), cap)

    def _cap(self, query: Query, best: list[Scored], most: int) -> CategoryCap | None:
        if not most:
            return None
        categories = self.items.block([each.candidate.item_id for each in best]).categories
        return CategoryCap(categories, most, self.items.category_numbers(query.categories))

    def _pick(self, query: Query, each: Scored, rank: int) -> Pick:
        candidate = each.candidate
        reason = reason_for(query, candidate, self.items.title)
        return Pick(candidate.item_id, rank, each.score, candidate.source, reason)

    def _explored_pick(self, each: Scored, rank: int, propensity: float) -> Pick:
        return Pick(each.candidate.item_id, rank, each.score, EXPLORED, TO_LEARN, propensity)


def asked_of(query: Query, mix: Mix) -> Mix:
    """What holds for one question. A list that the caller gave, and one of items like one, is spread out or capped only
    where the question says so, and the caller's own list never explores; what is not recorded teaches nothing, so it
    does not explore either unless it is asked to."""
    is_open = query.like is None and not query.among
    diversity = query.diversity if query.diversity is not None else mix.diversity * is_open
    cap = query.category_cap if query.category_cap is not None else mix.category_cap * is_open
    explores = not query.among and (query.record if query.explore is None else query.explore)
    every = mix.explore_every if explores else 0
    return Mix(diversity=diversity, category_cap=cap, explore_every=every)
