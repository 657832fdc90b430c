"""Freshness by hand: small sets of ages whose percentiles, shares and buckets can be worked out on paper."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from services.domain import to_us
from services.freshness import (
    BINS_MAX,
    Ages,
    Arrivals,
    Arrived,
    Figures,
    Objective,
    are_live,
    arrived,
    binned,
    figures,
    judged,
)
from services.telemetry import AGES, CLOCK_AHEAD, BatchHistogram

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
NOW_US = to_us(NOW)
OBJECTIVE = Objective(age_ms=1000, share=0.99, window_s=300.0)


def seen(ages: Ages, ages_ms: list[float], at_us: int = NOW_US, live: bool = True) -> None:
    """Events of these ages have just become servable in user rows."""
    accepted_us = np.array([at_us - round(ms * 1000) for ms in ages_ms], dtype=np.int64)
    ages.observe("row", accepted_us, np.full(len(ages_ms), live), at_us)


def row(*told: Ages, at_us: int = NOW_US, origin: str = "live") -> Figures | None:
    found = figures([window for each in told for window in each.windows()], at_us, OBJECTIVE.window_s)
    return next((each for each in found if (each.part, each.origin) == ("row", origin)), None)


def test_percentiles_are_at_most_a_tenth_above_the_true_ones_and_the_greatest_is_exact() -> None:
    """98 events of 10 ms, one of 900 ms, one of 3 s: the 50th and 95th are 10 ms, the 99th is 900 ms."""
    ages = Ages(OBJECTIVE)
    seen(ages, [10.0] * 98 + [900.0, 3000.0])
    found = row(ages)
    assert found is not None
    assert (found.events, found.within_share, found.max_ms) == (100, 0.99, 3000.0)
    assert found.p50_ms == found.p95_ms
    for value, true in ((found.p50_ms, 10.0), (found.p99_ms, 900.0)):
        assert value is not None
        assert true <= value <= true * 1.1


def test_ages_at_the_ends_of_the_scale_are_counted() -> None:
    """0 ms lies below the first step and three hours above the last: the percentile is then the greatest itself."""
    ages = Ages(OBJECTIVE)
    seen(ages, [0.0, 3 * 3_600_000.0])
    found = row(ages)
    assert found == Figures("row", "live", 2, 0.5, 1.0, 10_800_000.0, 10_800_000.0, 10_800_000.0)


def test_the_objective_counts_what_is_exactly_as_old_as_it_allows() -> None:
    ages = Ages(OBJECTIVE)
    seen(ages, [1000.0, 1000.001])
    found = row(ages)
    assert found is not None
    assert found.within_share == 0.5


def test_the_window_forgets_so_that_a_backlog_worked_off_is_history() -> None:
    """100 events came a minute late, then fresh ones: the p99 falls once the late ones are over 5 min old."""
    ages, p99s = Ages(OBJECTIVE), []
    seen(ages, [60_000.0] * 100)
    for minute in range(1, 8):
        at_us = NOW_US + minute * 60_000_000
        seen(ages, [20.0] * 100, at_us)
        found = row(ages, at_us=at_us)
        assert found is not None
        p99s.append(found.p99_ms)
    assert p99s == [60_000.0] * 5 + [20.0] * 2
    assert sum(len(window.slots) for window in ages.windows()) <= 31


def test_a_window_that_nobody_adds_to_is_empty_in_the_end() -> None:
    ages = Ages(OBJECTIVE)
    seen(ages, [20.0])
    found = row(ages, at_us=NOW_US + 400_000_000)
    assert found == Figures("row", "live", 0, None, None, None, None, None)
    assert judged((found,), OBJECTIVE, {}).state == "green"


def test_figures_are_those_of_all_processes_together() -> None:
    one, other = Ages(OBJECTIVE), Ages(OBJECTIVE)
    seen(one, [10.0] * 3)
    seen(other, [5000.0])
    found = row(one, other)
    assert found is not None
    assert (found.events, found.within_share, found.max_ms) == (4, 0.75, 5000.0)


def test_what_happened_long_before_it_was_accepted_is_history_and_is_not_judged() -> None:
    """An import of old data that took a minute leaves the live figures alone."""
    accepted_us = np.array([NOW_US, NOW_US, NOW_US])
    occurred_us = accepted_us - np.array([0, 600_000_000, 600_000_001])
    assert are_live(accepted_us, occurred_us).tolist() == [True, True, False]
    ages = Ages(OBJECTIVE)
    seen(ages, [60_000.0] * 1000, live=False)
    seen(ages, [50.0])
    live, history = row(ages), row(ages, origin="history")
    assert live is not None
    assert history is not None
    assert (live.events, live.within_share, history.events, history.within_share) == (1, 1.0, 1000, 0.0)
    assert judged((live, history), OBJECTIVE, {}).state == "green"


def test_an_age_below_zero_is_zero_and_is_counted() -> None:
    """The accepting machine's clock is two seconds ahead."""
    before = CLOCK_AHEAD.labels("row")._value.get()
    ages = Ages(OBJECTIVE)
    seen(ages, [-2000.0, 100.0])
    found = row(ages)
    assert found is not None
    assert (found.events, found.max_ms, found.p50_ms) == (2, 100.0, 1.0)
    assert CLOCK_AHEAD.labels("row")._value.get() == before + 1


