"""The archive consumer: everything of all three topics into the archive, what cannot be read into the quarantine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import structlog

from services import intake
from services.domain import TOPICS, Batch, Message, Partition
from services.ports import Archive, EventSource, Quarantine
from services.telemetry import EVENTS_REJECTED

log = structlog.get_logger()

ROWS_MAX = 20_000
WAIT_S = 1.0


class ArchiveConsumer:
    """Buffers up to `rows_max` rows or `wait_s`, then writes; only what is written counts as done.

    Buffering keeps the parts few: a slow stream leaves at most one part a second, an import one for each day and
    `rows_max` rows. A crash loses the buffer, which was never committed and comes again.
    """

    name = "archive"
    topics = TOPICS

    def __init__(
        self,
        archive: Archive,
        quarantine: Quarantine,
        *,
        rows_max: int = ROWS_MAX,
        wait_s: float = WAIT_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._archive = archive
        self._quarantine = quarantine
        self._rows_max = rows_max
        self._wait_s = wait_s
        self._monotonic = monotonic
        self._held: list[Message] = []
        self._held_since = 0.0
        self._refused = False

    def start(self, source: EventSource, gained: tuple[Partition, ...]) -> None:  # noqa: ARG002
        """Consumer: nothing to load. What is held of these partitions was never committed and comes again."""
        coming = set(gained)
        self._held = [m for m in self._held if Partition(m.coordinate.topic, m.coordinate.partition) not in coming]

    def apply(self, batch: Batch) -> Mapping[Partition, int]:
        """Consumer."""
        if not self._held:
            self._held_since = self._monotonic()
        self._held += self._unheld(batch.messages)
        waited = self._monotonic() - self._held_since >= self._wait_s
        if self._held and (not batch.messages or len(self._held) >= self._rows_max or waited):
            return self._flush()
        return {}

    def stop(self, lost: tuple[Partition, ...]) -> Mapping[Partition, int]:  # noqa: ARG002
        """Consumer: writes all that is held; somebody else writing it again would be harmless."""
        return self._flush() if self._held else {}

    def _flush(self) -> Mapping[Partition, int]:
        """1. quarantine, 2. archive, 3. say what is done. The held messages stay until both have taken them."""
        read = intake.read(self._held)
        events = [(message.coordinate, event) for message, event in read.events]
        slates = [(message.coordinate, slate) for message, slate in read.slates]
        self._refused = True
        self._quarantine.add(read.rejected)
        self._archive.append(events, slates, read.items)
        for each in read.rejected:
            EVENTS_REJECTED.labels("stream", each.reason).inc()
        done = Batch(tuple(self._held)).next_offsets()
        counts = {"slates": len(slates), "items": len(read.items), "rejected": len(read.rejected)}
        log.info("archived", events=len(events), **counts)
        self._held, self._refused = [], False
        return done

    def _unheld(self, messages: Sequence[Message]) -> Sequence[Message]:
        """After a refused write the same messages may come again: those that are still held are not held twice."""
        if not self._refused:
            return messages
        known = {message.coordinate for message in self._held}
        return [message for message in messages if message.coordinate not in known]
