"""Two processes over Gloo, each with its half of every batch, fit the tower that one process with whole ones does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
from ranks_runner import fitted_vectors

from models.checkpoint import NAME
from models.ranks import ALONE, joined

TESTS = Path(__file__).resolve().parents[1]


def _start(folder: Path, targets: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    checkpoints = folder / environment["RANK"]
    command = [sys.executable, str(TESTS / "ranks_runner.py"), str(folder / "vectors"), str(targets), str(checkpoints)]
    whole = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, env=whole, start_new_session=True)


def test_two_processes_fit_what_one_with_batches_twice_as_large_does(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running = [_start(tmp_path, 64, {**meeting, "RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")]
    try:
        alone = fitted_vectors(128, tmp_path / "alone")
        assert [process.wait(100) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    first, second = (np.load(tmp_path / f"vectors-{rank}.npy") for rank in "01")
    assert np.array_equal(first, second)
    assert np.abs(first - alone).max() < 1e-4
    assert (tmp_path / "0" / NAME).exists()
    assert not (tmp_path / "1" / NAME).exists(), "only the first process writes"


def test_without_a_group_in_the_environment_a_process_is_alone() -> None:
    with joined({}) as ranks:
        assert ranks == ALONE
        assert ranks.agreed(0.5) == 0.5
    with joined({"WORLD_SIZE": "1", "RANK": "0"}) as ranks:
        assert ranks.writes
