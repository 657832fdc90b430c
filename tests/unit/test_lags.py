"""Lag counts what a group reads, from outside: what the log says it subscribed to, or its usual topics before it ever
joined. So a group whose process is dead has a lag, and its messages a time that they have waited."""

from __future__ import annotations

import re

import pytest
from fastapi.testclient import TestClient
from serving_world import MemoryRuntime

from services.api.app import create_app
from services.domain import TOPIC_EVENTS, TOPIC_SLATES, Outgoing, Partition
from services.lag import MARKS_MAX, LagWatch, lags_of, progress_of
from services.settings import Settings

PLACE = Partition(TOPIC_EVENTS, 0)
SECOND = 1_000_000


@pytest.fixture
def runtime() -> MemoryRuntime:
    runtime = MemoryRuntime(Settings())
    runtime.sink.publish([Outgoing(TOPIC_EVENTS, "u", b"1"), Outgoing(TOPIC_SLATES, "u", b"2")])
    return runtime


def metric(runtime: MemoryRuntime, series: str) -> float:
    with TestClient(create_app(runtime)) as client:
        found = re.search(rf"^{re.escape(series)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found, series
    return float(found[1])


def lag_in_metrics(runtime: MemoryRuntime) -> float:
    return metric(runtime, 'freshrank_lag_messages{group="trends"}')


def test_a_group_that_never_joined_waits_for_its_usual_topics(runtime: MemoryRuntime) -> None:
    assert lag_in_metrics(runtime) == 2
    assert lags_of(runtime.view)["trends"] == 2


def test_a_group_that_does_not_read_slates_has_no_lag_of_slates(runtime: MemoryRuntime) -> None:
    source = runtime.bus.source("trends", [TOPIC_EVENTS])
    source.poll(10, 0)
    assert lag_in_metrics(runtime) == 1
    source.commit(source.poll(10, 0).next_offsets())
    assert lag_in_metrics(runtime) == 0
    assert lags_of(runtime.view)["trends"] == 0


def test_the_lag_of_a_group_whose_process_is_dead_is_shown_by_partition(runtime: MemoryRuntime) -> None:
    source = runtime.bus.source("features", [TOPIC_EVENTS])
    source.poll(10, 0)
    source.commit(source.poll(10, 0).next_offsets())
    source.close()
    runtime.sink.publish([Outgoing(TOPIC_EVENTS, "u", b"3")] * 4)
    (place,) = (p for p, (done, end) in progress_of(runtime.view)["features"].items() if done < end)
    assert metric(runtime, 'freshrank_lag_messages{group="features"}') == 4
    labels = f'group="features",partition="{place.number}",topic="{TOPIC_EVENTS}"'
    assert metric(runtime, f"freshrank_partition_lag_messages{{{labels}}}") == 4


def look(watch: LagWatch, done: int, end: int, second: int) -> tuple[float, float]:
    """After a look at this second: how long the oldest has waited, and how long nothing was taken in."""
    watch.look({"features": {PLACE: (done, end)}}, second * SECOND)
    return watch.waiting_s(second * SECOND)["features"], watch.stalled_s()["features"]


def test_a_dead_consumer_lets_messages_wait_and_stands_still() -> None:
    watch = LagWatch()
    assert look(watch, 5, 5, 0) == (0, 0)
    assert look(watch, 5, 8, 10) == (0, 10)
    assert look(watch, 5, 9, 14) == (4, 14)
    assert look(watch, 9, 9, 16) == (0, 0)


def test_a_slow_consumer_moves_though_its_messages_wait() -> None:
    """At second 0 ten messages stand there, at 2 twenty; it takes five in every two seconds."""
    watch = LagWatch()
    assert look(watch, 0, 10, 0) == (0, 0)
    assert look(watch, 5, 20, 2) == (2, 0)
    assert look(watch, 10, 20, 4) == (2, 0)
    assert look(watch, 15, 20, 6) == (4, 0)
    assert look(watch, 20, 20, 8) == (0, 0)


def test_a_message_that_came_after_an_idle_hour_has_not_waited_for_an_hour() -> None:
    watch = LagWatch()
    look(watch, 5, 5, 0)
    look(watch, 5, 5, 3600)
    assert look(watch, 5, 6, 3602) == (0, 2)


def test_what_is_remembered_of_a_consumer_that_never_comes_back_is_bounded_and_keeps_the_oldest() -> None:
    watch = LagWatch()
    for second in range(5000):
        waits, _ = look(watch, 0, second + 1, second)
        assert waits == second
    assert len(watch._watched["features", PLACE].marks) <= MARKS_MAX
