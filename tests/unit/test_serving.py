"""What keeps a serving process fresh must outlive what fails: a damaged release that is mended, a store that breaks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from services.domain import ReleaseInfo, ReleaseInvalid
from services.freshness import Arrived
from services.item_parts import CardPart, ItemChanged
from services.items import ItemTable
from services.memory import MemoryFeatureStore, MemoryRegistry, MemorySlateLog
from services.recommend import Stages
from services.serving import Paces, Serving
from services.signals import Scores
from services.wiring import build_stages

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


class Nothing:
    """A feed without items."""

    def load(self, table: ItemTable) -> int:
        return 0

    def poll(self, table: ItemTable) -> int:
        return 0

    def arrived(self, since: int, until: int) -> Sequence[Arrived]:
        return ()


NOTHING = Nothing()


class BreakingRegistry(MemoryRegistry):
    """A registry that raises what nobody foresaw, while `broken`."""

    broken = False

    def live(self) -> ReleaseInfo | None:
        if self.broken:
            raise KeyError("unforeseen")
        return super().live()


class Builder:
    """Stages named after the release; those in `damaged` are refused."""

    def __init__(self) -> None:
        self.damaged: set[str] = set()

    def __call__(self, info: ReleaseInfo | None, items: ItemTable) -> Stages:
        if info is not None and info.release_id in self.damaged:
            raise ReleaseInvalid("weights.safetensors is damaged")
        stages, _ = build_stages(None, items, MemoryFeatureStore(), MemorySlateLog())
        return replace(stages, release_id=info.release_id if info else None)


def until(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 5
    while not true():
        assert time.monotonic() < give_up, "it did not come"
        time.sleep(0.01)


class OneItem(Nothing):
    """A feed with one item, so that there is something to score."""

    def load(self, table: ItemTable) -> int:
        table.apply([ItemChanged("a", CardPart("A", [], True, False, 0, 0, 1), 1)])
        return 1


def started(registry: MemoryRegistry, build: Builder, feed: Nothing = NOTHING) -> Serving:
    for name in ("one", "two"):
        registry.publish(ReleaseInfo(name, "", NOW, NOW))
    registry.promote("one")
    serving = Serving(feed, registry, build, lambda: None, lambda: NOW, Paces(0.01, 0.01, 0.05))
    serving.start()
    return serving


def test_a_damaged_release_is_refused_by_name_and_taken_once_it_is_mended() -> None:
    registry, build = MemoryRegistry(), Builder()
    build.damaged = {"two"}
    serving = started(registry, build)
    registry.promote("two")
    until(lambda: serving.health()["model"].state == "yellow")
    assert "weights.safetensors" in serving.health()["model"].detail
    assert serving.stages().release_id == "one"
    build.damaged = set()
    until(lambda: serving.stages().release_id == "two")
    until(lambda: serving.health()["model"].state == "green")
    serving.stop()


def test_going_back_from_a_refused_release_is_green_again() -> None:
    registry, build = MemoryRegistry(), Builder()
    build.damaged = {"two"}
    serving = started(registry, build)
    registry.promote("two")
    until(lambda: serving.health()["model"].state == "yellow")
    registry.promote("one")
    until(lambda: serving.health()["model"].state == "green")
    assert serving.stages().release_id == "one"
    serving.stop()


def test_a_watcher_outlives_an_error_that_nobody_foresaw_and_health_says_so() -> None:
    registry, build = BreakingRegistry(), Builder()
    serving = started(registry, build)
    registry.broken = True
    until(lambda: serving.health()["model"].state == "yellow")
    assert "unforeseen" in serving.health()["model"].detail
    registry.broken = False
    registry.promote("two")
    until(lambda: serving.stages().release_id == "two")
    serving.stop()


def test_a_release_that_cannot_answer_is_refused_like_a_damaged_one_also_at_the_start() -> None:
    class Unfit:
        name = "unfit"

        def score(self, *_asked: object) -> Scores:
            raise AssertionError("features (1, 20, 24), not (1, 20, 23)")

    class BuildsUnfit(Builder):
        def __call__(self, info: ReleaseInfo | None, items: ItemTable) -> Stages:
            stages = super().__call__(info, items)
            return replace(stages, scorer=Unfit()) if info is not None and info.release_id in unfit else stages

    unfit = {"one"}
    registry, build = MemoryRegistry(), BuildsUnfit()
    serving = started(registry, build, OneItem())
    assert (serving.stages().release_id, serving.release_id) == (None, None)
    assert "AssertionError: features" in serving.health()["model"].detail
    unfit.clear()
    until(lambda: serving.release_id == "one")
    serving.stop()
