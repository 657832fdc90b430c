"""A training run at the command line: one that is told to stop is written down, and the next one can begin at once; a
scheduled one trains only where something came since."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from model_world import tiny_release
from sqlalchemy import select

from services.cli import main
from services.domain import Coordinate, Event, ReleaseInfo, to_us
from services.learning import has_news
from services.retrain import EVENTS_UNTIL
from services.settings import load_settings
from services.sqlite import open_database
from services.tables import leases
from services.training.registry import SqlRegistry
from services.wiring import open_home

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


def test_a_scheduled_run_trains_only_if_events_came_since_the_newest_release_was_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRESHRANK_HOME", str(tmp_path))
    settings = load_settings(home=tmp_path)
    newest = datetime.now(UTC) - timedelta(hours=1)
    folder = tmp_path / "releases" / "r1"

    def happened(offset: int, at: datetime) -> None:
        event = Event(f"e{offset}", "ann", "a", "click", at, at, None, None, None, {})
        with open_home(settings) as home:
            home.archive.append([(Coordinate("log", "freshrank.events", 0, offset), event)], (), ())

    happened(0, newest)
    assert has_news(settings), "there is no release yet"
    release = tiny_release("r1")
    notes = {EVENTS_UNTIL: float(to_us(newest) + 1)}
    replace(release, manifest=replace(release.manifest, notes=notes)).save(folder)
    with open_home(settings) as home:
        home.registry.publish(ReleaseInfo("r1", str(folder), newest, newest))
    assert not has_news(settings)
    with pytest.raises(SystemExit) as ended:
        main(("retrain", "--if-new", "--json"))
    assert not ended.value.code
    assert "no event came since the newest release was judged" in capsys.readouterr().out
    happened(1, newest + timedelta(seconds=1))
    assert has_news(settings)
