"""Keeps the processes of an instance alive: started together, restarted when they die, drained on SIGTERM.

One supervisor per home, held by a file lock that ends with its process, so a lock left behind by a crash is no lock.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import structlog

from services.domain import BadRequest, SettingsInvalid

log = structlog.get_logger()

BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
STEADY_S = 60.0
"""A process that lived this long starts over at the shortest backoff."""
LOOK_S = 0.1
PARENT_LOOK_S = 0.5
EXIT_SETTINGS = 2
"""The exit code of a process that cannot start as it is set: starting it again would not mend it."""


@dataclass(frozen=True, slots=True)
class Service:
    """One supervised process: its name in logs, its command, the file for its output (None: ours), and environment
    variables on top of ours."""

    name: str
    command: tuple[str, ...]
    output: Path | None = None
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class Running:
    """A service as it stands: its process, when it started, how often it died, and when it may start again."""

    service: Service
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    deaths: int = 0
    not_before: float = 0.0

    def back_off(self, now: float) -> float:
        """Not to start again for a while, longer with each time; the seconds."""
        pause_s = BACKOFF_S[min(self.deaths, len(BACKOFF_S) - 1)]
        self.deaths += 1
        self.not_before = now + pause_s
        return pause_s


class RunLock:
    """The right to run on a home, for as long as this process lives."""

    def __init__(self, home: Path) -> None:
        self._path = home / "run.lock"
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode().strip() or "unknown"
            os.close(descriptor)
            raise BadRequest(
                f"{self._path.parent} is in use by process {holder}; stop that one first (kill {holder})"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor
        return self

    def __exit__(self, *_error: object) -> None:
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


def holder_of(home: Path) -> int | None:
    """The process id that runs on this home; None when none does, whatever a crash left in the file."""
    try:
        descriptor = os.open(home / "run.lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.read(descriptor, 32).decode().strip() or 0)
    else:
        return None
    finally:
        os.close(descriptor)


@dataclass(slots=True)
class Supervisor:
    """Runs services until it is told to stop. The first one listed is drained first (it takes requests)."""

    services: Sequence[Service]
    drain_s: float
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Start all, look after them, and on `stopping` drain all. Raises SettingsInvalid when one cannot start."""
        running = [Running(service) for service in self.services]
        try:
            while not self.stopping.is_set():
                for each in running:
                    self._look_after(each)
                self.stopping.wait(LOOK_S)
        finally:
            drain(running, self.drain_s)

    def stop_on_signals(self) -> None:
        """SIGTERM and SIGINT end `run`."""

        def stop(_number: int, _frame: FrameType | None) -> None:
            self.stopping.set()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)

    def _look_after(self, each: Running) -> None:
        now = time.monotonic()
        if each.process is not None:
            code = each.process.poll()
            if code is None:
                return
            if code == EXIT_SETTINGS:
                raise SettingsInvalid(f"{each.service.name} cannot start as it is set; its log says why")
            each.process = None
            each.deaths = 0 if now - each.started_at > STEADY_S else each.deaths
            log.warning("process_died", name=each.service.name, code=code, again_in_s=each.back_off(now))
        if now >= each.not_before:
            try:
                each.process = start(each.service)
            except OSError as error:  # no memory for it, or no file for its output: the others go on
                said = {"name": each.service.name, "error": str(error)}
                log.error("process_not_started", **said, again_in_s=each.back_off(now))
                return
            each.started_at = now
            log.info("process_started", name=each.service.name, pid=each.process.pid)


def start(service: Service) -> subprocess.Popen[bytes]:
    """The process of a service, in a session of its own so that Ctrl-C reaches only the supervisor."""
    with ExitStack() as opened:
        output = None
        if service.output is not None:
            service.output.parent.mkdir(parents=True, exist_ok=True)
            output = opened.enter_context(service.output.open("ab"))
        return subprocess.Popen(
            service.command, env=os.environ | dict(service.environment), stdin=subprocess.DEVNULL,
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip


def drain(running: Sequence[Running], drain_s: float) -> None:
    """Ask every process to end, the first one first; what does not end in time is killed (and loses nothing)."""
    alive = [(each.service.name, each.process) for each in running if each.process is not None]
    for place, (name, process) in enumerate(alive):
        process.terminate()
        if place == 0:
            _wait(name, process, drain_s)
    until = time.monotonic() + drain_s
    for name, process in alive:
        _wait(name, process, max(until - time.monotonic(), 0.1))


def end_with_parent(stop: Callable[[], None]) -> None:
    """Call `stop` once the process that started this one is gone: nobody would look after us any more."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_LOOK_S)
        log.warning("parent_gone", parent=parent)
        stop()

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()


def _wait(name: str, process: subprocess.Popen[bytes], wait_s: float) -> None:
    try:
        process.wait(wait_s)
    except subprocess.TimeoutExpired:
        log.warning("process_killed", name=name, pid=process.pid, after_s=round(wait_s, 1))
        process.kill()
        process.wait()
