"""The catalogue: items in (put, patch, delete), published like events; one item out."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi import Query as Parameter
from fastapi.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from services.api.answers import ItemAnswer
from services.api.bodies import Refused, body_of, parse_each, wait_for
from services.api.problems import Problem
from services.api.recommendations import checked_id, json_response
from services.api.refusals import Refusals
from services.api.runtime import Runtime
from services.api.schemas import ItemBody, ItemFields, ItemsAnswer
from services.domain import (
    TOPIC_ITEMS,
    Coordinate,
    ItemCard,
    ItemChange,
    Operation,
    Outgoing,
    StageUnavailable,
    WireError,
    from_us,
    to_us,
)
from services.fields import check_item_fields, id_text, parse_time
from services.signals import COUNTERS, decayed
from services.wire import VERSION, encode_item, updated_at_of

ID_NAMES = ("item_id", "itemId", "ItemId", "item", "id")
Wait = Annotated[
    Literal["catalogue"] | None,
    Parameter(
        description="Answer when the catalogue has it (bounded). Lists follow when the server next looks for changes "
        "(`items_poll_ms`, a quarter of a second)."
    ),
]


def router(runtime: Runtime) -> APIRouter:
    """The routes of this family over one runtime."""
    routes = APIRouter(tags=["items"])
    refusals = Refusals(runtime)
    _add_many(routes, runtime, refusals)
    _add_one(routes, runtime, refusals)
    return routes


def _add_many(routes: APIRouter, runtime: Runtime, refusals: Refusals) -> None:
    @routes.put("/v1/items", status_code=202, response_model=ItemsAnswer, openapi_extra=_body("ItemBody"))
    async def put_items(request: Request, wait: Wait = None) -> Response:
        """One item, a list of them, or NDJSON, each with its id. Each replaces what was known of it."""
        body, content_type = await body_of(request)
        return await _publish(runtime, refusals, body, content_type, "put", None, wait)


def _add_one(routes: APIRouter, runtime: Runtime, refusals: Refusals) -> None:
    @routes.put(
        "/v1/items/{item_id:path}",
        status_code=202, response_model=ItemsAnswer, openapi_extra=_body("ItemFields"),
    )  # fmt: skip
    async def put_item(request: Request, item_id: str, wait: Wait = None) -> Response:
        """One item; it replaces what was known of it. A body that names another item than the path is refused."""
        body, content_type = await body_of(request)
        return await _publish(runtime, refusals, body, content_type, "put", checked_id("item_id", item_id), wait)

    @routes.patch(
        "/v1/items/{item_id:path}",
        status_code=202, response_model=ItemsAnswer, openapi_extra=_body("ItemFields"),
    )  # fmt: skip
    async def patch_item(request: Request, item_id: str, wait: Wait = None) -> Response:
        """Only the named fields of one item; one that was deleted stays so (PUT brings it back). A body that names
        another item than the path is refused."""
        body, content_type = await body_of(request)
        return await _publish(runtime, refusals, body, content_type, "patch", checked_id("item_id", item_id), wait)

    @routes.delete("/v1/items/{item_id:path}", status_code=202, response_model=ItemsAnswer)
    async def delete_item(item_id: str, wait: Wait = None) -> Response:
        """The item is in no list any more, as soon as the servers have heard of it (`wait`)."""
        return await _publish(runtime, refusals, b"{}", "", "delete", checked_id("item_id", item_id), wait)

    @routes.get("/v1/items/{item_id:path}", response_model=ItemAnswer)
    def get_item(item_id: str) -> Response:
        """What is known of one item: its card, its categories and its counts as of now."""
        return json_response(_item_answer(runtime, checked_id("item_id", item_id)))


async def _publish(
    runtime: Runtime, refusals: Refusals, body: bytes, content_type: str, operation: Operation, item_id: str | None,
    wait: str | None,
) -> Response:  # fmt: skip
    coordinates, refused = await run_in_threadpool(_take, runtime, refusals, body, content_type, operation, item_id)
    told: dict[str, object] = {"accepted": len(coordinates), "rejected": refused}
    if refused and not coordinates:
        raise Problem("nothing-accepted", refused[0].detail, told)
    if wait is not None:
        told["waited"] = await wait_for(runtime.view, wait, coordinates, runtime.settings.api_wait_ms_max)
    return json_response(told, 202)


def _take(
    runtime: Runtime, refusals: Refusals, body: bytes, content_type: str, operation: Operation, item_id: str | None
) -> tuple[tuple[Coordinate, ...], list[Refused]]:
    found = refusals.records(TOPIC_ITEMS, body, content_type, "items")
    if item_id is not None and len(found) != 1:
        raise Problem("bad-body", f"{len(found)} objects for one item; PUT /v1/items takes many")
    accepted_at = runtime.now()
    messages, refused = parse_each(found, lambda fields: _message(fields, operation, item_id, accepted_at))
    coordinates = runtime.sink.publish(messages) if messages else ()
    if refused:
        refusals.keep(TOPIC_ITEMS, [_as_sent(record, operation, item_id) for record in found], refused)
    return coordinates, refused


def _message(
    fields: Mapping[str, object], operation: Operation, item_id: str | None, accepted_at: datetime
) -> Outgoing:
    given = dict(fields)
    named = [given.pop(name) for name in ID_NAMES if name in given]
    where, item_id = ("another name", _named_id(named)) if item_id is None else ("the path", item_id)
    _check_named(named, item_id, where)
    updated_at = given.pop("updated_at", None)
    change = ItemChange(
        item_id,
        operation,
        check_item_fields(given),
        accepted_at if updated_at is None else updated_at_of(parse_time(updated_at, "updated_at"), accepted_at),
        accepted_at,
    )
    return encode_item(change)


def _as_sent(record: object, operation: Operation, item_id: str | None) -> object:
    """A record as the quarantine keeps it: as the message it would have been, so that it can be mended and replayed."""
    if not isinstance(record, dict):
        return record
    fields = {name: value for name, value in record.items() if name not in (*ID_NAMES, "updated_at")}
    named = [record[name] for name in ID_NAMES if name in record]
    times = {"updated_at": record["updated_at"]} if "updated_at" in record else {}
    given = item_id if item_id is not None else next(iter(named), None)
    return {"v": VERSION, "item_id": given, "operation": operation, **times, "fields": fields}


def _check_named(named: list[object], item_id: str, where: str) -> None:
    """A body may name its item, or that of its path, again, but no other."""
    other = next((each for each in named if each is not None and str(each).strip() != item_id), None)
    if other is not None:
        raise WireError("item_id_mismatch", f"the body is of item {other}, {where} of {item_id}; leave one out"[:300])


def _named_id(named: list[object]) -> str:
    return id_text({"item_id": next((each for each in named if each is not None), None)}, "item_id")


def _item_answer(runtime: Runtime, item_id: str) -> dict[str, object]:
    card, degraded = _card_of(runtime, item_id)
    if (card is None or card.deleted) and item_id not in runtime.items:
        raise Problem("not-found", f"nothing is known of item {item_id}")
    block = runtime.items.block([item_id])
    now_us = to_us(runtime.now())
    counts = decayed(block.counts, block.counts_at_us, now_us)[0].reshape(len(COUNTERS), -1)
    windows = ("1h", "24h", "7d")
    return {
        "item_id": item_id,
        "title": runtime.items.title(item_id),
        "categories": list(card.categories) if card else list(runtime.items.category_names(item_id)),
        "card": None if card is None else _card(card),
        "degraded": degraded,
        "servable": bool(runtime.items.servable([item_id], now_us)[0]),
        "has_text_vector": runtime.items.vector(item_id) is not None,
        "counts": {
            counter: {window: round(float(c), 4) for window, c in zip(windows, row, strict=True)}
            for counter, row in zip(COUNTERS, counts, strict=True)
        },
        "counts_at": from_us(int(block.counts_at_us[0])) if block.counts_at_us[0] else None,
        "taken_together": [{"item_id": i, "weight": w} for i, w in runtime.items.covisits(item_id)[:20]],
    }


def _card_of(runtime: Runtime, item_id: str) -> tuple[ItemCard | None, tuple[str, ...]]:
    """The card; without one, and named, where the catalogue is away and the item is known here."""
    try:
        return runtime.catalogue.cards([item_id])[0], ()
    except StageUnavailable:
        if item_id not in runtime.items:
            raise
        return None, ("catalogue",)


def _card(card: Any) -> dict[str, object]:
    return {
        "title": card.title, "text": card.text, "categories": card.categories, "attributes": dict(card.attributes),
        "available": card.available, "published_at": card.published_at, "expires_at": card.expires_at,
        "deleted": card.deleted,
    }  # fmt: skip


def _body(model: str) -> dict[str, Any]:
    one = {"$ref": f"#/components/schemas/{model}"}
    many = {"anyOf": [one, {"type": "array", "items": one}]}
    content: dict[str, Any] = {"application/json": {"schema": many if model == "ItemBody" else one}}
    if model == "ItemBody":
        content["application/x-ndjson"] = {"schema": {"type": "string"}}
    return {"requestBody": {"required": True, "content": content}}


def schemas() -> dict[str, dict[str, Any]]:
    """The schemas of bodies, which no route's signature names."""
    return {model.__name__: model.model_json_schema() for model in (ItemBody, ItemFields)}
