"""The highest of many keys are those that sorting all of them puts first, whatever the keys are like."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.item_columns import highest

Keys = NDArray[np.float64]


def sorted_whole(keys: Keys, allowed: NDArray[np.bool_], limit: int) -> list[int]:
    slots = [slot for slot in range(1, len(keys)) if allowed[slot] and keys[slot] > -np.inf]
    return sorted(slots, key=lambda slot: (-keys[slot], slot))[:limit]


@given(
    st.lists(st.tuples(st.sampled_from([-np.inf, 0.0, 1.0, 1.5, 2.0, 7.0]), st.booleans()), max_size=400),
    st.integers(1, 40),
)
def test_level_keys_are_put_in_order_by_slot_and_what_is_not_allowed_or_has_no_key_takes_no_place(
    rows: list[tuple[float, bool]], limit: int
) -> None:
    keys = np.array([key for key, _ in rows])
    allowed = np.array([may for _, may in rows], dtype=np.bool_)
    assert highest(keys, allowed, limit).tolist() == sorted_whole(keys, allowed, limit)


@pytest.mark.parametrize("limit", [1, 10, 100, 1500])
@pytest.mark.parametrize(
    "order", ["none", "rising", "falling", "high only where one looks", "low only where one looks", "few"]
)
def test_of_thousands_none_is_missed_however_they_lie(order: str, limit: int) -> None:
    chance = np.random.default_rng(3)
    keys = chance.normal(size=3000)
    match order:
        case "rising":
            keys = np.sort(keys)
        case "falling":
            keys = -np.sort(keys)
        case "high only where one looks":
            keys[1::16] += 100.0  # the keys that stand for all say nothing of them
        case "low only where one looks":
            keys[1::16] -= 100.0
        case "few":
            keys[chance.random(3000) < 0.99] = -np.inf
    allowed = chance.random(3000) < 0.9
    assert highest(keys, allowed, limit).tolist() == sorted_whole(keys, allowed, limit)
