"""The point-in-time join: 100,000 entity rows against 1,000,000 feature rows with lists."""

from __future__ import annotations

import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from figures import Figure, figure

from services.domain import Interaction, UserState, to_us
from services.settings import load_settings
from services.wiring import open_home

USERS, ROWS_PER_USER, LENGTH, ENTITY_ROWS = 50_000, 20, 50, 100_000
USERS_AT_ONCE = 500


def point_in_time(home: Path) -> Figure:
    """Write the history through the store, then join; rows a second of one join."""
    shutil.rmtree(home, ignore_errors=True)
    start_us = to_us(datetime(2026, 1, 1, tzinfo=UTC))
    chance = np.random.default_rng(0)
    with open_home(load_settings(home=home)) as opened:
        for first in range(0, USERS, USERS_AT_ONCE):
            opened.features.append_history(
                [row for user in range(first, first + USERS_AT_ONCE) for row in _rows(user, start_us)],
                datetime.now(UTC),
            )
        users = [f"u{user}" for user in chance.integers(0, USERS, ENTITY_ROWS).tolist()]
        span_us = int(timedelta(days=ROWS_PER_USER).total_seconds() * 1e6)
        times_us = start_us + chance.integers(0, span_us, ENTITY_ROWS)
        started = time.perf_counter()
        joined = opened.history.users_at(users, times_us)
        seconds = time.perf_counter() - started
    assert len(joined.row_time_us) == ENTITY_ROWS
    shutil.rmtree(home, ignore_errors=True)
    return figure("point_in_time_rows_per_s", ENTITY_ROWS / seconds)


def _rows(user: int, start_us: int) -> list[UserState]:
    """ROWS_PER_USER rows of one user, a day apart, each with LENGTH events."""
    day_us = 86_400_000_000
    events = tuple(
        Interaction(
            start_us - n * 1_000_000, user * 1000 + n, f"item-{(user * 31 + n * 7) % 20_000}", "click", None, 1.0
        )
        for n in range(LENGTH)
    )
    return [
        UserState(f"u{user}", events, first_seen_us=start_us, row_time_us=start_us + day * day_us + user)
        for day in range(ROWS_PER_USER)
    ]
