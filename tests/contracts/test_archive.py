"""The promises of an archive (once, in order, half-open), held over the in-memory one and the parquet parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as replaced

from feature_repo.stores import parts_io
from services.archive import columns
from services.archive.parts import FOR_EVER, ParquetArchive
from services.domain import Coordinate, Event, ItemChange, Pick, Reason, Slate, StageUnavailable, to_us
from services.memory import MemoryArchive
from services.ports import Archive

DAY = datetime(2026, 11, 22, tzinfo=UTC)
NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
Made = Callable[[Mapping[str, int]], Archive]


def at(offset: int, topic: str = "freshrank.events") -> Coordinate:
    return Coordinate("log", topic, 0, offset)


def event(event_id: str, hour: float, user_id: str = "ann") -> Event:
    return Event(event_id, user_id, "film", "click", DAY + timedelta(hours=hour), NOW)


def slate(request_id: str, hour: float) -> Slate:
    picks = (Pick("b", 0, 1.5, "faiss", Reason("for_you", (), "")), Pick("a", 1, 1.0, "new", Reason("new_in", (), "")))
    return Slate(request_id, "ann", "r1", 17, 3, picks, ("features",), (), DAY + timedelta(hours=hour))


class ArchiveContract:
    """The suite. `made(erased)` gives an empty archive that forgets what `erased` says."""

    @pytest.fixture
    def made(self) -> Made:
        raise AssertionError("each implementation gives its own")

    @pytest.fixture
    def archive(self, made: Made) -> Archive:
        return made({})

    def test_an_empty_archive_has_no_events_and_no_bounds(self, archive: Archive) -> None:
        assert list(archive.events(*FOR_EVER)) == []
        assert list(archive.slates(*FOR_EVER)) == []
        assert archive.bounds() is None

    def test_every_field_of_an_event_comes_back(self, archive: Archive) -> None:
        full = Event(
            "e1", "änn", "film", "rating", DAY + timedelta(microseconds=1), NOW, 8.5, "r1", "s1", {"page": "höme"}
        )
        bare = Event("e2", "ann", "film", "click", DAY + timedelta(microseconds=2), NOW)
        archive.append([(at(0), full), (at(1), bare)], [], [])
        assert list(archive.events(*FOR_EVER)) == [full, bare]

    def test_events_come_by_time_and_then_by_id_whatever_the_order_of_appending(self, archive: Archive) -> None:
        a, b, c, d = event("a", 30), event("b", 3), event("c", 3), event("d", 1)
        archive.append([(at(0), a), (at(1), c)], [], [])
        archive.append([(at(2), d), (at(3), b)], [], [])
        assert [e.event_id for e in archive.events(*FOR_EVER)] == ["d", "b", "c", "a"]

    def test_a_span_includes_its_start_and_excludes_its_end(self, archive: Archive) -> None:
        archive.append([(at(n), event(str(n), n)) for n in range(5)], [], [])
        span = (DAY + timedelta(hours=1), DAY + timedelta(hours=3))
        assert [e.event_id for e in archive.events(*span)] == ["1", "2"]

    def test_a_coordinate_appended_twice_is_there_once(self, archive: Archive) -> None:
        for _ in range(2):
            archive.append([(at(0), event("a", 1))], [(at(0, "freshrank.slates"), slate("r1", 1))], [])
        assert [e.event_id for e in archive.events(*FOR_EVER)] == ["a"]
        assert [s.request_id for s in archive.slates(*FOR_EVER)] == ["r1"]

    def test_an_event_sent_twice_in_a_day_is_there_once_and_on_another_day_again(self, archive: Archive) -> None:
        archive.append([(at(0), event("a", 2)), (at(1), event("a", 1)), (at(2), event("a", 25))], [], [])
        assert [e.occurred_at.hour for e in archive.events(*FOR_EVER)] == [1, 1]

    def test_a_slate_comes_back_whole_by_the_time_it_was_asked(self, archive: Archive) -> None:
        late, early = slate("r2", 40), slate("r1", 2)
        archive.append([], [(at(0, "freshrank.slates"), late), (at(1, "freshrank.slates"), early)], [])
        assert list(archive.slates(*FOR_EVER)) == [early, late]
        assert list(archive.slates(DAY, DAY + timedelta(hours=40))) == [early]

    def test_the_bounds_are_the_first_and_the_last_event(self, archive: Archive) -> None:
        archive.append([(at(0), event("a", 50)), (at(1), event("b", 3)), (at(2), event("c", 30))], [], [])
        assert archive.bounds() == (DAY + timedelta(hours=3), DAY + timedelta(hours=50))

    def test_what_was_accepted_before_an_erasure_is_forgotten_and_later_events_are_not(self, made: Made) -> None:
        archive = made({"ann": to_us(NOW)})
        after = replaced(event("b", 2), accepted_at=NOW)
        before = replaced(event("a", 1), accepted_at=NOW - timedelta(microseconds=1))
        archive.append(
            [(at(0), before), (at(1), after), (at(2), replaced(before, event_id="c", user_id="bob"))], [], []
        )
        archive.append([], [(at(0, "freshrank.slates"), slate("r1", 1))], [])
        assert {e.event_id for e in archive.events(*FOR_EVER)} == {"b", "c"}
        assert list(archive.slates(*FOR_EVER)) == []


class TestMemory(ArchiveContract):
    @pytest.fixture
    def made(self) -> Made:
        return lambda erased: MemoryArchive(lambda: erased)


class TestParquet(ArchiveContract):
    @pytest.fixture
    def made(self, tmp_path: Path) -> Made:
        return lambda erased: ParquetArchive(tmp_path / "archive", lambda: erased)


# --------------------------------------------------------------------------------- the parquet one alone


def exploring(request_id: str, hour: float) -> Slate:
    drawn = Pick("c", 2, 0.5, "explored", Reason("explored", (), ""), 0.25)
    return replace(slate(request_id, hour), items=(*slate(request_id, hour).items, drawn))


def append_as_before_propensities(folder: Path, offset: int, made: Slate) -> None:
    """A part as it was written before slates could explore."""
    schema = columns.slate_schema()
    before = schema.remove(schema.get_field_index("propensities"))
    table = columns.slate_table([(at(offset, "freshrank.slates"), made)]).drop_columns(["propensities"])
    parts_io.append_part(folder / "slates" / "2026-11-22", table, before)


def test_slates_that_explored_are_found_by_their_propensities(tmp_path: Path) -> None:
    archive = ParquetArchive(tmp_path)
    rows = [(at(0, "freshrank.slates"), slate("r1", 1)), (at(1, "freshrank.slates"), exploring("r2", 2))]
    archive.append([], rows, [])
    assert list(archive.slates(*FOR_EVER)) == [slate("r1", 1), exploring("r2", 2)]
    assert list(archive.slates_explored(*FOR_EVER)) == [exploring("r2", 2)]


@pytest.mark.parametrize("older_first", [True, False])
def test_parts_from_before_there_were_propensities_are_still_read(tmp_path: Path, older_first: bool) -> None:
    archive = ParquetArchive(tmp_path)
    newer = [(at(1, "freshrank.slates"), exploring("r2", 2))]
    if not older_first:
        archive.append([], newer, [])
    append_as_before_propensities(tmp_path, 0, slate("r1", 1))
    if older_first:
        assert list(archive.slates(*FOR_EVER)) == [slate("r1", 1)]
        assert list(archive.slates_explored(*FOR_EVER)) == []
        archive.append([], newer, [])
    assert list(archive.slates(*FOR_EVER)) == [slate("r1", 1), exploring("r2", 2)]
    assert list(archive.slates_explored(*FOR_EVER)) == [exploring("r2", 2)]
    assert archive.slates_served(*FOR_EVER) == 2


def test_parts_from_before_there_were_propensities_are_merged_with_newer_ones(tmp_path: Path) -> None:
    archive = ParquetArchive(tmp_path)
    for n in range(63):
        append_as_before_propensities(tmp_path, n, slate(f"r{n:02}", n / 10))
    archive.append([], [(at(63, "freshrank.slates"), exploring("r63", 7))], [])
    assert len(parts_io.live_parts(tmp_path / "slates" / "2026-11-22")) == 1
    assert [s.request_id for s in archive.slates(*FOR_EVER)] == [f"r{n:02}" for n in range(64)]
    assert list(archive.slates_explored(*FOR_EVER)) == [exploring("r63", 7)]


def test_it_is_all_there_after_reopening(tmp_path: Path) -> None:
    ParquetArchive(tmp_path).append([(at(0), event("a", 1))], [], [])
    assert [e.event_id for e in ParquetArchive(tmp_path).events(*FOR_EVER)] == ["a"]


def test_events_lie_by_the_utc_day_they_occurred_on(tmp_path: Path) -> None:
    ParquetArchive(tmp_path).append([(at(0), event("a", 23.99)), (at(1), event("b", 24))], [], [])
    assert sorted(path.name for path in (tmp_path / "events").iterdir()) == ["2026-11-22", "2026-11-23"]


def test_many_small_appends_are_merged_and_read_the_same(tmp_path: Path) -> None:
    archive = ParquetArchive(tmp_path)
    for n in range(70):
        archive.append([(at(n), event(f"{n:02}", n / 100))], [], [])
    assert len(list((tmp_path / "events" / "2026-11-22").glob("part-*.parquet"))) == 71  # 64 replaced, merged, 6 more
    assert [e.event_id for e in archive.events(*FOR_EVER)] == [f"{n:02}" for n in range(70)]


def test_rows_are_appended_once_also_where_a_merge_fails(tmp_path: Path) -> None:
    """Else whoever appends would append them again, as long as the merge fails."""
    archive = ParquetArchive(tmp_path)
    archive.append([(at(0), event("00", 0))], [], [])
    (damaged,) = (tmp_path / "events" / "2026-11-22").glob("part-*.parquet")
    damaged.write_bytes(damaged.read_bytes()[:100])  # merging has to read it
    for n in range(1, 70):
        archive.append([(at(n), event(f"{n:02}", n / 100))], [], [])
    assert len(list((tmp_path / "events" / "2026-11-22").glob("part-*.parquet"))) == 70


def test_merging_removes_erased_users_from_the_disk(tmp_path: Path) -> None:
    erased: dict[str, int] = {}
    archive = ParquetArchive(tmp_path, lambda: erased)
    for n in range(63):
        archive.append([(at(n), event(f"{n:02}", 1, "ann" if n % 2 else "bob"))], [], [])
    erased["ann"] = to_us(NOW) + 1
    archive.append([(at(63), replaced(event("63", 1, "ann"), accepted_at=NOW + timedelta(seconds=1)))], [], [])
    erased.clear()
    kept = list(archive.events(*FOR_EVER))
    assert [e.event_id for e in kept if e.user_id == "ann"] == ["63"]
    assert len(kept) == 33


def test_a_disk_that_refuses_a_part_is_named_in_one_sentence(tmp_path: Path) -> None:
    archive = ParquetArchive(tmp_path)
    (tmp_path / "events").write_text("in the way")
    with pytest.raises(StageUnavailable, match=r"the archive .* could not be written: .*Not a directory"):
        archive.append([(at(0), event("a", 1))], [], [])


def test_a_damaged_part_is_named_and_not_passed_over(tmp_path: Path) -> None:
    archive = ParquetArchive(tmp_path)
    archive.append([(at(0), event("a", 1))], [], [])
    (part,) = (tmp_path / "events" / "2026-11-22").glob("part-*.parquet")
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(StageUnavailable, match=part.name):
        list(archive.events(*FOR_EVER))


def test_the_table_holds_the_same_rows_in_the_same_order_as_the_events(tmp_path: Path) -> None:
    archive = ParquetArchive(tmp_path)
    archive.append([(at(n), event(f"{n}", 90 - n)) for n in range(50)] + [(at(99), event("7", 83.5))], [], [])
    table = archive.events_table(*FOR_EVER)
    assert table.column("event_id").to_pylist() == [e.event_id for e in archive.events(*FOR_EVER)]
    assert table.column("occurred_us").to_pylist() == [to_us(e.occurred_at) for e in archive.events(*FOR_EVER)]
    assert archive.events_table(*FOR_EVER, wanted=("item_id",)).column_names == ["item_id"]


def test_an_empty_table_has_its_columns(tmp_path: Path) -> None:
    table = ParquetArchive(tmp_path).events_table(*FOR_EVER)
    assert (table.num_rows, table.column_names[:3]) == (0, ["event_id", "user_id", "item_id"])


def test_item_changes_come_back_with_their_coordinates_in_the_order_of_their_acceptance(tmp_path: Path) -> None:
    archive = ParquetArchive(tmp_path)
    put = ItemChange("film", "put", {"title": "Film", "categories": ("Drama",), "published_at": LONG_AGO}, DAY, NOW)
    gone = ItemChange("film", "delete", {}, NOW, NOW + timedelta(seconds=1))
    for _ in range(2):
        archive.append([], [], [(at(1, "freshrank.items"), gone), (at(0, "freshrank.items"), put)])
    read = list(archive.item_changes(*FOR_EVER))
    assert read == [(at(0, "freshrank.items"), put), (at(1, "freshrank.items"), gone)]


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.lists(st.integers(0, 40), max_size=10), min_size=1, max_size=4))
def test_the_parts_and_the_memory_agree_on_any_stream(
    tmp_path_factory: pytest.TempPathFactory, appends: list[list[int]]
) -> None:
    parts, memory = ParquetArchive(tmp_path_factory.mktemp("archive")), MemoryArchive()
    for offsets in appends:  # what stands at an offset follows from the offset, so a repeated one is a replay
        rows = [(at(offset), event("abcdef"[offset % 6], float(offset * 5 % 61))) for offset in offsets]
        parts.append(rows, [], [])
        memory.append(rows, [], [])
    assert list(parts.events(*FOR_EVER)) == list(memory.events(*FOR_EVER))
    assert parts.bounds() == memory.bounds()
