"""No caller waits for what does not answer: a circuit breaker, and calls that end within a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotInTime
from typing import TypeVar

from services.domain import StageUnavailable

Returned = TypeVar("Returned")


class Breaker:
    """Closed: everybody may ask. Open, after `failures_max` failures in a row: one may ask every `pause_s`, and what
    works closes it again. Thread-safe; never blocks."""

    def __init__(
        self, failures_max: int = 3, pause_s: float = 0.5, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._failures_max = failures_max
        self._pause_s = pause_s
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._failures = 0
        self._asked_at = 0.0

    @property
    def is_open(self) -> bool:
        """Whether most are turned away."""
        return self._failures >= self._failures_max

    def allows(self) -> bool:
        """Whether this caller may ask; whoever is told so must report what came of it."""
        if not self.is_open:
            return True
        with self._lock:
            now = self._monotonic()
            if self.is_open and now - self._asked_at < self._pause_s:
                return False
            self._asked_at = now
            return True

    def worked(self) -> None:
        """It answered."""
        self._failures = 0

    def failed(self) -> None:
        """It did not."""
        with self._lock:
            self._failures += 1
            self._asked_at = self._monotonic()


class Bounded:
    """Calls that end within `deadline_s`, whatever they wait for: a thread goes on waiting in the caller's place.

    At most `threads` do so; while all of them hang, nobody else is sent after them."""

    def __init__(self, name: str, deadline_s: float, threads: int = 1) -> None:
        self._name = name
        self._deadline_s = deadline_s
        self._free = threading.Semaphore(threads)
        self._pool = ThreadPoolExecutor(threads, name.replace(" ", "-"))

    def __call__(self, work: Callable[[], Returned]) -> Returned:
        """What `work` returns or raises; StageUnavailable after the deadline (`work` may still be done then)."""
        until = time.monotonic() + self._deadline_s
        if not self._free.acquire(timeout=self._deadline_s):
            raise StageUnavailable(f"{self._name} has not answered others yet")
        future: Future[Returned] = self._pool.submit(work)
        future.add_done_callback(lambda _done: self._free.release())
        try:
            return future.result(max(0.0, until - time.monotonic()))
        except NotInTime:
            raise StageUnavailable(f"{self._name} did not answer within {self._deadline_s:g} s") from None

    def close(self) -> None:
        """No more calls; nobody waits for those that hang."""
        self._pool.shutdown(wait=False, cancel_futures=True)
