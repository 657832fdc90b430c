"""What every test gets: settings and log lines that no test before it has set."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import structlog

# A worker of the suite per core: threads within each would take turns, and wait for each other awake.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

pytest_plugins = ["live_stack", "databases"]


@pytest.fixture(autouse=True)
def _settings_of_this_test() -> Iterator[None]:
    """A command that runs in this process leaves the home it was given in the environment."""
    before = {name: value for name, value in os.environ.items() if name.startswith("FRESHRANK_")}
    yield
    for name in [name for name in os.environ if name.startswith("FRESHRANK_")]:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True)
def _logs_of_this_test() -> Iterator[None]:
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
