"""Packed rows: what goes in comes out, a view may change its columns, a row of a later version is not misread."""

from __future__ import annotations

from math import isnan
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_repo.stores.packing import Layout, columns_of, packed
from feature_repo.stores.packing_rows import Lists, pack_rows

INT64 = st.integers(-(2**63), 2**63 - 1)
FLOAT32 = st.floats(width=32, allow_nan=False)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=9)
VALUES = {
    b"i": INT64, b"f": FLOAT32, b"s": TEXT, b"b": st.binary(max_size=40), b"v": st.binary(max_size=40), b"n": st.none(),
    b"I": st.lists(INT64, max_size=70), b"F": st.lists(FLOAT32, max_size=70), b"S": st.lists(TEXT, max_size=70),
}  # fmt: skip
COLUMN = st.sampled_from(sorted(VALUES)).flatmap(lambda kind: st.tuples(st.just(kind), VALUES[kind]))


@given(st.lists(COLUMN, max_size=9))
def test_what_is_packed_is_unpacked(columns: list[tuple[bytes, Any]]) -> None:
    given_columns = [(code, *column) for code, column in enumerate(columns)]
    assert list(columns_of(packed(given_columns))) == given_columns


@given(st.lists(st.sampled_from(["click", "view", "läuft", ""]), max_size=300))
def test_a_list_of_few_texts_keeps_its_order(kinds: list[str]) -> None:
    layout = Layout({"kinds": b"S"})
    assert layout.unpack(layout.pack({"kinds": kinds})) == {"kinds": kinds}


TEXTS = st.lists(st.sampled_from(["click", "view", "läuft", "", "x" * 300]), max_size=12)
ROW = st.fixed_dictionaries({
    "at": INT64, "share": FLOAT32, "seen": st.binary(max_size=9), "times": st.lists(INT64, max_size=5),
    "kinds": TEXTS, "values": st.lists(FLOAT32, max_size=5),
})  # fmt: skip
LAYOUT = Layout({"at": b"i", "share": b"f", "seen": b"b", "times": b"I", "kinds": b"S", "values": b"F"})


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ROW, min_size=1, max_size=4))
def test_rows_that_are_packed_together_are_the_bytes_of_each_packed_alone(rows: list[dict[str, Any]]) -> None:
    def together(name: str) -> Any:
        column = [row[name] for row in rows]
        if name in ("at", "share", "seen"):
            return column
        return Lists(np.cumsum([0, *map(len, column)])), [each for row in column for each in row]

    packed_rows = pack_rows(LAYOUT, {name: together(name) for name in rows[0]})
    assert packed_rows == [LAYOUT.pack(row) for row in rows]


def test_a_missing_value_stays_one() -> None:
    layout = Layout({"values": b"F"})
    first, second = layout.unpack(layout.pack({"values": [float("nan"), 2.5]}))["values"]
    assert isnan(first)
    assert second == 2.5


def test_a_view_may_gain_lose_and_reorder_columns() -> None:
    row = Layout({"a": b"i", "b": b"s", "c": b"I"}).pack({"a": 7, "b": "old", "c": [3, 1]})
    assert Layout({"c": b"I", "d": b"f", "a": b"i"}).unpack(row) == {"a": 7, "c": [3, 1]}


def test_two_names_with_one_code_are_refused() -> None:
    names = ("column1623", "column8000")  # found by trying: crc32 & 0xffff is 13601 for both
    with pytest.raises(ValueError, match="share a code"):
        Layout(dict.fromkeys(names, b"i"))


def test_a_row_of_a_later_version_is_not_misread() -> None:
    row = packed([(1, b"i", 5)])
    with pytest.raises(AssertionError, match="version 2"):
        list(columns_of(b"\x02" + row[1:]))
