"""The change feed: numbers rise and become visible in order, whoever writes; a table that polls misses nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import pytest
from sqlalchemy import Engine

from services.catalogue import live
from services.catalogue.live import PAGE, ItemFeed, write_parts
from services.item_parts import CovisitsPart, ItemChanged, Payload, StatsPart
from services.items import ItemTable


def stats(clicks: float) -> StatsPart:
    return StatsPart([0.0, 0.0, 0.0, clicks, clicks, clicks, 0.0, 0.0, 0.0], 1000)


def write(engine: Engine, *parts: tuple[str, Payload]) -> int:
    with engine.begin() as connection:
        return write_parts(connection, parts)


def test_numbers_rise_by_one_per_part(engine: Engine) -> None:
    assert write(engine, ("a", stats(1)), ("b", stats(2))) == 2
    assert write(engine, ("a", stats(3))) == 3
    assert [(c.item_id, c.seq) for c in ItemFeed(engine).changes(0)] == [("b", 2), ("a", 3)]


def test_a_part_named_twice_in_one_write_stands_as_the_later_one(engine: Engine) -> None:
    write(engine, ("a", stats(1)), ("a", stats(2)))
    (change,) = ItemFeed(engine).changes(0)
    assert change.payload == stats(2)


def test_parts_of_one_item_do_not_replace_each_other(engine: Engine) -> None:
    write(engine, ("a", stats(1)), ("a", CovisitsPart(["b"], [0.5])))
    table = ItemTable()
    assert ItemFeed(engine).load(table) == 2
    assert table.covisits("a") == (("b", 0.5),)
    assert table.block(["a"]).counts[0, 3] == 1.0


def test_pages_are_bounded_and_poll_goes_on_where_the_table_is(engine: Engine) -> None:
    write(engine, *((f"i{n}", stats(n)) for n in range(12)))
    feed, table = ItemFeed(engine), ItemTable()
    assert [len(feed.changes(0, 5)), len(feed.changes(10, 5))] == [5, 2]
    assert feed.poll(table) == 12
    assert feed.poll(table) == 0
    write(engine, ("i3", stats(30)))
    assert feed.poll(table) == 1
    assert table.as_of == 13
    assert table.block(["i3"]).counts[0, 3] == 30.0


def test_a_writing_of_many_pages_is_seen_whole_or_not_at_all(engine: Engine) -> None:
    """A server that looks at any moment knows the counts of one writing: those that its `as_of_us` names."""

    class Watched(ItemTable):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[tuple[int, set[int]]] = []

        def apply(self, changes: Iterable[ItemChanged]) -> None:
            super().apply(changes)
            block = self.block(names)
            self.seen.append((block.as_of_us, set(block.counts[:, 3].astype(int).tolist())))

    names = [f"i{n}" for n in range(2 * PAGE + 1)]
    feed, table = ItemFeed(engine), Watched()
    for written in (1, 2, 3):
        write(engine, *((name, StatsPart([float(written)] * 9, 1000, written)) for name in names))
        if written == 2:
            continue  # the server sees the second only as far as the third left it
        assert feed.poll(table) == len(names)
    assert table.seen == [(1, {1}), (3, {3})]


def test_more_than_a_poll_takes_comes_with_the_next(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "POLL_PAGES", 2)
    names = [f"i{n}" for n in range(2 * PAGE + 7)]
    write(engine, *((name, stats(1)) for name in names))
    feed, table = ItemFeed(engine), ItemTable()
    assert [feed.poll(table), feed.poll(table), feed.poll(table)] == [2 * PAGE, 7, 0]


def test_a_write_that_is_rolled_back_leaves_no_row_and_no_number(engine: Engine) -> None:
    with engine.connect() as connection:
        write_parts(connection, [("a", stats(1))])
        connection.rollback()
    assert ItemFeed(engine).changes(0) == []
    assert write(engine, ("a", stats(1))) == 1


def test_a_reader_beside_two_writers_misses_nothing(engine: Engine) -> None:
    """Numbers are taken under the write lock: what a reader has not seen is always above what it has."""
    rounds = 40

    def keep_writing(name: str) -> None:
        for number in range(rounds):
            write(engine, (f"{name}{number}", stats(number)), (f"{name}{number}x", stats(number)))

    writers = [threading.Thread(target=keep_writing, args=(name,)) for name in "ab"]
    for writer in writers:
        writer.start()
    feed, table = ItemFeed(engine), ItemTable()
    while any(writer.is_alive() for writer in writers):
        feed.poll(table)
    feed.load(table)
    assert len(table) == 4 * rounds
    assert table.as_of == 4 * rounds
