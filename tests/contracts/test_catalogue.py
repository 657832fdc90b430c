"""The promises of a catalogue (merge, order, tombstones, replays), held over the in-memory one and the SQL one."""

from __future__ import annotations

from abc import abstractmethod
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from services.catalogue.cards import MemoryCatalogue, SqlCatalogue
from services.catalogue.guarded import GuardedCatalogue
from services.catalogue.live import write_parts
from services.domain import TOPIC_ITEMS, Coordinate, ItemCard, ItemChange, Operation
from services.ports import Catalogue

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def change(operation: Operation, minutes: float = 0, item_id: str = "a", **fields: object) -> ItemChange:
    at = NOW + timedelta(minutes=minutes)
    return ItemChange(item_id, operation, fields, at, at)


def numbered(*changes: ItemChange, start: int = 0) -> list[tuple[Coordinate, ItemChange]]:
    return [(Coordinate("log", TOPIC_ITEMS, 0, start + place), each) for place, each in enumerate(changes)]


class CatalogueContract:
    """What every catalogue must hold."""

    @pytest.fixture
    @abstractmethod
    def catalogue(self, tmp_path: Path) -> Catalogue:
        """An empty catalogue."""

    def card(self, catalogue: Catalogue, item_id: str = "a") -> ItemCard:
        (card,) = catalogue.cards([item_id])
        assert card is not None
        return card

    def test_cards_are_answered_in_the_order_asked_and_unknown_ones_are_none(self, catalogue: Catalogue) -> None:
        catalogue.apply(numbered(change("put", item_id="a", title="A"), change("put", item_id="b", title="B")))
        b, unknown, a = catalogue.cards(["b", "x", "a"])
        assert (b and b.title, unknown, a and a.title) == ("B", None, "A")

    def test_every_field_comes_back_as_it_was_given(self, catalogue: Catalogue) -> None:
        given_fields = {
            "title": "T",
            "text": "words",
            "categories": ("x", "y"),
            "attributes": {"colour": "red"},
            "available": False,
            "published_at": NOW,
            "expires_at": NOW + timedelta(days=1),
        }
        catalogue.apply(numbered(change("put", **given_fields)))
        assert self.card(catalogue) == ItemCard("a", **given_fields)  # type: ignore[arg-type]

    def test_a_put_replaces_and_a_patch_merges(self, catalogue: Catalogue) -> None:
        catalogue.apply(numbered(change("put", title="old", text="old"), change("put", 1, title="new")))
        assert (self.card(catalogue).title, self.card(catalogue).text) == ("new", "")
        catalogue.apply(numbered(change("patch", 2, text="words"), start=2))
        assert (self.card(catalogue).title, self.card(catalogue).text) == ("new", "words")

    def test_each_field_goes_by_its_own_time(self, catalogue: Catalogue) -> None:
        catalogue.apply(
            numbered(
                change("patch", 5, title="newest"),
                change("put", 3, title="older", text="words"),
                change("patch", 4, title="x"),
            )
        )
        assert (self.card(catalogue).title, self.card(catalogue).text) == ("newest", "words")

    def test_an_older_write_is_refused_silently(self, catalogue: Catalogue) -> None:
        catalogue.apply(numbered(change("put", 5, title="new")))
        assert catalogue.apply(numbered(change("put", 4, title="old"), start=1)) == ()
        assert self.card(catalogue).title == "new"

    def test_of_equal_times_the_later_in_the_log_stands(self, catalogue: Catalogue) -> None:
        catalogue.apply(numbered(change("put", title="first"), change("put", title="second")))
        assert self.card(catalogue).title == "second"

    def test_a_delete_leaves_a_tombstone_that_an_older_put_cannot_revive_and_a_newer_can(
        self, catalogue: Catalogue
    ) -> None:
        catalogue.apply(numbered(change("put", title="A"), change("delete", 5), change("put", 4, title="old")))
        assert self.card(catalogue).deleted
        catalogue.apply(numbered(change("patch", 6, title="patched"), start=3))
        assert self.card(catalogue).deleted, "a patch merges fields; it revives nothing"
        catalogue.apply(numbered(change("put", 7, title="back"), start=4))
        assert self.card(catalogue) == ItemCard("a", title="back")

    def test_applying_a_coordinate_again_is_harmless(self, catalogue: Catalogue) -> None:
        changes = numbered(change("put", title="A"), change("patch", text="words"))
        assert len(catalogue.apply(changes)) == 1
        before = self.card(catalogue)
        assert catalogue.apply(changes) == ()
        assert catalogue.apply(changes[1:]) == ()
        assert self.card(catalogue) == before

    def test_another_log_starts_its_offsets_anew(self, catalogue: Catalogue) -> None:
        catalogue.apply(numbered(change("put", title="A"), start=7))
        catalogue.apply([(Coordinate("other", TOPIC_ITEMS, 0, 0), change("put", 1, title="B"))])
        assert self.card(catalogue).title == "B"

    def test_the_changed_cards_are_returned_once_each_in_their_last_state(self, catalogue: Catalogue) -> None:
        changed = catalogue.apply(
            numbered(change("put", title="A"), change("patch", 1, title="B"), change("put", item_id="b"))
        )
        assert [(card.item_id, card.title) for card in changed] == [("a", "B"), ("b", "")]

    def test_all_cards_come_in_id_order_tombstones_too(self, catalogue: Catalogue) -> None:
        catalogue.apply(
            numbered(*(change("put", item_id=f"i{n:04d}") for n in range(1500)), change("delete", 1, "i0007"))
        )
        cards = list(catalogue.all_cards())
        assert [card.item_id for card in cards] == [f"i{n:04d}" for n in range(1500)]
        assert [card.item_id for card in cards if card.deleted] == ["i0007"]

    def test_an_empty_batch_changes_nothing(self, catalogue: Catalogue) -> None:
        assert catalogue.apply([]) == ()


class TestMemoryCatalogue(CatalogueContract):
    """The in-memory catalogue."""

    @pytest.fixture
    def catalogue(self, tmp_path: Path) -> Catalogue:
        return MemoryCatalogue()


class TestGuardedCatalogue(CatalogueContract):
    """One that is read within a deadline."""

    @pytest.fixture
    def catalogue(self, tmp_path: Path) -> Catalogue:
        return GuardedCatalogue(MemoryCatalogue(), deadline_s=10.0)


class TestSqlCatalogue(CatalogueContract):
    """The SQL catalogue."""

    @pytest.fixture
    def catalogue(self, engine: Engine) -> Catalogue:
        return SqlCatalogue(engine, write_parts)


moments = st.lists(st.integers(0, 1000), min_size=2, max_size=6, unique=True)


@given(moments, st.data())
def test_writes_with_different_times_end_equal_in_any_order(moments: list[int], data: st.DataObject) -> None:
    """Property: the card is a function of the set of writes, as long as no two have the same time."""
    operations = st.sampled_from(["put", "patch", "delete"])
    names = st.sets(st.sampled_from(["title", "text"]), min_size=1)
    changes = []
    for moment in moments:
        operation = data.draw(operations)
        fields = {} if operation == "delete" else {name: f"{name} of {moment}" for name in data.draw(names)}
        changes.append(change(operation, moment, **fields))
    shuffled = data.draw(st.permutations(changes))
    cards = []
    for order in (sorted(changes, key=lambda each: each.updated_at), shuffled):
        catalogue = MemoryCatalogue()
        catalogue.apply(numbered(*order))
        cards.append(catalogue.cards(["a"]))
    assert cards[0] == cards[1]
