"""What surrounds every request: the limit of its body, its time, its line in the log. Plain ASGI: it costs little."""

from __future__ import annotations

import time
from traceback import format_exception

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api.problems import Problem, respond
from services.telemetry import REQUEST_SECONDS

log = structlog.get_logger()
QUIET = ("/health/", "/metrics")


class Edge:
    """Wraps the app; refuses a body above `body_bytes_max` before it is read, by its length or while it streams."""

    def __init__(self, app: ASGIApp, body_bytes_max: int) -> None:
        self._app = app
        self._body_bytes_max = body_bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0

        async def noting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            encoding = _header(scope, b"content-encoding")
            if encoding not in (b"", b"identity"):
                said = encoding.decode("latin-1")
                await respond("bad-body", f"Content-Encoding {said} is not read; send the body as it is")(
                    scope, receive, noting_send
                )
            elif _declared_length(scope) > self._body_bytes_max:
                await respond("too-large", self._too_large())(scope, receive, noting_send)
            else:
                await self._app(scope, self._counting(receive), noting_send)
        except Exception as error:  # answered with a problem already; raised again for us to log it, once
            log.error("request_failed", path=scope["path"], traceback="".join(format_exception(error)))
            if status == 0:
                raise
        finally:
            _note(scope, status, time.perf_counter() - started)

    def _counting(self, receive: Receive) -> Receive:
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._body_bytes_max:
                raise Problem("too-large", self._too_large())
            return message

        return counted

    def _too_large(self) -> str:
        return f"a body may have {self._body_bytes_max} bytes (api_body_bytes_max); send it in parts"


def _declared_length(scope: Scope) -> int:
    value = _header(scope, b"content-length")
    return int(value) if value.isdigit() else 0


def _header(scope: Scope, wanted: bytes) -> bytes:
    value: bytes = next((value for name, value in scope["headers"] if name == wanted), b"")
    return value


def _note(scope: Scope, status: int, seconds: float) -> None:
    route = getattr(scope.get("route"), "path_format", "unknown")
    REQUEST_SECONDS.labels(route).observe(seconds)
    if not scope["path"].startswith(QUIET):
        log.info(
            "request", method=scope["method"], path=scope["path"], status=status, milliseconds=round(seconds * 1e3, 2)
        )
