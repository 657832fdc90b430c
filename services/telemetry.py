"""Logs (one structured line per request, batch and run) and metrics (Prometheus), named once, here.

The processes of one `run` write their metrics into files of one folder, so that the API can show all of them.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Thread
from wsgiref.simple_server import WSGIServer

import psutil
import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
    start_http_server,
    values,
)
from prometheus_client import Gauge as AnyGauge

from services.domain import BadRequest

METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that makes Prometheus's client keep its numbers in files; it looks once, when it is first imported."""
Gauge = partial(AnyGauge, multiprocess_mode="livemostrecent")


class BatchHistogram(Histogram):
    """A histogram that takes in a whole batch at once."""

    def observe_counts(self, counts: Sequence[float], total: float) -> None:
        """`counts[i]` observations in the i-th bucket (the last one is above all bounds), of this sum together."""
        assert len(counts) == len(self._upper_bounds), f"{len(counts)} counts for {len(self._upper_bounds)} buckets"
        self._sum.inc(total)
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)


SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
AGE_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0)

EVENTS_ACCEPTED = Counter("freshrank_events_accepted_total", "Events the API accepted")
EVENTS_REJECTED = Counter("freshrank_events_rejected_total", "Events refused or quarantined", ["where", "reason"])
EVENTS_SPOOLED = Counter("freshrank_events_spooled_total", "Events accepted while the log was away")
SPOOLED = Gauge("freshrank_spooled_events", "Events that wait in the spool for the log")
EVENTS_LATE = Counter("freshrank_events_late_total", "Events older than a full row's oldest: archived, no live effect")
EVENTS_DUPLICATE = Counter("freshrank_events_duplicate_total", "Events that a row already had")
EVENTS_CLAMPED = Counter(
    "freshrank_events_clamped_total", "Events whose time lay ahead of their acceptance and was set to it", ["where"]
)
ROWS_REFUSED = Counter("freshrank_rows_refused_total", "User rows refused by compare-and-set, merged and rewritten")
ROWS_LOST = Counter("freshrank_rows_lost_total", "User rows that the store had forgotten when they were written next")
SLATES_DROPPED = Counter("freshrank_slates_dropped_total", "Slates not recorded because the queue was full")
DEGRADED = Counter("freshrank_degraded_total", "Answers that lacked a stage", ["stage"])
REQUEST_SECONDS = Histogram("freshrank_request_seconds", "Time of a request", ["route"], buckets=SECONDS)
BATCH_SECONDS = Histogram("freshrank_batch_seconds", "Time to apply one batch", ["consumer"], buckets=SECONDS)
BATCH_EVENTS = Counter("freshrank_batch_messages_total", "Messages a consumer applied", ["consumer"])
LAG = Gauge("freshrank_lag_messages", "Messages not yet committed", ["group"])
MESSAGES_MISSED = Counter("freshrank_messages_missed_total", "Messages gone before their group read them", ["group"])
PARTITION_LAG = Gauge(
    "freshrank_partition_lag_messages", "Messages not yet committed, by partition", ["group", "topic", "partition"]
)
WAITING_SECONDS = Gauge(
    "freshrank_waiting_seconds", "How long the oldest message not yet committed has waited, at least", ["group"]
)
AGES = BatchHistogram(
    "freshrank_freshness_seconds", "From acceptance to what a read shows, per message", ["part", "origin"],
    buckets=AGE_SECONDS,
)  # fmt: skip
CLOCK_AHEAD = Counter(
    "freshrank_clock_ahead_total", "Ages below zero, taken as zero: the accepting clock is ahead of ours", ["part"]
)
WINDOW_SECONDS = Gauge(
    "freshrank_freshness_window_seconds", "Percentiles of the last minutes, all processes together",
    ["part", "origin", "quantile"],
)  # fmt: skip
WINDOW_MESSAGES = Gauge(
    "freshrank_freshness_window_messages", "Messages in the window of the percentiles", ["part", "origin"]
)
WITHIN_SHARE = Gauge(
    "freshrank_freshness_within_share", "Share of the window within freshness_objective_ms", ["part", "origin"]
)
OBJECTIVE_SECONDS = Gauge("freshrank_freshness_objective_seconds", "The setting freshness_objective_ms")
OBJECTIVE_SHARE = Gauge("freshrank_freshness_objective_share", "The setting freshness_objective_share")
PART_STATE = Gauge("freshrank_part_state", "How a part of the instance is: 0 green, 1 yellow, 2 red", ["part"])
ITEMS_CHANGED_AGE = Gauge("freshrank_items_changed_age_seconds", "Since the item table took in its newest change")
ITEMS_FED_AGE = Gauge("freshrank_items_fed_age_seconds", "Since the item table was last compared with the feed")
PROCESS_RESIDENT = Gauge("freshrank_process_resident_bytes", "Memory of a process", ["role"])
PROCESS_CPU = Gauge("freshrank_process_cpu_seconds", "Processor time of a process since its start", ["role"])
PROCESS_FILES = Gauge("freshrank_process_open_files", "Open files and sockets of a process", ["role"])
PROCESS_THREADS = Gauge("freshrank_process_threads", "Threads of a process", ["role"])
PROCESS_STARTED = Gauge("freshrank_process_start_time_seconds", "When a process started, since 1970", ["role"])
ITEMS_AS_OF = Gauge("freshrank_items_as_of", "Sequence number of the item table of this process")
RELEASE_INFO = Gauge("freshrank_release_live", "1 for the release that this process serves", ["release_id"])
PARITY_SHARE = Gauge("freshrank_parity_share", "Share of sampled lists whose features the join gives again")
PARITY_LISTS = Gauge("freshrank_parity_lists", "Lists that the newest parity check compared")
TEXT_QUEUE = Gauge("freshrank_text_queue", "Items waiting for their text vector")
TEXT_CACHE = Counter("freshrank_text_cache_total", "Texts to embed: found in the cache or made", ["result"])


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


