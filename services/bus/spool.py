"""The spool: events accepted while the log is away wait in a small log of their own on this disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog

from services import intake, wire
from services.breaker import Bounded
from services.bus.embedded import EmbeddedBus
from services.consume import consume
from services.domain import TOPIC_EVENTS, Batch, Coordinate, Outgoing, Partition, SettingsInvalid, StageUnavailable
from services.patience import Patience, PatientConsumer, PatientSource, Stopped
from services.ports import EventSink, EventSource
from services.telemetry import EVENTS_SPOOLED, SPOOLED

log = structlog.get_logger()
AWAY = (StageUnavailable, OSError)
DRAINED_AT_ONCE = 500
TRIM_EVERY = 20
LOOK_EVERY_S = 2.0
"""How often an idle spool is looked at: another process of this home may have died with something in it."""
AFTER_A_FAILURE_S = 1.0
PUBLISHERS = 40
"""Requests that can publish at once: as many as the API works on."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of events that were taken in: where they stand in the log, or how many wait in the spool for it."""

    coordinates: tuple[Coordinate, ...]
    spooled: int

    def __len__(self) -> int:
        return len(self.coordinates) + self.spooled


class Drain:
    """The consumer of the spool: what it reads goes to the log, as accepted when the spool took it."""

    name = "spool"
    topics = (TOPIC_EVENTS,)

    def __init__(self, sink: EventSink) -> None:
        self._sink = sink

    def start(self, source: EventSource, gained: tuple[Partition, ...]) -> None:
        """Consumer: nothing to load."""

    def apply(self, batch: Batch) -> Mapping[Partition, int]:
        """Consumer. A crash between publishing and the commit publishes again: an event's id makes that harmless."""
        read = intake.read(batch.messages)
        broken = [Outgoing(TOPIC_EVENTS, each.key or "", each.value) for each in read.rejected]
        if broken:  # damaged on this disk: into the log as they are, and there into the quarantine
            log.error("spooled_and_unreadable", events=len(broken), reason=read.rejected[0].reason)
        self._sink.publish([*(wire.encode_event(event, m.accepted_at) for m, event in read.events), *broken])
        return batch.next_offsets()

    def stop(self, lost: tuple[Partition, ...]) -> Mapping[Partition, int]:  # noqa: ARG002
        """Consumer: nothing is held."""
        return {}


class Spool:
    """Takes events in: into the log where it answers within `after_s`, else into the spool, else not at all.

    While anything is in the spool, what comes goes behind it: an order once taken is kept. An event that went to the
    spool because the log was slow may get into the log twice; its id makes it one.
    """

    def __init__(self, kept: EmbeddedBus | None, sink: EventSink, after_s: float, now: Callable[[], datetime]) -> None:
        self._kept = kept
        self._sink = sink
        self._now = now
        self._away = False
        self.has_room = True
        """Whether the last event that needed the spool got into it; shown in health."""
        self._within = Bounded("the log", after_s, PUBLISHERS)
        self._batches = 0
        self._stopping = threading.Event()
        self._news = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Open the spool; what an earlier life left in it goes to the log first."""
        if self._kept is None:
            return
        self._kept.open()
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._away = self.waiting() > 0
        self._news.set()
        self._thread.start()

    def take(self, messages: Sequence[Outgoing]) -> Taken:
        """Durable on return, in the log or in the spool. StageUnavailable: nothing was taken, send it again."""
        if self._thread is None or self._kept is None:
            return Taken(self._sink.publish(messages), 0)
        reason = "what came before still waits for the log"
        if not self._away:
            try:
                return Taken(self._within(lambda: self._sink.publish(messages)), 0)
            except (StageUnavailable, SettingsInvalid) as error:  # refused, too: rights may come back, the event not
                reason = str(error)
                self._away = True
                log.warning("log_away", error=reason)
        try:
            return self._keep(messages)
        except StageUnavailable as error:
            self.has_room = False
            raise StageUnavailable(f"{reason}; the spool could not take it either: {error}") from error

    def waiting(self) -> int:
        """Events in the spool."""
        if self._kept is None or self._thread is None:
            return 0
        view = self._kept.view()
        return sum(view.ends(TOPIC_EVENTS).values()) - sum(view.committed(Drain.name, TOPIC_EVENTS).values())

    def close(self, wait_s: float = 2.0) -> None:
        """End the drain; what is still in the spool waits for the next start."""
        self._stopping.set()
        self._news.set()
        if self._thread is not None:
            self._thread.join(wait_s)
        self._within.close()

    def _keep(self, messages: Sequence[Outgoing]) -> Taken:
        assert self._kept is not None
        self._kept.sink().publish(messages)
        self.has_room = True
        EVENTS_SPOOLED.inc(len(messages))
        self._news.set()
        return Taken((), len(messages))

    def _run(self) -> None:
        patience = Patience(Drain.name, AWAY, self._stopping)
        while not self._stopping.is_set():
            self._news.wait(LOOK_EVERY_S)
            self._news.clear()
            try:
                left = was_waiting = patience.call(self.waiting)
                SPOOLED.set(left)
                if left:
                    self._drain(patience)
                    left = patience.call(self.waiting)
                    SPOOLED.set(left)
                self._away = left > 0
                if was_waiting:
                    self._trim()
                self.has_room = self.has_room or left == 0
            except Stopped:
                return
            except Exception as error:  # a thread that ends would leave what is spooled where it is, for ever
                log.error("spool_failed", error=str(error), kind=type(error).__name__)
                self._stopping.wait(AFTER_A_FAILURE_S)

    def _is_drained(self) -> bool:
        """Asked before each batch; what has left makes room now and then, so that a full spool takes events again."""
        self._batches += 1
        if self._batches % TRIM_EVERY == 0:
            self._trim()
        return self._stopping.is_set() or self.waiting() == 0

    def _trim(self) -> None:
        assert self._kept is not None
        self._kept.trim(self._now())

    def _drain(self, patience: Patience) -> None:
        """Until nothing is left: to the log in the order it came, then out of the file."""
        assert self._kept is not None
        started, waiting = time.monotonic(), self.waiting()
        source = self._kept.source(Drain.name, Drain.topics)
        try:
            part = PatientConsumer(Drain(self._sink), patience)
            consume(
                PatientSource(source, patience), part, self._is_drained,
                records_max=DRAINED_AT_ONCE, wait_s=0.05,
            )  # fmt: skip
        finally:
            source.close()
        log.info("spool_drained", events=waiting, seconds=round(time.monotonic() - started, 3))
