"""Votes: what one user may move. Expected values are worked out by hand; the two views agree on logs by lot."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from services.bounds import BOUNDED, UNBOUNDED, Bounds, Record, Share, newcomers, repeated, votes_of
from services.domain import DAY_US, HOUR_US, SECOND_US
from services.trends.counters import Once

MINUTE_US = 60 * SECOND_US
T0 = 20_000 * DAY_US
Rows = list[tuple[int, int, int]]


def votes(rows: Rows, bounds: Bounds) -> list[float]:
    """Of (user, item, µs after T0), all positive and of one kind."""
    users, items, times = (np.array(column) for column in zip(*rows, strict=True))
    kinds, positive = np.zeros(len(rows), dtype=np.int64), np.ones(len(rows), dtype=np.bool_)
    return votes_of(users, items, kinds, T0 + times, positive, bounds).tolist()


def streamed(rows: Rows, bounds: Bounds) -> list[float]:
    """The same, event by event as the trends consumer takes them in."""
    once, share, records = Once(), Share(), dict[int, Record]()
    found = []
    for number, (user, item, at) in enumerate(rows, start=1):
        since_last_us = once.since_last_us(user << 32 | item, T0 + at)
        fresh = once.counts(number, user << 32 | item, T0 + at)
        record = records.setdefault(user, Record())
        newcomer = record.met(T0 + at)
        counted = fresh and record.within(bounds)
        found.append(share.weight(newcomer, T0 + at, since_last_us, bounds) if counted else 0.0)
    return found


def test_the_events_above_a_days_bound_do_not_count_and_no_event_of_the_day_after_does() -> None:
    rows = [(1, n, n * HOUR_US) for n in range(4)] + [(1, 10 + n, n * DAY_US) for n in (1, 2)]
    assert votes(rows, Bounds(3, 1.0)) == [1, 1, 1, 0, 0, 1]
    assert votes(rows, Bounds(4, 1.0)) == [1] * 6, "exactly the bound is no machine"
    assert votes(rows, UNBOUNDED) == [1] * 6


def test_repetitions_do_not_count_but_tell_a_machine() -> None:
    rows = [(1, 7, n * MINUTE_US) for n in range(4)] + [(1, 8, HOUR_US)]
    assert votes(rows, Bounds(4, 1.0)) == [1, 0, 0, 0, 0], "the click on 8 is the day's fifth"
    assert votes(rows, Bounds(5, 1.0)) == [1, 0, 0, 0, 1]


def test_a_repetition_is_measured_from_the_last_one_that_counted() -> None:
    times = T0 + np.array([0, 20, 40, 65]) * MINUTE_US
    same = np.zeros(4, dtype=np.int64)
    again, today = repeated(same, same, same, times)
    assert again.tolist() == [False, True, False, True], "40 is far enough from 0, 65 is not from 40"
    assert today.tolist() == [False, False, True, False]


def test_newcomers_weigh_little_only_where_they_are_the_fewer() -> None:
    # User 1 is known from day 7 on. The first week tells nothing; then 1's event on day 7 is all there is: none of one
    # is a newcomer's. After 2's event it is one of two, which is not less than half.
    rows = [(1, 0, 0), (1, 1, 7 * DAY_US), (2, 9, 14 * DAY_US + 1), (3, 9, 14 * DAY_US + 2)]
    assert votes(rows, Bounds(0, 0.1)) == [1.0, 1.0, 0.1, 1.0]


def test_in_the_first_week_of_a_log_everybody_is_new_and_counts() -> None:
    rows = [(n, n, n * HOUR_US) for n in range(50)] + [(0, 99, 8 * DAY_US), (77, 99, 8 * DAY_US + 1)]
    assert votes(rows, Bounds(0, 0.1)) == [1.0] * 51 + [0.1]


def test_a_newcomers_repetition_of_the_same_day_does_not_count_a_known_users_does() -> None:
    known = [(1, n, n * 7 * DAY_US) for n in range(5)]
    again = [(2, 9, 28 * DAY_US + n * HOUR_US) for n in (1, 3)] + [(1, 4, 28 * DAY_US + 4 * HOUR_US)]
    assert votes(known + again, Bounds(0, 0.1))[5:] == [0.1, 0.0, 1.0]


def test_who_was_away_for_sixty_days_is_a_newcomer_again() -> None:
    times = T0 + np.array([0, 8, 67, 128, 136]) * DAY_US
    assert newcomers(np.zeros(5, dtype=np.int64), times).tolist() == [True, False, False, True, False]


def test_an_event_that_is_not_positive_has_no_vote() -> None:
    column = np.zeros(2, dtype=np.int64)
    positive = np.array([False, True])
    assert votes_of(column, column, column, column + T0, positive, BOUNDED).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("seed", range(4))
def test_stream_and_columns_agree_on_logs_with_machines_and_newcomers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ordinary = np.column_stack([rng.integers(0, 40, 900), rng.integers(0, 30, 900), rng.integers(0, 90 * DAY_US, 900)])
    machines = np.column_stack(
        [rng.integers(40, 44, 600), rng.integers(0, 3, 600), rng.integers(60 * DAY_US, 64 * DAY_US, 600)]
    )
    late = np.column_stack(
        [rng.integers(44, 90, 300), rng.integers(0, 30, 300), rng.integers(50 * DAY_US, 90 * DAY_US, 300)]
    )
    every: NDArray[np.int64] = np.concatenate([ordinary, machines, late])
    rows = [(int(u), int(i), int(t)) for u, i, t in every[np.argsort(every[:, 2], kind="stable")]]
    found = votes(rows, Bounds(20, 0.25))
    assert {0.0, 0.25, 1.0} == set(found), "a log that tries every rule"
    assert found == streamed(rows, Bounds(20, 0.25))
