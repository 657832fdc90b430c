"""How fast what is liked passes: hand-made logs in which it passes at a known speed, or not at all."""

from __future__ import annotations

import numpy as np
import pytest
from training_world import DAY_US, RULES, START_US

from services.training.columns import EventColumns, columns_of_rows
from services.training.drift import FOREVER_DAYS, LEAST_DAYS, popularity_half_life_days, target_half_life_days

DAYS = 200
CLICKS_A_DAY = 20


def log_of(hit_days: int) -> EventColumns:
    """Half of each day's clicks go to the hit of the time, which is another item every `hit_days`; the rest by lot."""
    rng = np.random.default_rng(1)
    rows = []
    for day in range(DAYS):
        for click in range(CLICKS_A_DAY):
            item = f"hit{day // hit_days}" if click % 2 else f"other{rng.integers(200)}"
            rows.append((f"u{click}", item, "click", START_US + day * DAY_US + click * 1_000_000, None))
    return columns_of_rows(rows, RULES)


def test_what_changes_every_few_days_is_told_by_the_last_few_days() -> None:
    assert popularity_half_life_days(log_of(hit_days=3)) <= 3.0


def test_the_longer_a_hit_stays_the_longer_is_the_half_life() -> None:
    found = [popularity_half_life_days(log_of(days)) for days in (3, 20, 100)]
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_where_nothing_passes_all_events_weigh_alike() -> None:
    # One hit for the whole time: the more is counted, the better are the shares of the others known.
    log = log_of(hit_days=DAYS)
    assert popularity_half_life_days(log) == FOREVER_DAYS
    assert target_half_life_days(log) == FOREVER_DAYS


def test_targets_never_lose_their_weight_faster_than_in_two_weeks() -> None:
    assert target_half_life_days(log_of(hit_days=3)) == LEAST_DAYS


@pytest.mark.parametrize("clicks", [0, 1])
def test_of_a_log_without_a_past_nothing_is_said(clicks: int) -> None:
    rows = [("u", "i", "click", START_US, None)] * clicks + [("u", "i", "impression", START_US, None)]
    assert target_half_life_days(columns_of_rows(rows, RULES)) == FOREVER_DAYS
