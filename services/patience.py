"""What a consumer does when a store or the log is away: wait with backoff, commit nothing, go on where it was.

Wraps a consumer and its source from outside; `consume` stays free of it. Batches are timed and counted here, too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import NoReturn, TypeVar

import structlog
from tenacity import RetryCallState, Retrying, retry_if_exception_type, sleep_using_event, wait_exponential_jitter

from services.domain import Batch, Partition
from services.ports import Consumer, EventSource
from services.telemetry import BATCH_EVENTS, BATCH_SECONDS, LAG

log = structlog.get_logger()
Returned = TypeVar("Returned")
WAIT_S_FIRST = 0.05
WAIT_S_MAX = 5.0
LAG_EVERY_S = 2.0


class Stopped(BaseException):
    """The wait for a store was ended by the order to stop; nothing of the batch was committed."""


class Patience:
    """Calls again what failed with one of `away`, until it works or `stopping` is set."""

    def __init__(self, name: str, away: tuple[type[Exception], ...], stopping: threading.Event) -> None:
        self._name = name
        self._away = away
        self._stopping = stopping
        self.waiting_for = ""

    def call(self, work: Callable[[], Returned], stopped: Callable[[], bool] = lambda: False) -> Returned:
        """The result of `work`. Raises Stopped when the order to stop (`stopping` or `stopped`) comes while waiting."""
        retrying = Retrying(
            retry=retry_if_exception_type(self._away),
            wait=wait_exponential_jitter(initial=WAIT_S_FIRST, max=WAIT_S_MAX),
            sleep=sleep_using_event(self._stopping),
            stop=lambda _state: self._stopping.is_set() or stopped(),
            before_sleep=self._say,
            retry_error_callback=self._give_up,
        )
        result = retrying(work)
        self.waiting_for = ""
        return result

    def _say(self, state: RetryCallState) -> None:
        assert state.outcome is not None
        self.waiting_for = str(state.outcome.exception())
        log.warning("waiting", consumer=self._name, tries=state.attempt_number, error=self.waiting_for)

    def _give_up(self, state: RetryCallState) -> NoReturn:
        assert state.outcome is not None
        log.error("stopped_while_waiting", consumer=self._name, error=str(state.outcome.exception()))
        raise Stopped


class PatientSource:
    """EventSource that waits for its log."""

    def __init__(self, source: EventSource, patience: Patience) -> None:
        self._source = source
        self._patience = patience

    def poll(self, records_max: int, wait_s: float) -> Batch:
        """EventSource."""
        return self._patience.call(lambda: self._source.poll(records_max, wait_s))

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """EventSource."""
        self._patience.call(lambda: self._source.commit(offsets))

    def seek(self, offsets: Mapping[Partition, int]) -> None:
        """EventSource."""
        self._source.seek(offsets)

    def lag(self) -> Mapping[Partition, int]:
        """EventSource."""
        return self._patience.call(self._source.lag)


class PatientConsumer:
    """Consumer that waits for its stores; one structured line and one observation per batch."""

    def __init__(self, part: Consumer, patience: Patience) -> None:
        self.name = part.name
        self.topics = part.topics
        self._part = part
        self._patience = patience
        self._source: EventSource | None = None
        self._lag_at = 0.0

    def start(self, source: EventSource, gained: tuple[Partition, ...]) -> None:
        """Consumer."""
        self._source = source
        self._patience.call(lambda: self._part.start(source, gained))

    def apply(self, batch: Batch) -> Mapping[Partition, int]:
        """Consumer."""
        started = time.monotonic()
        durable = self._patience.call(lambda: self._part.apply(batch))
        seconds = time.monotonic() - started
        if batch.messages:
            BATCH_SECONDS.labels(consumer=self.name).observe(seconds)
            BATCH_EVENTS.labels(consumer=self.name).inc(len(batch.messages))
            log.info("batch", consumer=self.name, messages=len(batch.messages), ms=round(seconds * 1000, 1))
        if self._source is not None and started - self._lag_at > LAG_EVERY_S:
            self._lag_at = started
            LAG.labels(group=self.name).set(sum(self._source.lag().values()))
        return durable

    def stop(self, lost: tuple[Partition, ...]) -> Mapping[Partition, int]:
        """Consumer."""
        return self._patience.call(lambda: self._part.stop(lost))
