"""The `next` of a list: what was shown so far, so that more of it comes without repeats and no server remembers it."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterable

import msgspec

from services.api.problems import Problem

SHOWN_MAX = 1000
BYTES_MAX = 16 * 1024


def cursor_of(shown: Iterable[str]) -> str | None:
    """The cursor behind these items; None when the list has grown too long to go on."""
    item_ids = sorted(set(shown))
    if len(item_ids) > SHOWN_MAX:
        return None
    packed = base64.urlsafe_b64encode(zlib.compress(msgspec.msgpack.encode(item_ids), 6)).rstrip(b"=").decode()
    return packed if len(packed) <= BYTES_MAX else None


def shown_before(cursor: str | None) -> frozenset[str]:
    """The items that a cursor stands behind; Problem when it is none of ours."""
    if not cursor:
        return frozenset()
    try:
        packed = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        unpacker = zlib.decompressobj()
        plain = unpacker.decompress(packed, SHOWN_MAX * 1100)  # ids have at most 256 characters
        return frozenset(msgspec.msgpack.decode(plain, type=list[str]))
    except (ValueError, binascii.Error, zlib.error, msgspec.MsgspecError):
        raise Problem("bad-parameter", "cursor: send back the `next` of an answer, unchanged") from None
