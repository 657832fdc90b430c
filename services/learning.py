"""What learns in an instance: a training run, a release measured again, a parity check, and their schedule."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from services.domain import EPOCH, BadRequest, FreshrankError, Metric, Verdict
from services.items import ItemTable
from services.memory import MemorySlateLog
from services.patience import Patience, Stopped
from services.ports import LIVE_ITEMS_KEPT, FeatureStore
from services.processes import AWAY, WATCH_EVERY_S, Progress, unwatched
from services.recommend import Stages
from services.settings import Settings
from services.wiring import Home, build_stages, load_release, now, open_home

if TYPE_CHECKING:
    from models.release import ModelRelease
    from services.evaluation.run import Report, Wanted
    from services.training.parity import Parity
    from services.training.parts import ReleaseParts

log = structlog.get_logger()

JUDGED_USERS_MAX = {"demo": 1500, "normal": 2500, "full": 10_000}
"""Users whose lists are asked for to judge a release: about 10 ms each."""


def retrain(settings: Settings, progress: Progress = unwatched) -> Verdict:
    """One training run in this process: built, fitted, judged, published, recorded; promoted if the gate says so."""
    from services.retrain import Training
    from services.training.lease import Lease
    from services.training.report import Run, run_training

    with open_home(settings) as home, home.reporter("retrain"):
        parts = _release_parts(home, progress)
        lease = Lease(
            home.engine, "retrain", f"{socket.gethostname()} process {os.getpid()} ({uuid.uuid4().hex[:8]})", now
        )
        run = Run(home.registry, lease, settings.home / "runs", settings.effort, now, settings.release_keep)
        return run_training(Training(parts, home.registry), run)


def evaluate(settings: Settings, progress: Progress = unwatched) -> tuple[Metric, ...]:
    """The live release on everything that came after what it learned from, beside the baselines (`temporal`)."""
    with open_home(settings) as home:
        live = home.registry.live()
        if live is None:
            raise BadRequest("there is no live release to evaluate; `freshrank retrain` makes one")
        return _release_parts(home, progress).measure(live, now())


def evaluate_files(settings: Settings, wanted: Wanted, progress: Progress = unwatched) -> Report:
    """Models and baselines on plain files: nothing of an instance is opened or written."""
    from services.evaluation.impressions import evaluate_impressions
    from services.evaluation.run import Means
    from services.evaluation.run import evaluate as ranked

    s = settings
    means = Means(unrecorded, s.effort, s.text_encoder, s.device, s.train_threads, s.text_batch_max,
                  block=wanted.block, size=wanted.size)  # fmt: skip
    run = evaluate_impressions if wanted.impressions else ranked
    return run(wanted, s.kind_rules(), means, progress)


def _release_parts(home: Home, progress: Progress) -> ReleaseParts:
    from services.training.columns import columns_of_arrow
    from services.training.cutoff import ItemsAtCut
    from services.training.gate import Gate
    from services.training.parts import Choices, ReleaseParts, Sources
    from services.training.served import lists_between

    s = home.settings
    rules = s.kind_rules()
    sources = Sources(
        events=lambda until: columns_of_arrow(home.archive.events_table(EPOCH, until), rules),
        history=home.history,
        items_at=ItemsAtCut(home.items, home.history),
        stages_for=unrecorded,
        load=lambda info: load_release(info, s.device),
        served=lambda since_us, until_us, chosen: lists_between(home.archive, rules, since_us, until_us, chosen),
    )
    choices = Choices(
        effort=s.effort, seed=s.seed, releases=s.home / "releases", text_encoder=s.text_encoder, device=s.device,
        threads=s.train_threads, gate=Gate(s.judge_share, s.judge_days_max, users_max=JUDGED_USERS_MAX[s.effort]),
        checkpoints=s.home / "runs" / "unfinished",
    )  # fmt: skip
    return ReleaseParts(sources, choices, progress)


def unrecorded(release: ModelRelease, items: ItemTable, features: FeatureStore) -> Stages:
    """What serving answers with, but nothing is kept of the answers."""
    return build_stages(release, items, features, MemorySlateLog(0))[0]


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
        command = (sys.executable, "-m", "services.cli", name, "--json")
        return ChildCommand(command, {"FRESHRANK_HOME": str(settings.home)}, settings.train_threads)

    def begin() -> RetrainSchedule:
        schedule = RetrainSchedule(home.engine, every, child("retrain"))
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
