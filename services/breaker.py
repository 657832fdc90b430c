"""A circuit breaker: what failed a few times in a row is asked now and then only: not everybody waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


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
