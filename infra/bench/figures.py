"""What a measured figure is, which aims there are, and what machine this is."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import psutil

HIGHER, LOWER = "at least", "at most"
UNITS: dict[str, tuple[str, float | None, str]] = {
    "import_rows_per_s": ("rows/s", None, HIGHER),
    "features_events_per_s": ("events/s", 8000, HIGHER),
    "features_events_per_s_distinct": ("events/s", None, HIGHER),
    "run_events_per_s": ("events/s", 4000, HIGHER),
    "click_to_list_ms_p50": ("ms", None, LOWER),
    "click_to_list_ms_p99": ("ms", 300, LOWER),
    "recommend_ms_p50_c1": ("ms", 6, LOWER),
    "recommend_ms_p99_c1": ("ms", None, LOWER),
    "recommend_ms_p99_c8": ("ms", None, LOWER),
    "recommend_per_s_c8": ("answers/s", None, HIGHER),
    "point_in_time_rows_per_s": ("rows/s", None, HIGHER),
    "train_s_movietweetings": ("s", None, LOWER),
    "demo_s": ("s", 240, LOWER),
    "peak_memory_mb_run": ("MB", 3000, LOWER),
    "start_to_ready_s": ("s", None, LOWER),
    "help_ms": ("ms", 500, LOWER),
    "parity_lists": ("lists", None, HIGHER),
    "parity_share": ("share", 1.0, HIGHER),
    "kafka_features_events_per_s": ("events/s", 10_000, HIGHER),
    "kafka_features_events_per_processor_s": ("events/s", None, HIGHER),
    "kafka_trends_events_per_s": ("events/s", 30_000, HIGHER),
    "kafka_trends_events_per_processor_s": ("events/s", None, HIGHER),
    "kafka_archive_events_per_s": ("events/s", 30_000, HIGHER),
    "kafka_archive_events_per_processor_s": ("events/s", None, HIGHER),
    "scale_two_trends": ("times one", None, HIGHER),
    "scale_two_processes": ("times one", None, HIGHER),
    "redis_bytes_per_user": ("bytes", None, LOWER),
    "redis_bytes_per_full_user": ("bytes", None, LOWER),
    "redis_cpu_us_per_event": ("µs", None, LOWER),
    "archive_bytes_per_event": ("bytes", None, LOWER),
    "kafka_bytes_per_event": ("bytes", None, LOWER),
    "history_bytes_per_event": ("bytes", None, LOWER),
    "api_ingest_events_per_s": ("events/s", 10_000, HIGHER),
    "api_ingest_events_per_processor_s": ("events/s", None, HIGHER),
    "click_to_list_ms_p50_at_0": ("ms", None, LOWER),
    "click_to_list_ms_p99_at_0": ("ms", 100, LOWER),
    "click_to_list_ms_p50_at_1000": ("ms", None, LOWER),
    "click_to_list_ms_p99_at_1000": ("ms", 250, LOWER),
    "click_to_list_ms_p50_at_5000": ("ms", None, LOWER),
    "click_to_list_ms_p99_at_5000": ("ms", 1000, LOWER),
    "background_events_per_s_at_1000": ("events/s", None, HIGHER),
    "background_events_per_s_at_5000": ("events/s", None, HIGHER),
    "features_lag_at_1000": ("events", None, LOWER),
    "features_lag_at_5000": ("events", None, LOWER),
    "first_commit_s_after_kill": ("s", None, LOWER),
    "recovery_s_after_kill": ("s", None, LOWER),
    "soak_rss_growth_percent": ("%", 5, LOWER),
    "soak_growth_mb_run": ("MB", None, LOWER),
    "soak_growth_mb_api": ("MB", None, LOWER),
    "soak_growth_mb_features": ("MB", None, LOWER),
    "soak_growth_mb_keepers": ("MB", None, LOWER),
    "soak_events_per_s": ("events/s", None, HIGHER),
    "tower_sequences_per_s": ("sequences/s", None, HIGHER),
    "tower_flop_share": ("share", None, HIGHER),
    "reranker_lists_per_s": ("lists/s", None, HIGHER),
    "reranker_flop_share": ("share", None, HIGHER),
    "tower_sequences_per_s_gpu": ("sequences/s", None, HIGHER),
    "tower_flop_share_gpu": ("share", None, HIGHER),
    "reranker_lists_per_s_gpu": ("lists/s", None, HIGHER),
    "reranker_flop_share_gpu": ("share", None, HIGHER),
}
"""Unit, aim (None: no aim yet) and direction of every figure."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number. `met` is None where there is no aim."""

    name: str
    value: float
    unit: str
    aim: float | None
    met: bool | None
    machine: str
    at: str

    def row(self) -> tuple[str, str, str, str, str]:
        """The figure as a line of the table."""
        aim = "" if self.aim is None else f"{UNITS[self.name][2]} {self.aim:g}"
        met = "" if self.met is None else ("yes" if self.met else "NO")
        return self.name, f"{self.value:,.4g}" if self.value < 100 else f"{self.value:,.0f}", self.unit, aim, met

    def fields(self) -> dict[str, object]:
        """The figure as build/bench.json holds it."""
        return asdict(self)


def figure(name: str, value: float) -> Figure:
    """A figure measured just now on this machine."""
    unit, aim, direction = UNITS[name]
    met = None if aim is None else (value >= aim if direction == HIGHER else value <= aim)
    return Figure(name, round(value, 4), unit, aim, met, machine(), datetime.now(UTC).isoformat(timespec="seconds"))


def machine() -> str:
    """This machine in words."""
    memory_gb = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores, {memory_gb:.0f} GiB, {platform.machine()}, Python {platform.python_version()}"


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
