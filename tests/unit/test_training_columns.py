"""Events as columns, and the feature history worked out from them: rows and counts checked by hand and by the fold."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from training_world import MINUTE_US, RULES, START_US, columns, unrelated

from services.domain import HISTORY_MAX, HOUR_US, KindRule, KindRules
from services.signals import COUNTS_WIDTH, HALF_LIVES_US
from services.training.columns import columns_of_arrow, signed_weights
from services.training.history import EventsHistory


def test_weights_are_those_of_the_kind_rules_event_by_event() -> None:
    rules = KindRules(
        {"rating": KindRule("positive", 2.0, threshold=6.0), "hide": KindRule("negative"), "seen": KindRule("neutral")}
    )
    kinds = ("rating", "hide", "seen", "undeclared")
    codes = np.array([0, 0, 0, 1, 2, 3])
    values = np.array([6.0, 5.9, np.nan, 9.0, 9.0, 9.0])
    expected = [
        rules.signed_weight(kinds[code], None if np.isnan(value) else value)
        for code, value in zip(codes, values, strict=True)
    ]
    assert signed_weights(kinds, codes, values, rules).tolist() == expected == [2.0, -2.0, 2.0, -1.0, 0.0, 0.0]


def test_arrow_columns_are_coded_and_put_into_time_order() -> None:
    table = pa.table(
        {
            "user_id": pa.chunked_array([["ann", "bob"], ["ann"]]),
            "item_id": pa.chunked_array([["x", "y"], ["z"]]),
            "kind": pa.chunked_array([["click", "hide"], ["click"]]),
            "occurred_us": pa.chunked_array([[30, 10], [20]]),
            "value": pa.chunked_array([pa.array([None, None], pa.float64()), pa.array([1.5])]),
        }
    )
    events = columns_of_arrow(table, RULES)
    told = [
        (events.user_ids[u], events.item_ids[i], events.kinds[k], int(at), float(weight))
        for u, i, k, at, weight in zip(
            events.user_codes, events.item_codes, events.kind_codes, events.occurred_us, events.weight, strict=True
        )
    ]
    assert told == [("bob", "y", "hide", 10, -1.0), ("ann", "z", "click", 20, 1.0), ("ann", "x", "click", 30, 1.0)]


def test_a_row_holds_what_happened_up_to_its_time_newest_first_without_neutral_events() -> None:
    history = EventsHistory(
        columns(
            [
                ("ann", "a", "click", 0),
                ("ann", "b", "impression", 5),
                ("ann", "c", "hide", 10),
                ("ann", "d", "click", 20),
            ]
        )
    )
    rows = history.users_at(["ann", "nobody", "ann", "ann"], START_US + np.array([10, 10, 9, -1]))
    assert rows.offsets.tolist() == [0, 2, 2, 3, 3]
    assert [rows.item_ids[code] for code in rows.item_codes.tolist()] == ["c", "a", "a"]
    assert rows.weight.tolist() == [-1.0, 1.0, 1.0]
    assert (rows.row_time_us - START_US).tolist()[0] == 10
    assert rows.row_time_us.tolist()[1] == 0


def test_a_row_holds_at_most_the_newest_history_max_events() -> None:
    history = EventsHistory(columns([("ann", f"i{n}", "click", n) for n in range(HISTORY_MAX + 6)]))
    rows = history.users_at(["ann"], np.array([START_US + 1000]))
    assert [rows.item_ids[code] for code in rows.item_codes.tolist()] == [
        f"i{n}" for n in range(HISTORY_MAX + 5, 5, -1)
    ]


def test_counts_are_stamped_at_the_end_of_their_hour_and_decay_from_row_to_row() -> None:
    hour = START_US // HOUR_US * HOUR_US - START_US  # START_US falls on a full hour when this is 0
    at = [hour + HOUR_US // 2, hour + HOUR_US + HOUR_US // 2]
    history = EventsHistory(columns([("ann", "x", "click", at[0]), ("bob", "x", "click", at[1])]))
    times = START_US + hour + np.array([HOUR_US - 1, HOUR_US, 2 * HOUR_US, 9 * HOUR_US])
    counts, stamps = history.items_at(["x"] * 4, times)
    assert (stamps[1:] - START_US - hour).tolist() == [HOUR_US, 2 * HOUR_US, 2 * HOUR_US]
    assert stamps[0] == 0
    assert counts[0].tolist() == [0.0] * COUNTS_WIDTH
    clicks = len(HALF_LIVES_US)
    assert counts[1, clicks] == pytest.approx(2**-0.5)  # half an hour at a half-life of one
    assert counts[2, clicks] == pytest.approx(2**-1.5 + 2**-0.5)
    assert counts[2, :clicks].tolist() == [0.0, 0.0, 0.0]


def test_a_repetition_within_half_an_hour_counts_once() -> None:
    rows = [("ann", "x", "click", 0), ("ann", "x", "click", 10 * MINUTE_US), ("bob", "x", "click", 11 * MINUTE_US)]
    counts, _ = EventsHistory(columns(rows)).items_at(["x"], np.array([START_US + 2 * HOUR_US]))
    assert counts[0, 5] == pytest.approx(2.0, rel=0.01)


def test_unknown_items_have_no_counts_and_every_question_is_answered() -> None:
    events = unrelated()
    counts, stamps = EventsHistory(events).items_at(["never", events.item_ids[0]], np.array([START_US, 2**62]))
    assert stamps[0] == 0
    assert counts[0].sum() == 0.0
    assert stamps[1] > 0
