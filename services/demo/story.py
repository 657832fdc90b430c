"""The story that the demo tells: events in, a release trained, a list asked, three clicks, another list."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.demo.films import Cast
from services.demo.plots import Plot, Poured
from services.demo.showing import Showing
from services.demo.stage import Stage, event_body
from services.domain import TOPIC_EVENTS, FreshrankError, ItemChange
from services.lag import GROUP_TOPICS, lags_of
from services.ports import EventSink, LogView

LIST_LENGTH = 10
WARM_ASKS = 5
CHANGE_S_MAX = 10.0
NEWBORN_S_MAX = 20.0
CATCH_UP_S_MAX = 600.0
WATCH_S = 0.05
POURING_LOOK_S = 0.25
"""Each look asks every store: looks as frequent as elsewhere would take a sixth of a core from those who work."""


@dataclass(frozen=True, slots=True)
class Changed:
    """The list before and after the clicks, and the time from the click to the first list that shows it."""

    before: Mapping[str, Any]
    after: Mapping[str, Any]
    click_to_list_ms: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What the demo measured; `quality` is (model, HR@10, NDCG@10, users)."""

    events: int
    items: int
    events_per_s: float
    training_s: float
    click_to_list_ms: float
    newborn_ms: float | None
    ask_ms: float
    demo_s: float
    peak_memory_mb: float
    memory_mb: Mapping[str, float]
    release_id: str
    promoted: bool
    verdict: str
    quality: tuple[tuple[str, float, float, int], ...]


@dataclass(frozen=True, slots=True)
class Props:
    """What the story needs beside the stage: a way into the log, a look at it, items that have a vector, a clock."""

    sink: EventSink
    view: LogView
    texts_done: Callable[[], int]
    now: Callable[[], datetime]


def tell(plot: Plot, stage: Stage, props: Props, show: Showing) -> Figures:
    """Pour, train, ask, click, ask again; every figure is measured on the way."""
    started = time.monotonic()
    show.opening(plot.about)
    poured, events_per_s = pour(plot, stage, props, show)
    verdict, training_s = train(stage, show)
    wait_for_release(stage, str(verdict["release_id"]), show)
    cast = plot.cast()
    ask_ms = ask_warm(stage, cast.user_id)
    changed = click(cast, stage)
    show.both_lists(cast, changed.before, changed.after, changed.click_to_list_ms)
    born = plot.newborn(props.now())
    newborn_ms = bear(born, cast, stage, show) if born is not None else None
    figures = Figures(
        poured.events, poured.items, events_per_s, training_s, changed.click_to_list_ms, newborn_ms, ask_ms,
        time.monotonic() - started, stage.memory.peak_bytes / 1e6,
        {name: size / 1e6 for name, size in stage.memory.now_bytes().items()},
        str(verdict["release_id"]), bool(verdict["promoted"]), str(verdict["reason"]), quality_of(verdict),
    )  # fmt: skip
    show.closing(figures, stage.url(), cast)
    return figures


def pour(plot: Plot, stage: Stage, props: Props, show: Showing) -> tuple[Poured, float]:
    """Publish everything and wait until all four consumers have it; events per second from the first event in the log
    until then."""
    with LogWatch(props.view) as watch:
        poured = plot.pour(props.sink, props.now(), show.bars)
    with show.bars() as progress:

        def caught_up() -> bool:
            ends = sum(sum(props.view.ends(topic).values()) for topics in GROUP_TOPICS.values() for topic in topics)
            done = ends - sum(lags_of(props.view).values())
            progress(done, ends, "features and trends and archive and catalogue")
            return done >= ends

        def texts_done() -> bool:
            done = props.texts_done()
            progress(done, poured.items, "item texts into vectors")
            return done >= poured.items

        stage.wait_for(caught_up, "the end of the consumers' work", CATCH_UP_S_MAX, POURING_LOOK_S)
        ended = time.monotonic()
        stage.wait_for(texts_done, "the end of the text vectors", CATCH_UP_S_MAX, POURING_LOOK_S)
    return poured, poured.events / max(ended - watch.first_event_at, 1e-3)


