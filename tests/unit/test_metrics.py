"""Metrics of several processes in one answer: real processes that share a folder, as those of `freshrank run` do."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from datetime import timedelta
from math import isnan
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from prometheus_client.metrics import MetricWrapperBase
from serving_world import NOW, MemoryRuntime

from services import telemetry
from services.api.app import create_app
from services.api.server import free_port
from services.commands.run import services
from services.domain import BadRequest, StageUnavailable, to_us
from services.freshness import Ages
from services.reports import Report, Told
from services.settings import Settings
from services.telemetry import METRICS_FOLDER, fresh_metrics, serve_metrics

ROOT = Path(__file__).resolve().parents[2]
CONSUMER = """
import threading
from datetime import UTC, datetime
from services.features.opening import import_feast
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


MEASURED = """
import sys
from services.telemetry import measure_process
measure_process("features")
print("measured", flush=True)
sys.stdin.read()
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


def test_the_api_shows_memory_and_files_of_every_process_that_lives(tmp_path: Path) -> None:
    """A consumer that lives and one that has ended: only the first is shown, beside the API itself."""
    folder = fresh_metrics(tmp_path)
    run(MEASURED.replace("features", "trends").replace("sys.stdin.read()", ""), folder)
    environment = {**os.environ, METRICS_FOLDER: str(folder), "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", MEASURED], env=environment, cwd=ROOT, text=True, **pipes) as living:
        assert living.stdout is not None
        assert living.stdout.readline() == "measured\n"
        text = run(API, folder)
        living.communicate("")
    assert value(text, 'freshrank_process_resident_bytes{role="features"}') > 1e6
    assert value(text, 'freshrank_process_open_files{role="features"}') >= 3
    assert value(text, 'freshrank_process_cpu_seconds{role="features"}') > 0
    assert 'role="trends"' not in text


def test_metrics_show_the_window_the_parts_and_no_number_where_nothing_came() -> None:
    """One live event of 250 ms in the reports; nothing of item cards. The model is yellow, the bus green."""
    runtime = MemoryRuntime(Settings())
    ages = Ages()
    ages.observe("row", np.array([to_us(NOW) - 250_000]), np.array([True]), to_us(NOW))
    runtime.reports = (Report("features", "h", 1, 0, to_us(NOW), False, {}, {}, ages.windows()),)
    with TestClient(create_app(runtime)) as client:
        text = client.get("/metrics").text
    row, card = 'origin="live",part="row"', 'origin="live",part="card"'
    assert value(text, f'freshrank_freshness_window_seconds{{{row},quantile="0.99"}}') == 0.25
    assert value(text, f"freshrank_freshness_within_share{{{row}}}") == 1
    assert value(text, f"freshrank_freshness_window_messages{{{card}}}") == 0
    assert isnan(value(text, f'freshrank_freshness_window_seconds{{{card},quantile="0.99"}}'))
    assert value(text, 'freshrank_part_state{part="bus"}') == 0
    assert value(text, 'freshrank_part_state{part="model"}') == 1
    assert value(text, "freshrank_items_changed_age_seconds") == 7
    assert value(text, "freshrank_items_fed_age_seconds") == 0.25
    assert value(text, 'freshrank_waiting_seconds{group="features"}') == 3


def test_what_cannot_be_asked_does_not_keep_the_other_metrics_back() -> None:
    runtime = MemoryRuntime(Settings())

    def away() -> Told:
        raise StageUnavailable("the database is away")

    runtime.told = away
    with TestClient(create_app(runtime)) as client:
        answer = client.get("/metrics")
    assert answer.status_code == 200
    assert value(answer.text, "freshrank_items_fed_age_seconds") == 0.25


def test_a_time_ahead_of_its_acceptance_is_counted_where_it_is_clamped() -> None:
    """The clock stands at noon: of three events one lies 4 min ahead, one has no time, one is a minute old."""
    from services.telemetry import EVENTS_CLAMPED

    before = EVENTS_CLAMPED.labels("api")._value.get()
    times = (NOW + timedelta(minutes=4), None, NOW - timedelta(minutes=1))
    events = [{"user_id": "u", "item_id": "i", "occurred_at": at.isoformat() if at else None} for at in times]
    with TestClient(create_app(MemoryRuntime(Settings()))) as client:
        assert client.post("/v1/events", json=events).json()["accepted"] == 3
    assert EVENTS_CLAMPED.labels("api")._value.get() == before + 1


def test_a_consumer_can_serve_its_own_metrics_and_says_which_port_it_cannot_have() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(BadRequest, match=str(taken.getsockname()[1])):
            serve_metrics("127.0.0.1", taken.getsockname()[1])
    port = free_port("127.0.0.1", 0)
    served, thread = serve_metrics("127.0.0.1", port)
    try:
        assert "freshrank_lag_messages" in httpx.get(f"http://127.0.0.1:{port}/metrics").text
    finally:
        served.shutdown()
        served.server_close()
        thread.join()


def test_the_names_and_labels_of_all_metrics_are_those_that_dashboards_know() -> None:
    """A changed name breaks dashboards and alerts: tests/golden/metrics.txt and docs/operations.md change with it."""
    named = sorted(
        f"{metric._type} {metric._name}{{{','.join(metric._labelnames)}}}"
        for metric in vars(telemetry).values()
        if isinstance(metric, MetricWrapperBase)
    )
    assert named == (ROOT / "tests" / "golden" / "metrics.txt").read_text().splitlines()
    operations = (ROOT / "docs" / "operations.md").read_text()
    assert [line for line in named if line.split()[1].split("{")[0] not in operations] == []
