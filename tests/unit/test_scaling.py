"""The arithmetic of docs/scaling.md, by hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
MEASURED = {
    "kafka_features_events_per_s": 10_000.0,
    "kafka_trends_events_per_s": 20_000.0,
    "kafka_archive_events_per_s": 40_000.0,
    "api_ingest_events_per_s": 5_000.0,
    "kafka_bytes_per_event": 100.0,
    "redis_bytes_per_full_user": 2_000.0,
    "redis_cpu_us_per_event": 12.0,
    "archive_bytes_per_event": 50.0,
    "history_bytes_per_event": 80.0,
}


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling", ROOT / "infra" / "bench" / "scaling.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "scaling", module)
    spec.loader.exec_module(module)
    return module


def test_what_a_hundred_thousand_events_a_second_need(scaling: ModuleType) -> None:
    much = {need.what: need.much[0] for need in scaling.needs(MEASURED)}
    assert much == {
        "features processes": "17",  # 100,000 / 6,000 = 16.7
        "trends processes": "9",  # / 12,000 = 8.3
        "archive processes": "5",  # / 24,000 = 4.2
        "API, for events alone, processes": "34",  # / 3,000 = 33.3
        "partitions of the events": "64",  # above 2 × 17
        "Kafka, written and read at the peak": "60.0 MB/s",  # 100,000 × 100 × 6
        "Kafka, kept 14 days": "12.1 TB",  # 33,333 × 86,400 = 2.88e9 a day; × 100 × 3 × 14
        "users with a row": "96 M",  # 2.88e9 / 30
        "Redis, memory": "192.0 GB",
        "Redis shards, by memory": "8",  # 192 / 25 = 7.7
        "Redis shards, by work": "2",  # 1.2 s a second, 60 % busy
        "archive, a day": "144.0 GB",
        "history of user rows, a day": "230.4 GB",
    }


def test_the_page_has_a_place_for_the_table(scaling: ModuleType) -> None:
    text = (ROOT / "docs" / "scaling.md").read_text()
    assert text.count(scaling.BEGIN) == text.count(scaling.END) == 1
    assert text.index(scaling.BEGIN) < text.index(scaling.END)
