"""What the demo plays on: the real processes of `freshrank run` on a home of their own, seen through the API."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

from services.domain import FreshrankError

START_S_MAX = 120.0
DRAIN_S_MAX = 30.0
LOOK_S = 0.05
TAIL_LINES = 5
MEMORY_LOOK_S = 1.0


class Stage:
    """The supervised processes and a client of their API. A context manager: they end with it."""

    def __init__(self, home: Path, command: Sequence[str], port: int) -> None:
        self.home = home
        self._command = tuple(command)
        self._port = port
        self._run: subprocess.Popen[bytes] | None = None
        self._client: httpx.Client | None = None
        self.memory = MemoryWatch(os.getpid())

    def __enter__(self) -> Stage:
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "run.log").open("ab") as output:
            self._run = subprocess.Popen(
                [*self._command, "run", "--port", str(self._port), "--logs", str(self.home / "logs"), "--watch-parent"],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        self.memory.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.memory.stop()
        if self._client is not None:
            self._client.close()
        if self._run is not None and self._run.poll() is None:
            self._run.terminate()
            try:
                self._run.wait(DRAIN_S_MAX)
            except subprocess.TimeoutExpired:
                self._run.kill()
                self._run.wait()

    def check(self) -> None:
        """Raise when the processes have ended, with the last lines of their logs."""
        if self._run is not None and self._run.poll() is not None:
            raise FreshrankError(f"`freshrank run` ended with code {self._run.returncode}: {self.tail()}")

    def wait_for(
        self, fact: Callable[[], bool], what: str, wait_s: float = START_S_MAX, look_s: float = LOOK_S
    ) -> None:
        """Wait until a fact holds, looking every `look_s`. Raises FreshrankError when it does not come true in time."""
        until = time.monotonic() + wait_s
        while not fact():
            self.check()
            if time.monotonic() > until:
                raise FreshrankError(f"{what} did not come within {wait_s:.0f} s: {self.tail()}")
            time.sleep(look_s)

    def url(self) -> str:
        """Where the API answers; waits until it does."""
        address = self.home / "api.json"
        self.wait_for(address.exists, "the API")
        return str(json.loads(address.read_text())["url"])

    def client(self) -> httpx.Client:
        """A client of the API."""
        if self._client is None:
            self._client = httpx.Client(base_url=self.url(), timeout=10.0)
        return self._client

    def recommendations(self, user_id: str, limit: int) -> dict[str, Any]:
        """The list of a user, not recorded as shown."""
        answer = self.client().get(f"/v1/users/{user_id}/recommendations", params={"limit": limit, "record": False})
        return dict(answer.raise_for_status().json())

    def model_health(self) -> str:
        """What the API says of its model: the release it serves, or why it refused one."""
        return str(self.client().get("/health/ready").json()["parts"]["model"]["detail"])

    def retrain(self) -> dict[str, Any]:
        """Train a release in a process of its own; its bars go to our stderr. Returns the verdict."""
        command = [*self._command, "retrain", "--json", "--bars"]
        training = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        try:
            told, _ = training.communicate()
        finally:
            if training.poll() is None:
                training.terminate()
                training.wait()
        if training.returncode:
            raise FreshrankError(f"training ended with code {training.returncode}; its reason stands above")
        return dict(json.loads(told.decode().strip().splitlines()[-1]))

    def tail(self) -> str:
        """The last lines of every log that are warnings, errors or no log lines at all."""
        logs = [self.home / "run.log", *sorted((self.home / "logs").glob("*.log"))]
        texts = [log.read_text(errors="replace") for log in logs if log.exists()]
        told = [[line for line in text.splitlines() if '"level": "info"' not in line] for text in texts]
        return "\n".join(line for lines in told for line in lines[-TAIL_LINES:]) or "the logs hold no warning"


class MemoryWatch:
    """The largest sum of proportional memory (PSS) over a process and all that it started."""

    def __init__(self, root_pid: int) -> None:
        self._root_pid = root_pid
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-watch", daemon=True)
        self.peak_bytes = 0

    def start(self) -> None:
        """Look once a second from now on."""
        self._thread.start()

    def stop(self) -> None:
        """End the looking."""
        self._stopping.set()
        self._thread.join(timeout=5)

    def now_bytes(self) -> dict[str, int]:
        """PSS by process now."""
        found: dict[str, int] = {}
        root = psutil.Process(self._root_pid)
        for process in (root, *root.children(recursive=True)):
            try:
                found[_name(process)] = process.memory_full_info().pss
            except psutil.Error:
                continue  # it ended between the two looks
        return found

    def _watch(self) -> None:
        while not self._stopping.wait(MEMORY_LOOK_S):
            self.peak_bytes = max(self.peak_bytes, sum(self.now_bytes().values()))


def event_body(user_id: str, item_id: str, kind: str) -> Mapping[str, str]:
    """An event as a client would send it, happening now."""
    return {"user_id": user_id, "item_id": item_id, "kind": kind}


def _name(process: psutil.Process) -> str:
    words = [word for word in process.cmdline()[3:5] if not word.startswith("-")]
    return f"{process.pid} {' '.join(words) or process.name()}"
