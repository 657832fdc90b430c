"""A row's features as few bytes: each column laid out by its type so that it compresses, then LZ4. No Feast in here.

    1 byte    version
    LZ4 of    number of columns (u16), then per column: code of its name (u16), kind (1 byte), length (u32);
              then the columns

A column carries its own kind, so a row stays readable when a view gains, loses or reorders columns. Numbers of a list
lie in planes (all lowest bytes, then all second ones ...): times share their high planes, which compress to nothing.
A list of few distinct texts becomes codes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias
from zlib import crc32

import lz4.block

VERSION = b"\x01"
CODES_MAX = 255
_HEAD = struct.Struct("<HcI")
LIST = struct.Struct("<cI")
PLAIN, CODED = b"p", b"c"

Column: TypeAlias = tuple[int, bytes, Any]
"""The code of its name, its kind, its value as a plain Python object."""


class Layout:
    """The columns of one view: kinds by name. `i` int64, `f` float32, `s` text, `b` bytes, `I`, `F`, `S` lists of the
    first three, `v` anything else (its bytes as the caller makes them), `n` nothing."""

    def __init__(self, kinds: Mapping[str, bytes]) -> None:
        self.columns = tuple((name, code_of(name), kind) for name, kind in kinds.items())
        self.names = {code: name for name, code, _ in self.columns}
        if len(self.names) != len(self.columns):
            raise ValueError(f"two of the columns {sorted(kinds)} share a code; rename one")

    def pack(self, values: Mapping[str, Any]) -> bytes:
        """A whole row, every column of the declared kind. Many rows at once: `packing_rows`."""
        return packed((code, kind, values[name]) for name, code, kind in self.columns)

    def unpack(self, row: bytes) -> dict[str, Any]:
        """The columns that this layout knows, by name."""
        names = self.names
        return {names[code]: value for code, _, value in columns_of(row) if code in names}


def code_of(name: str) -> int:
    """What stands for a column's name in a row."""
    return crc32(name.encode()) & 0xFFFF


def packed(columns: Iterable[Column]) -> bytes:
    """The columns as bytes."""
    heads, bodies = [b""], []
    for code, kind, value in columns:
        body = _TO_BYTES[kind](value)
        heads.append(_HEAD.pack(code, kind, len(body)))
        bodies.append(body)
    heads[0] = len(bodies).to_bytes(2, "little")
    return VERSION + bytes(lz4.block.compress(b"".join(heads) + b"".join(bodies)))


def columns_of(row: bytes) -> Iterator[Column]:
    """The columns of `packed`."""
    assert row[:1] == VERSION, f"a row of version {row[0]}; this reader knows {VERSION[0]}"
    raw = lz4.block.decompress(row[1:])
    count = int.from_bytes(raw[:2], "little")
    at = 2 + count * _HEAD.size
    for code, kind, length in _HEAD.iter_unpack(raw[2:at]):
        yield code, kind, _FROM_BYTES[kind](raw[at : at + length])
        at += length


# ---------------------------------------------------------------------------------------------- lists


def _planes(numbers: bytes, width: int) -> bytes:
    return b"".join([numbers[place::width] for place in range(width)])


def _from_planes(planes: bytes, width: int) -> bytes:
    count = len(planes) // width
    numbers = bytearray(len(planes))
    for place in range(width):
        numbers[place::width] = planes[place * count : (place + 1) * count]
    return bytes(numbers)


def _integers(values: list[int]) -> bytes:
    return _planes(struct.pack(f"<{len(values)}q", *values), 8)


def _to_integers(body: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(body) // 8}q", _from_planes(body, 8)))


def _floats(values: list[float]) -> bytes:
    return _planes(struct.pack(f"<{len(values)}f", *values), 4)


def _to_floats(body: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(body) // 4}f", _from_planes(body, 4)))


def _texts(values: list[str]) -> bytes:
    distinct = set(values)
    if len(distinct) * 2 > len(values) or len(distinct) > CODES_MAX:
        texts = [value.encode() for value in values]
        lengths = struct.pack(f"<{len(texts)}I", *map(len, texts))
        return LIST.pack(PLAIN, len(texts)) + _planes(lengths, 4) + b"".join(texts)
    codes = {value: code for code, value in enumerate(sorted(distinct))}
    return LIST.pack(CODED, len(values)) + bytes([codes[value] for value in values]) + known_texts(list(codes))


def known_texts(values: list[str]) -> bytes:
    """The texts that codes stand for, at most CODES_MAX."""
    texts = [value.encode() for value in values]
    return bytes([len(texts)]) + struct.pack(f"<{len(texts)}I", *map(len, texts)) + b"".join(texts)


def _to_texts(body: bytes) -> list[str]:
    form, count = LIST.unpack_from(body)
    at = LIST.size
    if form == PLAIN:
        lengths = struct.unpack(f"<{count}I", _from_planes(body[at : at + 4 * count], 4))
        return _cut(body, at + 4 * count, lengths)
    codes, known = body[at : at + count], body[at + count]
    at += count + 1
    distinct = _cut(body, at + 4 * known, struct.unpack(f"<{known}I", body[at : at + 4 * known]))
    return [distinct[code] for code in codes]


def _cut(body: bytes, at: int, lengths: Iterable[int]) -> list[str]:
    texts = []
    for length in lengths:
        texts.append(body[at : at + length].decode())
        at += length
    return texts


_INT, _FLOAT = struct.Struct("<q"), struct.Struct("<f")
_TO_BYTES: Mapping[bytes, Any] = {
    b"i": _INT.pack, b"f": _FLOAT.pack, b"s": str.encode, b"b": bytes, b"v": bytes, b"n": lambda _: b"",
    b"I": _integers, b"F": _floats, b"S": _texts,
}  # fmt: skip
_FROM_BYTES: Mapping[bytes, Any] = {
    b"i": lambda body: _INT.unpack(body)[0], b"f": lambda body: _FLOAT.unpack(body)[0], b"s": bytes.decode,
    b"b": bytes, b"v": bytes, b"n": lambda _: None, b"I": _to_integers, b"F": _to_floats, b"S": _to_texts,
}  # fmt: skip
