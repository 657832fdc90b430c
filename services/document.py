"""Strict JSON: foreign bytes as one object, or the reason why not. What could be read in two ways is refused."""

from __future__ import annotations

import json
from typing import NoReturn

import msgspec

from services.domain import WireError

DEPTH_MAX = 32
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, OverflowError, RecursionError)
"""What reading foreign bytes may raise: no JSON, another shape, a number that no float holds, a too deep nesting."""


def object_of(value: bytes) -> dict[str, object]:
    """The JSON object in some bytes. WireError names what is wrong with them, as narrowly as it can be told."""
    check(value)
    try:
        found = msgspec.json.decode(value)
    except UNREADABLE as error:  # half of a surrogate pair, written as an escape
        raise WireError("bad_text", str(error)) from None
    if not isinstance(found, dict):
        raise WireError("not_an_object", f"a JSON {type(found).__name__}")
    return found


def check(value: bytes) -> None:
    """WireError unless the bytes are one JSON document: UTF-8, whole, no name twice, no NaN, not nested too deep."""
    if _is_plain(value):
        return
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        cut = error.reason == "unexpected end of data"
        raise WireError("truncated" if cut else "not_utf8", str(error)) from None
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_not_finite)
    except json.JSONDecodeError as error:
        raise WireError(_fault(text, error), str(error)) from None
    except ValueError as error:  # a whole number of thousands of digits
        raise WireError("not_finite", str(error)) from None
    except RecursionError:
        raise WireError("too_deep", f"nested deeper than {DEPTH_MAX}") from None
    _check_depth(found)


def _is_plain(value: bytes) -> bool:
    """Whether it is sound at a glance, in a third of the time: it can be read, its brackets are too few to nest deep,
    and read and written again it has as many names as before."""
    if value.count(b"{") + value.count(b"[") > DEPTH_MAX or b"\\" in value:
        return False
    try:
        again = msgspec.json.encode(msgspec.json.decode(value))
        return again.count(b'":') == msgspec.json.format(value, indent=-1).count(b'":')
    except UNREADABLE:
        return False


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise WireError("duplicate_key", f"{twice!r} stands twice in one object")
    return found


def _not_finite(literal: str) -> NoReturn:
    raise WireError("not_finite", f"{literal} is no JSON number")


def _fault(text: str, error: json.JSONDecodeError) -> str:
    if error.msg.startswith("Extra data"):
        return "trailing_data"
    ended = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
    return "truncated" if ended and text.lstrip()[:1] in ("{", "[", '"') else "not_json"


def _check_depth(found: object) -> None:
    level, depth = [found], 0
    while level:
        depth += 1
        if depth > DEPTH_MAX:
            raise WireError("too_deep", f"nested deeper than {DEPTH_MAX}")
        inner = [each for each in level if isinstance(each, dict | list)]
        level = [
            deeper for each in inner for deeper in (each.values() if isinstance(each, dict) else each)
            if isinstance(deeper, dict | list)
        ]  # fmt: skip
