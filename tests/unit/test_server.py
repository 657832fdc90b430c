# The serving process: the next free port, a stop that lets a running request finish. A real process, a real signal.
from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from services.api.server import bind, free_port, port_of
from services.domain import SettingsInvalid

ROOT = Path(__file__).resolve().parent.parent.parent

SLOW_APP = """
import asyncio, sys
from services.api.server import bind, port_of, serve
from services.domain import StageUnavailable

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        if sys.argv[1] == "broken":
            await send({"type": "lifespan.startup.failed", "message": "no"})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        sys.stdout.write("stopped\\n")
        await send({"type": "lifespan.shutdown.complete"})
        return
    sys.stdout.write("asked\\n")
    sys.stdout.flush()
    await asyncio.sleep(0.5)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})

bound = bind("127.0.0.1", 0)
try:
    serve(app, bound, 5, lambda: (sys.stdout.write(f"{port_of(bound)}\\n"), sys.stdout.flush()))
except StageUnavailable as error:
    sys.stdout.write(f"refused: {error}\\n")
sys.stdout.write("returned\\n")
"""


def child(mode: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SLOW_APP, mode], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_taken_port_gives_the_next_free_one() -> None:
    with bind("127.0.0.1", 0) as first, bind("127.0.0.1", port_of(first)) as second:
        assert port_of(first) < port_of(second) <= port_of(first) + 99
        assert free_port("127.0.0.1", port_of(first)) > port_of(second) - 1


def test_an_address_of_another_machine_is_refused_with_the_setting_that_names_it() -> None:
    with pytest.raises(SettingsInvalid, match=r"api_host=192\.0\.2\.1"):
        bind("192.0.2.1", 0)


def test_a_bound_socket_is_already_listened_on() -> None:
    with bind("127.0.0.1", 0) as bound:
        caller = socket.create_connection(("127.0.0.1", port_of(bound)), timeout=1)
        assert caller.getpeername()[1] == port_of(bound)
        caller.close()


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_lets_the_running_request_finish_and_then_returns(stop: signal.Signals) -> None:
    process = child("sound")
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())
        answers: list[bytes] = []

        def ask() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/")
            answers.append(connection.getresponse().read())

        asking = threading.Thread(target=ask)
        asking.start()
        assert process.stdout.readline() == "asked\n"
        time.sleep(0.05)
        process.send_signal(stop)
        asking.join(timeout=15)
        said, _ = process.communicate(timeout=15)
    finally:
        process.kill()
    assert answers == [b"done"]
    lines = said.splitlines()
    assert lines[0] == "stopped"
    assert "drained" in lines[1]
    assert lines[2] == "returned"
    assert process.returncode == 0


def test_an_app_that_does_not_start_is_one_clear_error() -> None:
    said, _ = child("broken").communicate(timeout=30)
    assert said.splitlines() == ["refused: the API did not start; the log says why", "returned"]
