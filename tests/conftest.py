"""What every test gets: log lines that go where the test's own output goes, whatever a test before it has set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

pytest_plugins = ["live_stack", "databases"]


@pytest.fixture(autouse=True)
def _logs_of_this_test() -> Iterator[None]:
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
