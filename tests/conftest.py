"""What every test gets: log lines that go where the test's own output goes, whatever a test before it has set."""

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
def _logs_of_this_test() -> Iterator[None]:
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
