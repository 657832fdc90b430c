"""The item table: what a process knows of items, by hand-made changes; unknown items, growth, rankings and masks."""

from __future__ import annotations

import sys
import threading
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from services.domain import DAY_US, HOUR_US, Interaction, ItemCard, UserState, hash64, to_us
from services.item_parts import (
    CardPart,
    CovisitsPart,
    ItemChanged,
    Payload,
    StatsPart,
    VectorPart,
    card_part,
    decode_part,
    encode_part,
)
from services.items import ItemTable

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
NOW_US = to_us(NOW)


def card(
    title: str = "",
    *categories: str,
    available: bool = True,
    published_us: int = 0,
    expires_us: int = 0,
    created_us: int = 1,
) -> CardPart:
    return CardPart(title, list(categories), available, False, published_us, expires_us, created_us)


def stats(day: float, week: float, at_us: int = NOW_US) -> StatsPart:
    return StatsPart([0.0, 0.0, 0.0, 0.0, day, week, 0.0, 0.0, 0.0], at_us)


def table(*parts: tuple[str, Payload]) -> ItemTable:
    made = ItemTable()
    made.apply(ItemChanged(item_id, payload, seq) for seq, (item_id, payload) in enumerate(parts, start=1))
    return made


@pytest.mark.parametrize(
    ("part", "payload"),
    [
        ("card", card("T", "x", published_us=5)),
        ("stats", stats(1.0, 2.0)),
        ("covisits", CovisitsPart(["a"], [0.5])),
        ("vector", VectorPart("letters", b"\x00\x3c")),
    ],
)
def test_every_part_comes_back_from_its_bytes(part: str, payload: Payload) -> None:
    assert decode_part(part, encode_part(payload)) == payload  # type: ignore[arg-type]


def test_the_bytes_of_a_part_are_read_for_ever() -> None:
    """Golden: a positional msgpack list, as it stands in databases out there."""
    assert encode_part(CovisitsPart(["a"], [0.5])).hex() == "9291a16191cb3fe0000000000000"


def test_a_card_gives_its_part() -> None:
    given = ItemCard("a", "T", categories=("x",), published_at=NOW, available=False)
    assert card_part(given, NOW + timedelta(seconds=1)) == CardPart("T", ["x"], False, False, NOW_US, 0, NOW_US + 10**6)


def test_an_unknown_item_is_empty_knowledge_and_may_be_shown() -> None:
    empty = ItemTable()
    assert "a" not in empty
    assert "" not in empty
    assert (empty.title("a"), empty.category_names("a"), empty.vector("a"), empty.covisits("a")) == ("a", (), None, ())
    assert empty.servable(["a"], NOW_US).tolist() == [True]
    block = empty.block(["a", "b"])
    assert block.item_hash.tolist() == [hash64("a"), hash64("b")]
    assert not block.counts.any()
    assert empty.trending(NOW_US, 3) == ()
    assert empty.newest(NOW_US, 3) == ()


def test_an_item_known_only_from_events_is_there_without_a_card() -> None:
    known = table(("a", stats(1, 1)))
    assert "a" in known
    assert known.servable(["a"], NOW_US).tolist() == [True]
    assert known.trending(NOW_US, 3) == (("a", 2.0),)


def test_a_part_applied_again_or_late_changes_nothing() -> None:
    known = table(("a", card("old")), ("a", card("new")))
    known.apply([ItemChanged("a", card("old"), 1), ItemChanged("a", card("new"), 2)])
    assert known.title("a") == "new"
    assert known.as_of == 2


def test_unavailable_deleted_expired_and_unpublished_items_are_not_servable() -> None:
    deleted = CardPart("", [], True, True, 0, 0, 1)
    known = table(
        ("shown", card()),
        ("unavailable", card(available=False)),
        ("deleted", deleted),
        ("expired", card(expires_us=NOW_US)),
        ("expires", card(expires_us=NOW_US + 1)),
        ("unpublished", card(published_us=NOW_US + 1)),
        ("published", card(published_us=NOW_US)),
    )
    shown = known.servable(known.item_ids(), NOW_US)
    servable = {item_id for item_id, may in zip(known.item_ids(), shown, strict=True) if may}
    assert servable == {"shown", "expires", "published"}


