"""A Feast repository on a home of its own, quickly: applied once per test run, copied for each test."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from services.features.opening import import_feast, open_feast
from services.features.places import redis_online

import_feast()  # before any test imports Feast itself, in four times the time


def feast_at(home: Path, redis_url: str = "", read_wait_ms: int = 1000) -> Any:
    """An open store whose state lies under `home`, its online rows in Redis where an address is given."""
    if not home.exists():
        shutil.copytree(_applied(), home)
    return open_feast(home, read_wait_ms, online=redis_online(redis_url, "freshrank") if redis_url else None)


@cache
def _applied() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="freshrank-feast-"))
    store = open_feast(folder / "home")
    store.provider.online_store.close()
    return folder / "home"
