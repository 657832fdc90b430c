"""Errors as RFC 9457 problem documents: a stable `type`, what was wrong, and how to mend it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from services.api.schemas import ProblemAnswer
from services.domain import BadRequest, StageUnavailable, WireError

MEDIA_TYPE = "application/problem+json"
TYPES = {
    "bad-request": (400, "The request cannot be understood"),
    "bad-body": (400, "The body cannot be read"),
    "not-found": (404, "There is no such thing"),
    "method-not-allowed": (405, "This route does not take that method"),
    "too-large": (413, "The body is too large"),
    "bad-parameter": (422, "A parameter or field is refused"),
    "nothing-accepted": (422, "Nothing of the body was accepted"),
    "internal": (500, "Our mistake"),
    "unavailable": (503, "A part that is needed does not answer"),
}
"""Every problem type (as `urn:freshrank:problem:<name>`) with its status and title. Stable."""

NOT_FOUND = (("get", ["items"]), ("post", ["model"]))
"""Routes with an id that may be one of nothing; a user or item of which nothing is known still has a list."""
_BY_STATUS = {404: "not-found", 405: "method-not-allowed", 413: "too-large"}


class Problem(HTTPException):
    """Raised anywhere in a route to answer with a problem document; `more` adds members to it.

    An HTTPException, because the framework lets only those through while it reads a body.
    """

    def __init__(self, name: str, detail: str, more: dict[str, object] | None = None) -> None:
        super().__init__(TYPES[name][0], detail)
        self.name = name
        self.more = more or {}


def respond(
    name: str, detail: str, more: dict[str, object] | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """The response of one problem."""
    status, title = TYPES[name]
    document = {
        "type": f"urn:freshrank:problem:{name}",
        "title": title,
        "status": status,
        "detail": detail,
        **(more or {}),
    }
    headers = {"Retry-After": "1"} if status == 503 else headers
    return Response(msgspec.json.encode(document), status, headers=headers, media_type=MEDIA_TYPE)


def declared(document: dict[str, Any]) -> dict[str, Any]:
    """An OpenAPI document with the problems that each route may answer, in place of those the framework supposes."""
    problem = {"content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemAnswer"}}}}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if path.startswith("/health") or path == "/metrics":
                operation["responses"].pop("422", None)
                continue
            statuses = [422, 503]
            statuses += [400, 413] if "requestBody" in operation else []
            statuses += [404] if "{" in path and (method, operation["tags"]) in NOT_FOUND else []
            told = {str(status): {"description": _described(status), **problem} for status in sorted(statuses)}
            operation["responses"] = {**operation["responses"], **told}
    document["components"]["schemas"].pop("HTTPValidationError", None)
    document["components"]["schemas"].pop("ValidationError", None)
    document["components"]["schemas"]["ProblemAnswer"] = ProblemAnswer.model_json_schema()
    return document


def _described(status: int) -> str:
    return "; ".join(f"`{name}`: {title}" for name, (of, title) in TYPES.items() if of == status)


def install(app: FastAPI) -> None:
    """Make every error of the app a problem document."""
    for kind, handler in (
        (Problem, _problem),
        (BadRequest, _bad_request),
        (WireError, _wire_error),
        (StageUnavailable, _unavailable),
        (SQLAlchemyError, _database_away),
        (RequestValidationError, _validation),
        (HTTPException, _http),
        (Exception, _internal),
    ):
        app.add_exception_handler(kind, handler)


def _problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return respond(error.name, error.detail, error.more)


def _bad_request(_request: Request, error: Exception) -> Response:
    return respond("bad-request", str(error))


def _wire_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, WireError)
    return respond("bad-request", error.detail, {"reason": error.reason})


def _unavailable(_request: Request, error: Exception) -> Response:
    return respond("unavailable", f"{error}; nothing was taken, send it again")


def _database_away(_request: Request, error: Exception) -> Response:
    cause = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
    return respond("unavailable", f"the metadata database does not answer: {cause}")


def _validation(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = [{"field": ".".join(str(p) for p in each["loc"]), "message": each["msg"]} for each in error.errors()]
    if any(each["type"] == "json_invalid" for each in error.errors()):
        return respond("bad-body", "the body is not JSON", {"errors": found})
    return respond("bad-parameter", "; ".join(f"{e['field']}: {e['message']}" for e in found), {"errors": found})


def _http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 400 and "parsing the body" in str(error.detail):  # as the framework says it
        return respond("bad-body", "the body is not JSON")
    return respond(_BY_STATUS.get(error.status_code, "bad-request"), str(error.detail), headers=error.headers)


def _internal(_request: Request, _error: Exception) -> Response:
    return respond("internal", "this is logged; nothing is known to be wrong with the request")
