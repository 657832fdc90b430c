"""A whole instance under `freshrank run`: throughput of all consumers, training, latency, memory, click to list."""

from __future__ import annotations

import http.client
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from consuming import CLI, environment
from figures import Figure, figure, quantile
from sqlalchemy import func, select

from services.demo.stage import MemoryWatch, Stage
from services.domain import TOPIC_EVENTS, TOPIC_ITEMS, TOPIC_SLATES
from services.settings import load_settings
from services.tables import items_live
from services.wiring import open_home

USERS = 2000
ASKS_C1, ASKS_C8 = 1500, 400
CLICKS = 100
CLICK_S_MAX = 30.0
GROUPS = {
    "features": (TOPIC_EVENTS,),
    "trends": (TOPIC_EVENTS, TOPIC_SLATES),
    "archive": (TOPIC_EVENTS, TOPIC_ITEMS, TOPIC_SLATES),
    "catalogue": (TOPIC_ITEMS,),
}


def instance(home: Path) -> Iterator[Figure]:
    """Start `run` on a home whose log is full, and measure it from its first moment to its last."""
    subprocess_environment = environment(home)
    with _environment(subprocess_environment), Stage(home, CLI, 0) as stage:
        memory = ChildrenWatch(os.getpid())
        memory.start()
        started = time.perf_counter()
        stage.url()
        yield figure("start_to_ready_s", time.perf_counter() - started)
        yield figure("run_events_per_s", _caught_up(home, stage))
        _texts_embedded(home, stage)
        started = time.perf_counter()
        verdict = stage.retrain()
        yield figure("train_s_movietweetings", time.perf_counter() - started)
        stage.wait_for(
            lambda: stage.recommendations("1", 1)["release_id"] == verdict["release_id"], "the release in the API", 60
        )
        port = int(stage.url().rsplit(":", 1)[1])
        yield from _latency(port)
        yield from _freshness(port)
        yield figure("peak_memory_mb_run", memory.peak_bytes / 1e6)


def _caught_up(home: Path, stage: Stage) -> float:
    """Events a second from the first committed message until all four consumers have everything."""
    with open_home(load_settings(home=home)) as opened:
        view = opened.view
        events = sum(view.ends(TOPIC_EVENTS).values())

        def done() -> int:
            return sum(sum(view.committed(g, t).values()) for g, topics in GROUPS.items() for t in topics)

        def lag() -> int:
            return sum(sum(view.ends(t).values()) for topics in GROUPS.values() for t in topics) - done()

        stage.wait_for(lambda: done() > 0, "the first message")
        started = time.perf_counter()
        stage.wait_for(lambda: lag() == 0, "the end of the consumers' work", 600)
        return events / (time.perf_counter() - started)


def _texts_embedded(home: Path, stage: Stage) -> None:
    with open_home(load_settings(home=home)) as opened, opened.engine.connect() as connection:
        cards = sum(opened.view.ends(TOPIC_ITEMS).values())
        vectors = select(func.count()).select_from(items_live).where(items_live.c.part.startswith("vector"))
        stage.wait_for(lambda: connection.execute(vectors).scalar_one() >= cards, "the text vectors", 600)


def _latency(port: int) -> Iterator[Figure]:
    """One client, then eight at once, in a process of their own; users drawn at random with a fixed seed."""
    alone = _ask_in_a_process(port, 1, ASKS_C1)
    yield figure("recommend_ms_p50_c1", quantile(alone["ms"], 0.5))
    yield figure("recommend_ms_p99_c1", quantile(alone["ms"], 0.99))
    crowd = _ask_in_a_process(port, 8, ASKS_C8)
    yield figure("recommend_ms_p99_c8", quantile(crowd["ms"], 0.99))
    yield figure("recommend_per_s_c8", len(crowd["ms"]) / crowd["seconds"][0])


def _freshness(port: int) -> Iterator[Figure]:
    """Clicks while nothing else is running."""
    times = click_times(port, CLICKS)
    yield figure("click_to_list_ms_p50", quantile(times, 0.5))
    yield figure("click_to_list_ms_p99", quantile(times, 0.99))


def click_times(port: int, clicks: int) -> list[float]:
    """Milliseconds from sending a click to the end of the first GET whose row holds it, `clicks` times; one that takes
    CLICK_S_MAX is the last: what takes in the events does not keep up."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    times: list[float] = []
    for number in range(clicks):
        user = f"bench-{number % 10}"
        before = _list(connection, user)
        item = before["items"][0]["item_id"]
        started = time.perf_counter()
        _post(connection, {"user_id": user, "item_id": item, "kind": "click"})
        while True:
            after = _list(connection, user)
            if after["features_as_of"] != before["features_as_of"]:
                break
            if time.perf_counter() - started > CLICK_S_MAX:
                return [*times, CLICK_S_MAX * 1000]
        times.append((time.perf_counter() - started) * 1000)
        assert item not in {each["item_id"] for each in after["items"]}, (
            "a fresh row, and the clicked item is still listed"
        )
    return times


def _list(connection: http.client.HTTPConnection, user: str) -> dict[str, list[dict[str, str]]]:
    connection.request("GET", f"/v1/users/{user}/recommendations?limit=10")
    answer = connection.getresponse()
    body: dict[str, list[dict[str, str]]] = json.loads(answer.read())
    assert answer.status == 200, body
    return body


def _post(connection: http.client.HTTPConnection, event: dict[str, str]) -> None:
    connection.request("POST", "/v1/events", json.dumps(event), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status in (200, 202), body


def _ask_in_a_process(port: int, clients: int, asks: int) -> dict[str, list[float]]:
    command = [sys.executable, str(Path(__file__).resolve()), str(port), str(clients), str(asks)]
    told: dict[str, list[float]] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return told


def _ask(port: int, clients: int, asks: int) -> None:
    """Ask from `clients` threads, `asks` times each after 50 to warm up; writes the times as JSON."""
    times: list[float] = []

    def client(seed: int, count: int) -> None:
        chance = random.Random(seed)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        for _ in range(count):
            started = time.perf_counter()
            _list(connection, str(chance.randrange(1, USERS)))
            times.append((time.perf_counter() - started) * 1000)

    client(0, 50)
    times.clear()
    started = time.perf_counter()
    threads = [threading.Thread(target=client, args=(seed, asks)) for seed in range(1, clients + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.stdout.write(json.dumps({"ms": times, "seconds": [time.perf_counter() - started]}))


class ChildrenWatch(MemoryWatch):
    """The memory of all that this process has started (the instance and its training run), without its own."""

    def now_bytes(self) -> dict[str, int]:
        """PSS by process now; the measuring process and its clients are left out."""
        mine = f"{os.getpid()} "
        return {name: size for name, size in super().now_bytes().items() if not name.startswith(mine)}


class _environment:  # noqa: N801
    """The variables of the instance, for the processes that the stage starts."""

    def __init__(self, variables: dict[str, str]) -> None:
        self._variables = {name: variables[name] for name in variables if name.startswith("FRESHRANK_")}

    def __enter__(self) -> None:
        os.environ.update(self._variables | {"FRESHRANK_EFFORT": "demo"})

    def __exit__(self, *_error: object) -> None:
        for name in (*self._variables, "FRESHRANK_EFFORT"):
            os.environ.pop(name, None)


if __name__ == "__main__":
    _ask(*(int(word) for word in sys.argv[1:4]))
