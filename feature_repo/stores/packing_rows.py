"""Many rows packed at once, to the same bytes as `packing.packed`: numpy lays out whole columns, and rows are cut out
of them. One row after the other, packing was half of all that the features consumer does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeAlias

import lz4.block
import numpy as np
from numpy.typing import NDArray

from feature_repo.stores.packing import CODED, CODES_MAX, LIST, PLAIN, VERSION, Layout, known_texts

_HEADS = np.dtype([("code", "<u2"), ("kind", "S1"), ("length", "<u4")])
_NUMBERS = {b"i": "<i8", b"f": "<f4", b"I": "<i8", b"F": "<f4"}


@dataclass(frozen=True, slots=True)
class Lists:
    """Where the lists of many rows lie in one flat column: row r holds `flat[offsets[r]:offsets[r + 1]]`. `offsets`
    int64 [rows + 1]."""

    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64] = field(init=False)
    firsts: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        lengths = np.diff(self.offsets)
        object.__setattr__(self, "lengths", np.repeat(lengths, lengths))
        object.__setattr__(self, "firsts", np.repeat(self.offsets[:-1], lengths))

    def planes(self, numbers: NDArray[Any]) -> bytes:
        """Numbers [n] of w bytes each: row after row, each as its w planes (`packing`)."""
        width = numbers.dtype.itemsize
        raw = np.ascontiguousarray(numbers).view(np.uint8).reshape(-1, width)
        places = self.firsts * width + (np.arange(len(raw)) - self.firsts)
        laid = np.empty(raw.size, dtype=np.uint8)
        for plane in range(width):
            laid[places + plane * self.lengths] = raw[:, plane]
        return laid.tobytes()

    def cut(self, laid: bytes, width: int) -> list[bytes]:
        """The bytes of each row, where an element has `width`."""
        edges = (self.offsets * width).tolist()
        return [laid[start:end] for start, end in pairwise(edges)]


Column: TypeAlias = Any
"""Of a plain kind: a value for each row. Of a list: where the rows' lists lie, and the flat column."""


def pack_rows(layout: Layout, columns: Mapping[str, Column]) -> list[bytes]:
    """A packed row for each row of the columns, which are those of the layout; at least one row."""
    bodies = [_bodies(kind, columns[name]) for name, _, kind in layout.columns]
    rows = len(bodies[0])
    heads = np.empty((rows, len(bodies)), dtype=_HEADS)
    for place, (_, code, kind) in enumerate(layout.columns):
        heads["code"][:, place], heads["kind"][:, place] = code, kind
        heads["length"][:, place] = np.fromiter(map(len, bodies[place]), dtype=np.int64, count=rows)
    count = len(bodies).to_bytes(2, "little")
    cut = _pieces(heads.tobytes(), _HEADS.itemsize * len(bodies))
    compress = lz4.block.compress
    return [VERSION + compress(b"".join((count, *pieces))) for pieces in zip(cut, *bodies, strict=True)]


def _bodies(kind: bytes, column: Column) -> list[bytes]:
    if kind == b"b":
        return list(column)
    if kind in (b"i", b"f"):
        numbers = np.asarray(column, dtype=_NUMBERS[kind])
        return _pieces(numbers.tobytes(), numbers.dtype.itemsize)
    lists, flat = column
    if kind == b"S":
        return _texts(lists, flat)
    numbers = np.asarray(flat, dtype=_NUMBERS[kind])
    bodies: list[bytes] = lists.cut(lists.planes(numbers), numbers.dtype.itemsize)
    return bodies


def _pieces(laid: bytes, width: int) -> list[bytes]:
    return [laid[start : start + width] for start in range(0, len(laid), width)]


def _texts(lists: Lists, flat: Sequence[str]) -> list[bytes]:
    edges = list(pairwise(lists.offsets.tolist()))
    distinct = [frozenset(flat[start:end]) for start, end in edges]
    is_plain = [
        len(those) * 2 > end - start or len(those) > CODES_MAX
        for those, (start, end) in zip(distinct, edges, strict=True)
    ]
    plain = _plain(lists, flat) if any(is_plain) else [b""] * len(edges)
    return [plain[row] if is_plain[row] else _codes(flat[start:end], distinct[row])
            for row, (start, end) in enumerate(edges)]  # fmt: skip


def _plain(lists: Lists, flat: Sequence[str]) -> list[bytes]:
    """Each row's texts as they are."""
    joined = "".join(flat)
    text = joined.encode()
    sizes = flat if len(text) == len(joined) else [each.encode() for each in flat]  # ASCII: a byte for each letter
    lengths = np.fromiter(map(len, sizes), dtype="<u4", count=len(sizes))
    planes = lists.cut(lists.planes(lengths), lengths.dtype.itemsize)
    edges = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))[lists.offsets].tolist()
    counts = np.diff(lists.offsets).tolist()
    return [
        LIST.pack(PLAIN, count) + plane + text[start:end]
        for count, plane, (start, end) in zip(counts, planes, pairwise(edges), strict=True)
    ]


def _codes(texts: Sequence[str], distinct: frozenset[str]) -> bytes:
    """A row's texts as codes of the few that they are."""
    codes, known = _coded(distinct)
    return LIST.pack(CODED, len(texts)) + bytes(map(codes.__getitem__, texts)) + known


@lru_cache(maxsize=1000)
def _coded(distinct: frozenset[str]) -> tuple[dict[str, int], bytes]:
    """The code of each text, and what a coded list ends with; the kinds of most rows are the same few."""
    texts = sorted(distinct)
    return {text: code for code, text in enumerate(texts)}, known_texts(texts)
