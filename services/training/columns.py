"""The archive as columns: what training reads, without one Python object per event."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from services.domain import KindRules

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class EventColumns:
    """N events in time order, as codes into the ids they name; equal times keep the order they were read in.

    `user_codes` int32 into `user_ids`, `item_codes` int32 into `item_ids`, `kind_codes` int16 into `kinds`,
    `occurred_us` int64, `weight` float32 (the signed weight of the kind; 0: neutral). All [N].
    """

    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    kinds: tuple[str, ...]
    user_codes: NDArray[np.int32]
    item_codes: NDArray[np.int32]
    kind_codes: NDArray[np.int16]
    occurred_us: NDArray[np.int64]
    weight: NDArray[np.float32]

    def __post_init__(self) -> None:
        columns = (self.user_codes, self.item_codes, self.kind_codes, self.occurred_us, self.weight)
        lengths = {len(column) for column in columns}
        assert len(lengths) == 1, f"columns of unequal lengths: {lengths}"
        assert np.all(np.diff(self.occurred_us) >= 0), "events out of time order"

    def __len__(self) -> int:
        return len(self.occurred_us)

    @property
    def positive(self) -> NDArray[np.bool_]:
        """Which events are positive."""
        return np.asarray(self.weight > 0, dtype=np.bool_)

    def keep(self, kept: NDArray[np.bool_]) -> EventColumns:
        """Only the events marked; the codes stay what they are."""
        return EventColumns(
            self.user_ids, self.item_ids, self.kinds, self.user_codes[kept], self.item_codes[kept],
            self.kind_codes[kept], self.occurred_us[kept], self.weight[kept],
        )  # fmt: skip

    def before(self, time_us: int) -> EventColumns:
        """What happened strictly before a time."""
        return self.keep(self.occurred_us < time_us)

    def since(self, time_us: int) -> EventColumns:
        """What happened at or after a time."""
        return self.keep(self.occurred_us >= time_us)


def columns_of_arrow(table: pa.Table, rules: KindRules) -> EventColumns:
    """The archive's columns `user_id, item_id, kind, occurred_us, value` with the signed weight of each event."""
    user_ids, users = _coded(table["user_id"])
    item_ids, items = _coded(table["item_id"])
    kinds, kind_codes = _coded(table["kind"])
    values = table["value"].cast("float64").to_numpy(zero_copy_only=False)
    occurred = table["occurred_us"].cast("int64").to_numpy(zero_copy_only=False)
    weights = signed_weights(kinds, kind_codes, values, rules)
    return _sorted(user_ids, users, item_ids, items, kinds, kind_codes, occurred, weights)


def columns_of_rows(rows: Sequence[tuple[str, str, str, int, float | None]], rules: KindRules) -> EventColumns:
    """Columns of `(user_id, item_id, kind, occurred_us, value)` rows, for small logs."""
    user_ids, users = _coded_texts([row[0] for row in rows])
    item_ids, items = _coded_texts([row[1] for row in rows])
    kinds, kind_codes = _coded_texts([row[2] for row in rows])
    occurred = np.array([row[3] for row in rows], dtype=np.int64)
    values = np.array([np.nan if row[4] is None else row[4] for row in rows], dtype=np.float64)
    weights = signed_weights(kinds, kind_codes, values, rules)
    return _sorted(user_ids, users, item_ids, items, kinds, kind_codes, occurred, weights)


def signed_weights(
    kinds: tuple[str, ...], kind_codes: NDArray[np.integer[Any]], values: NDArray[np.float64], rules: KindRules
) -> NDArray[np.float32]:
    """`KindRules.signed_weight` of N events at once; NaN is no value. float32 [N]"""
    weights = np.zeros(len(kind_codes), dtype=np.float32)
    for code, kind in enumerate(kinds):
        rule = rules.by_kind.get(kind)
        of_kind = kind_codes == code
        weights[of_kind] = rules.signed_weight(kind, None)
        if rule is not None and rule.threshold is not None and rule.sign != "neutral":
            valued = of_kind & ~np.isnan(values)
            weights[valued] = np.where(values[valued] >= rule.threshold, rule.weight, -rule.weight)
    return weights


def _sorted(
    user_ids: tuple[str, ...],
    users: NDArray[np.int64],
    item_ids: tuple[str, ...],
    items: NDArray[np.int64],
    kinds: tuple[str, ...],
    kind_codes: NDArray[np.int64],
    occurred_us: NDArray[np.int64],
    weights: NDArray[np.float32],
) -> EventColumns:
    order = np.argsort(occurred_us, kind="stable")
    return EventColumns(
        user_ids, item_ids, kinds, users[order].astype(np.int32), items[order].astype(np.int32),
        kind_codes[order].astype(np.int16), occurred_us[order].astype(np.int64), weights[order],
    )  # fmt: skip


def _coded(column: pa.ChunkedArray) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    whole = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    coded = whole if hasattr(whole, "dictionary") else whole.dictionary_encode()
    codes = coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return tuple(coded.dictionary.to_pylist()), codes


def _coded_texts(texts: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    numbers: dict[str, int] = {}
    codes = np.array([numbers.setdefault(text, len(numbers)) for text in texts], dtype=np.int64)
    return tuple(numbers), codes


def apart(user_codes: NDArray[np.int64], occurred_us: NDArray[np.int64]) -> NDArray[np.int64]:
    """The times with k µs more for the k-th event of equal user and time, as an import adds them: what is known before
    an event is then a matter of its time alone."""
    order = np.lexsort((occurred_us, user_codes))  # stable: equal ones as in the file
    users, times = user_codes[order], occurred_us[order]
    starts = np.concatenate([[True], (users[1:] != users[:-1]) | (times[1:] != times[:-1])])
    places = np.arange(len(order))
    apart = np.empty_like(occurred_us)
    apart[order] = times + places - np.maximum.accumulate(np.where(starts, places, 0))
    return apart
