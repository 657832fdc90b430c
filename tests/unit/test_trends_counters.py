"""What counts, and how much: expected numbers are worked out by hand from half-lives of 1 h, 24 h and 7 d."""

from __future__ import annotations

import numpy as np
import pytest

from services.domain import HOUR_US, SECOND_US
from services.signals import COUNTS_WIDTH
from services.trends.counters import (
    CLICK,
    CONVERSION,
    NOTHING,
    UNIT,
    Deltas,
    HourCounts,
    Once,
    Standing,
    cumulated,
    decayed_hours,
    end_us,
)

T0 = 480_000 * HOUR_US
MINUTE_US = 60 * SECOND_US


def test_an_event_counts_once_however_often_it_comes() -> None:
    once = Once()
    assert once.counts(1, 10, T0)
    assert not once.counts(1, 10, T0)
    assert not once.counts(1, 11, T0 + 5 * HOUR_US)


def test_equal_actions_within_thirty_minutes_count_once() -> None:
    once = Once()
    answers = [once.counts(number, 10, T0 + minutes * MINUTE_US) for number, minutes in enumerate((0, 29, 30, 59, 61))]
    assert answers == [True, False, True, False, True]


def test_an_earlier_action_within_thirty_minutes_of_a_counted_one_does_not_count() -> None:
    once = Once()
    assert once.counts(1, 10, T0)
    assert not once.counts(2, 10, T0 - 29 * MINUTE_US)
    assert once.counts(3, 10, T0 - 31 * MINUTE_US)


def test_the_ring_forgets_the_oldest_with_what_it_held() -> None:
    once = Once(ring_max=2)
    assert [once.counts(n, 100 + n, T0) for n in (1, 2, 3)] == [True, True, True]
    assert once.counts(1, 101, T0), "event 1 and its action fell out of a ring of two"
    assert not once.counts(3, 103, T0)


def test_a_ring_restored_from_its_chunks_answers_as_the_first() -> None:
    first = Once(ring_max=3000)
    stored: dict[int, tuple[tuple[int, int, int], ...]] = {}
    for event in range(1, 4501):
        first.counts(event, event % 700, T0 + event * MINUTE_US)
        if event % 321 == 0:
            stored |= {number % first.slots(): chunk for number, chunk in first.unstored()}
            first.stored()
    stored_by_number = dict(first.unstored())
    assert set(stored_by_number) == {4}, "only the chunk from 4,000 on has changed since the last store"
    stored |= {number % first.slots(): chunk for number, chunk in stored_by_number.items()}
    entries = sorted((entry for chunk in stored.values() for entry in chunk), key=lambda entry: entry[0])
    second = Once(3000, entries, 4500)
    probes = [(event, event % 700, T0 + event * MINUTE_US) for event in (1, 1499, 1501, 4500, 5001, 5650)]
    assert [second.counts(*probe) for probe in probes] == [first.counts(*probe) for probe in probes]


def test_an_hour_holds_each_event_decayed_to_its_end() -> None:
    deltas = Deltas()
    deltas.add("a", T0 + HOUR_US // 2, CLICK)
    deltas.add("a", T0, CLICK)
    deltas.add("a", T0 + HOUR_US, CONVERSION)
    sums = deltas.sums()
    assert sums.item_ids == ("a", "a")
    assert sums.hours.tolist() == [480_000, 480_001]
    # clicks, half an hour and an hour before the end: one-hour half-life leaves 2^-0.5 and 2^-1
    clicks = [2**-0.5 + 2**-1, 2 ** (-0.5 / 24) + 2 ** (-1 / 24), 2 ** (-0.5 / 168) + 2 ** (-1 / 168)]
    np.testing.assert_allclose(sums.units[0] / UNIT, [0, 0, 0, *clicks, 0, 0, 0], atol=1e-9)
    np.testing.assert_allclose(sums.units[1, 6:] / UNIT, [2**-1, 2 ** (-1 / 24), 2 ** (-1 / 168)], atol=1e-9)


def test_sums_do_not_depend_on_order_or_batches() -> None:
    moments = [T0 + step * 7 * MINUTE_US for step in range(40)]
    together, apart = Deltas(), [Deltas(), Deltas()]
    for moment in moments:
        together.add("a", moment, CLICK)
    for place, moment in enumerate(reversed(moments)):
        apart[place % 2].add("a", moment, CLICK)
    whole = together.sums()
    added = np.zeros_like(whole.units)
    for each in apart:
        part = each.sums()
        added[np.searchsorted(whole.hours, part.hours)] += part.units
    assert (added == whole.units).all(), "exactly: sums are whole numbers"


def test_counts_decay_over_the_hours_between() -> None:
    one = np.full(COUNTS_WIDTH, UNIT, dtype=np.int64)
    sums = HourCounts(("a", "a", "b"), np.array([101, 103, 50]), np.stack([one, one, 2 * one]))
    base = Standing(100, np.full(COUNTS_WIDTH, 8.0))
    counts = cumulated([base, base, NOTHING], sums)
    # one-hour half-life: 8 -> 4 + 1 = 5 at hour 101; 5 / 4 + 1 = 2.25 at hour 103; b starts from nothing
    np.testing.assert_allclose(counts[:, 0], [5.0, 2.25, 2.0])
    np.testing.assert_allclose(counts[1, 2], (8 * 2 ** (-1 / 168) + 1) * 2 ** (-2 / 168) + 1)


def test_an_hour_before_the_base_is_refused() -> None:
    sums = HourCounts(("a",), np.array([100]), np.zeros((1, COUNTS_WIDTH), dtype=np.int64))
    with pytest.raises(AssertionError, match="after its base"):
        cumulated([Standing(100, np.zeros(COUNTS_WIDTH))], sums)


def test_looking_back_inside_an_hour_is_exact() -> None:
    counts = decayed_hours(np.full(COUNTS_WIDTH, 3.0), 0.4)
    np.testing.assert_allclose(decayed_hours(counts, -0.4), np.full(COUNTS_WIDTH, 3.0))
    assert end_us(480_000) == T0 + HOUR_US
