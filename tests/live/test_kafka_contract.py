"""The promises of a bus, held over Kafka: the same suite that the in-memory log and the embedded one pass."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from contracts.test_event_source import NOW, EventSourceContract

from services.bus.kafka import KafkaBus
from services.bus.kafka_client import KafkaChoices
from services.ports import Bus


class TestKafka(EventSourceContract):
    @pytest.fixture
    def log(self, kafka_servers: str, topic_prefix: str) -> Iterator[Bus]:
        choices = KafkaChoices(tuple(kafka_servers.split(",")), prefix=topic_prefix)
        bus = KafkaBus(choices, lambda: NOW).open()
        yield bus
        bus.close()
