"""A training run at the command line that is told to stop: it is written down, and the next one can begin at once."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import select

from services.tables import leases, open_database
from services.training.registry import SqlRegistry

ROOT = Path(__file__).resolve().parents[2]
SLEEPS = """
import sys, time
import services.learning
from services.cli import main

class Sleeps:
    def build(self, now, live):
        print("building", flush=True)
        time.sleep(60)

services.learning._release_parts = lambda home, progress: Sleeps()
main(("--home", sys.argv[1], "retrain", "--json"))
"""


def test_a_run_that_is_terminated_is_written_down_and_gives_its_lease_back(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLEEPS, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "building\n"
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 143
    engine = open_database(tmp_path / "meta.db")
    (run,) = SqlRegistry(engine, lambda: datetime.now(UTC), tmp_path / "releases").runs(5)
    assert (run.state, run.message, run.ended_at is not None) == ("failed", "interrupted", True)
    assert (tmp_path / "runs" / run.run_id / "report.md").is_file()
    with engine.connect() as connection:
        assert connection.execute(select(leases)).all() == []
