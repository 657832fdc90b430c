"""A whole instance on the servers: events through the API, click to list beside a stream, a kill, a long run."""

from __future__ import annotations

import http.client
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import consuming
import psutil
from figures import Figure, figure, quantile
from serving import ChildrenWatch, click_times
from stream_background import background, ingest
from stream_place import Servers, place

from services.demo.stage import Stage
from services.domain import TOPIC_EVENTS, TOPIC_SLATES
from services.ports import LogView
from services.settings import load_settings
from services.wiring import open_home

RATES = (0, 1000, 5000)
SETTLE_S = 10.0
CLIENTS = 4
KILL_RATE = 1000
WATCH_S = 5.0
SOAK_RATE = 3000
SOAK_LOOK_S = 5.0
SERVICES = {"run": "run", "api": "serve", "features": "consume features", "keepers": "consume trends"}
"""Processes of an instance, by what MemoryWatch calls them."""
CAUGHT_UP_S_MAX = 120.0
FIRST_LISTS_S = 300.0


def api(servers: Servers, work: Path, seconds: float) -> Iterator[Figure]:
    """The API of a whole instance: its consumers work beside it, as they do in life."""
    with place(servers, work) as here, _running(here.home) as (_, port):
        ingest(port, CLIENTS, min(2.0, seconds))
        server = _process_of("serve")
        used = sum(server.cpu_times()[:2])
        rate = ingest(port, CLIENTS, seconds)
        yield figure("api_ingest_events_per_s", rate)
        yield figure("api_ingest_events_per_processor_s", rate * seconds / (sum(server.cpu_times()[:2]) - used))


def clicks(servers: Servers, work: Path, count: int, films: Path, trained: bool = True) -> Iterator[Figure]:
    """Click to list on real films with a trained release, with nothing, something and a lot in the background."""
    with place(servers, work) as here:
        consuming.import_films(here.home, films)
        with _running(here.home) as (stage, port), open_home(load_settings()) as home:
            stage.wait_for(lambda: lag(home.view, "features") + lag(home.view, "trends") == 0, "the import", 600)
            release = stage.retrain()["release_id"] if trained else None
            stage.wait_for(
                lambda: stage.recommendations("1", 1)["release_id"] == release, "the release in the API", FIRST_LISTS_S
            )
            for rate in RATES:
                with background(rate) as stream:
                    time.sleep(SETTLE_S if rate else 0)
                    times = click_times(port, count)
                    behind = lag(home.view, "features")
                    brought = stream.stop()
                yield figure(f"click_to_list_ms_p50_at_{rate}", quantile(times, 0.5))
                yield figure(f"click_to_list_ms_p99_at_{rate}", quantile(times, 0.99))
                if rate:
                    yield figure(f"background_events_per_s_at_{rate}", brought)
                    yield figure(f"features_lag_at_{rate}", behind)


def recovery(servers: Servers, work: Path) -> Iterator[Figure]:
    """Kill -9 of the features process; caught up is what it was before: at most the largest lag of WATCH_S before."""
    with (
        place(servers, work) as here,
        _running(here.home) as (stage, _),
        open_home(load_settings()) as home,
        background(KILL_RATE) as stream,
    ):
        stage.wait_for(lambda: lag(home.view, "features") < KILL_RATE, "the first events", CAUGHT_UP_S_MAX)
        time.sleep(SETTLE_S)
        usual = max(_lags(home.view, WATCH_S))
        os.kill(_process_of("consume", "features").pid, signal.SIGKILL)
        started, before = time.monotonic(), done(home.view, "features")
        worst = max(_lags(home.view, 1.0))
        assert worst > usual, f"the kill shows in no lag: {worst} after {usual}"
        stage.wait_for(lambda: done(home.view, "features") > before, "the first commit", CAUGHT_UP_S_MAX)
        yield figure("first_commit_s_after_kill", time.monotonic() - started)
        stage.wait_for(lambda: lag(home.view, "features") <= usual, "what was missed", CAUGHT_UP_S_MAX)
        yield figure("recovery_s_after_kill", time.monotonic() - started)
        stream.stop()


def soak(servers: Servers, work: Path, minutes: float) -> Iterator[Figure]:
    """Growth of all processes' memory under a steady stream: the median of the last tenth over that of the first one
    after a sixth of the time to warm up; and of each process, in MB."""
    with place(servers, work) as here, _running(here.home):
        watch = ChildrenWatch(os.getpid())
        sizes: list[dict[str, float]] = []
        with background(SOAK_RATE) as stream:
            until = time.monotonic() + minutes * 60
            while time.monotonic() < until:
                time.sleep(SOAK_LOOK_S)
                sizes.append(_by_service(watch.now_bytes()))
            brought = stream.stop()
        warm = sizes[len(sizes) // 6 :]
        tenth = max(1, len(warm) // 10)
        first, last = ({name: quantile([each.get(name, 0.0) for each in some], 0.5) for name in SERVICES}
                       for some in (warm[:tenth], warm[-tenth:]))  # fmt: skip
        yield figure("soak_rss_growth_percent", (sum(last.values()) / sum(first.values()) - 1) * 100)
        for name in SERVICES:
            yield figure(f"soak_growth_mb_{name}", (last[name] - first[name]) / 1e6)
        yield figure("soak_events_per_s", brought)


def _by_service(sizes: dict[str, int]) -> dict[str, float]:
    """Bytes of each of SERVICES."""
    said = {name.split(" ", 1)[1]: size for name, size in sizes.items()}  # without the process id
    return {service: float(said.get(words, 0)) for service, words in SERVICES.items()}


@contextmanager
def _running(home: Path) -> Iterator[tuple[Stage, int]]:
    """`freshrank run` as the environment says, once it answers and its consumers have joined."""
    with Stage(home, consuming.CLI, 0) as stage:
        port = int(stage.url().rsplit(":", 1)[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/v1/events", '{"user_id": "first", "item_id": "first", "kind": "click"}',
                           {"Content-Type": "application/json"})  # fmt: skip
        assert connection.getresponse().status in (200, 202)
        with open_home(load_settings()) as opened:
            stage.wait_for(lambda: sum(opened.view.committed("features", TOPIC_EVENTS).values()) > 0, "the first event")
        yield stage, port


def lag(view: LogView, group: str) -> int:
    """Messages that a group has not committed."""
    topics = (TOPIC_EVENTS, TOPIC_SLATES) if group == "trends" else (TOPIC_EVENTS,)
    return sum(sum(view.ends(t).values()) - sum(view.committed(group, t).values()) for t in topics)


def done(view: LogView, group: str) -> int:
    """Events that a group has committed."""
    return sum(view.committed(group, TOPIC_EVENTS).values())


def _lags(view: LogView, seconds: float) -> list[int]:
    until = time.monotonic() + seconds
    found = [lag(view, "features")]
    while time.monotonic() < until:
        time.sleep(0.02)
        found.append(lag(view, "features"))
    return found


def _process_of(*words: str) -> psutil.Process:
    """The child of the instance whose command line ends with these words (and options)."""
    wanted = [sys.executable, "-m", "services.cli", *words]
    for process in psutil.Process().children(recursive=True):
        if process.cmdline()[: len(wanted)] == wanted:
            return process
    raise LookupError(f"no process {' '.join(words)}")
