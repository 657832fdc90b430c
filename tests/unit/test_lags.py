"""Lag counts what a group reads: what the log says it subscribed to, or its usual topics before it ever joined."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from serving_world import MemoryRuntime

from services.api.app import create_app
from services.commands.look import lags_of
from services.demo.story import lags
from services.domain import TOPIC_EVENTS, TOPIC_SLATES, Outgoing
from services.ports import LogView
from services.settings import Settings


@pytest.fixture
def runtime() -> MemoryRuntime:
    runtime = MemoryRuntime(Settings())
    runtime.sink.publish([Outgoing(TOPIC_EVENTS, "u", b"1"), Outgoing(TOPIC_SLATES, "u", b"2")])
    return runtime


def lag_in_metrics(runtime: MemoryRuntime) -> float:
    with TestClient(create_app(runtime)) as client:
        found = re.search(r'freshrank_lag_messages\{group="trends"\} (\S+)', client.get("/metrics").text)
    assert found
    return float(found[1])


def test_a_group_that_never_joined_waits_for_its_usual_topics(runtime: MemoryRuntime) -> None:
    assert lag_in_metrics(runtime) == 2
    assert lags_of(runtime.view)["trends"] == 2


@pytest.mark.parametrize("count", [lags_of, lags])
def test_a_group_that_does_not_read_slates_has_no_lag_of_slates(
    runtime: MemoryRuntime, count: Callable[[LogView], dict[str, int]]
) -> None:
    source = runtime.bus.source("trends", [TOPIC_EVENTS])
    source.poll(10, 0)
    assert lag_in_metrics(runtime) == 1
    source.commit(source.poll(10, 0).next_offsets())
    assert lag_in_metrics(runtime) == 0
    assert count(runtime.view)["trends"] == 0
