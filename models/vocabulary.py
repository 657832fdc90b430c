"""Ids into rows and back. The only place that knows that row 0 is padding, and how actions are numbered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

PADDING = 0
ACTION_UNKNOWN = 0


class OrZero(dict[str, int]):
    """Numbers by id; an unknown id has 0. Many are looked up without a step of Python for each."""

    def __missing__(self, item_id: str) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The items and kinds that a release knows. Row 0 stands for padding and for every unknown item.

    `item_ids[0]` has row 1. Each kind has two actions, one for a positive and one for a negative event of it; action 0
    is padding, neutral and every unknown kind.
    """

    item_ids: tuple[str, ...]
    kinds: tuple[str, ...]
    _rows: OrZero = field(init=False, repr=False, compare=False)
    _kind_numbers: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rows", OrZero(zip(self.item_ids, range(1, len(self)), strict=True)))
        object.__setattr__(self, "_kind_numbers", {kind: number for number, kind in enumerate(self.kinds)})
        assert len(self._rows) == len(self.item_ids), "an item stands twice in the vocabulary"
        assert len(self._kind_numbers) == len(self.kinds), "a kind stands twice in the vocabulary"

    def __len__(self) -> int:
        """Number of rows, V, with row 0."""
        return len(self.item_ids) + 1

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._rows

    @property
    def action_count(self) -> int:
        """Number of actions, A, with action 0."""
        return 2 * len(self.kinds) + 1

    def row(self, item_id: str) -> int:
        """The row of one item; 0 when it is unknown."""
        return self._rows.get(item_id, PADDING)

    def rows(self, item_ids: Sequence[str]) -> NDArray[np.int64]:
        """The rows of some items, in the order asked; 0 for the unknown ones. [len(item_ids)]"""
        return np.fromiter(map(self._rows.__getitem__, item_ids), dtype=np.int64, count=len(item_ids))

    def ids(self, rows: NDArray[np.int64]) -> tuple[str, ...]:
        """The ids of some rows. Row 0 has none: asking for it is our mistake."""
        assert len(rows) == 0 or int(rows.min()) > PADDING, "row 0 has no id"
        return tuple(self.item_ids[row - 1] for row in rows.tolist())

    def action(self, kind: str, weight: float) -> int:
        """The action of one event by its kind and signed weight; 0 when the kind is unknown or the weight is 0."""
        number = self._kind_numbers.get(kind)
        if number is None or weight == 0:
            return ACTION_UNKNOWN
        return 2 * number + (1 if weight > 0 else 2)

    def actions(
        self, kinds: tuple[str, ...], kind_codes: NDArray[np.integer], weights: NDArray[np.floating]
    ) -> NDArray[np.int64]:
        """The actions of N events: `kinds[kind_codes[n]]` with signed weight `weights[n]`. int64 [N]"""
        numbers = np.array([self._kind_numbers.get(kind, -1) for kind in kinds] or [-1], dtype=np.int64)[kind_codes]
        actions = 2 * numbers + np.where(weights > 0, 1, 2)
        return np.where((numbers < 0) | (weights == 0), ACTION_UNKNOWN, actions).astype(np.int64)
