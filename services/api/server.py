"""The process that serves: a bound socket, uvicorn, and a stop that lets running requests finish."""

from __future__ import annotations

import errno
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
import uvicorn
from starlette.types import ASGIApp

from services.domain import SettingsInvalid, StageUnavailable

log = structlog.get_logger()
PORTS_TRIED = 100
BACKLOG = 512


def bind(host: str, wanted: int) -> socket.socket:
    """A listening socket on the wanted port, or on the next free one when it is taken (0: any free one)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in range(wanted, min(wanted + PORTS_TRIED, 65536)) if wanted else (0,):
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, port))
            bound.listen(BACKLOG)
        except OSError as error:
            bound.close()
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise SettingsInvalid(f"api_host={host} cannot be listened on: {error.strerror}") from None
        else:
            return bound
    raise SettingsInvalid(f"api_port={wanted}: no free port in {wanted}..{wanted + PORTS_TRIED - 1}; name another")


def free_port(host: str, wanted: int) -> int:
    """The port that `bind` would take now; another process may take it before you do."""
    with bind(host, wanted) as bound:
        return port_of(bound)


def port_of(bound: socket.socket) -> int:
    """The port of a bound socket."""
    port: int = bound.getsockname()[1]
    return port


class Server(uvicorn.Server):
    """uvicorn, telling when it answers."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Bind and start the app, then say so."""
        await super().startup(sockets=sockets)
        if self.started:
            self._ready()


def make_server(app: ASGIApp, drain_s: float, ready: Callable[[], None] = lambda: None) -> Server:
    """A server that is not running yet; `should_exit = True` ends it."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="on",
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=max(1, round(drain_s)),
    )
    return Server(config, ready)


def serve(app: ASGIApp, bound: socket.socket, drain_s: float, ready: Callable[[], None] = lambda: None) -> None:
    """Serve until SIGTERM or SIGINT, let running requests finish (at most `drain_s`), then return.

    Raises StageUnavailable when the app does not start; the cause is logged.
    """
    server = make_server(app, drain_s, ready)
    port = port_of(bound)
    with _returning_on_signal():
        try:
            server.run(sockets=[bound])
        except SystemExit:  # how uvicorn says that the app's start raised
            raise StageUnavailable("the API did not start; the log says why") from None
    log.info("drained", port=port)


@contextmanager
def _returning_on_signal() -> Iterator[None]:
    """uvicorn raises the caught signal again at its end; here that ends nothing: the caller has things to close."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
