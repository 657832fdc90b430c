"""The composition root: the only file that knows which implementation stands behind a port. It opens and closes.

Heavy packages (feast, torch, faiss) are imported by the part that needs them, when it is first asked for.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy import Engine, select

from services.bus.embedded import EmbeddedBus
from services.domain import ReleaseInfo, ReleaseInvalid, SettingsInvalid
from services.features.namespaces import Definition, LiveView, Namespace, Namespaces
from services.features.places import feast_environment, online_config
from services.features.rows import Rows
from services.freshness import Ages, Objective
from services.inuse import used
from services.items import ItemTable
from services.mix import BY_SCORE, Mix
from services.ports import Bus, Consumer, EventSink, FeatureStore, LogView, SlateLog
from services.recommend import Stages
from services.reports import Reporter, Serving, Told, nothing_served, told
from services.settings import Settings, without_secrets
from services.signals import MODEL_FEATURES
from services.sqlite import open_database, sqlite_engine
from services.tables import erasures

if TYPE_CHECKING:
    from models.release import ModelRelease
    from services.archive.parts import ParquetArchive
    from services.archive.rejected import SqlQuarantine
    from services.bus.kafka import KafkaBus
    from services.bus.spool import Spool
    from services.candidates.vectors import ItemVectors
    from services.catalogue.cards import SqlCatalogue
    from services.catalogue.live import ItemFeed
    from services.features.consumer import FeaturesConsumer
    from services.features.store import FeastFeatureStore, FeastHistory
    from services.postgresql import Waits
    from services.training.registry import SqlRegistry

ERASED_FOR_S = 2.0
log = structlog.get_logger()
KAFKA_MARK = "bus.kafka"  # a file that says that a home is an instance, where no log lies in it


def now() -> datetime:
    """The clock of the edge."""
    return datetime.now(UTC)


class Home:
    """One instance's state on disk and what is open of it; everything opens when it is first asked for."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._closers: list[Callable[[], None]] = []
        self._erased: tuple[float, Mapping[str, int]] = (-ERASED_FOR_S, {})

    @cached_property
    def engine(self) -> Engine:
        """The metadata database."""
        engine = open_metadata(self.settings)
        self._closers.append(engine.dispose)
        return engine

    @cached_property
    def bus(self) -> Bus:
        """The log."""
        s = self.settings
        bus = self.kafka if s.bus == "kafka" else EmbeddedBus(
            s.home / "bus.db", s.bus_partitions, s.bus_busy_timeout_ms, s.bus_retention_hours, now=now,
            session_s=s.bus_session_s,
        )  # fmt: skip
        bus.open()
        if s.bus == "kafka":
            (s.home / KAFKA_MARK).touch()
        self._closers.append(bus.close)
        return bus

    @cached_property
    def kafka(self) -> KafkaBus:
        """Kafka as the settings say, not opened."""
        from services.bus.kafka import KafkaBus
        from services.bus.kafka_client import choices_of

        return KafkaBus(choices_of(self.settings), now)

    @cached_property
    def objective(self) -> Objective:
        """What freshness is held to."""
        s = self.settings
        return Objective(s.freshness_objective_ms, s.freshness_objective_share, s.freshness_window_s)

    @cached_property
    def ages(self) -> Ages:
        """What this process measures of freshness."""
        return Ages(self.objective)

    def told(self) -> Told:
        """What the processes of the instance tell of themselves."""
        return told(self.engine, self.objective, now())

    def reporter(self, role: str, serving: Callable[[], Serving] = nothing_served) -> Reporter:
        """What tells the others how this process is."""
        return Reporter(lambda: self.engine, self.ages, role, now, self.settings.report_every_ms / 1000, serving)

    @property
    def sink(self) -> EventSink:
        """Where this process publishes."""
        return self.bus.sink()

    def spool(self, sink: EventSink) -> Spool:
        """Where events are taken in; events that the log cannot take wait in a file of this home."""
        from services.bus.spool import Spool

        s = self.settings
        kept = EmbeddedBus(
            s.home / "spool.db", 1, s.bus_busy_timeout_ms, 0, now=now, bytes_max=s.spool_bytes_max,
            session_s=s.bus_session_s,
        )  # fmt: skip
        self._closers.append(kept.close)
        return Spool(kept if s.spool_bytes_max else None, sink, s.spool_after_ms / 1000, now)

    @property
    def view(self) -> LogView:
        """Ends and committed offsets; those of `features` are of the rows that are live."""
        return LiveView(self.bus.view(), self.rows.live)

    @cached_property
    def rows(self) -> Rows:
        """The sets of user rows, and which one is live."""
        s = self.settings
        rows = Rows(
            lambda: Namespaces(self.engine, now), self._open_feast, Definition(s.kind_rules(), s.history_events_max)
        )
        self._closers.append(rows.close)
        return rows

    def _open_feast(self, namespace: str) -> Any:
        from services.features.opening import open_feast

        s = self.settings
        database = self.engine if s.database_url else None
        return open_feast(
            s.home, s.store_deadline_ms, s.bus_busy_timeout_ms, online=online_config(s), database=database,
            namespace=namespace,
        )  # fmt: skip

    @property
    def feast(self) -> Any:
        """The `feast.FeatureStore` of this process, with the live user rows."""
        return self.rows.feast(self.rows.live())

    @property
    def features(self) -> FeastFeatureStore:
        """The live user rows, and the counts of items."""
        return self.rows.store(self.rows.live())

    def features_consumer(self, rows: Namespace) -> FeaturesConsumer:
        """The features consumer of these rows."""
        from services.features.consumer import FeaturesConsumer

        self.refuse_volatile()
        made_by = self.rows.consumed_by(rows)
        if replace(made_by, since_us=0) != self.rows.wanted:
            log.warning("definition_differs", rows=rows.name, mend="freshrank replay --into NAME, then swap")
        return FeaturesConsumer(
            self.rows.store(rows.name), made_by.rules, now, self.settings.features_cache_users, self.erased,
            self.ages, made_by.events_max, made_by.since_us,
        )  # fmt: skip

    def refuse_volatile(self) -> None:
        """SettingsInvalid where the online store may lose rows that consumers were told are written."""
        reasons = self.features.what_it_may_lose()
        if not reasons:
            return
        if not self.settings.redis_allow_volatile:
            raise SettingsInvalid(
                f"redis_url={without_secrets(self.settings.redis_url)!r} is refused: {'; '.join(reasons)}. "
                "redis_allow_volatile (--allow-volatile) starts all the same"
            )
        log.warning("volatile_store", reasons=reasons)

    @cached_property
    def history(self) -> FeastHistory:
        """User rows and item counts, point-in-time."""
        from services.features.store import FeastHistory

        return FeastHistory(self.feast)

    @cached_property
    def archive(self) -> ParquetArchive:
        """Every accepted event, once."""
        from services.archive.parts import ParquetArchive

        return ParquetArchive(self.settings.home / "archive", self.erased)

    @cached_property
    def quarantine(self) -> SqlQuarantine:
        """Messages that could not be read."""
        from services.archive.rejected import SqlQuarantine

        s = self.settings
        return SqlQuarantine(self.engine, s.quarantine_entry_bytes_max, s.quarantine_bytes_max)

    @cached_property
    def catalogue(self) -> SqlCatalogue:
        """Item cards."""
        from services.catalogue.cards import SqlCatalogue
        from services.catalogue.live import write_parts

        return SqlCatalogue(self.engine, write_parts)

    @cached_property
    def feed(self) -> ItemFeed:
        """The change feed of items."""
        from services.catalogue.live import ItemFeed

        return ItemFeed(self.engine)

    @cached_property
    def registry(self) -> SqlRegistry:
        """Releases and runs."""
        from services.training.registry import SqlRegistry

        return SqlRegistry(self.engine, now, self.settings.home / "releases")

    def items(self) -> ItemTable:
        """A fresh item table with everything there is now."""
        table = ItemTable(self.settings.listed_only)
        self.feed.load(table)
        return table

    def erased(self) -> Mapping[str, int]:
        """Erased users and when, a moment old at most."""
        read_at, users = self._erased
        if time.monotonic() - read_at > ERASED_FOR_S:
            with self.engine.connect() as connection:
                rows = connection.execute(select(erasures.c.user_id, erasures.c.erased_us)).all()
            users = {row.user_id: row.erased_us for row in rows}
            self._erased = (time.monotonic(), users)
        return users

    def consumer(self, name: str) -> Consumer:
        """One of the four consumers."""
        s = self.settings
        match name:
            case "features":
                return self.features_consumer(self.rows.namespaces.live())
            case "trends":
                from services.catalogue.live import write_parts
                from services.trends.consumer import TrendsConsumer, TrendsSettings

                chosen = TrendsSettings(
                    s.trends_flush_s, s.trends_flush_events, s.covisits_items_max, s.impressions_from, bounds=s.bounds()
                )
                return TrendsConsumer(
                    self.engine, s.kind_rules(), self.features, write_parts, self.view.log_id, now, chosen, self.erased
                )
            case "archive":
                from services.archive.consumer import ArchiveConsumer

                return ArchiveConsumer(self.archive, self.quarantine)
            case "catalogue":
                from services.catalogue.consumer import CatalogueConsumer

                return CatalogueConsumer(self.catalogue, self.text_vectors)
        raise AssertionError(f"no consumer {name}")

    @cached_property
    def text_vectors(self) -> Any:
        """The embedding of item texts."""
        from services.catalogue.encoders import FollowedEncoder, opener
        from services.catalogue.live import write_parts
        from services.catalogue.vectors import TextVectors

        s = self.settings
        threads = s.text_threads or len(os.sched_getaffinity(0))
        follow = FollowedEncoder(s.text_encoder, s.home, self.registry.live, opener(s, now, threads))
        vectors = TextVectors(self.engine, follow(), write_parts, s.text_batch_max, follow=follow)
        self._closers.append(vectors.close)
        return vectors

    def close(self) -> None:
        """Close what was opened, the last first."""
        while self._closers:
            self._closers.pop()()


