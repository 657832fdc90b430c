"""A catalogue that is read within a deadline, behind a circuit breaker: a database that hangs holds up nobody."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy.exc import SQLAlchemyError

from services.breaker import Bounded, Breaker
from services.domain import Coordinate, ItemCard, ItemChange, StageUnavailable
from services.ports import Catalogue

DEADLINE_S = 0.5
READERS = 8


class GuardedCatalogue:
    """The Catalogue port over another one; only `cards` is guarded. StageUnavailable where that does not answer."""

    def __init__(self, catalogue: Catalogue, deadline_s: float = DEADLINE_S) -> None:
        self._catalogue = catalogue
        self._within = Bounded("the catalogue", deadline_s, READERS)
        self._breaker = Breaker()

    def cards(self, item_ids: Sequence[str]) -> tuple[ItemCard | None, ...]:
        """Catalogue."""
        if not self._breaker.allows():
            raise StageUnavailable("the catalogue is away")
        try:
            found = self._within(lambda: self._catalogue.cards(item_ids))
        except (StageUnavailable, SQLAlchemyError) as error:
            self._breaker.failed()
            raise StageUnavailable(f"the catalogue does not answer: {error}") from error
        self._breaker.worked()
        return found

    def apply(self, changes: Sequence[tuple[Coordinate, ItemChange]]) -> tuple[ItemCard, ...]:
        """Catalogue."""
        return self._catalogue.apply(changes)

    def all_cards(self) -> Iterator[ItemCard]:
        """Catalogue."""
        return self._catalogue.all_cards()
