"""The sources: each proposes items for a question, from one kind of knowledge.

A source asks for more than its limit and passes over what the filters would take out anyway (seen, excluded, another
category), so that a busy user still gets a full list; the filters stay the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from services.candidates.vectors import ItemVectors
from services.domain import Candidate, Query, UserState, to_us
from services.item_columns import in_turn
from services.items import ItemTable
from services.mix import BY_SCORE, Mix
from services.ports import CandidateSource

Ranked = Sequence[tuple[str, float]]

OVERFETCH_MAX = 1000
"""Most that an index is asked for beyond the limit, to make up for what is passed over."""

RANKING_DEPTHS = (100, 1000, 10_000)
"""How deep the trending and new rankings are read, until enough is left; the first time twice what is wanted, if that
is more."""


@dataclass(frozen=True, slots=True)
class FaissSource:
    """The items whose vectors are nearest to the user's; nothing for a user without a history."""

    items: ItemTable
    vectors: ItemVectors
    limit: int = 150
    name: str = "faiss"

    def candidates(self, query: Query, user: UserState) -> Sequence[Candidate]:
        """CandidateSource."""
        if not user.events or not _is_open(query):
            return ()
        limit = max(self.limit, query.limit)
        passed = _passed_over(query, user)
        deeper = OVERFETCH_MAX if query.categories else min(len(passed) + len(query.exclude), OVERFETCH_MAX)
        user_vector = self.vectors.reading(query, user).user_vector
        near = self.vectors.nearest(user_vector, limit + deeper)
        wanted = _wanted(self.items, query, near.item_ids)
        named = zip(near.item_ids, near.scores.tolist(), near.hashes.tolist(), wanted, strict=True)
        kept = islice(((i, score) for i, score, item_hash, want in named if want and item_hash not in passed), limit)
        return tuple(Candidate(item_id, self.name, score, rank) for rank, (item_id, score) in enumerate(kept))


@dataclass(frozen=True, slots=True)
class CovisitSource:
    """Items that others took together with the newest positive items of this user."""

    items: ItemTable
    limit: int = 40
    name: str = "covisits"

    def candidates(self, query: Query, user: UserState) -> Sequence[Candidate]:
        """CandidateSource."""
        if not _is_open(query):
            return ()
        found = self.items.together(user)
        best = sorted(sorted(found), key=lambda item_id: found[item_id].total, reverse=True)
        kept = _kept(self.items, query, user, [(i, found[i].total) for i in best], self.limit)
        return tuple(Candidate(i, self.name, s, rank, found[i].origin) for rank, (i, s) in enumerate(kept))


@dataclass(frozen=True, slots=True)
class TrendingSource:
    """What most people take lately, the same for everybody but for what they have seen; its score is the place."""

    items: ItemTable
    limit: int = 30
    name: str = "trending"

    def candidates(self, query: Query, user: UserState) -> Sequence[Candidate]:
        """CandidateSource."""
        if not _is_open(query):
            return ()
        kept = _deep_enough(self.items, self.items.trending, query, user, max(self.limit, query.limit))
        return tuple(Candidate(item_id, self.name, 1 / (1 + rank), rank) for rank, (item_id, _) in enumerate(kept))


@dataclass(frozen=True, slots=True)
class NewSource:
    """What came last; its score is the place in that order, 1 for the newest."""

    items: ItemTable
    limit: int = 20
    name: str = "new"

    def candidates(self, query: Query, user: UserState) -> Sequence[Candidate]:
        """CandidateSource."""
        if not _is_open(query):
            return ()
        kept = _deep_enough(self.items, self.items.newest, query, user, self.limit)
        return tuple(Candidate(item_id, self.name, 1 / (1 + rank), rank) for rank, (item_id, _) in enumerate(kept))


