"""Import and consumers, each alone: how many rows and events a second."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from figures import Figure, figure

DISTINCT = 30_000
BATCH = 2000
CLI = (sys.executable, "-m", "services.cli")


def environment(home: Path) -> dict[str, str]:
    """The environment of an instance at `home`."""
    return {**os.environ, "FRESHRANK_HOME": str(home), "FRESHRANK_LOG_LEVEL": "warning"}


def import_films(home: Path, films: Path) -> Figure:
    """Import MovieTweetings into the log of a new home, nothing consumed; the start of the command is counted."""
    started = time.perf_counter()
    recipe = ("--recipe", "movietweetings", "--folder", str(films), "--shift-to", "now")
    command = [*CLI, "import", *recipe, "--no-wait", "--json"]
    ended = subprocess.run(command, env=environment(home), check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    told = json.loads(ended.stdout.strip().splitlines()[-1])
    return figure("import_rows_per_s", (told["events"] + told["items"]) / seconds)


def features_alone(name: str, home: Path) -> Figure:
    """One features consumer over the whole log of a home, in a process of its own; its start is not counted."""
    command = [sys.executable, str(Path(__file__).resolve()), str(home)]
    ended = subprocess.run(command, env=environment(home), check=True, capture_output=True, text=True)
    return figure(name, float(ended.stdout.strip().splitlines()[-1]))


def fill_distinct(home: Path) -> None:
    """A log of DISTINCT events, each of another user."""
    from services import wire
    from services.domain import Event
    from services.settings import load_settings
    from services.wiring import open_home

    now = datetime.now(UTC)
    with open_home(load_settings(home=home)) as opened:
        for start in range(0, DISTINCT, BATCH):
            events = (Event(f"e{n}", f"u{n}", f"i{n % 5000}", "click", now, now) for n in range(start, start + BATCH))
            opened.sink.publish([wire.encode_event(event) for event in events])


def _consume_here(home: Path) -> float:
    """Events a second of the features consumer from its first message on."""
    from services import heap
    from services.consume import consume
    from services.domain import TOPIC_EVENTS
    from services.settings import load_settings
    from services.telemetry import configure_logs
    from services.wiring import open_home

    configure_logs("warning", "bench")
    with open_home(load_settings(home=home)) as opened:
        part = opened.consumer("features")
        opened.features.read("warm-up")
        source = opened.bus.source("features", part.topics)
        total = sum(opened.view.ends(TOPIC_EVENTS).values())

        def finished() -> bool:
            return sum(opened.view.committed("features", TOPIC_EVENTS).values()) >= total

        with heap.settled():  # as `run_consumer` does
            started = time.perf_counter()
            consume(source, part, finished, records_max=BATCH, wait_s=0.05)
            return total / (time.perf_counter() - started)


if __name__ == "__main__":
    sys.stdout.write(f"{_consume_here(Path(sys.argv[1])):.1f}\n")
