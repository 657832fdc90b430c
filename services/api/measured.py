"""What `/metrics` says that is known only when it is asked: lags, waits, ages, and freshness over all processes."""

from __future__ import annotations

from collections.abc import Callable
from math import nan

import structlog

from services.api.runtime import Runtime
from services.breaker import Bounded
from services.domain import StageUnavailable
from services.freshness import Figures
from services.lag import progress_of
from services.telemetry import (
    ITEMS_CHANGED_AGE,
    ITEMS_FED_AGE,
    LAG,
    OBJECTIVE_SECONDS,
    OBJECTIVE_SHARE,
    PART_STATE,
    PARTITION_LAG,
    WAITING_SECONDS,
    WINDOW_MESSAGES,
    WINDOW_SECONDS,
    WITHIN_SHARE,
)

_THE_LOG, _THE_DATABASE = Bounded("the log", 1.0), Bounded("the metadata database", 1.0)
"""Who collects metrics gives up after a few seconds, and would have none at all."""
STATES = ("green", "yellow", "red")
log = structlog.get_logger()


def measure(runtime: Runtime) -> None:
    """Set the gauges. What cannot be asked keeps its last value: the other metrics are told all the same."""
    for ask, within in ((_lags, _THE_LOG), (_freshness, _THE_DATABASE)):
        _try(ask, runtime, within)
    ages_s = runtime.ages_s()
    ITEMS_CHANGED_AGE.set(ages_s["changed"])
    ITEMS_FED_AGE.set(ages_s["fed"])
    for group, seconds in runtime.waiting_s().items():
        WAITING_SECONDS.labels(group).set(seconds)
    for name, part in runtime.parts().items():
        PART_STATE.labels(name).set(STATES.index(part.state))


def _try(ask: Callable[[Runtime], None], runtime: Runtime, within: Bounded) -> None:
    try:
        within(lambda: ask(runtime))
    except StageUnavailable as error:
        log.warning("not_measured", error=str(error))


def _lags(runtime: Runtime) -> None:
    for group, places in progress_of(runtime.view).items():
        LAG.labels(group).set(sum(end - done for done, end in places.values()))
        for partition, (done, end) in places.items():
            PARTITION_LAG.labels(group, partition.topic, partition.number).set(end - done)


def _freshness(runtime: Runtime) -> None:
    s = runtime.settings
    OBJECTIVE_SECONDS.set(s.freshness_objective_ms / 1000)
    OBJECTIVE_SHARE.set(s.freshness_objective_share)
    for each in runtime.told().figures:
        _show(each)


def _show(each: Figures) -> None:
    """The figures as gauges; not a number where nothing came, so that an old value does not stand for ever."""
    quantiles = (("0.5", each.p50_ms), ("0.95", each.p95_ms), ("0.99", each.p99_ms), ("1", each.max_ms))
    for quantile, ms in quantiles:
        WINDOW_SECONDS.labels(each.part, each.origin, quantile).set(nan if ms is None else ms / 1000)
    WINDOW_MESSAGES.labels(each.part, each.origin).set(each.events)
    WITHIN_SHARE.labels(each.part, each.origin).set(nan if each.within_share is None else each.within_share)
