"""The promises of a quarantine (once, in order, bounded, replayed once), over the in-memory one and the SQL one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine

from services.archive.rejected import SqlQuarantine
from services.domain import Coordinate
from services.memory import MemoryQuarantine
from services.ports import Quarantine
from services.quarantine import Rejected, Wanted

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
ODD_KEY = b"\xff\x00key".decode("utf-8", "surrogateescape")
Make = Callable[..., Quarantine]


def bad(offset: int, reason: str = "not_json", log_id: str = "log", value: bytes = b"\xff\x00{") -> Rejected:
    at = NOW + timedelta(minutes=offset)
    return Rejected(Coordinate(log_id, "freshrank.events", 1, offset), reason, "why", value, at, ODD_KEY, len(value))


def offsets(quarantine: Quarantine, wanted: Wanted | None = None) -> list[int]:
    return [e.rejected.coordinate.offset for e in quarantine.list(100, 0, wanted or Wanted())]


class QuarantineContract:
    """The suite."""

    @pytest.fixture
    def make(self) -> Make:
        raise AssertionError("each implementation gives its own")

    @pytest.fixture
    def quarantine(self, make: Make) -> Quarantine:
        return make()

    def test_what_is_added_comes_back_whole_in_order(self, quarantine: Quarantine) -> None:
        quarantine.add([bad(5), bad(3, "future")])
        assert [entry.rejected for entry in quarantine.list(10)] == [bad(5), bad(3, "future")]

    def test_a_coordinate_is_stored_once_and_another_log_is_another_coordinate(self, quarantine: Quarantine) -> None:
        quarantine.add([bad(5)])
        quarantine.add([bad(5), bad(5, log_id="other"), bad(6)])
        assert offsets(quarantine) == [5, 5, 6]

    def test_a_list_goes_on_after_a_number(self, quarantine: Quarantine) -> None:
        quarantine.add([bad(offset) for offset in range(5)])
        first = quarantine.list(2)
        second = quarantine.list(2, first[-1].number)
        assert [entry.rejected.coordinate.offset for entry in second] == [2, 3]
        found = quarantine.get(second[0].number)
        assert found == second[0]
        assert quarantine.get(second[-1].number + 100) is None

    def test_entries_are_counted_by_reason(self, quarantine: Quarantine) -> None:
        assert quarantine.count() == {}
        quarantine.add([bad(1), bad(2), bad(3, "future")])
        assert quarantine.count() == {"not_json": 2, "future": 1}

    def test_entries_are_found_by_reason_topic_time_and_whether_they_were_replayed(
        self, quarantine: Quarantine
    ) -> None:
        quarantine.add([bad(1), bad(2, "future"), bad(3)])
        quarantine.claim(quarantine.list(1)[0].number, NOW)
        assert offsets(quarantine, Wanted(reason="not_json")) == [1, 3]
        assert offsets(quarantine, Wanted(topic="freshrank.items")) == []
        assert offsets(quarantine, Wanted(topic="freshrank.events")) == [1, 2, 3]
        assert offsets(quarantine, Wanted(since=bad(2).accepted_at)) == [2, 3]
        assert offsets(quarantine, Wanted(until=bad(2).accepted_at)) == [1]
        assert offsets(quarantine, Wanted(replayed=True)) == [1]
        assert offsets(quarantine, Wanted(reason="not_json", replayed=False)) == [3]

    def test_an_entry_is_claimed_once_unless_it_is_released_or_wanted_again(self, quarantine: Quarantine) -> None:
        quarantine.add([bad(1)])
        number = quarantine.list(1)[0].number
        assert quarantine.claim(number, NOW)
        assert not quarantine.claim(number, NOW)
        quarantine.release(number)
        assert quarantine.claim(number, NOW)
        quarantine.settle(number, Coordinate("log/a", "freshrank.events", 2, 9))
        entry = quarantine.list(1)[0]
        assert (entry.replayed_at, entry.replayed_as) == (NOW, Coordinate("log/a", "freshrank.events", 2, 9))
        assert not quarantine.claim(number, NOW)
        assert quarantine.claim(number, NOW + timedelta(hours=1), again=True)
        assert not quarantine.claim(number + 1, NOW)

    def test_of_a_large_message_the_first_bytes_are_kept_and_its_size(self, make: Make) -> None:
        quarantine = make(entry_bytes_max=4)
        quarantine.add([bad(1, value=b"0123456789")])
        kept = quarantine.list(1)[0].rejected
        assert (kept.value, kept.size, kept.is_whole) == (b"0123", 10, False)

    def test_a_full_quarantine_lets_the_oldest_go_and_counts_them(self, make: Make) -> None:
        quarantine = make(bytes_max=10_000)
        for offset in range(100):
            quarantine.add([bad(offset, value=b"x" * 700)])  # over 1,000 bytes each with what stands beside it
        kept = offsets(quarantine)
        assert 8 <= len(kept) < 10
        assert kept == list(range(100 - len(kept), 100))
        assert quarantine.forgotten() == 100 - len(kept)

    def test_one_batch_above_the_bound_keeps_the_newest(self, make: Make) -> None:
        quarantine = make(bytes_max=10_000)
        quarantine.add([bad(offset, value=b"x" * 700) for offset in range(100)])
        assert 8 <= len(offsets(quarantine)) < 10
        assert offsets(quarantine)[-1] == 99


class TestMemory(QuarantineContract):
    @pytest.fixture
    def make(self) -> Make:
        return MemoryQuarantine


class TestSql(QuarantineContract):
    @pytest.fixture
    def make(self, engine: Engine) -> Make:
        return lambda **settings: SqlQuarantine(engine, **settings)

    def test_it_forgets_what_the_bus_forgets(self, quarantine: Quarantine) -> None:
        assert isinstance(quarantine, SqlQuarantine)
        quarantine.add([bad(0)])
        assert quarantine.expire(NOW) == 0
        assert quarantine.expire(NOW + timedelta(microseconds=1)) == 1
        assert quarantine.count() == {}

    def test_what_expired_makes_room(self, make: Make) -> None:
        quarantine = make(bytes_max=10_000)
        assert isinstance(quarantine, SqlQuarantine)
        for offset in range(50):
            quarantine.add([bad(offset, value=b"x" * 700)])
            quarantine.expire(NOW + timedelta(days=1))
        assert quarantine.forgotten() == 0
