"""What the processes of an instance tell one another about themselves, through the metadata database that all share.

A row per process, written anew every few seconds by a thread of its own. So whoever looks (the API, `freshrank status`,
on whichever machine) sees all processes that use this database, and freshness over all of them together.
"""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec
import structlog
from sqlalchemy import Engine, delete, select
from sqlalchemy.exc import SQLAlchemyError

from services.domain import SECOND_US, PartHealth, StageUnavailable, to_us
from services.freshness import Ages, Figures, Objective, Window, figures, judged
from services.lag import LagWatch, progress_of
from services.ports import LogView
from services.tables import process_reports, upsert
from services.telemetry import counted, measure_process

log = structlog.get_logger()
SILENT_AFTER_S = 15.0
"""A process that has told nothing for so long is taken for gone (three beats of the slowest sensible pace)."""
LAST_WORD_S = 2.0
FORGOTTEN_AFTER_S = 3700.0
"""Longer than the longest window: what a dead process measured counts until it is out of the window."""


class Report(msgspec.Struct):
    """One process: who and where it is, what it measured lately, what it counted since its start. `serving` is what
    only a process of the API knows: ages of its item table; by group how long messages wait, and for how long none was
    taken in. All in seconds."""

    role: str
    host: str
    pid: int
    started_us: int
    at_us: int
    ended: bool
    process: dict[str, float]
    counted: dict[str, int]
    windows: list[Window]
    serving: dict[str, float] = {}
    waiting_s: dict[str, float] = {}
    stalled_s: dict[str, float] = {}


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Report)


@dataclass(frozen=True, slots=True)
class Told:
    """All reports of late, and the figures of all windows together."""

    reports: tuple[Report, ...]
    figures: tuple[Figures, ...]
    at_us: int

    def alive(self) -> tuple[Report, ...]:
        """The processes that still tell something, by role and start."""
        since = self.at_us - int(SILENT_AFTER_S * SECOND_US)
        found = [each for each in self.reports if not each.ended and each.at_us >= since]
        return tuple(sorted(found, key=lambda each: (each.role, each.started_us)))

    def stalled_s(self) -> dict[str, float]:
        """By group, as the processes of the API see it; empty where none runs."""
        return dict(item for each in self.alive() for item in each.stalled_s.items())

    def counted(self) -> dict[str, int]:
        """Sums of what the processes counted since they started."""
        sums: dict[str, int] = {}
        for each in self.reports:
            for name, count in each.counted.items():
                sums[name] = sums.get(name, 0) + count
        return sums


def told(engine: Engine, objective: Objective, now: datetime) -> Told:
    """What the processes that use this database told. Raises StageUnavailable when it does not answer."""
    since = to_us(now) - int(FORGOTTEN_AFTER_S * SECOND_US)
    query = select(process_reports.c.report).where(process_reports.c.at_us >= since)
    try:
        with engine.connect() as connection:
            rows = connection.execute(query).all()
    except SQLAlchemyError as error:
        raise StageUnavailable(f"the reports of the processes cannot be read: {error}") from error
    reports = tuple(report for row in rows if (report := _read(row.report)) is not None)
    windows = (window for report in reports for window in report.windows)
    return Told(reports, figures(windows, to_us(now), objective.window_s), to_us(now))


@dataclass(frozen=True, slots=True)
class Serving:
    """What a process of the API adds to its report."""

    ages_s: Mapping[str, float]
    waiting_s: Mapping[str, float]
    stalled_s: Mapping[str, float]


def nothing_served() -> Serving:
    """Of a process that serves nothing."""
    return Serving({}, {}, {})


class Pulse:
    """What a process of the API knows of freshness beyond its own ages: it looks at the log whenever it reports."""

    def __init__(
        self,
        view: LogView,
        told: Callable[[], Told],
        objective: Objective,
        now: Callable[[], datetime],
        ages_s: Callable[[], Mapping[str, float]],
    ) -> None:
        self._view = view
        self._told = told
        self._objective = objective
        self._now = now
        self._ages_s = ages_s
        self._lags = LagWatch()

    def serving(self) -> Serving:
        """Look at the log, and say what goes into the report."""
        try:
            self._lags.look(progress_of(self._view), to_us(self._now()))
        except StageUnavailable as error:
            log.warning("look_failed", error=str(error))
        return Serving(self._ages_s(), self.waiting_s(), self._lags.stalled_s())

    def waiting_s(self) -> Mapping[str, float]:
        """By group: how long its oldest message not yet committed has waited, at least."""
        return self._lags.waiting_s(to_us(self._now()))

    def health(self) -> PartHealth:
        """Never red: lists are served, only older than wanted."""
        try:
            return judged(self._told().figures, self._objective, self._lags.stalled_s())
        except StageUnavailable as error:
            return PartHealth("yellow", f"not known: {error}")


class Reporter:
    """Tells how this process is, every `every_s`, until `stop`. What fails is logged once and tried again."""

    def __init__(
        self,
        engine: Callable[[], Engine],
        ages: Ages,
        role: str,
        now: Callable[[], datetime],
        every_s: float,
        serving: Callable[[], Serving] = nothing_served,
    ) -> None:
        self._engine = engine
        self._ages = ages
        self._role = role
        self._now = now
        self._every_s = every_s
        self._serving = serving
        self._process_id = uuid.uuid4().hex
        self._stopping = threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._work, name="report", daemon=True)

    def start(self) -> Reporter:
        """Begin to tell."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Tell a last time, as one that has ended: what was measured stays in the window. A database that does not
        answer is not waited for."""
        self._stopping.set()
        self._thread.join(LAST_WORD_S)

    def __enter__(self) -> Reporter:
        return self.start()

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def _work(self) -> None:
        self._tell(ended=False)
        while not self._stopping.wait(self._every_s):
            self._tell(ended=False)
        self._tell(ended=True)

    def _tell(self, ended: bool) -> None:
        try:
            self._write(self._report(ended))
            self._failed = False
        except Exception as error:  # a process goes on without telling; nothing it does depends on this
            if not self._failed:
                log.warning("report_failed", role=self._role, error=str(error), kind=type(error).__name__)
            self._failed = True

    def _report(self, ended: bool) -> Report:
        measured = measure_process(self._role)
        serving = self._serving()
        return Report(
            self._role, socket.gethostname(), os.getpid(), int(measured["started"] * SECOND_US), to_us(self._now()),
            ended, measured, counted(), self._ages.windows(), dict(serving.ages_s), dict(serving.waiting_s),
            dict(serving.stalled_s),
        )  # fmt: skip

    def _write(self, report: Report) -> None:
        row = {"process_id": self._process_id, "at_us": report.at_us, "report": _encode(report)}
        oldest = report.at_us - int(FORGOTTEN_AFTER_S * SECOND_US)
        with self._engine().begin() as connection:
            upsert(connection, process_reports, [row])
            connection.execute(delete(process_reports).where(process_reports.c.at_us < oldest))


def _read(stored: bytes) -> Report | None:
    """A report; None for one of another version of this program, which runs beside it during an upgrade."""
    try:
        return _decoder.decode(stored)
    except msgspec.MsgspecError:
        return None


def hosts_of(reports: Sequence[Report]) -> tuple[str, ...]:
    """The machines that the reports come from."""
    return tuple(sorted({each.host for each in reports}))
