"""Retraining on a schedule: APScheduler with its jobs in SQL starts a process of its own, niced, with a thread limit.

A period that passed while nothing ran is made up for once, at the next start; two runs never overlap.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import psutil
import structlog
from sqlalchemy import Engine

from services.domain import BadRequest
from services.tables import jobs
from services.telemetry import METRICS_FOLDER

if TYPE_CHECKING:
    from apscheduler.schedulers.background import BackgroundScheduler

log = structlog.get_logger()
JOB_ID = "retrain"
NICENESS = 10
STOP_WAIT_S = 10.0


@dataclass(frozen=True, slots=True)
class ChildCommand:
    """What is started: a command line, its environment on top of this process's, and how many threads it may use."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    threads: int = 0


class RetrainSchedule:
    """Starts `child` every `every`. The times survive a restart: the jobs lie in the database."""

    def __init__(self, engine: Engine, every: timedelta, child: ChildCommand) -> None:
        self._engine = engine
        self._every = every
        self._child = child
        self._scheduler: BackgroundScheduler | None = None

    def start(self, first_at: datetime) -> None:
        """Begin. A job that is stored already keeps its next time, unless the period was changed."""
        from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore

        store = SQLAlchemyJobStore(engine=self._engine, tablename=jobs.name)
        scheduler = _patient_scheduler()(
            jobstores={"default": store},
            timezone="UTC",
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )
        scheduler.start(paused=True)
        _own.child = self._child
        try:
            known = scheduler.get_job(JOB_ID)
            if known is None or known.trigger.interval != self._every:
                scheduler.add_job(
                    start_own_child, "interval", seconds=self._every.total_seconds(), id=JOB_ID,
                    next_run_time=first_at, replace_existing=True,
                )  # fmt: skip
            else:
                known.modify(func=start_own_child, args=())
            scheduler.resume()
        except BaseException:
            scheduler.shutdown(wait=False)
            raise
        self._scheduler = scheduler
        log.info("schedule_started", every_s=self._every.total_seconds(), next_at=str(self.next_at()))

    def next_at(self) -> datetime | None:
        """When the next run starts; None before start() and after stop()."""
        job = self._scheduler.get_job(JOB_ID) if self._scheduler else None
        return job.next_run_time if job else None

    def run_now(self, now: datetime) -> None:
        """Have the next run start at once; the one after that a period later."""
        if self._scheduler is None:
            raise BadRequest("the scheduler does not run")
        self._scheduler.modify_job(JOB_ID, next_run_time=now)

    def stop(self) -> None:
        """End the schedule and a run that is under way; the jobs stay in the database."""
        if self._scheduler is not None:
            self._scheduler.pause()
            stop_children()
            self._scheduler.shutdown(wait=True)
            self._scheduler = None


def _patient_scheduler() -> type[BackgroundScheduler]:
    """APScheduler's thread ends over the first write that its database refuses (3.11 is ready for failing reads alone):
    this one looks again after a while."""
    from apscheduler.schedulers.background import BackgroundScheduler

    class PatientScheduler(BackgroundScheduler):  # type: ignore[misc]
        def _process_jobs(self) -> float | None:
            try:
                wait_s: float | None = super()._process_jobs()
            except Exception as error:
                log.warning("schedule_waits", error=str(error), kind=type(error).__name__)
                return float(self.jobstore_retry_interval)
            return wait_s

    return PatientScheduler


class WhileRunning:
    """Starts `child` every `every_s` (0: never) while this process runs, for the first time after one period; what was
    missed is not made up for, and two never overlap. `after` is called when one has ended well."""

    def __init__(self, every_s: float, child: ChildCommand, after: Callable[[], None]) -> None:
        self._every_s = every_s
        self._child = child
        self._after = after
        self._next_s: float | None = None
        self._thread: threading.Thread | None = None

    def look(self, now_s: float) -> None:
        """Start one where it is time; `now_s` is a clock that only rises."""
        if self._next_s is None:
            self._next_s = now_s + self._every_s
        if self._every_s == 0 or now_s < self._next_s or (self._thread and self._thread.is_alive()):
            return
        self._next_s = now_s + self._every_s
        self._thread = threading.Thread(target=self._run, name="scheduled", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the one that is under way."""
        stop_children()
        if self._thread is not None:
            self._thread.join(STOP_WAIT_S)

    def _run(self) -> None:
        if start_child(list(self._child.command), dict(self._child.environment), self._child.threads) == 0:
            self._after()


@dataclass(slots=True)
class _Own:
    """What the schedule of this process starts; the job in the database says only when, and machines may share it."""

    child: ChildCommand | None = None


_own = _Own()
_children: set[subprocess.Popen[bytes]] = set()
_children_lock = threading.Lock()


def start_own_child() -> int:
    """Run the child of this process's schedule. Called by the scheduler, which finds it by this name."""
    assert _own.child is not None, "a schedule that runs has a child"
    child = _own.child
    return start_child(list(child.command), dict(child.environment), child.threads)


def start_child(command: list[str], environment: dict[str, str], threads: int) -> int:
    """Run one child to its end; its exit status."""
    limit = str(threads or spare_cores())
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), limit)
    limits["OMP_WAIT_POLICY"] = "PASSIVE"
    ours = {name: value for name, value in os.environ.items() if name != METRICS_FOLDER}  # not a file for every run
    with _children_lock:
        child = subprocess.Popen(
            command, env={**ours, **limits, "MALLOC_ARENA_MAX": "2", **environment},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,  # ours may be a pipe that nobody reads
        )  # fmt: skip
        _children.add(child)
    try:
        psutil.Process(child.pid).nice(NICENESS)
    except psutil.NoSuchProcess:
        log.warning("retrain_ended_at_once", pid=child.pid)
    try:
        status = child.wait()
    finally:
        with _children_lock:
            _children.discard(child)
    log.info("retrain_child_ended", pid=child.pid, status=status)
    return status


def spare_cores() -> int:
    """All cores that this process may use but one. Threads that wait for each other beside a busy server slow a run
    down by several times: the same one took 34 s with one thread and over 200 s with two, on two busy cores."""
    return max(1, len(os.sched_getaffinity(0)) - 1)


def stop_children() -> None:
    """Ask every run under way to end, and end it when it does not."""
    with _children_lock:
        running = tuple(_children)
    for child in running:
        child.terminate()
    for child in running:
        try:
            child.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
