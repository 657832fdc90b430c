"""For whoever runs the instance: releases, runs, the quarantine, health and metrics."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from fastapi import Query as Parameter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from services.api.answers import LiveAnswer, PromotedAnswer, ReadyAnswer, RejectedAnswer, ReleasesAnswer, RunsAnswer
from services.api.measured import measure
from services.api.problems import Problem
from services.api.recommendations import json_response
from services.api.runtime import Run, Runtime
from services.domain import Metric, ReleaseInfo
from services.quarantine import Entry, Wanted, topic_named
from services.telemetry import exposition

OF_TOPIC = "Only entries of this topic; `events` is short for freshrank.events."
Many = Annotated[int, Parameter(ge=1, le=1000, description="How many at most.")]


def router(runtime: Runtime) -> APIRouter:
    """The routes of this family over one runtime."""
    routes = APIRouter()
    _add_releases(routes, runtime)
    _add_rejected(routes, runtime)
    _add_health(routes, runtime)
    return routes


def _add_releases(routes: APIRouter, runtime: Runtime) -> None:
    @routes.get("/v1/releases", tags=["model"], response_model=ReleasesAnswer)
    def releases() -> Response:
        """Every release, newest first, and which one this process serves."""
        serving = runtime.stages().release_id
        return json_response({"serving": serving, "releases": [_release(each) for each in runtime.registry.all()]})

    @routes.post("/v1/releases/{release_id}/promote", tags=["model"], response_model=PromotedAnswer)
    def promote(release_id: str) -> Response:
        """Make a release the live one; servers load, warm and swap it within seconds."""
        if all(each.release_id != release_id for each in runtime.registry.all()):
            raise Problem("not-found", f"there is no release {release_id}; GET /v1/releases lists them")
        runtime.registry.promote(release_id)
        return json_response({"live": release_id, "serving": runtime.stages().release_id})

    @routes.get("/v1/runs", tags=["model"], response_model=RunsAnswer)
    def runs(limit: Many = 20) -> Response:
        """Training runs, newest first."""
        return json_response({"runs": [_run(each) for each in runtime.runs(limit)]})


def _add_rejected(routes: APIRouter, runtime: Runtime) -> None:
    @routes.get("/v1/rejected", tags=["quarantine"], response_model=RejectedAnswer)
    def rejected(
        limit: Many = 50,
        after: Annotated[int, Parameter(ge=0, le=2**63 - 1)] = 0,
        reason: Annotated[str | None, Parameter(description="Only entries with this reason.")] = None,
        topic: Annotated[str | None, Parameter(description=OF_TOPIC)] = None,
    ) -> Response:
        """Messages that could not be read, with their bytes and the reason; `after` pages on."""
        topic = None if topic is None else topic_named(topic)
        found = runtime.quarantine.list(limit, after, Wanted(reason, topic))
        told = {"count": dict(runtime.quarantine.count()), "forgotten": runtime.quarantine.forgotten()}
        return json_response(told | {"rejected": [_rejected(entry) for entry in found]})


def _add_health(routes: APIRouter, runtime: Runtime) -> None:
    @routes.head("/health/live", include_in_schema=False)
    @routes.get("/health/live", tags=["health"], response_model=LiveAnswer)
    async def live() -> Response:
        """200 while the process runs."""
        return json_response({"status": "live"})

    @routes.head("/health/ready", include_in_schema=False)
    @routes.get(
        "/health/ready", tags=["health"], response_model=ReadyAnswer,
        responses={503: {"model": ReadyAnswer, "description": "A part is red"}},
    )  # fmt: skip
    def ready() -> Response:
        """200 when no part is red, else 503; each part's state either way."""
        parts = dict(runtime.parts())
        is_ready = all(part.state != "red" for part in parts.values())
        return json_response({"ready": is_ready, "parts": parts}, 200 if is_ready else 503)

    @routes.head("/metrics", include_in_schema=False)
    @routes.get("/metrics", tags=["health"], response_class=PlainTextResponse)
    def metrics() -> Response:
        """Prometheus text."""
        measure(runtime)
        return Response(exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _release(info: ReleaseInfo) -> dict[str, object]:
    return {
        "release_id": info.release_id, "live": info.live, "promoted": info.promoted, "created_at": info.created_at,
        "data_until": info.data_until, "reason": info.reason, "metrics": [_metric(each) for each in info.metrics],
    }  # fmt: skip


def _run(run: Run) -> dict[str, object]:
    return {
        "run_id": run.run_id, "state": run.state, "effort": run.effort, "started_at": run.started_at,
        "ended_at": run.ended_at, "seconds": run.seconds, "release_id": run.release_id or None, "message": run.message,
        "metrics": [_metric(each) for each in run.metrics],
    }  # fmt: skip


def _metric(metric: Metric) -> dict[str, object]:
    return {
        "model": metric.model, "part": metric.part, "name": metric.name,
        "value": metric.value, "users": metric.users,
    }  # fmt: skip


def _rejected(entry: Entry) -> dict[str, object]:
    each = entry.rejected
    return {
        "number": entry.number, "reason": each.reason, "detail": each.detail, "accepted_at": each.accepted_at,
        "log_id": each.coordinate.log_id, "topic": each.coordinate.topic,
        "partition": each.coordinate.partition, "offset": each.coordinate.offset,
        "value": each.value.decode(errors="replace"), "size": each.size, "replayed_at": entry.replayed_at,
    }  # fmt: skip