def test_trending_takes_the_day_and_the_week_in_turn() -> None:
    known = table(("week", stats(1, 9)), ("day", stats(5, 5)), ("both", stats(4, 8)), ("none", card()))
    assert [item_id for item_id, _ in known.trending(NOW_US, 3)] == ["day", "week", "both"]
    assert dict(known.trending(NOW_US, 3))["day"] == pytest.approx(10.0)


def test_trending_decays_to_the_moment_asked() -> None:
    known = table(("old", stats(8, 0, NOW_US - 3 * DAY_US)), ("new", stats(2, 0, NOW_US)))
    assert known.trending(NOW_US, 1) == (("new", 2.0),)  # 8 halved three times is 1
    assert known.trending(NOW_US + 365 * DAY_US, 1) == (("new", 0.0),)
    assert known.trending(NOW_US, 1) == (("new", 2.0),), "a question about another time must not be remembered"


def test_what_was_wanted_last_is_shown_however_long_ago_that_was() -> None:
    known = table(("old", stats(8, 9, NOW_US - 3 * DAY_US)), ("new", stats(2, 8, NOW_US)), ("none", card()))
    much_later = NOW_US + 100 * 365 * DAY_US
    assert known.trending(much_later, 3) == (("new", 0.0), ("old", 0.0))


def test_asked_about_a_moment_before_the_newest_counts_these_count_as_they_are() -> None:
    """By the end of the next day the 4 would be worth more than the 6; now they are not."""
    known = table(("now", stats(6, 0)), ("tomorrow", stats(4, 0, NOW_US + DAY_US)))
    assert known.trending(NOW_US, 2) == (("now", 6.0), ("tomorrow", 4.0))
    assert [item_id for item_id, _ in known.trending(NOW_US + DAY_US, 2)] == ["tomorrow", "now"]


def test_equal_clicks_are_in_the_order_of_the_slots_also_where_the_list_ends() -> None:
    known = table(*((f"i{n:03}", stats(1, 1)) for n in range(300)))
    assert [item_id for item_id, _ in known.trending(NOW_US, 10)] == [f"i{n:03}" for n in range(10)]


def test_what_nobody_clicked_takes_no_place_from_what_somebody_did() -> None:
    known = table(("c", card()), ("d", card()), ("a", stats(0, 5)), ("b", stats(0, 3)))
    assert [item_id for item_id, _ in known.trending(NOW_US, 2)] == ["a", "b"]


def test_an_item_can_be_named_the_moment_it_is_known() -> None:
    """One thread brings items in, which makes the arrays grow; another asks after the next of them."""
    known, failed = table(("i0", card("T", "x"))), []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            coming = f"i{len(known)}"
            try:
                if known.title(coming) not in {coming, "T"} or known.category_names("i0") != ("x",):
                    failed.append(coming)
            except IndexError:
                failed.append(coming)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # as often as it can be
    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for n in range(1, 2500):
            known.apply([ItemChanged(f"i{n}", card("T", "x"), n + 1)])
    finally:
        sys.setswitchinterval(before)
        stop.set()
        asking.join()
    assert failed == []


def test_trending_leaves_out_what_may_not_be_shown() -> None:
    known = table(("a", stats(9, 9)), ("a", card(available=False)), ("b", stats(1, 1)))
    assert [item_id for item_id, _ in known.trending(NOW_US, 3)] == ["b"]


def test_newest_goes_by_publication_else_by_the_first_card() -> None:
    known = table(
        ("first", card(created_us=NOW_US - 3 * HOUR_US)),
        ("second", card(published_us=NOW_US - HOUR_US, created_us=NOW_US - 9 * HOUR_US)),
        ("third", card(created_us=NOW_US - 2 * HOUR_US)),
        ("future", card(published_us=NOW_US + HOUR_US)),
        ("events only", stats(1, 1)),
    )
    assert [item_id for item_id, _ in known.newest(NOW_US, 9)] == ["second", "third", "first"]
    assert known.newest(NOW_US, 1) == (("second", float(NOW_US - HOUR_US)),)


def test_an_item_published_later_appears_when_its_time_has_come() -> None:
    known = table(("a", card(published_us=NOW_US + HOUR_US)))
    assert known.newest(NOW_US, 3) == ()
    assert [item_id for item_id, _ in known.newest(NOW_US + HOUR_US, 3)] == ["a"]


