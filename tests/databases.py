"""The metadata database as tests get it: every test that asks for `engine` runs on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from services.postgresql import open_postgresql
from services.sqlite import open_database


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.live)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """An empty metadata database of this test alone, of each kind."""
    if request.param == "sqlite":
        made = open_database(tmp_path / "meta.db")
    else:
        made = open_postgresql(request.getfixturevalue("database_url"))
    yield made
    made.dispose()
