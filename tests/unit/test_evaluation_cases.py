"""Protocols: what may be learned from, who is asked what and when. Expected cases written out by hand."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from evaluation_world import DAY, START_US, events_of, sorted_ids

from services.domain import BadRequest
from services.evaluation.cases import Cases, cut_time, leave_one_out, of_targets, temporal
from services.evaluation.files import Target

ROWS = [
    ("ann", "a", 0), ("ann", "b", 1), ("bob", "a", 2), ("bob", "b", 3, "hide"), ("zoe", "n", 4, "impression"),
    ("ann", "b", 6), ("ann", "c", 7), ("bob", "b", 8), ("zoe", "a", 9), ("bob", "c", 10),
]  # fmt: skip
EVENTS = events_of(ROWS)


def told(cases: Cases) -> list[tuple[str, str, int, int, bool]]:
    """(user, target, moment, events known, judged) of each case."""
    ids, items = cases.train.user_ids, cases.train.item_ids
    columns = (cases.users, cases.targets, cases.until_us - START_US, cases.history, cases.judged)
    rows = zip(*(each.tolist() for each in columns), strict=True)
    return [(ids[u], items[t], at, known, judged) for u, t, at, known, judged in rows]


def test_temporal_freezes_everything_at_the_cut_and_wants_the_first_new_item_after_it() -> None:
    cases = temporal(EVENTS, "0.5", "drop", history_min=1)
    # The events span 10, so the cut is at 5. ann has had b, so she wants c; bob hid b, so c; zoe is new.
    assert told(cases) == [("ann", "c", 5, 2, True), ("bob", "c", 5, 2, True), ("zoe", "a", 5, 0, False)]
    assert len(cases.train) == 5


def test_temporal_with_seen_kept_wants_the_very_first_item() -> None:
    cases = temporal(EVENTS, "0.5", "keep", history_min=0)
    assert told(cases) == [("ann", "b", 5, 2, True), ("bob", "b", 5, 2, True), ("zoe", "a", 5, 0, True)]


def test_leave_one_out_learns_from_all_but_each_user_s_end() -> None:
    cases = leave_one_out(EVENTS, "drop")
    # zoe has nothing before her only click that counts: she is no case and her click is learned from.
    assert told(cases) == [("ann", "c", 8, 3, True), ("bob", "c", 11, 3, True)]
    assert len(cases.train) == 8


def test_leave_one_out_with_seen_dropped_wants_the_last_item_that_was_new_and_leaves_out_what_followed() -> None:
    events = events_of([("ann", "a", 0), ("ann", "b", 1), ("ann", "a", 2), ("ann", "c", 3, "impression")])
    dropped, kept = leave_one_out(events, "drop"), leave_one_out(events, "keep")
    assert told(dropped) == [("ann", "b", 2, 1, True)]
    assert len(dropped.train) == 1
    assert told(kept) == [("ann", "a", 3, 2, True)]


def test_equal_times_stand_as_they_stood_in_the_file() -> None:
    events = events_of([("ann", "c", 5), ("ann", "a", 5), ("ann", "b", 5)])
    assert told(leave_one_out(events, "drop")) == [("ann", "b", 6, 2, True)]
    turned = events_of([("ann", "b", 5), ("ann", "a", 5), ("ann", "c", 5)])
    assert told(leave_one_out(turned, "drop")) == [("ann", "c", 6, 2, True)]


def test_targets_know_the_user_s_events_before_their_time_and_all_where_they_have_none() -> None:
    targets = (Target("ann", "x", START_US + 6), Target("ann", "c", None), Target("eve", "a", None))
    events = sorted_ids(EVENTS, ["eve"], ["x"])
    cases = of_targets(events, targets, "keep")
    assert told(cases) == [("ann", "x", 6, 2, True), ("ann", "c", 11, 4, True), ("eve", "a", 11, 0, True)]
    assert len(cases.train) == len(EVENTS)


@pytest.mark.parametrize(
    ("cut", "at"), [("0.5", 5 * DAY), ("2023-11-16T00:00:00Z", 1 * DAY), ("1700092800", DAY), ("1700092800000", DAY)]
)
def test_a_cut_is_a_share_of_the_span_or_a_time(cut: str, at: int) -> None:
    assert cut_time(events_of([("ann", "a", 0), ("ann", "b", 10 * DAY)]), cut) - START_US == at


@pytest.mark.parametrize("cut", ["half", "1.5", "2031-01-01", "0"])
def test_a_cut_outside_of_the_events_is_refused(cut: str) -> None:
    with pytest.raises(BadRequest, match=f"--cut {cut}"):
        cut_time(EVENTS, cut)


def test_nobody_left_to_judge_is_said() -> None:
    with pytest.raises(BadRequest, match="no user has a target and 5 events before it"):
        temporal(EVENTS, "0.5", "drop")


def test_the_hash_is_that_of_the_cases_whatever_their_order() -> None:
    cases = temporal(EVENTS, "0.5", "drop", history_min=1)
    lines = [f"ann\tc\t{START_US + 5}", f"bob\tc\t{START_US + 5}", f"zoe\ta\t{START_US + 5}"]
    assert cases.hash == hashlib.sha256("\n".join(lines).encode()).hexdigest()
    turned = Cases(
        cases.train, cases.users[::-1], cases.targets[::-1], cases.until_us[::-1], cases.history[::-1],
        cases.judged[::-1], "drop",
    )  # fmt: skip
    assert turned.hash == cases.hash
    other = Cases(
        cases.train, cases.users, np.zeros(3, dtype=np.int64), cases.until_us, cases.history, cases.judged, "drop"
    )
    assert other.hash != cases.hash