def serve_metrics(host: str, port: int) -> tuple[WSGIServer, Thread]:
    """`/metrics` of this process alone, for one that serves no API, from a thread of its own."""
    try:
        return start_http_server(port, host)
    except OSError as error:
        raise BadRequest(f"metrics cannot be served on {host} port {port}: {error.strerror}") from None


def counted() -> dict[str, int]:
    """What this process has counted since its start, for people who look; a refusal once, where it is kept."""
    counters = {
        "late": EVENTS_LATE, "duplicate": EVENTS_DUPLICATE, "clamped": EVENTS_CLAMPED, "rejected": EVENTS_REJECTED,
        "rows_refused": ROWS_REFUSED, "slates_dropped": SLATES_DROPPED, "clock_ahead": CLOCK_AHEAD,
    }  # fmt: skip
    return {
        name: int(
            sum(
                sample.value
                for family in counter.collect()
                for sample in family.samples
                if sample.name.endswith("_total") and sample.labels.get("where", "api") in {"api", "stream"}
            )
        )
        for name, counter in counters.items()
    }


def measure_process(role: str) -> dict[str, float]:
    """Memory, processor time, open files, threads and start of this process, into its gauges; returned, too."""
    process = psutil.Process()
    with process.oneshot():
        times = process.cpu_times()
        measured = {
            "resident_bytes": float(process.memory_info().rss),
            "cpu_seconds": times.user + times.system,
            "open_files": float(process.num_fds()),
            "threads": float(process.num_threads()),
            "started": process.create_time(),
        }
    gauges = (PROCESS_RESIDENT, PROCESS_CPU, PROCESS_FILES, PROCESS_THREADS, PROCESS_STARTED)
    for gauge, value in zip(gauges, measured.values(), strict=True):
        gauge.labels(role).set(value)
    return measured


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
