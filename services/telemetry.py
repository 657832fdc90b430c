"""Logs (one structured line per request, batch and run) and metrics (Prometheus), named once, here.

The processes of one `run` write their metrics into files of one folder, so that the API can show all of them.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest, values
from prometheus_client import Gauge as AnyGauge

METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that makes Prometheus's client keep its numbers in files; it looks once, when it is first imported."""
Gauge = partial(AnyGauge, multiprocess_mode="livemostrecent")

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)

EVENTS_ACCEPTED = Counter("freshrank_events_accepted_total", "Events the API accepted")
EVENTS_REJECTED = Counter("freshrank_events_rejected_total", "Events refused or quarantined", ["where", "reason"])
EVENTS_SPOOLED = Counter("freshrank_events_spooled_total", "Events accepted while the log was away")
SPOOLED = Gauge("freshrank_spooled_events", "Events that wait in the spool for the log")
EVENTS_LATE = Counter("freshrank_events_late_total", "Events older than a full row's oldest: archived, no live effect")
EVENTS_DUPLICATE = Counter("freshrank_events_duplicate_total", "Events that a row already had")
ROWS_REFUSED = Counter("freshrank_rows_refused_total", "User rows refused by compare-and-set, merged and rewritten")
ROWS_LOST = Counter("freshrank_rows_lost_total", "User rows that the store had forgotten when they were written next")
SLATES_DROPPED = Counter("freshrank_slates_dropped_total", "Slates not recorded because the queue was full")
DEGRADED = Counter("freshrank_degraded_total", "Answers that lacked a stage", ["stage"])
REQUEST_SECONDS = Histogram("freshrank_request_seconds", "Time of a request", ["route"], buckets=SECONDS)
BATCH_SECONDS = Histogram("freshrank_batch_seconds", "Time to apply one batch", ["consumer"], buckets=SECONDS)
BATCH_EVENTS = Counter("freshrank_batch_messages_total", "Messages a consumer applied", ["consumer"])
LAG = Gauge("freshrank_lag_messages", "Messages not yet committed", ["group"])
MESSAGES_MISSED = Counter("freshrank_messages_missed_total", "Messages gone before their group read them", ["group"])
ITEMS_AS_OF = Gauge("freshrank_items_as_of", "Sequence number of the item table of this process")
RELEASE_INFO = Gauge("freshrank_release_live", "1 for the release that this process serves", ["release_id"])
PARITY_SHARE = Gauge("freshrank_parity_share", "Share of sampled lists whose features the join gives again")
PARITY_LISTS = Gauge("freshrank_parity_lists", "Lists that the newest parity check compared")
TEXT_QUEUE = Gauge("freshrank_text_queue", "Items waiting for their text vector")


def fresh_metrics(home: Path) -> Path:
    """An empty folder of a home for the metrics of the processes that are started next."""
    folder = home.resolve() / "metrics"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def exposition() -> bytes:
    """All metrics as Prometheus text: of every process of the instance where they share a folder, else of this one."""
    folder = os.environ.get(METRICS_FOLDER)
    if not folder or values.ValueClass is values.MutexValue:  # set by somebody else, after our numbers were kept here
        return generate_latest()
    from prometheus_client.multiprocess import MultiProcessCollector

    _forget_gauges_of_the_dead(Path(folder))
    registry = CollectorRegistry()
    MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
    ProcessCollector(registry=registry)
    return generate_latest(registry)


def _forget_gauges_of_the_dead(folder: Path) -> None:
    """A process that is gone has no release and no queue any more; what it has counted stays counted."""
    for path in folder.glob("gauge_live*_*.db"):
        pid = path.stem.rpartition("_")[2]
        if not Path(f"/proc/{pid}").exists():
            with suppress(FileNotFoundError):
                path.unlink()


def configure_logs(level: str, service: str) -> None:
    """JSON lines on stderr with the service's name in each; called once, by the edge."""
    numeric = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    structlog.contextvars.bind_contextvars(service=service)
