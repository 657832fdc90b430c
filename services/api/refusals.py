"""What the API refuses is kept like what a consumer cannot read: its bytes and the reason, in the quarantine."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import datetime

import msgspec
import structlog
from sqlalchemy.exc import SQLAlchemyError

from services.api.bodies import Refused, records
from services.api.problems import Problem
from services.api.runtime import Runtime
from services.breaker import Bounded
from services.domain import Coordinate, StageUnavailable, to_us
from services.quarantine import Rejected
from services.telemetry import EVENTS_REJECTED
from services.wire import BYTES_MAX

log = structlog.get_logger()

LOG_ID = "api"
"""Stands where the id of a log stands: these bytes never came to one."""
KEPT_MAX = 100
KEPT_BYTES_MAX = 1_000_000
"""Most records, and most bytes, of one request that are kept; all are counted."""
KEEP_WAIT_S = 0.25
"""An answer waits so long for the quarantine; where that is away, what is refused is answered and not kept."""


class Refusals:
    """Keeps the refused records of requests, best effort: a quarantine that is away costs an entry, never an answer."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = threading.Lock()
        self._last = 0
        self._within = Bounded("the quarantine", KEEP_WAIT_S)

    def records(self, topic: str, body: bytes, content_type: str, list_name: str) -> list[object]:
        """`bodies.records`; a body that is no JSON is kept before its Problem is raised."""
        try:
            return records(body, content_type, list_name, self._runtime.settings.api_events_max)
        except Problem as problem:
            if problem.name == "bad-body":
                self.keep(topic, [body], [Refused(0, "not_json", problem.detail)])
            raise

    def keep(self, topic: str, found: Sequence[object], refused: Sequence[Refused]) -> None:
        """Count all that was refused and keep the first of it; `found` holds each by its index."""
        for each in refused:
            EVENTS_REJECTED.labels("api", each.reason).inc()
        kept, size = list[Rejected](), 0
        now = self._runtime.now()
        for each in refused[:KEPT_MAX]:
            came = _bytes_of(found[each.index])
            value = came[:BYTES_MAX]
            size += len(value)
            if size > KEPT_BYTES_MAX:
                break
            place = Coordinate(LOG_ID, topic, 0, self._number(now))
            kept.append(Rejected(place, each.reason, each.detail, value, now, None, len(came)))
        try:
            self._within(lambda: self._runtime.quarantine.add(kept))
        except (StageUnavailable, SQLAlchemyError) as error:
            log.warning("refused_not_kept", records=len(kept), error=str(error))

    def _number(self, now: datetime) -> int:
        """Nanoseconds since 1970, and more than the last one."""
        with self._lock:
            self._last = max(self._last + 1, to_us(now) * 1000)
            return self._last


def _bytes_of(record: object) -> bytes:
    """What came: its own bytes where it was no JSON, else the record as JSON."""
    return record if isinstance(record, bytes) else msgspec.json.encode(record)
