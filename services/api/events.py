"""Events in: parsed one by one, published together, acknowledged when durable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter
from fastapi import Query as Parameter
from fastapi.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from services.api.bodies import Refused, body_of, parse_each, wait_for
from services.api.problems import Problem
from services.api.recommendations import json_response
from services.api.refusals import Refusals
from services.api.runtime import Runtime
from services.api.schemas import EventBody, EventsAnswer
from services.bus.spool import Taken
from services.domain import TOPIC_EVENTS, Event, Outgoing
from services.telemetry import EVENTS_ACCEPTED, EVENTS_CLAMPED
from services.wire import EVENT_ALIASES, EVENT_NAMES, encode_event, parse_event

_IDS = ("event_id", *EVENT_ALIASES["event_id"])
_TIMES = ("occurred_at", *EVENT_ALIASES["occurred_at"])
NOTHING = Taken((), 0)
UNKNOWN_TOLD = 20
_EVENT = {"$ref": "#/components/schemas/EventBody"}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"anyOf": [_EVENT, {"type": "array", "items": _EVENT}]},
                "examples": {
                    "one": {"value": {"user_id": "42", "item_id": "tt1375666", "kind": "click"}},
                    "several": {
                        "value": [
                            {"userId": "42", "itemId": "tt1375666", "event_type": "rating", "rating": 9},
                            {"user_id": "43", "item_id": "tt0468569", "timestamp": 1767268800},
                        ]
                    },
                },
            },
            "application/x-ndjson": {"schema": {"type": "string"}},
        },
    }
}
Wait = Annotated[
    Literal["features"] | None, Parameter(description="Answer when the user rows have the events (bounded).")
]


@dataclass(slots=True)
class Noted:
    """What an answer says about the events it took."""

    kinds: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    unrepeatable: Counter[str] = field(default_factory=Counter)


def router(runtime: Runtime) -> APIRouter:
    """The routes of this family over one runtime."""
    routes = APIRouter(tags=["events"])
    refusals = Refusals(runtime)

    @routes.post(
        "/v1/events",
        status_code=202,
        response_model=EventsAnswer,
        openapi_extra=_BODY,
    )
    async def post_events(request: Request, wait: Wait = None) -> Response:
        """One event, a list of them, or NDJSON. What is accepted is durable when the answer comes: in the log or,
        while that is away, on its way to it (`spooled`)."""
        body, content_type = await body_of(request)
        taken, refused, noted = await run_in_threadpool(_take, body, content_type, runtime, refusals)
        declared = runtime.settings.kind_rules().by_kind
        told: dict[str, object] = {
            "accepted": len(taken),
            "spooled": taken.spooled,
            "rejected": refused,
            "retry_not_recognised": noted.unrepeatable.total(),
            "undeclared_kinds": sorted(noted.kinds - declared.keys()),
            "unknown_fields": sorted(noted.unknown)[:UNKNOWN_TOLD],
        }
        if refused and not taken:
            raise Problem("nothing-accepted", refused[0].detail, told)
        if wait is not None:
            longest_ms = 0 if taken.spooled else runtime.settings.api_wait_ms_max  # it is not even in the log yet
            waited = await wait_for(runtime.view, wait, taken.coordinates, longest_ms)
            told["waited"] = replace(waited, reached=waited.reached and not taken.spooled)
        return json_response(told, 202)

    return routes


def schema() -> dict[str, Any]:
    """The schema of an event, which no route's signature names."""
    return EventBody.model_json_schema(ref_template="#/components/schemas/{model}")


def _take(body: bytes, content_type: str, runtime: Runtime, refusals: Refusals) -> tuple[Taken, list[Refused], Noted]:
    found = refusals.records(TOPIC_EVENTS, body, content_type, "events")
    accepted_at, noted = runtime.now(), Noted()
    messages, refused = parse_each(found, lambda fields: _message(fields, accepted_at, noted))
    taken = runtime.take(messages) if messages else NOTHING
    EVENTS_ACCEPTED.inc(len(taken))
    if refused:
        refusals.keep(TOPIC_EVENTS, found, refused)
    return taken, refused, noted


def _message(fields: Mapping[str, object], accepted_at: datetime, noted: Noted) -> Outgoing:
    event = parse_event(fields, accepted_at)
    if event.occurred_at >= accepted_at and any(fields.get(name) is not None for name in _TIMES):
        EVENTS_CLAMPED.labels("api").inc()
    noted.kinds.add(event.kind)
    noted.unknown |= fields.keys() - EVENT_NAMES
    if not any(fields.get(name) is not None for name in (*_IDS, *_TIMES)):
        event = _another(event, noted.unrepeatable)
    return encode_event(event)


def _another(event: Event, before: Counter[str]) -> Event:
    """An event that nothing tells from the equal ones before it in the body: it is one more, under an id of its own."""
    derived = event.event_id
    before[derived] += 1
    return event if before[derived] == 1 else msgspec.structs.replace(event, event_id=f"{derived}-{before[derived]}")
