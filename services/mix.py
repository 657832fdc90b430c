"""How lists are mixed: the most that each source proposes, and what becomes of the scored candidates after that."""

from __future__ import annotations

from dataclasses import dataclass

POOL = 50
"""The best candidates by score, among which diversity chooses; further down the order is that of the scores."""

EXPLORED = "explored"
"""The source of a pick that was drawn to learn about it, whatever source proposed it."""


@dataclass(frozen=True, slots=True)
class Mix:
    """What an instance does unless a question says otherwise. A source with the limit 0 is not asked.

    `diversity` (0: by score alone, 1: by unlikeness alone) and `category_cap` (0: none) are for lists of any items;
    `explore_every`: one place in so many shows an item to learn about it (0: none).
    """

    faiss: int = 150
    covisits: int = 40
    trending: int = 30
    new: int = 20
    diversity: float = 0.0
    category_cap: int = 0
    explore_every: int = 0


BY_SCORE = Mix()
"""All sources, nothing but the order of the scores."""
