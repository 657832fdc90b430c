"""The catalogue consumer: item changes into cards, at once; their text vectors follow."""

from __future__ import annotations

from collections.abc import Mapping

from services import intake
from services.catalogue.vectors import TextVectors
from services.domain import TOPIC_ITEMS, Batch, Coordinate, ItemChange, Partition, WireError
from services.ports import Catalogue, EventSource
from services.telemetry import EVENTS_REJECTED


class CatalogueConsumer:
    """Consumer "catalogue". A card is durable when `apply` returns, and never waits for the embedding of another."""

    name = "catalogue"
    topics = (TOPIC_ITEMS,)

    def __init__(self, catalogue: Catalogue, vectors: TextVectors) -> None:
        self._catalogue = catalogue
        self._vectors = vectors

    def start(self, source: EventSource, gained: tuple[Partition, ...]) -> None:  # noqa: ARG002
        """The cards know what they hold: reading goes on from the group's commit."""
        self._vectors.open()

    def apply(self, batch: Batch) -> Mapping[Partition, int]:
        """Merge the changes, durably."""
        changes: list[tuple[Coordinate, ItemChange]] = []
        for message in batch.messages:
            try:
                changes.append((message.coordinate, intake.read_item(message)))
            except WireError as error:
                EVENTS_REJECTED.labels(where=self.name, reason=error.reason).inc()
        if self._catalogue.apply(changes):
            self._vectors.wake()
        return batch.next_offsets()

    def stop(self, lost: tuple[Partition, ...]) -> Mapping[Partition, int]:
        """Nothing is buffered; at the end of the loop the embedding thread ends, too."""
        if not lost:
            self._vectors.close()
        return {}
