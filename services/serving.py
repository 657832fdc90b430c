"""What keeps a serving process fresh: the item table follows the change feed, the stages follow the live release.

One reference, `stages()`, is swapped; a request takes it once, so no answer mixes two releases.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

import structlog

from services.domain import FreshrankError, PartHealth, Query, ReleaseInfo, StageUnavailable, to_us
from services.freshness import Ages, Arrived
from services.items import ItemTable
from services.ports import ReleaseRegistry
from services.recommend import Stages, recommend
from services.telemetry import ITEMS_AS_OF, RELEASE_INFO

log = structlog.get_logger()
RELEASE_POLL_S = 0.5
WARM_QUERIES = 20
FEED_STALE_S = 10.0
REFUSED_AGAIN_S = 10.0
"""A refused release is looked at again this often: its files may have been mended."""


class Feed(Protocol):
    """The change feed of items."""

    def load(self, table: ItemTable) -> int:
        """Everything there is, into the table; how many changes that were."""

    def poll(self, table: ItemTable) -> int:
        """What changed since the table's `as_of`; returns how many changes were applied."""

    def arrived(self, since: int, until: int) -> Sequence[Arrived]:
        """When the messages behind the changes above `since` up to `until` were accepted."""


class StageBuilder(Protocol):
    """Builds the stages of a release over an item table."""

    def __call__(self, info: ReleaseInfo | None, items: ItemTable) -> Stages:
        """Load and wire the release (None: serve without a model). Raises ReleaseInvalid and leaves nothing behind."""


class Refresher(Protocol):
    """What stages keep per item and must hear of new items (cold vectors)."""

    def __call__(self) -> None:
        """Take in the text vectors that came since the last call."""


@dataclass(frozen=True, slots=True)
class Paces:
    """How often the watchers look, in seconds; a refused release is looked at again after `refused_again_s`."""

    items_s: float
    releases_s: float = RELEASE_POLL_S
    refused_again_s: float = REFUSED_AGAIN_S


