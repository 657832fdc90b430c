"""Text vectors: what is embedded, in which order, how often; the encoder is a small real one that counts letters."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import Engine

from services import wire
from services.catalogue.cards import SqlCatalogue, card_text
from services.catalogue.consumer import CatalogueConsumer
from services.catalogue.live import ItemFeed, forget_vectors, write_parts
from services.catalogue.vectors import TextVectors
from services.domain import TOPIC_ITEMS, Coordinate, ItemCard, ItemChange, Outgoing
from services.items import ItemTable
from services.memory import MemoryBus

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


class LetterCounts:
    """An encoder: how often each of the letters a to h occurs, scaled to length 1. Keeps what it was asked."""

    def __init__(self, name: str = "letters", wait_s: float = 0.0) -> None:
        self.name = name
        self.width = 8
        self.wait_s = wait_s
        self.asked: list[list[str]] = []
        self.failures = 0

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        time.sleep(self.wait_s)
        self.asked.append(texts)
        if self.failures:
            self.failures -= 1
            raise RuntimeError("the encoder is out of order")
        counts = np.array([[1e-6 + text.count(letter) for letter in "abcdefgh"] for text in texts])
        return (counts / np.linalg.norm(counts, axis=1, keepdims=True)).astype(np.float32)


class Shop:
    """A catalogue that is written to, one coordinate after the other."""

    def __init__(self, engine: Engine) -> None:
        self.catalogue = SqlCatalogue(engine, write_parts)
        self.offset = 0

    def put(self, item_id: str, title: str, operation: str = "put") -> None:
        at = NOW + timedelta(seconds=self.offset)
        fields = {"title": title} if operation == "put" else {}
        change = ItemChange(item_id, operation, fields, at, at)  # type: ignore[arg-type]
        self.catalogue.apply([(Coordinate("log", TOPIC_ITEMS, 0, self.offset), change)])
        self.offset += 1


def table_of(engine: Engine) -> ItemTable:
    table = ItemTable()
    ItemFeed(engine).load(table)
    return table


def test_the_text_of_a_card_is_title_categories_attributes_and_the_first_64_words() -> None:
    words = " ".join(f"w{n}" for n in range(80))
    card = ItemCard("a", "Title ", words, ("x", "y"), {"size": "L", "colour": "red"})
    parts = card_text(card).split(" | ")
    assert parts[:3] == ["Title", "x, y", "colour red, size L"]
    assert parts[3].split()[-1] == "w63"
    assert card_text(ItemCard("a")) == ""
    assert card_text(ItemCard("a", "Title", deleted=True)) == ""


def test_a_card_gets_the_vector_of_its_text(engine: Engine) -> None:
    Shop(engine).put("a", "bb")
    assert TextVectors(engine, LetterCounts(), write_parts).drain() == 1
    vector = table_of(engine).vector("a")
    assert vector is not None
    np.testing.assert_allclose(vector, [0, 1, 0, 0, 0, 0, 0, 0], atol=1e-3)


def test_the_newest_are_embedded_first_in_batches(engine: Engine) -> None:
    shop, encoder = Shop(engine), LetterCounts()
    for number in range(5):
        shop.put(f"i{number}", f"title {number}")
    seen: list[tuple[int, int]] = []
    vectors = TextVectors(engine, encoder, write_parts, batch_max=2)
    assert vectors.pending() == 5
    assert vectors.drain(lambda done, total: seen.append((done, total))) == 5
    assert encoder.asked == [["title 4", "title 3"], ["title 2", "title 1"], ["title 0"]]
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert vectors.pending() == 0


def test_texts_of_like_length_are_embedded_together(engine: Engine) -> None:
    shop, encoder = Shop(engine), LetterCounts()
    for number in range(6):
        shop.put(f"i{number}", "a" * (1 + number) if number % 2 else "a" * (20 + number))
    assert TextVectors(engine, encoder, write_parts, batch_max=3).drain() == 6
    assert [[len(text) for text in batch] for batch in encoder.asked] == [[2, 4, 6], [20, 22, 24]]


def test_nothing_is_embedded_twice_and_equal_texts_once(engine: Engine) -> None:
    shop, encoder = Shop(engine), LetterCounts()
    vectors = TextVectors(engine, encoder, write_parts)
    shop.put("a", "same")
    shop.put("b", "same")
    vectors.drain()
    shop.put("a", "same")
    shop.put("c", "same")
    vectors.drain()
    assert encoder.asked == [["same"]]
    assert table_of(engine).vector("c") is not None


def test_a_changed_text_and_another_encoder_embed_anew(engine: Engine) -> None:
    shop = Shop(engine)
    shop.put("a", "aa")
    TextVectors(engine, LetterCounts(), write_parts).drain()
    shop.put("a", "bb")
    assert TextVectors(engine, LetterCounts(), write_parts).drain() == 1
    assert TextVectors(engine, LetterCounts(), write_parts).drain() == 0
    assert TextVectors(engine, LetterCounts("other"), write_parts).drain() == 1


def test_vectors_of_two_encoders_lie_side_by_side(engine: Engine) -> None:
    Shop(engine).put("a", "aa")
    TextVectors(engine, LetterCounts(), write_parts).drain()
    TextVectors(engine, LetterCounts("other"), write_parts).drain()
    table = table_of(engine)
    assert table.vector("a", "letters") is not None
    assert table.vector("a", "other") is not None
    with engine.begin() as connection:
        assert forget_vectors(connection, {"other"}) == 1
    assert table_of(engine).vector("a", "letters") is None
    assert table_of(engine).vector("a", "other") is not None


def test_the_encoder_is_followed_and_what_the_feed_has_of_it_is_not_embedded_again(engine: Engine) -> None:
    """Back to the first encoder: of three cards one came meanwhile and one was rewritten; the third is there."""
    shop, first, second = Shop(engine), LetterCounts(), LetterCounts("second")
    now_used = [first]
    vectors = TextVectors(engine, first, write_parts, follow=lambda: now_used[0])
    shop.put("stays", "aa")
    shop.put("changes", "bb")
    vectors.drain()
    now_used[0] = second
    assert vectors.drain() == 2
    shop.put("changes", "cc")
    shop.put("new", "dd")
    vectors.drain()
    first.asked.clear()
    now_used[0] = first
    assert vectors.drain() == 3
    assert first.asked == [["dd", "cc"]]
    assert vectors.pending() == 0
    np.testing.assert_allclose(table_of(engine).vector("changes", "letters"), np.eye(8)[2], atol=1e-3)  # type: ignore[arg-type]


def test_the_thread_takes_a_new_encoder_without_being_woken(engine: Engine) -> None:
    shop, first, second = Shop(engine), LetterCounts(), LetterCounts("second")
    now_used = [first]
    vectors = TextVectors(engine, first, write_parts, follow=lambda: now_used[0])
    shop.put("a", "aa")
    vectors.open()
    try:
        wait_for(lambda: table_of(engine).vector("a", "letters") is not None)
        now_used[0] = second
        wait_for(lambda: table_of(engine).vector("a", "second") is not None)
    finally:
        vectors.close()


def test_deleted_cards_and_cards_without_text_do_not_wait(engine: Engine) -> None:
    shop = Shop(engine)
    shop.put("a", "aa")
    shop.put("a", "", operation="delete")
    shop.put("b", "")
    assert TextVectors(engine, LetterCounts(), write_parts).pending() == 0


class ChangesMeanwhile(LetterCounts):
    """An encoder during whose first work the card gets another text."""

    def __init__(self, shop: Shop) -> None:
        super().__init__()
        self.shop = shop

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        if not self.asked:
            self.shop.put("a", "bb")
        return super().embed(texts)


def test_a_vector_of_a_text_that_changed_meanwhile_is_not_written(engine: Engine) -> None:
    shop = Shop(engine)
    shop.put("a", "aa")
    encoder = ChangesMeanwhile(shop)
    TextVectors(engine, encoder, write_parts).drain()
    assert encoder.asked == [["aa"], ["bb"]]
    vector = table_of(engine).vector("a")
    assert vector is not None
    assert vector[1] == pytest.approx(1.0, abs=1e-3)


def wait_for(condition: object, wait_s: float = 10.0) -> float:
    assert callable(condition)
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < wait_s, "it did not happen in time"
        time.sleep(0.01)
    return time.monotonic() - started


def test_the_thread_outlives_a_failing_encoder(engine: Engine) -> None:
    encoder = LetterCounts()
    encoder.failures = 1
    vectors = TextVectors(engine, encoder, write_parts, retry_s=0.05)
    Shop(engine).put("a", "aa")
    vectors.open()
    try:
        wait_for(lambda: vectors.pending() == 0)
    finally:
        vectors.close()
    assert len(encoder.asked) == 2


def test_a_new_item_goes_before_a_backlog_and_its_card_never_waits(engine: Engine) -> None:
    shop, encoder = Shop(engine), LetterCounts(wait_s=0.1)
    for number in range(200):
        shop.put(f"old{number}", f"title {number}")
    bus = MemoryBus(2, lambda: NOW + timedelta(days=1))
    vectors = TextVectors(engine, encoder, write_parts, batch_max=2)
    consumer = CatalogueConsumer(shop.catalogue, vectors)
    source = bus.source("catalogue", consumer.topics)
    consumer.start(source, source.poll(1, 0).gained)
    try:
        wait_for(lambda: len(encoder.asked) >= 2)
        at = NOW + timedelta(days=1)
        bus.publish([wire.encode_item(ItemChange("new", "put", {"title": "hh"}, at, at))])
        source.commit(consumer.apply(source.poll(10, 0)))
        assert table_of(engine).title("new") == "hh", "the card is there at once"
        took_s = wait_for(lambda: table_of(engine).vector("new") is not None)
        assert any(old.startswith("title") for old in encoder.asked[-1] + encoder.asked[0])
        assert vectors.pending() > 150, f"the backlog still waits after {took_s:.1f} s"
    finally:
        consumer.stop(())
    assert not any(thread.name == "text-vectors" for thread in threading.enumerate())


def test_bad_item_messages_are_passed_over_and_the_rest_is_applied(engine: Engine) -> None:
    bus = MemoryBus(1, lambda: NOW)
    vectors = TextVectors(engine, LetterCounts(), write_parts)
    consumer = CatalogueConsumer(SqlCatalogue(engine, write_parts), vectors)
    source = bus.source("catalogue", consumer.topics)
    consumer.start(source, source.poll(1, 0).gained)
    bus.publish([Outgoing(TOPIC_ITEMS, "x", b"{"), wire.encode_item(ItemChange("a", "put", {"title": "A"}, NOW, NOW))])
    source.commit(consumer.apply(source.poll(10, 0)))
    consumer.stop(())
    assert sum(source.lag().values()) == 0
    assert table_of(engine).title("a") == "A"
