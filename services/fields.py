"""Single fields as foreign messages give them: texts, numbers, times, item fields; each of its type, or a WireError."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from services.domain import WireError, from_us

ID_LENGTH_MAX = 256
PROPERTIES_MAX = 50
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What no id may hold: control characters, line separators, halves of surrogate pairs."""
_EPOCH = re.compile(r"-?\d{9,}(\.\d+)?")
"""More digits than a date has."""
ITEM_FIELDS = ("title", "text", "categories", "attributes", "available", "published_at", "expires_at")
TEXT_LENGTH_MAX = 20_000
VALUE_MAX = 3.4028234663852886e38
"""The largest float32: rows keep values as such."""


def check_item_fields(fields: Mapping[str, object]) -> Mapping[str, object]:
    """The named fields of an item, each of its type (times as aware datetimes, categories as a tuple).

    Raises WireError for an unknown field or a wrong type.
    """
    checked: dict[str, object] = {}
    for name, given in fields.items():
        if name not in ITEM_FIELDS:
            raise WireError("unknown_field", f"unknown field {name!r}; known: {', '.join(ITEM_FIELDS)}")
        checked[name] = _item_field(name, given)
    return checked


def parse_time(given: object, name: str) -> datetime:
    """A time given as ISO 8601 (naive means UTC), as epoch seconds or as epoch milliseconds."""
    if isinstance(given, datetime):
        return aware(given)
    if isinstance(given, str):
        text = given.strip()
        if _EPOCH.fullmatch(text):  # `fromisoformat` takes 1700092800000 for a night in September 1700
            given = float(text)
        else:
            try:
                return aware(datetime.fromisoformat(text))
            except ValueError:
                given = _float_or_none(text)
    if isinstance(given, bool) or not isinstance(given, int | float) or not _is_finite(given):
        raise WireError("bad_time", f"{name} must be ISO 8601 or an epoch in s or ms")
    seconds = given / 1000 if abs(given) >= 1e11 else given  # 1e11 s is the year 5138; 1e11 ms is 1973
    if not -6e10 < seconds < 2e11:
        raise WireError("bad_time", f"{name}={given!r} is out of range")
    return from_us(round(seconds * 1_000_000))


def aware(moment: datetime) -> datetime:
    """The moment in UTC; a naive one is taken as UTC. WireError where UTC knows no such year."""
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    try:
        return moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    except OverflowError:
        raise WireError("bad_time", f"{moment.isoformat()} is out of range") from None


def check_id(name: str, given: str) -> None:
    """Raises WireError where an id is empty, too long or holds a control character."""
    if not given or given.isspace():
        raise WireError(f"empty_{name}", f"{name} must have 1 to {ID_LENGTH_MAX} characters")
    if len(given) > ID_LENGTH_MAX:
        raise WireError(f"long_{name}", f"{name} has {len(given)} characters, the limit is {ID_LENGTH_MAX}")
    if not given.isprintable() and _UNFIT.search(given):
        raise WireError(f"control_in_{name}", f"{name} must not hold control characters: {given!r}")


def id_text(fields: Mapping[str, object], name: str) -> str:
    """A required text field; whole numbers are taken as their digits."""
    given = fields.get(name)
    if isinstance(given, int) and not isinstance(given, bool):
        given = str(given)
    if given is None:
        raise WireError(f"missing_{name}", f"{name} is required")
    if not isinstance(given, str):
        raise WireError(f"bad_{name}", f"{name} must be a text, not {type(given).__name__}")
    given = given.strip()
    check_id(name, given)
    return given


def number_of(given: object) -> float:
    """A finite number, also from its digits."""
    number = _float_or_none(given) if isinstance(given, str) else given
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise WireError("bad_value", "value must be a number")
    if not _is_finite(number):
        raise WireError("not_finite", "value must be a finite number")
    if abs(number) > VALUE_MAX:
        raise WireError("bad_value", f"value must lie within {VALUE_MAX:.4g} of 0: user rows keep no more")
    return float(number)


def _float_or_none(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _is_finite(number: float) -> bool:
    """Whether a float can hold it; JSON may bring a whole number of hundreds of digits."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def check_properties(given: Mapping[str, object]) -> None:
    """Raises WireError where there are too many."""
    if len(given) > PROPERTIES_MAX:
        raise WireError("many_properties", f"{len(given)} entries of properties, the limit is {PROPERTIES_MAX}")


def properties_of(given: object) -> dict[str, str]:
    """A small object of texts; other values are kept as their JSON."""
    if not isinstance(given, dict):
        raise WireError("bad_properties", f"properties must be an object, not {type(given).__name__}")
    check_properties(given)
    return {
        str(name): value if isinstance(value, str) else msgspec.json.encode(value).decode()
        for name, value in given.items()
    }


def _item_field(name: str, given: object) -> object:
    if name in ("title", "text"):
        if not isinstance(given, str):
            raise WireError(f"bad_{name}", f"{name} must be a text")
        return given[:TEXT_LENGTH_MAX]
    if name == "available":
        if not isinstance(given, bool):
            raise WireError("bad_available", "available must be true or false")
        return given
    if name == "categories":
        if not isinstance(given, list | tuple) or not all(isinstance(each, str) for each in given):
            raise WireError("bad_categories", "categories must be a list of texts")
        return tuple(given)
    if name == "attributes":
        if not isinstance(given, dict):
            raise WireError("bad_attributes", "attributes must be an object")
        return properties_of(given)
    return None if given is None else parse_time(given, name)
