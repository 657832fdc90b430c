"""What the models are taught, on small logs worked out by hand."""

from __future__ import annotations

import numpy as np
from training_world import START_US, columns

from services.bounds import UNBOUNDED, Bounds
from services.domain import DAY_US, HOUR_US
from services.training.columns import EventColumns
from services.training.trust import taught, votes

DAY0 = -START_US % DAY_US
"""A full day after START_US."""


def known_users(count: int = 10) -> list[tuple[str, str, str, int]]:
    """Users who take `old` on day 0 and something of their own on each of days 10 to 12."""
    rows = [(f"k{n}", "old", "click", DAY0 + n) for n in range(count)]
    return rows + [
        (f"k{n}", f"own{n}-{day}", "click", DAY0 + day * DAY_US) for n in range(count) for day in (10, 11, 12)
    ]


def of_users(events: EventColumns, found: np.ndarray, letter: str) -> list[bool]:
    mine = [events.user_ids[code].startswith(letter) for code in events.user_codes.tolist()]
    return [bool(each) for each in found[np.array(mine)]]


def test_newcomers_teach_no_more_of_an_item_than_known_users_bear_out() -> None:
    pushed = [(f"a{n:02d}", "pushed", "click", DAY0 + 13 * DAY_US + n) for n in range(20)]
    events = columns(known_users() + pushed)
    found = taught(events, Bounds())
    # Nobody known takes `pushed`: the first BORNE_OUT_AT_LEAST, 5, of the 20 are believed.
    assert of_users(events, found, "a") == [True] * 5 + [False] * 15
    assert all(of_users(events, found, "k"))
    assert taught(events, UNBOUNDED).all()


def test_newcomers_teach_what_known_users_take_too() -> None:
    # In the first week nobody is doubted: 10 events, then 42 of known users, then 12 doubted ones:
    # 12 / 52 to an undoubted one. `hit` has 4 of these before: 3 * 12 / 52 * 4 + 5 = 7.8, so 7 of the 12 are believed.
    hit = [(f"k{n}", "hit", "click", DAY0 + 12 * DAY_US + HOUR_US) for n in range(4)]
    others = [(f"k{n}", "other", "click", DAY0 + 12 * DAY_US + HOUR_US) for n in range(8)]
    new = [(f"n{n:02d}", "hit", "click", DAY0 + 13 * DAY_US + n) for n in range(12)]
    events = columns(known_users() + hit + others + new)
    assert of_users(events, taught(events, Bounds()), "n") == [True] * 7 + [False] * 5


def test_a_log_of_newcomers_alone_is_learned_whole() -> None:
    events = columns([(f"n{n}", "a", "click", n) for n in range(50)])
    assert taught(events, Bounds()).all()


def test_an_unusual_day_is_cut_off_where_a_usual_one_of_that_log_ends() -> None:
    quiet = [(f"q{n}", f"i{step}", "click", DAY0 + n * DAY_US + step) for n in range(30) for step in range(2)]
    machine = [("m", f"i{n}", "click", DAY0 + 31 * DAY_US + n) for n in range(20)]
    events = columns(quiet + machine)
    # Nine days in ten hold two: three times that is 6, but the setting allows 10.
    assert sum(of_users(events, taught(events, Bounds(10, 1.0)), "m")) == 10
    assert sum(of_users(events, taught(events, Bounds(1, 1.0)), "m")) == 6


def test_a_negative_event_teaches_nothing_and_has_no_vote() -> None:
    events = columns([("u", "a", "hide", 0), ("u", "b", "click", 1)])
    assert taught(events, Bounds()).tolist() == [False, True]
    assert votes(events, Bounds()).tolist() == [0.0, 1.0]
