"""Why an item is shown, and what its score hangs on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ReasonKind = Literal["because_you_clicked", "trending_in", "new_in", "similar_to", "explored", "for_you"]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an item is shown. `item_ids` names the items it started from, where the source has one; by erasure, the item
    of the history without which the score falls most."""

    kind: ReasonKind
    item_ids: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class LookedAt:
    """An item of the history that the model looked at: its `share` of the attention, which is no reason, and the `drop`
    of the score when every event on it is erased from the row, which is one where it is positive."""

    item_id: str
    title: str
    share: float
    drop: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a pick's score hangs on, by erasure. `drop`: that of the item which the reason names; None where it names
    none. `looked_at`: the most attended items, first the most; `at_nothing`: the share of attention that went to none.
    """

    drop: float | None
    looked_at: tuple[LookedAt, ...] = ()
    at_nothing: float = 0.0