@pytest.mark.parametrize(("late", "state"), [(1, "green"), (2, "yellow")])
def test_the_objective_turns_health_yellow_with_figures_and_back(late: int, state: str) -> None:
    """Of 100 events one may be late. Health says how many were, and is green again when enough were not."""
    ages = Ages(OBJECTIVE)
    seen(ages, [100.0] * (100 - late) + [4000.0] * late)
    found = row(ages)
    assert found is not None
    health = judged((found,), OBJECTIVE, {})
    assert health.state == state
    assert f"{1 - late / 100:.2%} of 100 live events" in health.detail
    assert "within 1000 ms over the last 300 s" in health.detail
    seen(ages, [100.0] * 200)
    again = row(ages)
    assert again is not None
    assert judged((again,), OBJECTIVE, {}).state == "green"


def test_a_consumer_that_takes_nothing_in_is_a_missed_objective_though_nothing_is_measured() -> None:
    health = judged((), OBJECTIVE, {"features": 12.0, "archive": 500.0})
    assert (health.state, "12 s" in health.detail) == ("yellow", True)
    assert judged((), OBJECTIVE, {"features": 4.0, "archive": 500.0}).state == "green"


def test_arrivals_keep_every_message_in_bins_of_ten_milliseconds() -> None:
    moments = [NOW, NOW + timedelta(milliseconds=9), NOW + timedelta(milliseconds=10)]
    told = arrived("stats", [(at, True) for at in moments] + [(NOW, False)])
    assert told == Arrived("stats", Arrivals([NOW_US, NOW_US + 10_000], [2, 1], [1, 0]))


def test_arrivals_over_a_long_time_stay_small_and_lose_no_message() -> None:
    accepted_us = NOW_US + np.arange(100_000) * 1_000_000
    told = binned(accepted_us, np.arange(100_000) % 2 == 0)
    assert len(told.times_us) <= BINS_MAX
    assert (sum(told.live), sum(told.history)) == (50_000, 50_000)


def test_arrivals_that_become_visible_have_the_age_of_each_message() -> None:
    ages = Ages(OBJECTIVE)
    told = Arrived("stats", Arrivals([NOW_US - 2_000_000, NOW_US - 500_000], [1, 3], [5, 0]))
    ages.observe_arrived([told], NOW_US)
    found = {(f.part, f.origin): f for f in figures(ages.windows(), NOW_US, 300.0)}
    live, history = found["stats", "live"], found["stats", "history"]
    assert (live.events, live.within_share, live.max_ms) == (4, 0.75, 2000.0)
    assert (history.events, history.max_ms) == (5, 2000.0)


def test_a_batch_in_a_histogram_is_what_its_observations_would_be() -> None:
    """Bounds 0.1 and 1 s; 0.1 lies in the first bucket, for a bound is included."""
    registry = CollectorRegistry()
    batch = BatchHistogram("batch", "", ["part"], buckets=(0.1, 1.0), registry=registry)
    single = BatchHistogram("single", "", ["part"], buckets=(0.1, 1.0), registry=registry)
    batch.labels("row").observe_counts([2, 1, 1], 3.65)
    for seconds in (0.05, 0.1, 0.5, 3.0):
        single.labels("row").observe(seconds)
    for name in ("batch", "single"):
        value = lambda series, **labels: registry.get_sample_value(series, {"part": "row", **labels})  # noqa: E731
        assert [value(f"{name}_bucket", le=le) for le in ("0.1", "1.0", "+Inf")] == [2, 3, 4]
        assert (value(f"{name}_count"), value(f"{name}_sum")) == (4, pytest.approx(3.65))


def test_the_histogram_of_prometheus_has_each_age_in_its_bucket() -> None:
    """0.25 s is within the bound 0.25, 0.251 s is in the next bucket, two hours are above all of them."""

    def counts() -> dict[str, float]:
        samples = [s for family in AGES.collect() for s in family.samples if s.name.endswith("_bucket")]
        wanted = {"part": "vector", "origin": "live"}
        return {s.labels["le"]: s.value for s in samples if wanted.items() <= s.labels.items()}

    ages = Ages(OBJECTIVE)
    empty = np.zeros(0, dtype=np.int64)
    ages.observe("vector", empty, empty.astype(bool), NOW_US)
    before = counts() or dict.fromkeys(("0.1", "0.25", "0.5", "3600.0", "+Inf"), 0.0)
    ages.observe("vector", NOW_US - np.array([250_000, 251_000, 7_200_000_000]), np.ones(3, dtype=bool), NOW_US)
    after = counts()
    came = {le: after[le] - before[le] for le in ("0.1", "0.25", "0.5", "3600.0", "+Inf")}
    assert came == {"0.1": 0, "0.25": 1, "0.5": 2, "3600.0": 2, "+Inf": 3}
