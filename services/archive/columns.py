"""The columns of the archive: how records become rows and rows become records again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from services import wire
from services.domain import (
    NO_PROPERTIES,
    Coordinate,
    Event,
    ItemChange,
    Slate,
    from_us,
    to_us,
)
from services.mix import EXPLORED

if TYPE_CHECKING:
    import pyarrow as pa

Table: TypeAlias = Any
Schema: TypeAlias = Any

_COORDINATE = ("log_id", "topic", "partition", "offset")


@cache
def event_schema() -> Schema:
    """One row per event; `properties` is a JSON object, null where there are none."""
    import pyarrow as pa

    texts = ("event_id", "user_id", "item_id", "kind")
    return pa.schema(
        _coordinate_fields()
        + [pa.field(name, pa.string()) for name in texts]
        + [pa.field("occurred_us", pa.int64()), pa.field("accepted_us", pa.int64()), pa.field("value", pa.float64())]
        + [pa.field(name, pa.string()) for name in ("request_id", "session_id", "properties")]
    )


@cache
def slate_schema() -> Schema:
    """One row per slate: what to look up by, and the whole of it as it stood on the wire. `propensities`: those of the
    items, null where none was drawn; parts from before have no such column."""
    import pyarrow as pa

    return pa.schema(
        _coordinate_fields()
        + [pa.field(name, pa.string()) for name in ("request_id", "user_id", "release_id")]
        + [pa.field(name, pa.int64()) for name in ("user_row_time_us", "items_as_of", "asked_us")]
        + [pa.field("item_ids", pa.list_(pa.string())), pa.field("message", pa.binary())]
        + [pa.field("propensities", pa.list_(pa.float64()))]
    )


@cache
def item_schema() -> Schema:
    """One row per change of the catalogue, whole as it stood on the wire."""
    import pyarrow as pa

    return pa.schema(
        _coordinate_fields()
        + [pa.field(name, pa.string()) for name in ("item_id", "operation")]
        + [pa.field(name, pa.int64()) for name in ("updated_us", "accepted_us")]
        + [pa.field("message", pa.binary())]
    )


def event_table(rows: Sequence[tuple[Coordinate, Event]]) -> Table:
    """Events as columns of `event_schema`."""
    events = [event for _, event in rows]
    return _table(
        event_schema(),
        _coordinates([coordinate for coordinate, _ in rows])
        | {
            "event_id": [e.event_id for e in events],
            "user_id": [e.user_id for e in events],
            "item_id": [e.item_id for e in events],
            "kind": [e.kind for e in events],
            "occurred_us": [to_us(e.occurred_at) for e in events],
            "accepted_us": [to_us(e.accepted_at) for e in events],
            "value": [e.value for e in events],
            "request_id": [e.request_id for e in events],
            "session_id": [e.session_id for e in events],
            "properties": [msgspec.json.encode(dict(e.properties)).decode() if e.properties else None for e in events],
        },
    )


def slate_table(rows: Sequence[tuple[Coordinate, Slate]]) -> Table:
    """Slates as columns of `slate_schema`."""
    slates = [slate for _, slate in rows]
    return _table(
        slate_schema(),
        _coordinates([coordinate for coordinate, _ in rows])
        | {
            "request_id": [s.request_id for s in slates],
            "user_id": [s.user_id for s in slates],
            "release_id": [s.release_id for s in slates],
            "user_row_time_us": [s.user_row_time_us for s in slates],
            "items_as_of": [s.items_as_of for s in slates],
            "asked_us": [to_us(s.asked_at) for s in slates],
            "item_ids": [[pick.item_id for pick in s.items] for s in slates],
            "message": [wire.encode_slate(s).value for s in slates],
            "propensities": [_propensities(s) for s in slates],
        },
    )


def item_table(rows: Sequence[tuple[Coordinate, ItemChange]]) -> Table:
    """Item changes as columns of `item_schema`."""
    changes = [change for _, change in rows]
    return _table(
        item_schema(),
        _coordinates([coordinate for coordinate, _ in rows])
        | {
            "item_id": [c.item_id for c in changes],
            "operation": [c.operation for c in changes],
            "updated_us": [to_us(c.updated_at) for c in changes],
            "accepted_us": [to_us(c.accepted_at) for c in changes],
            "message": [wire.encode_item(c).value for c in changes],
        },
    )


EVENT_COLUMNS = (
    "event_id", "user_id", "item_id", "kind", "occurred_us", "accepted_us",
    "value", "request_id", "session_id", "properties",
)  # fmt: skip

ANSWER_COLUMNS = ("request_id", "user_id", "item_id", "kind", "occurred_us", "value")


def events_of(batch: pa.RecordBatch) -> list[Event]:
    """The events of a record batch with EVENT_COLUMNS."""
    columns = [batch.column(name).to_pylist() for name in EVENT_COLUMNS]
    return [
        Event(
            event_id, user_id, item_id, kind, from_us(occurred_us), from_us(accepted_us),
            value, request_id, session_id, _properties(properties),
        )
        for event_id, user_id, item_id, kind, occurred_us, accepted_us, value, request_id, session_id, properties
        in zip(*columns, strict=True)
    ]  # fmt: skip


def item_changes_of(batch: pa.RecordBatch) -> list[tuple[Coordinate, ItemChange]]:
    """The item changes of a record batch of `item_schema`, with their coordinates."""
    columns = [batch.column(name).to_pylist() for name in (*_COORDINATE, "accepted_us", "message")]
    return [
        (Coordinate(log_id, topic, partition, offset), wire.decode_item(message, from_us(accepted_us)))
        for log_id, topic, partition, offset, accepted_us, message in zip(*columns, strict=True)
    ]


def _propensities(slate: Slate) -> list[float] | None:
    found = [pick.propensity for pick in slate.items]
    return found if any(pick.source == EXPLORED for pick in slate.items) else None


def _properties(text: str | None) -> Mapping[str, str]:
    return msgspec.json.decode(text, type=dict[str, str]) if text else NO_PROPERTIES


def _coordinate_fields() -> list[Any]:
    import pyarrow as pa

    types = (pa.string(), pa.string(), pa.int32(), pa.int64())
    return [pa.field(name, type_) for name, type_ in zip(_COORDINATE, types, strict=True)]


def _coordinates(coordinates: Sequence[Coordinate]) -> dict[str, list[object]]:
    return {name: [getattr(c, name) for c in coordinates] for name in _COORDINATE}


def _table(schema: Schema, columns: Mapping[str, Sequence[object]]) -> Table:
    import pyarrow as pa

    return pa.table({name: pa.array(columns[name], type=schema.field(name).type) for name in schema.names})
