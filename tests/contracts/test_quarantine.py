"""The promises of a quarantine (whole, once, listed in order), over the in-memory one and the SQL one."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.archive.rejected import SqlQuarantine
from services.domain import Coordinate, Rejected
from services.memory import MemoryQuarantine
from services.ports import Quarantine
from services.tables import open_database

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def bad(offset: int, reason: str = "not_json", log_id: str = "log") -> Rejected:
    return Rejected(Coordinate(log_id, "freshrank.events", 1, offset), reason, "why", b"\xff\x00{", NOW)


class QuarantineContract:
    """The suite."""

    @pytest.fixture
    def quarantine(self) -> Quarantine:
        raise AssertionError("each implementation gives its own")

    def test_what_is_added_comes_back_whole_in_order(self, quarantine: Quarantine) -> None:
        quarantine.add([bad(5), bad(3, "future")])
        assert [each for _, each in quarantine.list(10)] == [bad(5), bad(3, "future")]

    def test_a_coordinate_is_stored_once_and_another_log_is_another_coordinate(self, quarantine: Quarantine) -> None:
        quarantine.add([bad(5)])
        quarantine.add([bad(5), bad(5, log_id="other"), bad(6)])
        assert [each.coordinate.offset for _, each in quarantine.list(10)] == [5, 5, 6]

    def test_a_list_goes_on_after_a_number(self, quarantine: Quarantine) -> None:
        quarantine.add([bad(offset) for offset in range(5)])
        first = quarantine.list(2)
        assert [each.coordinate.offset for _, each in quarantine.list(2, after=first[-1][0])] == [2, 3]

    def test_entries_are_counted_by_reason(self, quarantine: Quarantine) -> None:
        assert quarantine.count() == {}
        quarantine.add([bad(1), bad(2), bad(3, "future")])
        assert quarantine.count() == {"not_json": 2, "future": 1}


class TestMemory(QuarantineContract):
    @pytest.fixture
    def quarantine(self) -> Quarantine:
        return MemoryQuarantine()


class TestSql(QuarantineContract):
    @pytest.fixture
    def quarantine(self, tmp_path: Path) -> Iterator[Quarantine]:
        engine = open_database(tmp_path / "meta.db")
        yield SqlQuarantine(engine)
        engine.dispose()

    def test_it_forgets_what_the_bus_forgets(self, quarantine: Quarantine) -> None:
        assert isinstance(quarantine, SqlQuarantine)
        quarantine.add([bad(1)])
        assert quarantine.expire(NOW) == 0
        assert quarantine.expire(NOW + timedelta(microseconds=1)) == 1
        assert quarantine.count() == {}