class Serving:
    """Holds the stages that answer, and two watcher threads that keep them fresh."""

    def __init__(
        self,
        feed: Feed,
        registry: ReleaseRegistry,
        build: StageBuilder,
        refresh: Refresher,
        now: Callable[[], datetime],
        paces: Paces,
        listed_only: bool = False,
        ages: Ages | None = None,
    ) -> None:
        self.items = ItemTable(listed_only)
        self._feed = feed
        self._registry = registry
        self._build = build
        self._refresh = refresh
        self._now = now
        self._paces = paces
        self._stages: Stages | None = None
        self._swap = threading.Lock()
        self._refused: str | None = None
        self._refused_because = ""
        self._try_again_at = 0.0
        self._troubles: dict[str, str] = {}
        self._fed_at = self._changed_at = 0.0
        self._ages = ages or Ages()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def stages(self) -> Stages:
        """The stages that answer now; take them once per request. Old item knowledge is named in their answers."""
        held = self._held()
        return replace(held, missing=("items",)) if self._is_stale() else held

    @property
    def release_id(self) -> str | None:
        """The release that answers now; None without one, and before start()."""
        return self._stages.release_id if self._stages else None

    def _held(self) -> Stages:
        assert self._stages is not None, "start() has not been called"
        return self._stages

    def start(self) -> None:
        """Load the items and the live release (a damaged one is named and left out), then watch both."""
        self._feed.load(self.items)
        self._fed_at = self._changed_at = time.monotonic()
        self._stages = self._build(None, self.items)
        self._follow_release()
        for name, step, pause_s in (
            ("items", self._follow_items, self._paces.items_s),
            ("releases", self._follow_release, self._paces.releases_s),
        ):
            thread = threading.Thread(target=self._watch, args=(step, pause_s), name=f"watch-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End the watchers."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=5)

    def ages_s(self) -> dict[str, float]:
        """Seconds since the item table was last compared with its feed (`fed`), and since a change came (`changed`; at
        the start everything does)."""
        now = time.monotonic()
        return {"changed": now - self._changed_at, "fed": now - self._fed_at}

    def health(self) -> dict[str, PartHealth]:
        """How the item feed and the model are."""
        age_s = time.monotonic() - self._fed_at
        stale = PartHealth("yellow", f"no answer for {age_s:.0f} s: lists are made of what was known then")
        fed = stale if self._is_stale() else PartHealth("green")
        trouble = next(iter(self._troubles.values()), None)
        if self._refused is not None:
            model = PartHealth("yellow", f"release {self._refused} refused: {self._refused_because}")
        elif trouble is not None:
            model = PartHealth("yellow", trouble)
        elif self._held().release_id is None:
            model = PartHealth("yellow", "no release yet: lists are trending and new items")
        else:
            model = PartHealth("green", self._held().release_id or "")
        return {"items": fed, "model": model}

    def _is_stale(self) -> bool:
        return time.monotonic() - self._fed_at > FEED_STALE_S

    def _watch(self, step: Callable[[], None], pause_s: float) -> None:
        """Step by step until stop(); what fails is logged, shown in health, and tried again with the next step."""
        name = step.__name__.removeprefix("_")
        while not self._stopping.wait(pause_s):
            try:
                step()
                self._troubles.pop(name, None)
            except Exception as error:  # a watcher that ends would leave this process stale without a word
                trouble = f"{name.replace('_', ' ')} failed: {error}"
                if self._troubles.get(name) != trouble:  # once, not four times a second while a database is away
                    log.warning("watch_failed", step=name, error=str(error), kind=type(error).__name__)
                self._troubles[name] = trouble

    def _follow_items(self) -> None:
        before = self.items.as_of
        changed = self._feed.poll(self.items)
        self._fed_at = time.monotonic()
        if changed:
            self._changed_at = self._fed_at
            self._refresh()
            with self._swap:
                self._stages = self._as_of_now(self._held())
            ITEMS_AS_OF.set(self.items.as_of)
            visible_us = to_us(self._now())
            self._ages.observe_arrived(self._feed.arrived(before, self.items.as_of), visible_us)

    def _follow_release(self) -> None:
        live = self._registry.live()
        if live is None or live.release_id == self._held().release_id:
            self._refused = None
            return
        if live.release_id == self._refused and time.monotonic() < self._try_again_at:
            return
        started = time.monotonic()
        try:
            stages = self._build(live, self.items)
            self._warm(stages)
        except Exception as error:  # whatever is wrong with it, the one that answers goes on
            said = str(error) if isinstance(error, FreshrankError) else f"{type(error).__name__}: {error}"
            self._refused, self._refused_because = live.release_id, said
            self._try_again_at = time.monotonic() + self._paces.refused_again_s
            log.error("release_refused", release_id=live.release_id, error=said)
            return
        before = self._held().release_id
        with self._swap:
            self._stages = self._as_of_now(stages)
        self._refused = None
        if before is not None:
            RELEASE_INFO.labels(release_id=before).set(0)
        RELEASE_INFO.labels(release_id=live.release_id).set(1)
        log.info("release_live", release_id=live.release_id, seconds=round(time.monotonic() - started, 3))

    def _as_of_now(self, stages: Stages) -> Stages:
        return replace(stages, items_as_of=self.items.as_of, items_as_of_us=self.items.as_of_us)

    def _warm(self, stages: Stages) -> None:
        """A few answers nobody sees: the first ones through a new model are many times slower."""
        now = self._now()
        recent = tuple(item_id for item_id, _ in self.items.trending(to_us(now), 5))
        for number in range(WARM_QUERIES):
            query = Query(f"warm-{number}", None, 20, now, recent=recent, record=False)
            try:
                recommend(query, stages)
            except StageUnavailable:
                return
