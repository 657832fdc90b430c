"""What only a foreign producer on Kafka can write: no value, no key, a key that is no text. Each has its reason, and
the partition goes on behind it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from kafka import KafkaProducer

from services import wire
from services.archive.consumer import ArchiveConsumer
from services.bus.kafka import KafkaBus
from services.bus.kafka_client import KafkaChoices
from services.consume import consume
from services.domain import TOPIC_EVENTS, TOPICS, Event
from services.memory import MemoryArchive, MemoryQuarantine


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def bus(kafka_servers: str, topic_prefix: str) -> Iterator[KafkaBus]:
    bus = KafkaBus(KafkaChoices(tuple(kafka_servers.split(",")), prefix=topic_prefix, partitions=1), now).open()
    yield bus
    bus.close()


def test_tombstones_and_odd_keys_have_their_reasons_and_stop_nobody(
    bus: KafkaBus, kafka_servers: str, topic_prefix: str
) -> None:
    at = now()
    good = wire.encode_event(Event("e1", "ann", "film", "click", at, at)).value
    topic = KafkaChoices((kafka_servers,), prefix=topic_prefix).topic_there(TOPIC_EVENTS)
    producer = KafkaProducer(bootstrap_servers=kafka_servers)
    for key, value in ((b"ann", None), (None, good), (b"\xff\x00", good), (b"ann", b""), (b"ann", good)):
        producer.send(topic, key=key, value=value, partition=0).get(10)
    producer.close()
    archive, quarantine = MemoryArchive(), MemoryQuarantine()
    source = bus.source("archive", TOPICS)
    until = time.monotonic() + 60
    consume(
        source, ArchiveConsumer(archive, quarantine, wait_s=0.0),
        lambda: archive.bounds() is not None or time.monotonic() > until, wait_s=0.1,
    )  # fmt: skip
    found = [entry.rejected for entry in quarantine.list(10)]
    assert [(each.reason, each.value) for each in found] == [
        ("null_value", b""), ("null_key", good), ("key_mismatch", good), ("empty", b""),
    ]  # fmt: skip
    assert [each.key for each in found] == ["ann", None, "\\xff\x00", "ann"]
    assert [e.event_id for e in archive.events(datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))] == [
        "e1"
    ]
    assert bus.view().committed("archive", TOPIC_EVENTS) == bus.view().ends(TOPIC_EVENTS)
    source.close()
