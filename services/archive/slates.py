"""The slate log: served slates go to the bus from a thread of their own, so that an answer never waits for it."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import replace

import structlog

from services import wire
from services.domain import Slate, StageUnavailable, hash64
from services.ports import EventSink
from services.telemetry import SLATES_DROPPED

log = structlog.get_logger()

SLATES_AT_ONCE = 500
GATHER_S = 0.2
"""How long the thread gathers before it publishes: many slates share one durable write."""


class QueueSlateLog:
    """The SlateLog port over a sink. Best effort: what does not fit the queue, or the bus refuses, is counted.

    Features are recorded of a `features_share` of the slates; which ones follows from their request ids.
    """

    def __init__(self, sink: EventSink, queue_max: int, features_share: float = 1.0) -> None:
        self._sink = sink
        self._features_below = int(features_share * 2**64) - 2**63  # hash64 is signed
        self._queue: queue.Queue[Slate] = queue.Queue(queue_max)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self.dropped = 0

    def record(self, slate: Slate) -> None:
        """SlateLog. The thread starts with the first slate."""
        if self._thread is None:
            self._start()
        if slate.features and hash64(slate.request_id) >= self._features_below:
            slate = replace(slate, features=b"")
        try:
            self._queue.put_nowait(slate)
        except queue.Full:
            self._drop(1)

    def flush(self, wait_s: float) -> None:
        """SlateLog."""
        until = time.monotonic() + wait_s
        while self._queue.unfinished_tasks and time.monotonic() < until:
            time.sleep(0.002)

    def close(self, wait_s: float = 2.0) -> None:
        """Publish what waits, at most `wait_s` long, and end the thread."""
        self.flush(wait_s)
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(wait_s)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="slates", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                slates = [self._queue.get(timeout=0.1)]
            except queue.Empty:
                continue
            self._stopped.wait(GATHER_S)
            while len(slates) < SLATES_AT_ONCE and not self._queue.empty():
                slates.append(self._queue.get_nowait())
            self._publish(slates)
            for _ in slates:
                self._queue.task_done()

    def _publish(self, slates: list[Slate]) -> None:
        try:
            self._sink.publish([wire.encode_slate(slate) for slate in slates])
        except StageUnavailable as error:
            self._drop(len(slates))
            log.warning("slates_dropped", slates=len(slates), reason=str(error))
        except Exception as error:  # a thread that ends would record nothing any more, and say no word of it
            self._drop(len(slates))
            log.error("slates_dropped", slates=len(slates), reason=str(error), kind=type(error).__name__)

    def _drop(self, count: int) -> None:
        with self._lock:
            self.dropped += count
        SLATES_DROPPED.inc(count)
