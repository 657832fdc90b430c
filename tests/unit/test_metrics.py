"""Metrics of several processes in one answer: real processes that share a folder, as those of `freshrank run` do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from services.commands.run import services
from services.telemetry import METRICS_FOLDER, fresh_metrics

ROOT = Path(__file__).resolve().parents[2]
CONSUMER = """
import threading
from datetime import UTC, datetime
from services.features.store import import_feast
from services.telemetry import LAG
import_feast()
from services.consume import consume
from services.domain import TOPIC_EVENTS, Event
from services.features.consumer import FeaturesConsumer
from services.memory import MemoryBus, MemoryFeatureStore
from services.patience import Patience, PatientConsumer
from services.settings import Settings
from services.wire import encode_event

now = lambda: datetime(2026, 3, 1, tzinfo=UTC)
bus = MemoryBus(1, now)
event = Event("e1", "ada", "i1", "click", now(), now())
bus.publish([encode_event(event)] * 3)
part = FeaturesConsumer(MemoryFeatureStore(), Settings().kind_rules(), now)
looks = iter((False, False, True))
patient = PatientConsumer(part, Patience("features", (OSError,), threading.Event()))
consume(bus.source("features", [TOPIC_EVENTS]), patient, lambda: next(looks), records_max=10, wait_s=0)
LAG.labels("nobody").set(7)
"""
API = """
from fastapi.testclient import TestClient
from serving_world import MemoryRuntime
from services.api.app import create_app
from services.settings import Settings
with TestClient(create_app(MemoryRuntime(Settings()))) as client:
    print(client.get("/metrics").text)
"""


def run(program: str, folder: Path) -> str:
    environment = {**os.environ, METRICS_FOLDER: str(folder), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    assert told.returncode == 0, told.stderr
    return told.stdout


def value(text: str, series: str) -> float:
    found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
    assert found, series
    return float(found[1])


def test_the_api_shows_what_the_consumers_counted_each_thing_once_and_no_gauge_of_the_dead(tmp_path: Path) -> None:
    """The same event three times, in two consumers one after the other: 3 messages and 2 duplicates each."""
    folder = fresh_metrics(tmp_path)
    for _ in range(2):
        run(CONSUMER, folder)
    text = run(API, folder)
    assert value(text, 'freshrank_batch_messages_total{consumer="features"}') == 6
    assert value(text, 'freshrank_batch_seconds_count{consumer="features"}') == 2
    assert value(text, "freshrank_events_duplicate_total") == 4
    assert value(text, 'freshrank_lag_messages{group="archive"}') == 0
    assert "nobody" not in text
    assert value(text, "process_resident_memory_bytes") > 0


def test_every_run_begins_at_zero(tmp_path: Path) -> None:
    folder = fresh_metrics(tmp_path)
    (folder / "counter_1.db").write_bytes(b"old")
    assert fresh_metrics(tmp_path) == folder
    assert list(folder.iterdir()) == []


def test_all_processes_of_a_run_share_the_folder_without_changing_this_one(tmp_path: Path) -> None:
    before = os.environ.get(METRICS_FOLDER)
    started = services(8080, None, tmp_path)
    assert [dict(each.environment)[METRICS_FOLDER] for each in started] == [str(tmp_path)] * 3
    assert os.environ.get(METRICS_FOLDER) == before


@pytest.mark.parametrize("wanted", ["late", "duplicate", "rejected", "accepted"])
def test_one_process_alone_shows_its_own(wanted: str) -> None:
    from services.telemetry import exposition

    assert f"freshrank_events_{wanted}_total" in exposition().decode()
