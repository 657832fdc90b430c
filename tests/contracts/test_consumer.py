"""The Consumer contract over all four: what `consume` may rely on, whatever the consumer does with its messages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine

from models.text import open_encoder
from services import wire
from services.archive.consumer import ArchiveConsumer
from services.catalogue.cards import SqlCatalogue
from services.catalogue.consumer import CatalogueConsumer
from services.catalogue.live import write_parts
from services.catalogue.vectors import TextVectors
from services.domain import TOPIC_EVENTS, TOPIC_ITEMS, Event, ItemChange, KindRules, Outgoing, Partition
from services.features.consumer import FeaturesConsumer
from services.features.history import MemoryHistory
from services.memory import MemoryArchive, MemoryBus, MemoryFeatureStore, MemoryQuarantine
from services.ports import Consumer, EventSource
from services.settings import DEFAULT_KINDS
from services.trends.consumer import TrendsConsumer

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
RULES = KindRules(DEFAULT_KINDS)


def messages() -> Sequence[Outgoing]:
    """Ten good messages and a broken one on each of two topics."""
    events = [wire.encode_event(Event(f"e{n}", f"u{n % 3}", f"i{n}", "click", NOW, NOW)) for n in range(10)]
    items = [wire.encode_item(ItemChange(f"i{n}", "put", {"title": f"Lamp {n}"}, NOW, NOW)) for n in range(10)]
    return [*events, *items, Outgoing(TOPIC_EVENTS, "u1", b"{"), Outgoing(TOPIC_ITEMS, "i1", b"{")]


class ConsumerContract(ABC):
    """What every consumer holds to."""

    @abstractmethod
    @pytest.fixture
    def part(self, tmp_path: Path) -> Consumer:
        """A consumer over empty stores."""

    @pytest.fixture
    def bus(self) -> MemoryBus:
        bus = MemoryBus(2, lambda: NOW)
        bus.publish(messages())
        return bus

    def ends(self, bus: MemoryBus, part: Consumer) -> Mapping[Partition, int]:
        return {p: end for topic in part.topics for p, end in bus.ends(topic).items() if end}

    def started(self, bus: MemoryBus, part: Consumer) -> EventSource:
        source = bus.source(part.name, part.topics)
        gained = source.poll(100, 0).gained
        assert {p.topic for p in gained} == set(part.topics)
        part.start(source, gained)
        return source

    def test_an_empty_batch_is_taken_and_moves_nothing(self, bus: MemoryBus, part: Consumer) -> None:
        source = self.started(MemoryBus(2, lambda: NOW), part)
        assert not any(part.apply(source.poll(100, 0)).values())
        assert not any(part.stop(()).values())

    def test_after_stop_all_that_was_applied_is_durable_broken_messages_too(
        self, bus: MemoryBus, part: Consumer
    ) -> None:
        source = self.started(bus, part)
        durable = dict(part.apply(source.poll(100, 0)))
        durable.update(part.stop(()))
        assert durable == self.ends(bus, part)

    def test_the_same_batch_again_is_harmless(self, bus: MemoryBus, part: Consumer) -> None:
        source = self.started(bus, part)
        batch = source.poll(100, 0)
        durable = {**part.apply(batch), **part.apply(batch), **part.stop(())}
        assert durable == self.ends(bus, part)

    def test_it_never_claims_more_than_it_was_given(self, bus: MemoryBus, part: Consumer) -> None:
        source = self.started(bus, part)
        given: dict[Partition, int] = {}
        for _ in range(20):
            batch = source.poll(3, 0)
            given |= batch.next_offsets()
            for partition, offset in part.apply(batch).items():
                assert offset <= given[partition]
        assert {**given, **part.stop(())} == given


class TestFeatures(ConsumerContract):
    @pytest.fixture
    def part(self, tmp_path: Path) -> Consumer:
        return FeaturesConsumer(MemoryFeatureStore(), RULES, lambda: NOW)


class TestTrends(ConsumerContract):
    @pytest.fixture
    def part(self, engine: Engine) -> Consumer:
        history = MemoryHistory(lambda: ())
        return TrendsConsumer(engine, RULES, history, write_parts, lambda _topic: "log", lambda: NOW)


class TestArchive(ConsumerContract):
    @pytest.fixture
    def part(self, tmp_path: Path) -> Consumer:
        return ArchiveConsumer(MemoryArchive(), MemoryQuarantine())


class TestCatalogue(ConsumerContract):
    @pytest.fixture
    def part(self, engine: Engine) -> Consumer:
        return CatalogueConsumer(
            SqlCatalogue(engine, write_parts), TextVectors(engine, open_encoder("hashing"), write_parts)
        )