def open_metadata(settings: Settings) -> Engine:
    """The metadata database that the settings name, up to date."""
    if not settings.database_url:
        return open_database(settings.home / "meta.db", settings.bus_busy_timeout_ms, settings.migrate_at_start)
    from services.postgresql import open_postgresql

    return open_postgresql(settings.database_url, database_waits(settings), settings.migrate_at_start)


def metadata_as_it_is(settings: Settings) -> Engine:
    """The metadata database at whatever revision it has, for whoever changes that: a statement may take long."""
    if not settings.database_url:
        return sqlite_engine(settings.home / "meta.db", settings.bus_busy_timeout_ms)
    from services.postgresql import migrating_engine

    return migrating_engine(settings.database_url, database_waits(settings))


def database_waits(settings: Settings) -> Waits:
    """How long to wait for PostgreSQL."""
    from services.postgresql import Waits

    s = settings
    return Waits(s.database_connect_wait_ms, s.database_lock_wait_ms, s.database_statement_wait_ms, s.database_pool_max)


@contextmanager
def open_home(settings: Settings) -> Iterator[Home]:
    """An instance's state, closed at the end."""
    settings.home.mkdir(parents=True, exist_ok=True)
    with used(settings.home), closing(Home(settings)) as home:
        yield home


def build_stages(
    release: ModelRelease | None, items: ItemTable, features: FeatureStore, slates: SlateLog, mix: Mix = BY_SCORE
) -> tuple[Stages, ItemVectors | None]:
    """What answers queries with a release (or without one), and the vectors that want to hear of new items."""
    from services.candidates import filters, sources
    from services.candidates.vectors import ItemVectors
    from services.ranking import arrange, erasure, scorers

    vectors = ItemVectors(release, items, release.embedded_by) if release else None
    if vectors is not None:
        vectors.load()
    scorer = scorers.AttentionScorer(release, items, vectors) if release and vectors else scorers.RetrievalOrderScorer()
    probe = erasure.ErasureProbe(release, items, vectors, time.perf_counter) if release and vectors else None
    stages = Stages(
        release.release_id if release else None, items.as_of, features, sources.standard_sources(items, vectors, mix),
        filters.standard_filters(items), scorer, arrange.TopByScore(items, mix), slates, items.as_of_us, probe=probe,
    )  # fmt: skip
    return stages, vectors


