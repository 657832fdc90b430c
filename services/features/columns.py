"""User rows as columns, for Feast: one arrow table for the history, packed rows for the online store.

Rows of one batch share most of their events, so the offline side works on the distinct ones and lets arrow repeat them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import chain
from math import isnan, nan
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from services.domain import DAY_US, Interaction, Seen, UserState
from services.signals import COUNTS_WIDTH, UserRows, click_rate

USER_KEY, ITEM_KEY = "user_id", "item_id"
EVENT_TIME, CREATED = "event_timestamp", "created"
ITEM_COUNTS = tuple(
    f"{counter}_{window}" for counter in ("impressions", "clicks", "conversions") for window in ("1h", "24h", "7d")
)
HISTORY_FEATURES = ("recent_items", "recent_us", "recent_kinds", "recent_weights", "row_time_us")

MOSTLY = 0.9
"""Where so many of the rows are of different users, looking for events that rows share costs more than it saves."""
NO_EVENTS: tuple[tuple[Any, ...], ...] = ((),) * len(Interaction._fields)
_TIME = pa.timestamp("us", tz="UTC")
_INTERACTION = partial(tuple.__new__, Interaction)
"""An Interaction of six values without a call into Python: there are 64 in each row that is read."""


# ---------------------------------------------------------------------------------------------- offline


def user_table(states: Sequence[UserState], created_at: datetime) -> Any:
    """The rows as a table in the columns of `user_behaviour`. `seen` stays out of the history: up to 12 KB for each
    event of a busy user, and a fold of the archive gives it (`docs/decisions`)."""
    users = {state.user_id for state in states}
    flat = flatten(states) if len(users) < MOSTLY * len(states) else laid_out(states)
    row_time_us = _int64([state.row_time_us for state in states])
    at_us, weights = flat.times(), flat.weights()
    columns = {
        USER_KEY: pa.array([state.user_id for state in states]),
        **_event_lists(flat, at_us, weights),
        "hidden_items": pa.array([[item for _, item in state.hidden] for state in states], pa.list_(pa.string())),
        "hidden_us": pa.array([[at for at, _ in state.hidden] for state in states], pa.list_(pa.int64())),
        "seen": pa.array([b""] * len(states), pa.binary()),
        "first_seen_us": pa.array(_int64([state.first_seen_us for state in states])),
        "row_time_us": pa.array(row_time_us),
        "previous_row_time_us": pa.array(_int64([state.previous_row_time_us for state in states])),
        **{name: pa.array(column) for name, column in derived(flat, at_us, weights, row_time_us).items()},
        EVENT_TIME: pa.array(row_time_us).cast(_TIME),
        CREATED: pa.array([created_at] * len(states), _TIME),
    }
    return pa.table(columns)


def item_table(
    item_ids: Sequence[str], counts: NDArray[np.float32], at_us: NDArray[np.int64], created_at: datetime
) -> Any:
    """Counts [n, COUNTS_WIDTH] held at `at_us` [n], as a table in the columns of `item_stats`."""
    columns = {
        ITEM_KEY: pa.array(item_ids, pa.string()),
        **{name: pa.array(column) for name, column in item_columns(counts).items()},
        "as_of_us": pa.array(at_us),
        EVENT_TIME: pa.array(at_us).cast(_TIME),
        CREATED: pa.array([created_at] * len(item_ids), _TIME),
    }
    return pa.table(columns)


def live_table(
    item_ids: Sequence[str],
    counts: NDArray[np.float32],
    at_us: NDArray[np.int64],
    written_us: int,
    created_at: datetime,
) -> Any:
    """Counts [n, COUNTS_WIDTH] held at `at_us` [n] and written for servers at `written_us`, in the columns of
    `item_live`."""
    written = np.full(len(item_ids), written_us, dtype=np.int64)
    columns = {
        ITEM_KEY: pa.array(item_ids, pa.string()),
        **{name: pa.array(np.ascontiguousarray(counts[:, place])) for place, name in enumerate(ITEM_COUNTS)},
        "as_of_us": pa.array(at_us),
        "written_us": pa.array(written),
        EVENT_TIME: pa.array(written).cast(_TIME),
        CREATED: pa.array([created_at] * len(item_ids), _TIME),
    }
    return pa.table(columns)


def item_columns(counts: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """The counts and smoothed rates by feature name."""
    named = {name: np.ascontiguousarray(counts[:, place]) for place, name in enumerate(ITEM_COUNTS)}
    rates = {f"click_rate_{w}": click_rate(named[f"clicks_{w}"], named[f"impressions_{w}"]) for w in ("24h", "7d")}
    return named | rates


@dataclass(frozen=True, slots=True)
class Flat:
    """Rows laid end to end: row r holds `distinct[code]` for `codes[offsets[r]:offsets[r + 1]]`, newest first."""

    offsets: NDArray[np.int64]
    codes: NDArray[np.int64]
    distinct: tuple[Interaction, ...]

    def times(self) -> NDArray[np.int64]:
        """When each of `distinct` occurred."""
        return _int64([each.occurred_us for each in self.distinct])

    def weights(self) -> NDArray[np.float32]:
        """The weight of each of `distinct`."""
        return np.array([each.weight for each in self.distinct], dtype=np.float32)


def flatten(states: Sequence[UserState]) -> Flat:
    """Lay rows end to end; one object in many rows becomes one entry of `distinct`."""
    every = list(chain.from_iterable(state.events for state in states))
    addresses = np.fromiter(map(id, every), dtype=np.int64, count=len(every))
    _, first, codes = np.unique(addresses, return_index=True, return_inverse=True)
    return Flat(_offsets(states), codes, tuple(map(every.__getitem__, first.tolist())))


def laid_out(states: Sequence[UserState]) -> Flat:
    """As `flatten`, where rows share few events: cheaper, and nothing is found to be the same."""
    every = tuple(chain.from_iterable(state.events for state in states))
    return Flat(_offsets(states), np.arange(len(every)), every)


def derived(
    flat: Flat, at_us: NDArray[np.int64], weights: NDArray[np.float32], row_time_us: NDArray[np.int64]
) -> dict[str, NDArray[np.float32]]:
    """Some USER_FEATURES of `services.signals` as of the row time, for people who look; a test holds them equal.
    `at_us` and `weights` are those of `flat.distinct`."""
    positive = (weights > 0)[flat.codes]
    lengths = np.diff(flat.offsets)
    age_us = np.repeat(row_time_us, lengths) - at_us[flat.codes]

    def per_row(chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        summed = np.concatenate(([0], np.cumsum(chosen)))
        return np.asarray(summed[flat.offsets[1:]] - summed[flat.offsets[:-1]], dtype=np.int64)

    share = 1.0 - per_row(positive) / np.maximum(lengths, 1)
    return {
        "user_history_length": np.log1p(lengths).astype(np.float32),
        "user_positive_24h": np.log1p(per_row(positive & (age_us <= DAY_US))).astype(np.float32),
        "user_positive_7d": np.log1p(per_row(positive & (age_us <= 7 * DAY_US))).astype(np.float32),
        "user_negative_share": np.where(lengths > 0, share, 0.0).astype(np.float32),
    }


def _offsets(states: Sequence[UserState]) -> NDArray[np.int64]:
    return np.cumsum([0, *(len(state.events) for state in states)], dtype=np.int64)


def _event_lists(flat: Flat, at_us: NDArray[np.int64], weights: NDArray[np.float32]) -> dict[str, Any]:
    offsets, codes = pa.array(flat.offsets.astype(np.int32)), pa.array(flat.codes)
    distinct = flat.distinct
    values = np.array([np.nan if e.value is None else e.value for e in distinct], dtype=np.float32)
    columns = {
        "recent_items": pa.array([each.item_id for each in distinct], pa.string()),
        "recent_us": pa.array(at_us),
        "recent_keys": pa.array(_int64([each.event_key for each in distinct])),
        "recent_kinds": pa.array([each.kind for each in distinct], pa.string()),
        "recent_values": pa.array(values),
        "recent_weights": pa.array(weights),
    }
    return {name: pa.ListArray.from_arrays(offsets, column.take(codes)) for name, column in columns.items()}


def _int64(numbers: Sequence[int]) -> NDArray[np.int64]:
    return np.array(numbers, dtype=np.int64)


# ------------------------------------------------------------------------------------------ point in time


def user_rows(table: Any) -> UserRows:
    """The columns HISTORY_FEATURES of a point-in-time join, rows in its order; a null row is a stranger's."""
    names = table.column_names
    lists = {name: table.column(names.index(name)).combine_chunks() for name in HISTORY_FEATURES[:4]}
    lengths = lists["recent_us"].value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    offsets = np.zeros(table.num_rows + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    items = lists["recent_items"].flatten().dictionary_encode()
    kinds = lists["recent_kinds"].flatten().dictionary_encode()
    row_time = table.column(names.index("row_time_us")).combine_chunks().fill_null(0)
    return UserRows(
        offsets,
        row_time.to_numpy(zero_copy_only=False).astype(np.int64),
        items.indices.to_numpy().astype(np.int32),
        tuple(items.dictionary.to_pylist()),
        kinds.indices.to_numpy().astype(np.int16),
        tuple(kinds.dictionary.to_pylist()),
        lists["recent_us"].flatten().to_numpy().astype(np.int64),
        lists["recent_weights"].flatten().to_numpy().astype(np.float32),
    )


def joined_rows(pieces: Sequence[UserRows]) -> UserRows:
    """Several blocks of rows as one, in order, with one numbering of items and kinds."""
    items: dict[str, int] = {}
    kinds: dict[str, int] = {}
    offsets = [np.zeros(1, dtype=np.int64)]
    for piece in pieces:
        offsets.append(piece.offsets[1:] + offsets[-1][-1])
    return UserRows(
        np.concatenate(offsets),
        _concatenated([piece.row_time_us for piece in pieces], np.int64),
        _concatenated([_renumbered(items, p.item_ids)[p.item_codes] for p in pieces], np.int32),
        tuple(items),
        _concatenated([_renumbered(kinds, p.kinds)[p.kind_codes] for p in pieces], np.int16),
        tuple(kinds),
        _concatenated([piece.occurred_us for piece in pieces], np.int64),
        _concatenated([piece.weight for piece in pieces], np.float32),
    )


def item_counts(table: Any) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Counts [n, COUNTS_WIDTH] and their stamps [n] of a point-in-time join; zeros for a null row."""
    columns = [table.column(name).fill_null(0).to_numpy() for name in ITEM_COUNTS]
    assert len(columns) == COUNTS_WIDTH
    counts = np.stack(columns, axis=1).astype(np.float32) if table.num_rows else np.zeros((0, COUNTS_WIDTH), np.float32)
    return counts, times_of(table, "as_of_us")


def times_of(table: Any, name: str) -> NDArray[np.int64]:
    """A column of times of a point-in-time join; 0 for a null row."""
    times: NDArray[np.int64] = table.column(name).fill_null(0).to_numpy().astype(np.int64)
    return times


def no_counts(rows: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Counts, their stamps and when they were written, of items that nobody counted."""
    return np.zeros((rows, COUNTS_WIDTH), np.float32), np.zeros(rows, np.int64), np.zeros(rows, np.int64)


def _renumbered(numbers: dict[str, int], names: Sequence[str]) -> NDArray[np.int64]:
    return _int64([numbers.setdefault(name, len(numbers)) for name in names])


def _concatenated(arrays: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate(arrays).astype(dtype, copy=False) if arrays else np.zeros(0, dtype=dtype)


# ---------------------------------------------------------------------------------------------- online


class OnlineCodec:
    """User rows as the online stores keep them and back. Made once Feast is imported; holds its message classes."""

    def __init__(self) -> None:
        from feast.protos.feast.types import EntityKey_pb2, Value_pb2

        from feature_repo.definitions import user_behaviour
        from feature_repo.stores.packing_rows import Lists, pack_rows
        from feature_repo.stores.rows import layout_of, unpack_row

        self._entity_key = EntityKey_pb2.EntityKey
        self._value = Value_pb2.Value
        self._layout = layout_of(user_behaviour)
        self._unpack = unpack_row
        self._pack = pack_rows
        self._lists = Lists

    def key(self, name: str, entity_id: str) -> Any:
        """The entity key of one id."""
        return self._entity_key(join_keys=[name], entity_values=[self._value(string_val=entity_id)])

    def encode(self, states: Sequence[UserState]) -> list[bytes]:
        """Each row, packed."""
        if not states:
            return []
        flat = laid_out(states)
        row_time_us = _int64([state.row_time_us for state in states])
        occurred_us, keys, item_ids, kinds, given, weights = (
            zip(*flat.distinct, strict=True) if flat.distinct else NO_EVENTS
        )
        at_us, weight = _int64(occurred_us), np.array(weights, dtype=np.float32)
        hidden = tuple(chain.from_iterable(state.hidden for state in states))
        events = self._lists(flat.offsets)
        hides = self._lists(np.cumsum([0, *(len(state.hidden) for state in states)], dtype=np.int64))
        return self._pack(
            self._layout,
            {
                "recent_items": (events, item_ids),
                "recent_us": (events, at_us),
                "recent_keys": (events, keys),
                "recent_kinds": (events, kinds),
                "recent_values": (events, [nan if each is None else each for each in given]),
                "recent_weights": (events, weight),
                "hidden_items": (hides, [item_id for _, item_id in hidden]),
                "hidden_us": (hides, [at_us for at_us, _ in hidden]),
                "seen": [state.seen.packed for state in states],
                "first_seen_us": [state.first_seen_us for state in states],
                "row_time_us": row_time_us,
                "previous_row_time_us": [state.previous_row_time_us for state in states],
                **derived(flat, at_us, weight, row_time_us),
            },
        )

    def decode(self, user_id: str, packed: bytes) -> UserState:
        """The row that was packed."""
        values = self._unpack(packed, self._layout)
        events = zip(
            values["recent_us"],
            values["recent_keys"],
            map(sys.intern, values["recent_items"]),
            map(sys.intern, values["recent_kinds"]),
            [None if isnan(number) else number for number in values["recent_values"]],
            values["recent_weights"],
            strict=True,
        )
        hidden = zip(values["hidden_us"], values["hidden_items"], strict=True)
        return UserState(
            user_id,
            tuple(map(_INTERACTION, events)),
            tuple(hidden),
            Seen(values["seen"]),
            values["first_seen_us"],
            values["row_time_us"],
            values["previous_row_time_us"],
        )

    def encode_items(self, counts: NDArray[np.float32], at_us: NDArray[np.int64]) -> list[dict[str, Any]]:
        """The feature values of rows of `item_stats`."""
        value = self._value
        named = {name: column.tolist() for name, column in item_columns(counts).items()}
        return [
            {"as_of_us": value(int64_val=at), **{name: value(float_val=column[i]) for name, column in named.items()}}
            for i, at in enumerate(at_us.tolist())
        ]