@dataclass(frozen=True, slots=True)
class RelatedSource:
    """Items like one item (`query.like`): nearest by vector and co-visited, taken in turn."""

    items: ItemTable
    vectors: ItemVectors | None
    limit: int = 150
    name: str = "related"

    def candidates(self, query: Query, user: UserState) -> Sequence[Candidate]:
        """CandidateSource."""
        if query.like is None:
            return ()
        like, limit = query.like, max(self.limit, query.limit)
        together = [item_id for item_id, _ in self.items.covisits(like)]
        merged = in_turn(self._similar(query, like, limit), together)
        kept = _kept(self.items, query, user, [(item_id, 0.0) for item_id in merged], limit)
        return tuple(Candidate(i, self.name, 1 / (1 + rank), rank, like) for rank, (i, _) in enumerate(kept))

    def _similar(self, query: Query, like: str, limit: int) -> list[str]:
        if self.vectors is None:
            return []
        vector = self.vectors.of([like])[0]
        if not vector.any():
            return []
        deeper = OVERFETCH_MAX if query.categories else min(OVERFETCH_MAX // 10 + len(query.exclude), OVERFETCH_MAX)
        near = self.vectors.nearest(vector, limit + deeper, to_item=True)
        return [item_id for item_id in near.item_ids if item_id != like]


@dataclass(frozen=True, slots=True)
class GivenSource:
    """The caller's own list (`query.among`), in the caller's order, whole: its length is the caller's."""

    limit: int = 1000
    name: str = "given"

    def candidates(self, query: Query, user: UserState) -> Sequence[Candidate]:  # noqa: ARG002
        """CandidateSource."""
        given = list(dict.fromkeys(query.among))[: self.limit]
        return tuple(Candidate(item_id, self.name, 1 / (1 + rank), rank) for rank, item_id in enumerate(given))


def standard_sources(items: ItemTable, vectors: ItemVectors | None, mix: Mix = BY_SCORE) -> tuple[CandidateSource, ...]:
    """Every source, in the order in which an item proposed twice is kept; without a release there are no vectors."""
    open_ones = (
        *((CovisitSource(items, mix.covisits),) if mix.covisits else ()),
        *((FaissSource(items, vectors, mix.faiss),) if mix.faiss and vectors is not None else ()),
        *((TrendingSource(items, mix.trending),) if mix.trending else ()),
        *((NewSource(items, mix.new),) if mix.new else ()),
    )
    return (GivenSource(), RelatedSource(items, vectors), *open_ones)


def _is_open(query: Query) -> bool:
    """Whether the question is for any item, and neither for those like one nor among some."""
    return query.like is None and not query.among


def _passed_over(query: Query, user: UserState) -> frozenset[int]:
    """Hashes of what this user has seen, where the question wants that dropped."""
    return frozenset(user.seen.hashes()) if query.seen == "drop" else frozenset()


def _deep_enough(
    items: ItemTable, ranking: Callable[[int, int], Ranked], query: Query, user: UserState, limit: int
) -> list[tuple[str, float]]:
    """The first `limit` of a ranking that are neither seen nor excluded, read deeper until there are as many."""
    kept: list[tuple[str, float]] = []
    for depth in (max(RANKING_DEPTHS[0], 2 * limit), *RANKING_DEPTHS[1:]):
        ranked = ranking(to_us(query.asked_at), depth)
        kept = _kept(items, query, user, ranked, limit)
        if len(kept) == limit or len(ranked) < depth:
            break
    return kept


def _kept(items: ItemTable, query: Query, user: UserState, found: Ranked, limit: int) -> list[tuple[str, float]]:
    """The first `limit` that are neither seen nor excluded nor of another category, in their order."""
    passed = _passed_over(query, user)
    kept: list[tuple[str, float]] = []
    for start in range(0, len(found), 2 * limit):
        some = found[start : start + 2 * limit]
        item_ids = [item_id for item_id, _ in some]
        fresh = [h not in passed for h in items.hashes(item_ids).tolist()] if passed else [True] * len(some)
        wanted = _wanted(items, query, item_ids)
        kept += [each for each, new, want in zip(some, fresh, wanted, strict=True) if new and want]
        if len(kept) >= limit:
            break
    return kept[:limit]


def _wanted(items: ItemTable, query: Query, item_ids: Sequence[str]) -> list[bool]:
    """Which of these the question does not exclude by name or by category."""
    if not query.exclude and not query.categories:
        return [True] * len(item_ids)
    wanted = np.ones(len(item_ids), dtype=np.bool_)
    if query.exclude:
        wanted &= np.fromiter((i not in query.exclude for i in item_ids), dtype=np.bool_, count=len(item_ids))
    if query.categories:
        wanted &= items.has_categories(item_ids, query.categories)
    return wanted.tolist()
