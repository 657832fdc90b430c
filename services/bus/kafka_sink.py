"""Publishing to Kafka: one idempotent producer per process, whose batches all publishing threads share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import structlog
from kafka import KafkaProducer

from services.bus.kafka_client import KafkaChoices, as_unavailable, open_client
from services.bus.kafka_topics import MESSAGE_BYTES_MAX
from services.domain import Coordinate, Outgoing, StageUnavailable, to_us
from services.placing import partition_of

log = structlog.get_logger()

BATCH_BYTES = 128 * 1024
CLOSE_S_MAX = 5.0


class KafkaSink:
    """EventSink. A batch leaves as soon as the connection is free for it, so one click waits for nobody, and under load
    what comes meanwhile travels together.

    Messages of one call are not one transaction. When `publish` raises, some of them may be in the log: whoever
    publishes them again, with the same `event_id`, changes nothing, because every reader keeps an `event_id` once.
    """

    def __init__(self, choices: KafkaChoices, log_id: Callable[[str], str], now: Callable[[], datetime]) -> None:
        self._choices = choices
        self._log_id = log_id
        self._now = now
        self._lock = threading.Lock()
        self._producer: KafkaProducer | None = None
        self._in_flight = 0
        self._hashed = lru_cache(maxsize=100_000)(partition_of)

    def publish(self, messages: Sequence[Outgoing]) -> tuple[Coordinate, ...]:
        """EventSink. Raises StageUnavailable at once when `kafka_buffer_messages_max` messages wait already, and after
        `kafka_deadline_ms` when the broker has not confirmed all."""
        most = self._choices.buffer_messages_max
        if len(messages) > most:
            return tuple(c for at in range(0, len(messages), most) for c in self.publish(messages[at : at + most]))
        if not messages:
            return ()
        self._reserve(len(messages))
        try:
            with as_unavailable(self._choices, f"take {len(messages)} messages"):
                return self._published(messages)
        finally:
            with self._lock:
                self._in_flight -= len(messages)

    def flush(self) -> None:
        """EventSink: what `publish` returned is durable, so only callers in flight are waited for."""
        if self._producer is not None:
            with as_unavailable(self._choices, "flush"):
                self._producer.flush(self._choices.deadline_ms / 1000)

    def close(self) -> None:
        """Close the producer; callers in flight get a few seconds."""
        with self._lock:
            producer, self._producer = self._producer, None
        if producer is not None:
            with as_unavailable(self._choices, "be left"):
                producer.close(CLOSE_S_MAX)

    def _reserve(self, count: int) -> None:
        with self._lock:
            if self._in_flight + count > self._choices.buffer_messages_max:
                raise StageUnavailable(
                    f"Kafka at {self._choices.where} is behind: {self._in_flight} messages wait for it already, with"
                    f" {count} more it would be over kafka_buffer_messages_max={self._choices.buffer_messages_max}"
                )
            self._in_flight += count

    def _published(self, messages: Sequence[Outgoing]) -> tuple[Coordinate, ...]:
        producer = self._opened()
        until = time.monotonic() + self._choices.deadline_ms / 1000
        accepted_ms = -(-to_us(self._now()) // 1000)  # rounded up: nothing that happened before comes after it
        there = {topic: self._place(producer, topic) for topic in {message.topic for message in messages}}
        waiting: list[Any] = []
        for message in messages:
            name, partitions, _ = there[message.topic]
            number = self._hashed(message.key, partitions)
            waiting.append(producer.send(name, message.value, message.key.encode(), None, number, accepted_ms))
        coordinates: list[Coordinate] = []
        for message, future in zip(messages, waiting, strict=True):
            record = future.value if future.is_done and not future.failed() else future.get(_left(until))
            coordinates.append(Coordinate(there[message.topic][2], message.topic, record.partition, record.offset))
        return tuple(coordinates)

    def _place(self, producer: KafkaProducer, topic: str) -> tuple[str, int, str]:
        """The topic's name there, how many partitions it has now, and its identity."""
        log_id = self._log_id(topic)
        name = self._choices.topic_there(topic)
        return name, len(producer.partitions_for(name)), log_id

    def _opened(self) -> KafkaProducer:
        with self._lock:
            if self._producer is None:
                deadline_ms = self._choices.deadline_ms
                self._producer = open_client(
                    self._choices,
                    KafkaProducer,
                    acks="all",
                    enable_idempotence=True,
                    compression_type=None if self._choices.compression == "none" else self._choices.compression,
                    linger_ms=0,
                    batch_size=BATCH_BYTES,
                    max_request_size=MESSAGE_BYTES_MAX,
                    delivery_timeout_ms=deadline_ms,
                    request_timeout_ms=deadline_ms // 2,
                    max_block_ms=deadline_ms,
                    metrics_enabled=False,
                )
            return self._producer


def _left(until: float) -> float:
    """Seconds that are left; a little more than the producer's own deadline, which says better what was wrong."""
    return max(0.0, until - time.monotonic()) + 1.0
