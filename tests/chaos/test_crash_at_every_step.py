"""Each consumer dies by SIGKILL at every step between poll and commit, a life for each step; afterwards the stores
hold, field by field, what a run without a crash makes of the same messages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from chaos_monkey import ROOT
from chaos_world import (
    begins_now,
    events_of,
    offline_answer,
    read_all,
    single_process_answer,
    stored_answer,
    stream,
)

from services.domain import TOPICS
from services.settings import load_settings
from services.wiring import open_home

NOT_REACHED = 3
"""A life of `crash_runner` that came to the end of the log without passing its step."""
STEPS_AT_LEAST = {
    "features": {"poll after", "store.append_history after", "os.rename after", "store.write after", "commit after"},
    "trends": {"poll after", "store.append_item_live after", "sql commit after", "commit after"},
    "archive": {"poll after", "quarantine.add after", "sql commit before", "sql commit after", "os.rename after",
                "archive.append after", "commit after"},
    "catalogue": {"poll after", "sql commit before", "sql commit after", "catalogue.apply after", "commit after"},
}  # fmt: skip


def die_everywhere(settings: Mapping[str, str], folder: Path) -> None:
    """Publish, let each consumer die at each of its steps and finish, compare."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FRESHRANK_")}
    environment |= {f"FRESHRANK_{name.upper()}": value for name, value in settings.items()}
    environment |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    with open_home(load_settings(**settings)) as home:
        home.sink.publish(stream(11, 9000, begins_now()))
    runner = str(ROOT / "tests" / "crash_runner.py")
    done = subprocess.run(
        [sys.executable, runner, str(folder), *STEPS_AT_LEAST],
        env=environment, cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for name, wanted in STEPS_AT_LEAST.items():
        lives = json.loads((folder / f"{name}.told.json").read_text())
        assert lives[0]["code"] == 0, f"{lives[0]}\n{done.stderr[-3000:]}"
        steps = {each["step"]: each["code"] for each in lives[1:-1]}
        assert wanted <= steps.keys(), f"{name} was not seen at {wanted - steps.keys()}"
        expected_end = {-signal.SIGKILL, NOT_REACHED}  # what is not done in every batch may not come again
        alive = {s: code for s, code in steps.items() if code not in expected_end or (s in wanted and code > 0)}
        assert not alive, f"{name} did not die at {alive}\n{done.stderr[-3000:]}"
        assert lives[-1]["code"] == 0, f"{lives[-1]}\n{done.stderr[-3000:]}"
        killed = [step for step, code in steps.items() if code == -signal.SIGKILL]
        print(f"{name} was killed at {len(killed)} steps: {', '.join(killed)}")
    with open_home(load_settings(**settings)) as home:
        ends = {p: end for topic in TOPICS for p, end in home.view.ends(topic).items()}
        expected = single_process_answer(read_all(home, ends), folder)
        assert expected.differences(stored_answer(home)) == []
        assert offline_answer(home, sorted(expected.rows)) == events_of(expected.rows), "a gap in the offline history"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_the_embedded_log_and_stores(tmp_path: Path) -> None:
    settings = {
        "home": str(tmp_path / "home"),
        "text_encoder": "hashing",
        "log_level": "warning",
        "trends_flush_events": "100",
    }
    die_everywhere(settings, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_kafka_redis_and_postgresql(tmp_path: Path, server_settings: Mapping[str, str]) -> None:
    settings = {
        **server_settings,
        "home": str(tmp_path / "home"),
        "kafka_instance_id": "the-same-in-every-life",  # or each would wait for the session of the one before
        "text_encoder": "hashing",
        "log_level": "warning",
        "trends_flush_events": "100",
    }
    die_everywhere(settings, tmp_path)
