"""The filters: each takes out candidates for one reason. Pure, idempotent, and any two commute.

A list that the caller gave (`query.among`) is the caller's: of these filters only the asked-for ones touch it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.domain import Candidate, Query, UserState, to_us
from services.items import ItemTable
from services.ports import Filter


@dataclass(frozen=True, slots=True)
class SeenFilter:
    """Drops what the user has taken before, or rated badly, unless the question says `seen="keep"`."""

    items: ItemTable
    name: str = "seen"

    def keep(self, query: Query, user: UserState, candidates: Sequence[Candidate]) -> Sequence[bool]:
        """Filter."""
        if query.seen == "keep" or (not user.seen and not user.events):
            return [True] * len(candidates)
        seen = frozenset(user.seen.hashes())
        in_history = {event.item_id for event in user.events}
        hashes = self.items.hashes([c.item_id for c in candidates]).tolist()
        return [h not in seen and c.item_id not in in_history for c, h in zip(candidates, hashes, strict=True)]


@dataclass(frozen=True, slots=True)
class HiddenFilter:
    """Drops what the user has hidden."""

    name: str = "hidden"

    def keep(self, query: Query, user: UserState, candidates: Sequence[Candidate]) -> Sequence[bool]:
        """Filter."""
        hidden = set() if query.among else {item_id for _, item_id in user.hidden}
        if not hidden:
            return [True] * len(candidates)
        return [c.item_id not in hidden for c in candidates]


@dataclass(frozen=True, slots=True)
class UnavailableFilter:
    """Drops what cannot be had now: not available, deleted, expired or not yet published."""

    items: ItemTable
    name: str = "unavailable"

    def keep(self, query: Query, user: UserState, candidates: Sequence[Candidate]) -> Sequence[bool]:  # noqa: ARG002
        """Filter."""
        if query.among:
            return [True] * len(candidates)
        return _booleans(self.items.servable([c.item_id for c in candidates], to_us(query.asked_at)))


@dataclass(frozen=True, slots=True)
class ExcludedFilter:
    """Drops what the question excludes by name, and the item that it asks others like."""

    name: str = "excluded"

    def keep(self, query: Query, user: UserState, candidates: Sequence[Candidate]) -> Sequence[bool]:  # noqa: ARG002
        """Filter."""
        if not query.exclude and query.like is None:
            return [True] * len(candidates)
        return [c.item_id not in query.exclude and c.item_id != query.like for c in candidates]


@dataclass(frozen=True, slots=True)
class CategoryFilter:
    """Keeps only items of the asked categories, where some are asked."""

    items: ItemTable
    name: str = "category"

    def keep(self, query: Query, user: UserState, candidates: Sequence[Candidate]) -> Sequence[bool]:  # noqa: ARG002
        """Filter."""
        if not query.categories:
            return [True] * len(candidates)
        return _booleans(self.items.has_categories([c.item_id for c in candidates], query.categories))


def standard_filters(items: ItemTable) -> tuple[Filter, ...]:
    """Every filter, the cheap ones first."""
    return (ExcludedFilter(), HiddenFilter(), SeenFilter(items), UnavailableFilter(items), CategoryFilter(items))


def _booleans(mask: NDArray[np.bool_]) -> list[bool]:
    kept: list[bool] = mask.tolist()
    return kept
