"""The fold: hand-worked rows for each rule, and properties over shuffled, duplicated, replayed and split streams."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from services.domain import (
    HIDDEN_MAX,
    HISTORY_MAX,
    HOUR_US,
    SEEN_MAX,
    Event,
    Interaction,
    KindRule,
    KindRules,
    Seen,
    UserState,
    hash64,
)
from services.features.fold import fold, fold_each, interaction, merge

RULES = KindRules(
    {
        "click": KindRule("positive", 1.0),
        "hide": KindRule("negative", 1.0),
        "rating": KindRule("positive", 1.0, threshold=6.0),
        "impression": KindRule("neutral"),
    }
)
ANNA = UserState("anna")


def click(at_us: int, item_id: str = "i", key: int | None = None) -> Interaction:
    return Interaction(at_us, at_us if key is None else key, item_id, "click", None, 1.0)


def hide(at_us: int, item_id: str) -> Interaction:
    return Interaction(at_us, at_us, item_id, "hide", None, -1.0)


def content(state: UserState) -> UserState:
    return replace(state, row_time_us=0, previous_row_time_us=0)


def test_the_newest_event_stands_first() -> None:
    state = fold(ANNA, [click(1, "a"), click(3, "c"), click(2, "b")])
    assert [each.item_id for each in state.events] == ["c", "b", "a"]
    assert state.first_seen_us == 1


def test_equal_times_are_ordered_by_event_key() -> None:
    assert [e.item_id for e in fold(ANNA, [click(1, "a", key=5), click(1, "b", key=-7)]).events] == ["a", "b"]


def test_only_the_newest_of_a_full_history_stay() -> None:
    folded = fold_each(ANNA, [click(t) for t in range(1, HISTORY_MAX + 2)])
    assert [each.occurred_us for each in folded.rows[-1].events] == list(range(HISTORY_MAX + 1, 1, -1))
    assert folded.rows[-1].first_seen_us == 1


def test_an_event_older_than_a_full_history_is_late_and_still_seen() -> None:
    full = fold(ANNA, [click(t * HOUR_US, "x") for t in range(1, HISTORY_MAX + 1)])
    folded = fold_each(full, [click(30, "old")])
    assert (folded.late, folded.duplicates) == (1, 0)
    assert folded.rows[-1].events == full.events
    assert folded.rows[-1].seen == Seen.of([(HISTORY_MAX, hash64("x")), (0, hash64("old"))])
    assert folded.rows[-1].first_seen_us == 30


def test_a_late_event_that_tells_nothing_new_makes_no_row() -> None:
    full = fold(ANNA, [click(t * HOUR_US, "x") for t in range(1, HISTORY_MAX + 2)])
    folded = fold_each(full, [click(HOUR_US + 5, "x")])
    assert (folded.late, folded.rows) == (1, ())


def test_a_duplicate_makes_no_row() -> None:
    state = fold(ANNA, [click(1, "a")])
    folded = fold_each(state, [click(1, "a")])
    assert (folded.duplicates, folded.late, folded.rows) == (1, 0, ())
    assert fold(state, [click(1, "a")]) is state


def test_an_event_id_that_comes_again_at_another_time_is_kept_once_at_the_newer() -> None:
    for stream in ([click(1, "a", 9), click(5, "a", 9)], [click(5, "a", 9), click(1, "a", 9)]):
        assert [each.occurred_us for each in fold(ANNA, stream).events] == [5]


def test_row_times_rise_strictly_and_name_the_row_they_follow() -> None:
    rows = fold_each(ANNA, [click(100), click(50), click(60), click(200)]).rows
    assert [row.row_time_us for row in rows] == [100, 101, 102, 200]
    assert [row.previous_row_time_us for row in rows] == [0, 0, 0, 0]
    after = fold_each(rows[-1], [click(150), click(300)]).rows
    assert [(row.row_time_us, row.previous_row_time_us) for row in after] == [(201, 200), (300, 200)]


def test_a_hide_outlives_the_next_clicks() -> None:
    state = fold(ANNA, [hide(1, "spam"), *[click(t) for t in range(2, 200)]])
    assert state.hidden == ((1, "spam"),)
    assert all(each.kind == "click" for each in state.events)


def test_hidden_and_seen_keep_the_newest_of_each_item_and_are_bounded() -> None:
    state = fold(ANNA, [hide(t, f"h{t % 150}") for t in range(1, 301)])
    assert [at for at, _ in state.hidden] == list(range(300, 300 - HIDDEN_MAX, -1))
    state = fold(ANNA, [click(h * HOUR_US, f"s{h}") for h in range(1, SEEN_MAX + 3)])
    assert [hour for hour, _ in state.seen] == list(range(SEEN_MAX + 2, 2, -1))
    assert next(iter(fold(state, [click(5000 * HOUR_US, "s700")]).seen)) == (5000, hash64("s700"))


def test_kinds_enter_by_their_sign() -> None:
    def event(kind: str, value: float | None = None) -> Event:
        at = datetime(2020, 1, 1, tzinfo=UTC)
        return Event("e", "anna", "i", kind, at, at + timedelta(seconds=1), value)

    assert interaction(event("impression"), RULES) is None
    assert interaction(event("never-declared"), RULES) is None
    expected = Interaction(1577836800000000, hash64("e"), "i", "rating", 6.0, 1.0)
    assert interaction(event("rating", 6.0), RULES) == expected
    assert interaction(event("rating", 5.9), RULES) == expected._replace(weight=-1.0, value=5.900000095367432)
    assert fold(ANNA, [expected._replace(weight=-1.0)]).seen == Seen()


def test_a_merge_is_the_union_after_both() -> None:
    ours = fold(ANNA, [click(1, "a"), click(9, "c")])
    theirs = fold(ANNA, [click(1, "a"), click(5, "b"), hide(6, "d")])
    merged = merge(theirs, ours)
    assert [each.item_id for each in merged.events] == ["c", "d", "b", "a"]
    assert (merged.row_time_us, merged.previous_row_time_us) == (10, 6)
    assert merge(merged, ours) is merged
    assert merge(ANNA, ours).events == ours.events


KINDS = [("click", None, 1.0), ("hide", None, -1.0), ("rating", 7.0, 1.0), ("rating", 2.0, -1.0)]


@st.composite
def streams(draw: st.DrawFn) -> list[Interaction]:
    """Up to 200 events, so that histories fill; few times, keys and items, so that they collide."""
    chance = draw(st.randoms(use_true_random=False))
    times, keys, items = draw(st.integers(1, 300)), draw(st.integers(1, 400)), draw(st.integers(1, 150))
    return [
        Interaction(
            chance.randint(1, times) * HOUR_US // 2,
            chance.randint(-keys, keys),
            f"i{chance.randint(1, items)}",
            *chance.choice(KINDS),
        )
        for _ in range(draw(st.integers(0, 200)))
    ]


@settings(max_examples=150, deadline=None)
@given(streams(), st.randoms(use_true_random=False), st.integers(0, 200))
def test_order_duplicates_replays_and_splits_cannot_change_a_row(
    stream: list[Interaction], chance: random.Random, cut: int
) -> None:
    expected = content(fold(ANNA, stream))
    shuffled = chance.sample(stream, len(stream)) + chance.choices(stream, k=5) if stream else []
    assert content(fold(ANNA, shuffled)) == expected
    assert content(fold(fold(ANNA, stream[:cut]), stream[max(0, cut - 7) :] + stream)) == expected
    assert content(merge(fold(ANNA, shuffled[:cut]), fold(ANNA, shuffled[cut:]))) == expected
    assert content(merge(fold(ANNA, stream[cut:]), fold(ANNA, stream[:cut]))) == expected


@settings(max_examples=50, deadline=None)
@given(streams(), st.integers(1, 200))
def test_batches_leave_the_rows_that_a_slow_stream_leaves(stream: list[Interaction], size: int) -> None:
    def rows_in_batches(of: int) -> list[UserState]:
        state, rows = ANNA, []
        for first in range(0, len(stream), of):
            rows += fold_each(state, stream[first : first + of]).rows
            state = rows[-1] if rows else state
        return [replace(row, previous_row_time_us=0) for row in rows]

    assert rows_in_batches(size) == rows_in_batches(1)
    times = [row.row_time_us for row in rows_in_batches(1)]
    assert times == sorted(set(times))


def test_rows_hold_the_newest_of_a_long_shuffled_stream_worked_out_by_sorting() -> None:
    stream = [click(t * 7919, f"i{t % 700}", key=hash64(str(t))) for t in range(1, 1500)]
    random.Random(3).shuffle(stream)
    state = fold(ANNA, stream)
    newest = sorted(stream, key=lambda e: (e.occurred_us, e.event_key), reverse=True)
    assert list(state.events) == newest[:HISTORY_MAX]
    assert len(state.seen) == 700


def test_hidden_and_seen_do_not_depend_on_the_order_when_they_overflow() -> None:
    stream = [hide(t, f"h{t * 31 % 130}") for t in range(1, 400)]
    stream += [click(t * HOUR_US, f"i{t * 37 % 1300}") for t in range(1, 3000)]
    expected = content(fold(ANNA, stream))
    assert (len(expected.hidden), len(expected.seen)) == (HIDDEN_MAX, SEEN_MAX)
    random.Random(4).shuffle(stream)
    assert content(fold(fold(ANNA, stream[:1500]), stream[1400:])) == expected