def check_device(device: str) -> None:
    """Raises SettingsInvalid where this machine has no such device."""
    if device in ("auto", "cpu"):  # every machine has them: no need to import PyTorch to say so
        return
    from models.device import pick_device

    try:
        pick_device(device)
    except ValueError as error:
        raise SettingsInvalid(f"device={device!r} is refused: {error}") from error


def load_release(info: ReleaseInfo, device: str = "auto") -> ModelRelease:
    """A published release from its directory. Raises ReleaseInvalid, naming the file, when it is damaged or unfit."""
    from models.release import ModelRelease, ReleaseDamaged

    try:
        release = ModelRelease.load(Path(info.path), device)
    except ReleaseDamaged as error:
        raise ReleaseInvalid(f"release {info.release_id}: {error}") from error
    if release.manifest.feature_names != MODEL_FEATURES:
        raise ReleaseInvalid(f"release {info.release_id} reads other features than this version has; retrain")
    return release


def feast_command(settings: Settings) -> tuple[list[str], dict[str, str], Path]:
    """Feast's own command line on this instance: arguments, environment and folder."""
    from services.features.opening import REPO

    settings.home.mkdir(parents=True, exist_ok=True)
    with open_home(settings) as home:
        live = home.rows.live()
    environment = feast_environment(settings.home, online_config(settings), settings.database_url, live)
    return [sys.executable, "-m", "services.features.command"], environment, REPO


def forget_elsewhere(settings: Settings) -> None:
    """Delete what an instance keeps outside its home: its rows in Redis, and how far its consumers are on Kafka."""
    if settings.bus == "kafka":
        with closing(Home(settings).kafka) as bus:
            bus.forget()
    if settings.online_store == "redis":
        with closing(Home(settings)) as home:  # not as one of many that use it: whoever deletes it is alone with it
            for each in home.rows.namespaces.all():
                home.rows.store(each.name).forget_online()