class LogWatch:
    """Notes when the first event came into the log. A context manager."""

    def __init__(self, view: LogView) -> None:
        self._view = view
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="log-watch", daemon=True)
        self.first_event_at = time.monotonic()

    def __enter__(self) -> LogWatch:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopping.wait(WATCH_S) and not sum(self._view.ends(TOPIC_EVENTS).values()):
            self.first_event_at = time.monotonic()


def train(stage: Stage, show: Showing) -> tuple[dict[str, Any], float]:
    """The first release, by `freshrank retrain` in a process of its own."""
    show.step("Training a release (effort = demo)")
    started = time.monotonic()
    verdict = stage.retrain()
    seconds = time.monotonic() - started
    show.verdict(verdict, seconds)
    if not verdict["promoted"]:
        raise FreshrankError(f"the first release was not promoted: {verdict['reason']}")
    return verdict, seconds


def wait_for_release(stage: Stage, release_id: str, show: Showing) -> None:
    """Until the serving process has swapped to the release."""
    started = time.monotonic()

    def is_served() -> bool:
        if f"release {release_id} refused" in (said := stage.model_health()):
            raise FreshrankError(said)
        return bool(stage.recommendations("nobody", 1)["release_id"] == release_id)

    stage.wait_for(is_served, f"release {release_id} in the API", 60.0)
    show.step(f"The API serves it, {time.monotonic() - started:.1f} s after the verdict")


def ask_warm(stage: Stage, user_id: str) -> float:
    """The median time of one list over HTTP, in ms."""
    times = []
    for _ in range(WARM_ASKS):
        started = time.perf_counter()
        stage.recommendations(user_id, LIST_LENGTH)
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2] * 1000


def click(cast: Cast, stage: Stage) -> Changed:
    """Send the clicks in one request and ask until the list is another one made from a newer row."""
    before = stage.recommendations(cast.user_id, LIST_LENGTH)
    bodies = [event_body(cast.user_id, item_id, "click") for item_id, _ in cast.clicks]
    started = time.perf_counter()
    stage.client().post("/v1/events", json=bodies).raise_for_status()
    after, ms = ask_until(
        stage, cast.user_id, LIST_LENGTH, started, CHANGE_S_MAX,
        lambda now: now["features_as_of"] != before["features_as_of"] and _ids(now) != _ids(before),
    )  # fmt: skip
    return Changed(before, after, ms)


def bear(born: ItemChange, cast: Cast, stage: Stage, show: Showing) -> float:
    """Send a new item and wait until it can stand in the list of a user who likes its topic; in ms."""
    fields = {**born.fields, "published_at": born.updated_at.isoformat()}
    started = time.perf_counter()
    stage.client().put("/v1/items", json={"item_id": born.item_id, **fields}).raise_for_status()
    listed, ms = ask_until(
        stage, cast.user_id, 200, started, NEWBORN_S_MAX, lambda now: born.item_id in _ids(now)
    )  # fmt: skip
    show.newborn(next(each for each in listed["items"] if each["item_id"] == born.item_id), len(listed["items"]), ms)
    return ms


def ask_until(
    stage: Stage, user_id: str, limit: int, started: float, wait_s: float, fact: Callable[[Mapping[str, Any]], bool]
) -> tuple[Mapping[str, Any], float]:
    """Ask again and again until the answer shows a fact; the answer and the ms since `started`."""
    while True:
        answer = stage.recommendations(user_id, limit)
        passed = time.perf_counter() - started
        if fact(answer):
            return answer, passed * 1000
        stage.check()
        if passed > wait_s:
            raise FreshrankError(f"the list of {user_id} did not change within {wait_s:.0f} s: {stage.tail()}")


def quality_of(verdict: Mapping[str, Any]) -> tuple[tuple[str, float, float, int], ...]:
    """(model, HR@10, NDCG@10, users) over the whole judged slice."""
    values: dict[str, dict[str, float]] = {}
    users: dict[str, int] = {}
    for each in verdict["metrics"]:
        if each["part"] == "all":
            values.setdefault(each["model"], {})[each["name"]] = each["value"]
            users[each["model"]] = each["users"]
    return tuple((model, its["hr@10"], its["ndcg@10"], users[model]) for model, its in values.items() if "hr@10" in its)


def _ids(answer: Mapping[str, Any]) -> list[str]:
    return [each["item_id"] for each in answer["items"]]
