"""A home that processes use is not deleted under them, and what is being deleted is not opened."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from services.domain import BadRequest
from services.inuse import alone, used

ROOT = Path(__file__).resolve().parents[2]
OPENS = """
import sys
from services.settings import load_settings
from services.wiring import open_home

with open_home(load_settings(home=sys.argv[1])):
    print("open", flush=True)
    sys.stdin.readline()
"""


def test_many_use_a_home_at_once_and_only_then_is_nobody_alone_with_it(tmp_path: Path) -> None:
    with used(tmp_path), used(tmp_path), pytest.raises(BadRequest, match="in use by another"), alone(tmp_path):
        pass
    with alone(tmp_path), pytest.raises(BadRequest, match="being deleted"), used(tmp_path):
        pass
    with used(tmp_path):
        pass


def test_reset_refuses_a_home_that_a_process_has_open_and_goes_ahead_when_that_was_killed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    reset = [sys.executable, "-m", "services.cli", "--home", str(home), "reset", "--yes"]
    with subprocess.Popen(
        [sys.executable, "-c", OPENS, str(home)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as opened:
        assert opened.stdout is not None
        assert opened.stdout.readline() == "open\n"
        (home / "bus.db").touch()  # it has marked nothing yet
        told = subprocess.run(reset, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (told.returncode, "in use by another process" in told.stderr) == (2, True), told.stderr
        assert (home / "bus.db").exists()
        opened.kill()
    told = subprocess.run(reset, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert not (home / "bus.db").exists()
