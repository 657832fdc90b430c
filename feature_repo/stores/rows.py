"""What both online stores share: Feast's keys and values as bytes and back, and the names of tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, TypeAlias

from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import compute_table_id
from feast.protos.feast.types.Value_pb2 import Map, Value, ValueType

from feature_repo.stores.packing import Layout, code_of, columns_of, packed

Row: TypeAlias = tuple[Any, dict[str, Any], datetime, datetime | None]
"""As Feast hands it over: entity key, feature values, event time, created."""
Read: TypeAlias = tuple[datetime | None, dict[str, Any] | None]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAP = b"\x0a"
"""The first byte of a row as it was stored before rows were packed: one protobuf map."""

_KINDS = {
    "int64_val": b"i", "float_val": b"f", "string_val": b"s", "bytes_val": b"b",
    "int64_list_val": b"I", "float_list_val": b"F", "string_list_val": b"S",
}  # fmt: skip
_ONEOFS = {kind: name for name, kind in _KINDS.items()}
_DECLARED = {
    ValueType.INT64: b"i", ValueType.FLOAT: b"f", ValueType.STRING: b"s", ValueType.BYTES: b"b",
    ValueType.INT64_LIST: b"I", ValueType.FLOAT_LIST: b"F", ValueType.STRING_LIST: b"S",
}  # fmt: skip


def layout_of(view: Any) -> Layout:
    """The layout of a view's rows."""
    return Layout({each.name: _DECLARED.get(each.dtype.to_value_type().value, b"v") for each in view.features})


def pack_values(values: Mapping[str, Any]) -> bytes:
    """Feast's values by feature name as a packed row."""
    return packed((code_of(name), *_plain(value)) for name, value in values.items())


def unpack_values(row: bytes, view: Any, requested: Sequence[str] | None = None) -> dict[str, Any]:
    """A packed row as Feast's values by feature name; what it lacks is left out."""
    if row[:1] == MAP:
        values = dict(Map.FromString(row).val.items())
    else:
        names = {code_of(each.name): each.name for each in view.features}
        values = {names[code]: _value(kind, plain) for code, kind, plain in columns_of(row) if code in names}
    return values if requested is None else {name: values[name] for name in requested if name in values}


def unpack_row(row: bytes, layout: Layout) -> dict[str, Any]:
    """A packed row as plain values by feature name."""
    if row[:1] != MAP:
        return layout.unpack(row)
    return {name: _plain(value)[1] for name, value in Map.FromString(row).val.items()}


def table_of(config: Any, view: Any) -> str:
    """The name under which a view's rows are kept."""
    name: str = compute_table_id(config.project, view, config.registry.enable_online_feature_view_versioning)
    moved = stored_name(config, view)
    return name if moved == view.name else f"{config.project}_{moved}"


def stored_name(config: Any, view: Any) -> str:
    """The view's name, or the one under which its rows are kept instead."""
    name: str = config.online_store.renamed.get(view.name, view.name)
    return name


def key_of(config: Any, entity_key: Any) -> bytes:
    """Feast's serialised key. A key of one text, which all of ours are, is laid out here in a quarter of the time."""
    if len(entity_key.join_keys) == 1 and config.entity_key_serialization_version == 3:
        value = entity_key.entity_values[0]
        if value.WhichOneof("val") == "string_val":
            return text_key(entity_key.join_keys[0], value.string_val)
    key: bytes = serialize_entity_key(entity_key, config.entity_key_serialization_version)
    return key


def text_key(name: str, value: str) -> bytes:
    """What Feast makes of a key of one text (version 3); a test holds the two equal."""
    encoded = value.encode()
    return _key_head(name) + len(encoded).to_bytes(4, "little") + encoded


def text_of_key(key: bytes) -> str:
    """The text of which `text_key` made a key."""
    at = 12 + int.from_bytes(key[8:12], "little") + 4
    return key[at + 4 :].decode()


def us_of(moment: datetime) -> int:
    """Microseconds since 1970; a time without a zone is UTC."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - EPOCH) // timedelta(microseconds=1)


def moment_of(us: int) -> datetime:
    """The aware time of a number of microseconds since 1970."""
    return EPOCH + timedelta(microseconds=us)


@cache
def _key_head(name: str) -> bytes:
    encoded = name.encode()
    text = ValueType.STRING.to_bytes(4, "little")
    return (1).to_bytes(4, "little") + text + len(encoded).to_bytes(4, "little") + encoded + text


def _plain(value: Any) -> tuple[bytes, Any]:
    name = value.WhichOneof("val")
    if name is None:
        return b"n", None
    kind = _KINDS.get(name)
    if kind is None:
        return b"v", value.SerializeToString()
    held = getattr(value, name)
    return kind, list(held.val) if kind in b"IFS" else held


def _value(kind: bytes, plain: Any) -> Any:
    if kind == b"v":
        return Value.FromString(plain)
    value = Value()
    if kind in b"IFS":
        held = getattr(value, _ONEOFS[kind])
        held.SetInParent()
        held.val.extend(plain)
    elif kind != b"n":
        setattr(value, _ONEOFS[kind], plain)
    return value
