"""Publishing to Kafka: one idempotent producer per process, whose batches all publishing threads share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any

import structlog
from kafka import KafkaProducer, errors

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
        self._opening = threading.Lock()
        self._failed_at, self._failure = 0.0, ""
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
            producer = self._opened()
            try:
                with as_unavailable(self._choices, f"take {len(messages)} messages"):
                    return self._published(producer, messages)
            except StageUnavailable:
                self._retire(producer)
                raise
            except errors.IllegalStateError as error:
                if self._producer is producer:
                    raise  # our mistake, no outage
                raise StageUnavailable(
                    f"Kafka at {self._choices.where} could not take {len(messages)} messages:"
                    " another caller gave up and ended the producer of both"
                ) from error
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
            _end(producer, CLOSE_S_MAX)

    def _reserve(self, count: int) -> None:
        with self._lock:
            if self._in_flight + count > self._choices.buffer_messages_max:
                raise StageUnavailable(
                    f"Kafka at {self._choices.where} is behind: {self._in_flight} messages wait for it already, with"
                    f" {count} more it would be over kafka_buffer_messages_max={self._choices.buffer_messages_max}"
                )
            self._in_flight += count

    def _published(self, producer: KafkaProducer, messages: Sequence[Outgoing]) -> tuple[Coordinate, ...]:
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
        """The producer; made by one thread, while the others wait for it or hear with it that nobody answers."""
        asked_at = time.monotonic()
        with self._opening:
            if self._producer is not None:
                return self._producer
            if self._failed_at > asked_at:
                raise StageUnavailable(self._failure)
            try:
                self._producer = self._made()
            except StageUnavailable as error:
                self._failed_at, self._failure = time.monotonic(), str(error)
                raise
            return self._producer

    def _made(self) -> KafkaProducer:
        deadline_ms = self._choices.deadline_ms
        return open_client(
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

    def _retire(self, producer: KafkaProducer) -> None:
        """A producer that gave up a batch does not recover: what it numbered is missing (kafka-python 3.0.12: every
        later batch of the partition times out). The next call makes another one."""
        with self._lock:
            if self._producer is not producer:
                return
            self._producer = None
        log.warning("producer_retired", why="it gave up messages that it had numbered")
        threading.Thread(target=_end, args=(producer, 0.0), name="retire-producer", daemon=True).start()


def _end(producer: KafkaProducer, wait_s: float) -> None:
    """End a producer; what has not left after `wait_s` fails. kafka-python's own `close` only does what it says when
    nothing is left."""
    with suppress(errors.KafkaError):
        producer.flush(wait_s)
    producer._sender.force_close()
    producer._sender.join(CLOSE_S_MAX)
    with suppress(errors.KafkaError):
        producer.close(CLOSE_S_MAX)


def _left(until: float) -> float:
    """Seconds that are left; a little more than the producer's own deadline, which says better what was wrong."""
    return max(0.0, until - time.monotonic()) + 1.0
