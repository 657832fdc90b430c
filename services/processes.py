"""What runs in a process of an instance: consumers, a serving instance, one answer."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from services import heap
from services.breaker import Bounded
from services.bus.spool import Taken
from services.consume import consume
from services.domain import (
    TOPIC_EVENTS,
    Outgoing,
    PartHealth,
    Query,
    ReleaseInfo,
    Slate,
    StageUnavailable,
)
from services.features.following import FollowingStore
from services.features.namespaces import GROUP, group_of
from services.items import ItemTable
from services.memory import MemorySlateLog
from services.patience import Patience, PatientConsumer, PatientSource, Stopped
from services.ports import Catalogue, Consumer, FeatureStore, SlateLog
from services.recommend import Stages, recommend
from services.reports import Pulse
from services.settings import Settings
from services.tables import counters, upsert
from services.wiring import Home, build_stages, check_device, load_release, now, open_home

if TYPE_CHECKING:
    from services.archive.slates import QueueSlateLog
    from services.candidates.vectors import ItemVectors
    from services.serving import Serving
    from services.training.registry import RunInfo

log = structlog.get_logger()
Progress = Callable[[int, int, str], None]
AWAY = (StageUnavailable, SQLAlchemyError, OSError)
"""What a consumer waits out: a store or a log that does not answer."""
HELD_BACK = "log_held_back"
TIDY_EVERY_S = 600.0
GIVE_BACK_EVERY_S = 15.0
STUCK_LAG = 10_000
PARTS = ("database", "log", "features", "freshness")
HEALTH_S = 0.5
"""So long may a part take to say how it is: health is asked every second."""
WATCH_EVERY_S = 0.1
LIVE_LOOK_S = 0.25


def unwatched(_done: int, _total: int, _text: str) -> None:
    """Progress that nobody watches."""


def run_consumer(
    settings: Settings,
    names: Sequence[str],
    stopped: Callable[[], bool],
    until_caught_up: bool = False,
    progress: Progress = unwatched,
) -> None:
    """Run consumers in this process, a thread each, until `stopped` (or until nothing is left to do).

    The first error of a consumer that is ours ends all of them and is raised; an outage is waited for.
    """
    stopping = threading.Event()
    errors: list[BaseException] = []

    def work(part: Consumer, patience: Patience) -> None:
        try:
            _consume(home, part, patience, stopping)
        except Stopped:
            return
        except BaseException as error:
            errors.append(error)
            stopping.set()

    with open_home(settings) as home, home.reporter("+".join(names)), ExitStack() as settling:
        threads: list[threading.Thread] = []
        topics: dict[str, tuple[str, ...]] = {}
        try:
            for name in names:  # opened one after the other, here: heavy imports do not mix
                patience = Patience(name, AWAY, stopping)
                part = patience.call(partial(home.consumer, name), stopped)
                topics[name] = part.topics
                threads.append(threading.Thread(target=work, args=(part, patience), name=name))
            for thread in threads:
                thread.start()
            seen: dict[str, int] = {}
            settling.enter_context(heap.settled())
            _watch(home, names, stopping, stopped, lambda: until_caught_up and _caught_up(home, topics, progress, seen))
        except Stopped:
            return
        finally:  # also when interrupted: nothing is closed under a thread that works
            stopping.set()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
        if errors:
            raise errors[0]


def _watch(
    home: Home,
    names: Sequence[str],
    stopping: threading.Event,
    stopped: Callable[[], bool],
    finished: Callable[[], bool],
) -> None:
    """Until `stopping`: hear the order to stop, see the end of the work, tidy now and then."""
    tidied = given_back = time.monotonic()
    looked_at = 0.0
    while not stopping.wait(WATCH_EVERY_S):
        if time.monotonic() - given_back > GIVE_BACK_EVERY_S:
            given_back = time.monotonic()
            heap.give_back()
        try:
            if stopped() or finished():
                return
            if GROUP in names and time.monotonic() - looked_at > LIVE_LOOK_S:
                looked_at = time.monotonic()
                home.rows.look()
        except AWAY as error:
            log.warning("look_failed", error=str(error))
        if "archive" in names and time.monotonic() - tidied > TIDY_EVERY_S:
            tidied = time.monotonic()
            _tidy(home)


def _consume(home: Home, part: Consumer, patience: Patience, stopping: threading.Event) -> None:
    """Until `stopping`. When other user rows become live, the features consumer goes over to them and their group."""
    if part.name != GROUP:
        consume_as(home, part, part.name, patience, stopping.is_set)
        return
    while not stopping.is_set():
        rows = patience.call(home.rows.look)
        part = patience.call(partial(home.features_consumer, rows))
        consume_as(home, part, group_of(rows.name), patience, partial(_others_live, home, rows.name, stopping))


def _others_live(home: Home, name: str, stopping: threading.Event) -> bool:
    return stopping.is_set() or home.rows.live() != name


def consume_as(home: Home, part: Consumer, group: str, patience: Patience, stopped: Callable[[], bool]) -> None:
    """Consume as a member of the group, until `stopped`."""
    s = home.settings
    source = patience.call(lambda: home.bus.source(group, part.topics))
    try:
        consume(
            PatientSource(source, patience), PatientConsumer(part, patience), stopped,
            records_max=s.features_batch_max, wait_s=s.poll_wait_ms / 1000,
        )  # fmt: skip
    finally:
        try:
            source.close()
        except AWAY as error:  # the others take over when its session ends
            log.warning("left_without_a_word", consumer=part.name, error=str(error))


def _tidy(home: Home) -> None:
    """Retention of log and quarantine; what the log may not forget yet is left for the health of the API to say."""
    try:
        held = sum(home.bus.trim(now()).values())
        home.quarantine.expire(now() - timedelta(hours=home.settings.bus_retention_hours))
        with home.engine.begin() as connection:
            upsert(connection, counters, [{"name": HELD_BACK, "value": held}])
    except AWAY as error:
        log.warning("tidying_failed", error=str(error))


def _caught_up(home: Home, topics: Mapping[str, tuple[str, ...]], progress: Progress, seen: dict[str, int]) -> bool:
    """Whether the consumers have nothing left to do, texts included; says how far they are. `seen` is kept between."""
    finished = True
    for name, read_topics in topics.items():
        read = [
            (end, home.view.committed(name, topic)[partition])
            for topic in read_topics
            for partition, end in home.view.ends(topic).items()
        ]
        total, done = sum(end for end, _ in read), sum(committed for _, committed in read)
        progress(done, total, name)
        finished &= done >= total
    if "catalogue" in topics:
        waiting = home.text_vectors.pending() if finished else 1
        if finished:
            most = max(waiting, seen.get("texts", 0))
            seen["texts"] = most
            progress(most - waiting, most, "item texts")
        finished &= waiting == 0
    return finished


class Instance:
    """A running instance as the API sees it (`services.api.runtime.Runtime`)."""

    def __init__(self, home: Home, slates: SlateLog | None = None) -> None:
        from services.catalogue.guarded import GuardedCatalogue
        from services.features.guarded import GuardedFeatures

        self._home = home
        self.settings = home.settings
        self.sink = home.sink
        self.view = home.view
        self._following = FollowingStore(home.rows.store, home.rows.live())
        self.features: FeatureStore = GuardedFeatures(self._following)
        self.catalogue: Catalogue = GuardedCatalogue(home.catalogue)
        self.registry = home.registry
        self.quarantine = home.quarantine
        self._spool = home.spool(self.sink)
        self._queue = None if slates else _slate_log(home)
        self._slates: SlateLog = slates or self._queue or MemorySlateLog()
        self._vectors: dict[str, ItemVectors] = {}  # by release
        self._held_back = 0
        self._within = {name: Bounded(f"the {name}", HEALTH_S) for name in PARTS}
        self._serving = self._make_serving()
        self._stopping = threading.Event()
        self._follower = threading.Thread(target=self._follow_rows, name="watch-rows", daemon=True)
        self.items = self._serving.items
        self._pulse = Pulse(self.view, home.told, home.objective, now, self._serving.ages_s)
        self.told, self.ages_s, self.waiting_s = home.told, self._serving.ages_s, self._pulse.waiting_s
        self._reporter = None if slates else home.reporter("api", self._pulse.serving)

    def now(self) -> datetime:
        """Runtime."""
        return now()

    def take(self, events: Sequence[Outgoing]) -> Taken:
        """Runtime."""
        return self._spool.take(events)

    def start(self) -> None:
        """Runtime."""
        check_device(self.settings.device)
        self._serving.start()
        if self._queue is not None:  # not for one answer at the command line
            self._spool.start()
        self._follower.start()
        try:
            self.features.read("warm-up")
        except StageUnavailable as error:
            log.warning("started_without_features", error=str(error))
        if self._reporter is not None:
            self._reporter.start()
        gc.collect()
        heap.give_back()
        gc.freeze()  # items and models stay: no collection needs to look through them again

    def stop(self) -> None:
        """Runtime."""
        self._stopping.set()
        gc.unfreeze()
        if self._reporter is not None:
            self._reporter.stop()
        self._serving.stop()
        self._spool.close()
        if self._queue is not None:
            self._queue.close()

    def stages(self) -> Stages:
        """Runtime."""
        return self._serving.stages()

    def runs(self, limit: int) -> Sequence[RunInfo]:
        """Runtime."""
        return self.registry.runs(limit)

    def parts(self) -> Mapping[str, PartHealth]:
        """Runtime."""
        health = dict(self._serving.health())
        for name, ask, without in (
            ("database", self._database_health, "lists are made of what is known here"),
            ("log", self._log_health, "events wait in the spool"),
            ("features", self._features_health, "lists are without personal history"),
            ("freshness", self._pulse.health, "not known"),
        ):
            try:
                health[name] = self._within[name](ask)
            except AWAY as error:  # worse, but it works: an instance taken out of service would help nobody
                health[name] = PartHealth("yellow", f"{without}: {error}")
        return health

    def _database_health(self) -> PartHealth:
        with self._home.engine.connect() as connection:
            held = connection.execute(select(counters.c.value).where(counters.c.name == HELD_BACK)).scalar()
        self._held_back = held or 0
        return PartHealth("green")

    def _log_health(self) -> PartHealth:
        if self._held_back:
            return PartHealth(
                "red", f"{self._held_back} messages are at the end of the retention, and a group has not read them"
            )
        spooled = self._spool.waiting()
        if not self._spool.has_room:
            return PartHealth(
                "red", f"events are refused: the log is away and the spool, with {spooled}, takes no more"
            )
        if spooled:
            return PartHealth("yellow", f"{spooled} events wait in the spool for the log")
        ends = self.view.ends(TOPIC_EVENTS)
        lag = sum(ends.values()) - sum(self.view.committed("features", TOPIC_EVENTS).values())
        return PartHealth("yellow" if lag > STUCK_LAG else "green", f"features are {lag} events behind")

    def _features_health(self) -> PartHealth:
        self.features.read("health")
        return PartHealth("green")

    def _make_serving(self) -> Serving:
        from services.serving import Paces, Serving

        s, feed = self.settings, self._home.feed
        paces = Paces(s.items_poll_ms / 1000)
        return Serving(feed, self.registry, self._build, self._refresh, now, paces, s.listed_only, self._home.ages)

    def _build(self, info: ReleaseInfo | None, items: ItemTable) -> Stages:
        if info is not None:
            from models.batched import one_thread

            one_thread()
        release = load_release(info, self.settings.device) if info else None
        stages, vectors = build_stages(release, items, self.features, self._slates, self.settings.mix())
        if info is not None and vectors is not None:
            old = {name: of for name, of in self._vectors.items() if name == self._serving.release_id}
            self._vectors = {**old, info.release_id: vectors}  # the old release still answers until the swap
            vectors.load()  # once more: what came since the first look went to the old release only
            self._forget_vectors(items, info)
        return stages

    def _forget_vectors(self, items: ItemTable, info: ReleaseInfo) -> None:
        """Keep the text vectors that this release or another of the registry takes: a rollback finds its own."""
        from services.catalogue.encoders import encoder_of

        encoders = {encoder_of(Path(each.path)) for each in (info, *self._home.registry.all())}
        if "" not in encoders:
            items.keep_vectors_of(encoders)

    def _follow_rows(self) -> None:
        """Read the user rows that are live, a moment after they became it."""
        while not self._stopping.wait(LIVE_LOOK_S):
            try:
                self._following.follow(self._home.rows.look().name)
            except AWAY as error:
                log.warning("look_failed", error=str(error))

    def _refresh(self) -> None:
        fresh = self.items.take_new_vectors()
        for vectors in tuple(self._vectors.values()):
            vectors.add(fresh)


def _slate_log(home: Home) -> QueueSlateLog:
    from services.archive.slates import QueueSlateLog

    return QueueSlateLog(home.sink, home.settings.slate_queue_max, home.settings.slate_features_share)


def recommend_once(settings: Settings, query: Query) -> Slate:
    """One answer in this process, as the API would give it now."""
    with open_home(settings) as home:
        instance = Instance(home, MemorySlateLog())
        instance.start()
        try:
            return recommend(query, instance.stages())
        finally:
            instance.stop()
