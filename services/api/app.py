"""The app: every family of routes over one runtime."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from starlette.types import ASGIApp

from services.api import events, items, operations, problems, recommendations, users
from services.api.edge import Edge
from services.api.runtime import Runtime

DESCRIPTION = """Events in, fresh lists out.

Errors are [RFC 9457](https://www.rfc-editor.org/rfc/rfc9457) problem documents with a stable `type`
(`urn:freshrank:problem:...`). Other spellings are taken too: of the fields of events and of what asks for a list
(userId, itemId, timestamp, numResults, ...). In a path an id may hold slashes; one that ends in `/related` or
`/recommendations` can be sent and shown, but not be read back there."""


def create_app(runtime: Runtime) -> ASGIApp:
    """The ASGI app of one runtime; its lifespan starts and stops the runtime."""
    return Edge(create_routes(runtime), runtime.settings.api_body_bytes_max)


def create_routes(runtime: Runtime) -> FastAPI:
    """The app without its edge (for its OpenAPI document)."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(runtime.start)
        try:
            yield
        finally:
            await run_in_threadpool(runtime.stop)

    app = FastAPI(title="freshrank", version=version("freshrank"), description=DESCRIPTION, lifespan=lifespan)
    problems.install(app)
    for family in (recommendations, events, items, users, operations):  # the longer paths stand first
        app.include_router(family.router(runtime))
    described = app.openapi

    def openapi() -> dict[str, Any]:
        document = described()
        document["components"]["schemas"].update({"EventBody": events.schema(), **items.schemas()})
        return problems.declared(document)

    app.openapi = openapi  # type: ignore[method-assign]
    return app
