"""The demo itself, small: real processes on a generated world, from the first event to the changed list."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.commands.keep import refuse_strangers

SIZE = "0.05"


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_demo_on_a_small_world_tells_its_whole_story_and_leaves_no_process(tmp_path: Path) -> None:
    home = tmp_path / "home"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FRESHRANK_")}
    told = subprocess.run(
        [sys.executable, "-m", "services.cli", "--home", str(home), "demo", "--world", "--once", "--size", SIZE,
         "--port", "0", "--json"],
        env=environment | {"FRESHRANK_TEXT_ENCODER": "hashing"},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr[-3000:]
    figures = json.loads(told.stdout.splitlines()[-1])
    assert figures["promoted"]
    assert figures["events"] > 1000
    assert figures["items"] > 100
    assert {"item-knn", "popularity"} & {line[0] for line in figures["quality"]} or len(figures["quality"]) >= 3
    assert figures["click_to_list_ms"] < 10_000
    assert figures["newborn_ms"] is not None
    assert "before" in told.stderr
    assert "after" in told.stderr
    assert "curl -s" in told.stderr
    assert not (home / "api.json").exists()
    assert (home / "run.lock").read_text() == ""
    refuse_strangers(home)  # `reset`, and the next demo, know all that lies there
