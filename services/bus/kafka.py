"""Kafka behind the ports of the bus: the log that several machines share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

import structlog

from services.bus.kafka_client import KafkaChoices, quieten
from services.bus.kafka_sink import KafkaSink
from services.bus.kafka_source import KafkaSource
from services.bus.kafka_view import KafkaView
from services.domain import TOPICS, Partition, StageUnavailable, to_us

log = structlog.get_logger()

AT_RISK_SHARE = 0.8
"""What is older than this share of the retention and not committed is reported: time is left to mend the group."""


class KafkaBus:
    """`open` before use, `close` at the end. While Kafka is away everything but `open` raises StageUnavailable."""

    def __init__(self, choices: KafkaChoices, now: Callable[[], datetime]) -> None:
        self.choices = choices
        self._now = now
        self._view = KafkaView(choices, TOPICS)
        self._sink = KafkaSink(choices, self._view.log_id, now)
        self._sources: list[KafkaSource] = []

    def open(self) -> KafkaBus:
        """Make and check the topics, now if Kafka answers, else at the first use. Raises SettingsInvalid."""
        quieten()
        try:
            self._view.prepare()
        except StageUnavailable as error:
            log.info("kafka_away", error=str(error))  # whoever needs it now says so
        return self

    def close(self) -> None:
        """Leave all groups and close every connection. Closing twice is harmless."""
        for close in (*(source.close for source in self._sources), self._sink.close, self._view.close):
            try:
                close()
            except StageUnavailable as error:
                log.warning("kafka_left_without_goodbye", error=str(error))
        self._sources = []

    def sink(self) -> KafkaSink:
        """Where this process publishes; one per process, shared by its threads."""
        return self._sink

    def view(self) -> KafkaView:
        """A look at ends and committed offsets; one per process, shared by its threads."""
        return self._view

    def source(self, group: str, topics: Sequence[str]) -> KafkaSource:
        """A new member of a group, with connections of its own; it joins at its first poll."""
        source = KafkaSource(self.choices, self._view, group, tuple(topics), self._now)
        self._sources.append(source)
        return source

    def trim(self, now: datetime) -> Mapping[Partition, int]:
        """Kafka forgets by itself, read or not. What is near the end of its retention and not committed by a known
        group that reads it, by partition: a red health state, while there is still time."""
        retention = timedelta(hours=self.choices.retention_hours * AT_RISK_SHARE)
        old_ms = to_us(now - retention) // 1000
        risked: dict[Partition, int] = {}
        for group in self._view.groups():
            read = self._view.topics(group)
            stored = self._view.stored(group)
            for topic in read:
                for partition, count in self._old_unread(topic, stored, old_ms).items():
                    risked[partition] = max(risked.get(partition, 0), count)
        if risked:
            log.warning("retention_threatens_unread", messages=sum(risked.values()), partitions=len(risked))
        return risked

    def forget(self, *groups: str) -> None:
        """Forget groups (all where none is named): the next member of one reads from the earliest message."""
        self._view.forget(groups or self._view.groups())

    def _old_unread(self, topic: str, stored: Mapping[Partition, int], old_ms: int) -> dict[Partition, int]:
        ends = self._view.ends(topic)
        begins = self._view.begins(topic)
        young = self._view.offsets(ends, old_ms)
        counts = {
            partition: young.get(partition, end) - max(stored.get(partition, 0), begins.get(partition, 0))
            for partition, end in ends.items()
        }
        return {partition: count for partition, count in counts.items() if count > 0}
