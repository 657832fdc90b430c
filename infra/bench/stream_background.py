"""Events in the background at a steady rate, from a process of their own, into Kafka; and batches into the API.

As a program: `kafka RATE` until SIGTERM, or `api PORT CLIENTS SECONDS`. Both end with one line of JSON.
"""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from stream_consuming import event

USERS = 20_000
TICK_S = 0.05
BATCH = 100


class Background:
    """A generator that runs; `stop` tells how many events a second it brought in."""

    def __init__(self, rate: int) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), "kafka", str(rate)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True) if rate else None

    def stop(self) -> float:
        """End it."""
        if self._process is None:
            return 0.0
        assert self._process.poll() is None, "the background ended by itself; its reason stands above"
        self._process.send_signal(signal.SIGTERM)
        told, _ = self._process.communicate(timeout=60)
        self._process = None
        return float(json.loads(told.strip().splitlines()[-1])["events_per_s"])


@contextmanager
def background(rate: int) -> Iterator[Background]:
    """Events at this rate for a block."""
    running = Background(rate)
    try:
        yield running
    finally:
        if running._process is not None:
            running._process.kill()
            running._process.wait()


def ingest(port: int, clients: int, seconds: float) -> float:
    """Events a second that the API acknowledged, in batches of BATCH from `clients` connections."""
    command = [sys.executable, str(Path(__file__).resolve()), "api", str(port), str(clients), str(seconds)]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return float(json.loads(told.strip().splitlines()[-1])["events_per_s"])


def _into_kafka(rate: int) -> dict[str, float]:
    """Publish `rate` events a second, a little every TICK_S; what is late is made up for, up to a second's worth."""
    from services import wire
    from services.settings import load_settings
    from services.telemetry import configure_logs
    from services.wiring import open_home

    configure_logs("warning", "background")
    stopping = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    first, sent = uuid.uuid4().int % 10**9, 0
    with open_home(load_settings()) as home:
        started = due = time.monotonic()
        while not stopping.wait(max(0.0, due - time.monotonic())):
            count = round(rate * TICK_S)
            now = datetime.now(UTC)
            home.sink.publish([wire.encode_event(event(first + sent + n, USERS, now)) for n in range(count)])
            sent += count
            due = max(due + TICK_S, time.monotonic() - 1.0)
        return {"events_per_s": sent / (time.monotonic() - started)}


def _into_api(port: int, clients: int, seconds: float) -> dict[str, float]:
    """Send until the time is over; the bodies are made before it begins."""
    made = uuid.uuid4().hex[:8]
    acknowledged = [0] * clients
    begin = threading.Barrier(clients + 1)
    until = [0.0]

    def body(client: int, number: int) -> bytes:
        events = [
            {"event_id": f"{made}-{client}-{number}-{n}", "user_id": f"u{(client + number * 7 + n * 31) % USERS}",
             "item_id": f"i{(number * 13 + n) % 5000}", "kind": "click"}
            for n in range(BATCH)
        ]  # fmt: skip
        return json.dumps({"events": events}).encode()

    def send(client: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        bodies = [body(client, number) for number in range(max(10, int(200 * seconds / clients)))]
        begin.wait()
        for each in bodies:
            if time.monotonic() > until[0]:
                return
            connection.request("POST", "/v1/events", each, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            told = answer.read()
            assert answer.status in (200, 202), told
            acknowledged[client] += BATCH
        raise AssertionError("more was taken than was prepared; prepare more")

    threads = [threading.Thread(target=send, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    until[0] = time.monotonic() + seconds + 3600
    begin.wait()
    started = time.monotonic()
    until[0] = started + seconds
    for thread in threads:
        thread.join()
    return {"events_per_s": sum(acknowledged) / (time.monotonic() - started)}


if __name__ == "__main__":
    words = sys.argv[1:]
    result = (
        _into_kafka(int(words[1])) if words[0] == "kafka" else _into_api(int(words[1]), int(words[2]), float(words[3]))
    )
    sys.stdout.write(json.dumps(result) + "\n")