def test_categories_are_numbered_alike_for_history_and_candidates() -> None:
    known = table(("a", card("", "x", "y")), ("b", card("", "y")), ("c", card()))
    assert known.category_names("a") == ("x", "y")
    assert known.has_categories(["a", "b", "c", "unknown"], frozenset({"y", "nowhere"})).tolist() == [
        True,
        True,
        False,
        False,
    ]
    assert known.has_categories(["a"], frozenset()).tolist() == [False]
    user = UserState(
        "u", (Interaction(NOW_US, 1, "b", "click", None, 1.0), Interaction(5, 2, "unknown", "hide", None, -1.0))
    )
    history = known.history(user)
    block = known.block(["b", "unknown"])
    assert (history.categories == block.categories).all()
    assert (history.item_hash == block.item_hash).all()
    assert history.weight.tolist() == [1.0, -1.0]


def test_a_block_is_a_copy() -> None:
    known = table(("a", stats(1, 1)))
    known.block(["a"]).counts[:] = 7
    assert known.block(["a"]).counts[0, 5] == 1.0


def vector(encoder: str, *values: float) -> VectorPart:
    return VectorPart(encoder, np.array(values, dtype="<f2").tobytes())


def test_new_vectors_are_told_once() -> None:
    known = table(("a", vector("letters", 1.0, 0.5)), ("b", card("B")), ("a", vector("letters", 1.0, 0.25)))
    assert known.take_new_vectors() == (("letters", "a"),)
    assert known.take_new_vectors() == ()
    assert known.vector("a", "letters").tolist() == [1.0, 0.25]  # type: ignore[union-attr]


def test_an_item_has_a_vector_of_each_encoder() -> None:
    known = table(("a", vector("new", 3.0)), ("a", vector("old", 1.0, 0.5)), ("b", vector("new", 2.0)))
    assert known.vector("a", "new").tolist() == [3.0]  # type: ignore[union-attr]
    assert known.vector("a", "old").tolist() == [1.0, 0.5]  # type: ignore[union-attr]
    assert known.vector("a").tolist() == [1.0, 0.5]  # the newest  # type: ignore[union-attr]
    assert known.vector("b", "old") is None
    assert known.encoder_of_most() == "new"
    known.keep_vectors_of({"old"})
    assert known.vector("a", "new") is None
    assert known.encoder_of_most() == "old"


def test_the_table_grows_beyond_its_first_size_and_forgets_nothing() -> None:
    known = table(*((f"i{n}", stats(n, n)) for n in range(3000)))
    assert len(known) == 3000
    assert known.block(["i7", "i2999"]).counts[:, 4].tolist() == [7.0, 2999.0]
    assert known.servable(["i2999"], NOW_US).tolist() == [True]
    assert known.trending(NOW_US, 1)[0][0] == "i2999"


def test_where_only_listed_items_are_wanted_one_without_a_card_is_not_shown() -> None:
    for listed_only, shown in ((False, ["lamp", "rumour"]), (True, ["lamp"])):
        table = ItemTable(listed_only)
        card = CardPart("Desk lamp", [], True, False, 0, 0, 1)
        table.apply([ItemChanged("lamp", card, 1)])
        table.apply([ItemChanged(i, StatsPart([1.0] * 9, 10**15), n) for n, i in enumerate(("lamp", "rumour"), 2)])
        assert sorted(item_id for item_id, _ in table.trending(10**15, 10)) == shown
        assert table.servable(["lamp", "rumour", "unheard-of"], 10**15).tolist() == [
            True,
            not listed_only,
            not listed_only,
        ]


def test_trending_is_whole_while_items_arrive() -> None:
    """Both rankings are of one moment: an item that arrives between them must not part them (it did)."""
    table, stop = ItemTable(), threading.Event()

    def arrive() -> None:
        for number in range(3000):
            if stop.is_set():
                return
            table.apply([ItemChanged(f"new-{number}", StatsPart([1.0] * 9, 10**15), number + 1)])

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=arrive)
    thread.start()
    try:
        while thread.is_alive():
            assert len(table.trending(10**15, 10_000)) <= len(table)
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(before)
