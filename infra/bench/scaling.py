"""What larger streams need, by arithmetic from build/bench-stream.json; `--write` puts it into docs/scaling.md."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MEASURED = ROOT / "build" / "bench-stream.json"
PAGE = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- arithmetic: begin -->\n", "<!-- arithmetic: end -->\n"
RATES = (100_000, 1_000_000)

BUSY = 0.6
"""Share of the measured rate that is planned for: the rest is for catching up and for partitions that are not equal."""
PEAK_OVER_MEAN = 3
EVENTS_PER_USER_DAY = 30
COPIES = 3
KAFKA_DAYS = 14
GROUPS = 3
"""Groups that read the events: features, trends, archive."""
SHARD_GB = 25
DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Need:
    """A line of the table: what, how it is reckoned, how much for each of RATES."""

    what: str
    how: str
    much: tuple[str, ...]


def needs(measured: dict[str, float]) -> list[Need]:
    """Every line; each names the measured figures that it is made of."""
    users = [mean_a_day(rate) / EVENTS_PER_USER_DAY for rate in RATES]
    lines = [
        Need(
            f"{name} processes",
            f"events/s / ({measured[figure]:,.0f} × {BUSY:g})",
            tuple(f"{processes(rate, measured[figure]):,}" for rate in RATES),
        )
        for name, figure in (
            ("features", "kafka_features_events_per_s"),
            ("trends", "kafka_trends_events_per_s"),
            ("archive", "kafka_archive_events_per_s"),
            ("API, for events alone,", "api_ingest_events_per_s"),
        )
    ]
    slowest = min(measured[name] for name in measured if name.startswith("kafka_") and name.endswith("events_per_s"))
    lines.append(
        Need(
            "partitions of the events",
            "the next power of two above twice the processes of the slowest group",
            tuple(f"{partitions(rate, slowest):,}" for rate in RATES),
        )
    )
    kafka, full = measured["kafka_bytes_per_event"], measured["redis_bytes_per_full_user"]
    lines += [
        Need(
            "Kafka, written and read at the peak",
            f"events/s × {kafka:.0f} bytes × ({COPIES} copies + {GROUPS} groups)",
            tuple(size(rate * kafka * (COPIES + GROUPS)) + "/s" for rate in RATES),
        ),
        Need(
            f"Kafka, kept {KAFKA_DAYS} days",
            f"events a day × {kafka:.0f} bytes × {COPIES} copies × {KAFKA_DAYS}",
            tuple(size(mean_a_day(rate) * kafka * COPIES * KAFKA_DAYS) for rate in RATES),
        ),
        Need(
            "users with a row",
            f"events a day / {EVENTS_PER_USER_DAY}",
            tuple(f"{n / 1e6:,.0f} M" for n in users),
        ),
        Need("Redis, memory", f"users × {full:,.0f} bytes, every row full", tuple(size(n * full) for n in users)),
        Need(
            "Redis shards, by memory",
            f"memory / {SHARD_GB} GB",
            tuple(f"{math.ceil(n * full / SHARD_GB / 1e9):,}" for n in users),
        ),
        Need(
            "Redis shards, by work",
            f"events/s × {measured['redis_cpu_us_per_event']:.1f} µs / {BUSY:g}",
            tuple(f"{math.ceil(rate * measured['redis_cpu_us_per_event'] / 1e6 / BUSY):,}" for rate in RATES),
        ),
        Need(
            "archive, a day",
            f"events a day × {measured['archive_bytes_per_event']:.0f} bytes",
            tuple(size(mean_a_day(rate) * measured["archive_bytes_per_event"]) for rate in RATES),
        ),
        Need(
            "history of user rows, a day",
            f"events a day × {measured['history_bytes_per_event']:.0f} bytes",
            tuple(size(mean_a_day(rate) * measured["history_bytes_per_event"]) for rate in RATES),
        ),
    ]
    return lines


def mean_a_day(rate: float) -> float:
    """Events a day where the peak is `rate` a second."""
    return rate / PEAK_OVER_MEAN * DAY_S


def processes(rate: float, one: float) -> int:
    """Processes for a rate at the peak."""
    return math.ceil(rate / (one * BUSY))


def partitions(rate: float, slowest: float) -> int:
    """A power of two that gives every process of the slowest group at least two."""
    return int(2 ** math.ceil(math.log2(2 * processes(rate, slowest))))


def size(count: float) -> str:
    """Bytes for a reader."""
    for unit, length in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= length:
            return f"{count / length:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"


def page(measured: dict[str, float]) -> str:
    """The table as markdown."""
    head = ["| what | reckoned | " + " | ".join(f"{rate:,} events/s" for rate in RATES) + " |", "|---|---|---|---|"]
    return "\n".join([*head, *(f"| {n.what} | {n.how} | {' | '.join(n.much)} |" for n in needs(measured)), ""])


def main() -> None:
    """Print, or write into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/scaling.md")
    write = parser.parse_args().write
    table = page({each["name"]: float(each["value"]) for each in json.loads(MEASURED.read_text())})
    if not write:
        print(table, end="")
        return
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + table + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
