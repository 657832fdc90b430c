"""The Kafka sink over a producer made by hand: what callers hear when one of them gives up for all."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from kafka import errors

from services.bus.kafka_client import KafkaChoices
from services.bus.kafka_sink import KafkaSink
from services.domain import Outgoing, StageUnavailable

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


class Ended:
    """A producer whose every message fails as kafka-python fails them once the producer is closed by force."""

    is_done = False

    def __init__(self, before_it_fails: Any) -> None:
        self._before_it_fails = before_it_fails

    def partitions_for(self, _topic: str) -> set[int]:
        return {0}

    def send(self, *_arguments: object) -> Ended:
        return self

    def get(self, _timeout: float) -> None:
        self._before_it_fails()
        raise errors.IllegalStateError("Producer is closed forcefully.")


class Sink(KafkaSink):
    """A sink that makes such producers, and may hear of another caller that gave up meanwhile."""

    given_up = True

    def _made(self) -> Any:
        return Ended(self._give_up)

    def _give_up(self) -> None:
        if self.given_up:
            self._producer = None


def test_a_producer_that_another_caller_ended_is_an_outage_and_nothing_worse() -> None:
    sink = Sink(KafkaChoices(("nowhere:9092",)), lambda _topic: "log", lambda: NOW)
    with pytest.raises(StageUnavailable, match="another caller gave up"):
        sink.publish([Outgoing("freshrank.events", "ann", b"{}")])
    sink.given_up = False
    with pytest.raises(errors.IllegalStateError):  # nobody ended it: that is our mistake, and is not waited out
        sink.publish([Outgoing("freshrank.events", "ann", b"{}")])
