"""ReleaseRegistry: exactly one live release, promotion under two writers, ids published once; memory and SQLite."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from services.domain import BadRequest, Metric, ReleaseInfo, Verdict
from services.memory import MemoryRegistry
from services.ports import ReleaseRegistry
from services.training.registry import SqlRegistry

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
METRICS = (Metric("pipeline", "all", "ndcg@10", 0.125, 640),)


class Clock:
    """A second passes with every look."""

    def __init__(self) -> None:
        self.seconds = 0

    def __call__(self) -> datetime:
        self.seconds += 1
        return NOON + timedelta(seconds=self.seconds)


def release(number: int, folder: str = "") -> ReleaseInfo:
    at = NOON + timedelta(hours=number)
    return ReleaseInfo(f"r{number}", folder or f"/nowhere/r{number}", at, at - timedelta(days=7), metrics=METRICS)


class RegistrySuite:
    @pytest.fixture
    def registry(self) -> ReleaseRegistry:
        raise AssertionError("an implementation gives its registry")

    def test_before_the_first_promotion_nothing_is_live(self, registry: ReleaseRegistry) -> None:
        assert registry.live() is None
        registry.publish(release(1))
        assert registry.live() is None
        assert [each.release_id for each in registry.all()] == ["r1"]

    def test_exactly_one_release_is_live_after_two_promotions(self, registry: ReleaseRegistry) -> None:
        for number in (1, 2):
            registry.publish(release(number))
            registry.promote(f"r{number}")
        assert [(each.release_id, each.live, each.promoted) for each in registry.all()] == [
            ("r2", True, True),
            ("r1", False, True),
        ]
        live = registry.live()
        assert live is not None
        assert live.release_id == "r2"

    def test_what_was_published_is_read_back_with_the_verdict_s_reason(self, registry: ReleaseRegistry) -> None:
        registry.publish(release(1))
        registry.promote("r1", Verdict("r1", True, "promoted: better", METRICS))
        live = registry.live()
        assert live is not None
        assert (live.created_at, live.data_until) == (release(1).created_at, release(1).data_until)
        assert (live.reason, live.metrics, live.path) == ("promoted: better", METRICS, "/nowhere/r1")

    def test_an_id_is_published_once(self, registry: ReleaseRegistry) -> None:
        registry.publish(release(1))
        with pytest.raises(BadRequest, match="r1 is published already"):
            registry.publish(release(1))

    def test_an_unknown_release_cannot_be_promoted_and_the_live_one_stays(self, registry: ReleaseRegistry) -> None:
        registry.publish(release(1))
        registry.promote("r1")
        with pytest.raises(BadRequest, match="no release r9"):
            registry.promote("r9")
        live = registry.live()
        assert live is not None
        assert live.release_id == "r1"

    def test_two_writers_that_promote_at_once_leave_exactly_one_live(self, registry: ReleaseRegistry) -> None:
        for number in range(4):
            registry.publish(release(number))

        promoted: list[int] = []

        def promote(number: int) -> None:
            for _ in range(5):
                registry.promote(f"r{number}")
                promoted.append(number)

        writers = [threading.Thread(target=promote, args=(number,)) for number in range(4)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert len(promoted) == 20, "every promotion went through"
        assert [each.live for each in registry.all()].count(True) == 1


class TestMemoryRegistry(RegistrySuite):
    @pytest.fixture
    def registry(self) -> ReleaseRegistry:
        return MemoryRegistry()


class TestSqlRegistry(RegistrySuite):
    @pytest.fixture
    def registry(self, engine: Engine, tmp_path: Path) -> ReleaseRegistry:
        return SqlRegistry(engine, Clock(), tmp_path / "releases")

    def test_rollback_goes_back_promotion_by_promotion(self, registry: SqlRegistry) -> None:
        for number in (1, 2, 3):
            registry.publish(release(number))
        for release_id in ("r1", "r3", "r2"):
            registry.promote(release_id)
        assert registry.rollback().release_id == "r3"
        assert [each.release_id for each in registry.all() if each.live] == ["r3"]
        assert registry.rollback().release_id == "r1"
        with pytest.raises(BadRequest, match="no earlier release"):
            registry.rollback()

    def test_pruning_keeps_the_newest_the_live_one_and_the_one_before_it(
        self, registry: SqlRegistry, tmp_path: Path
    ) -> None:
        for number in range(6):
            folder = tmp_path / "releases" / f"r{number}"
            folder.mkdir(parents=True)
            registry.publish(release(number, str(folder)))
        registry.promote("r0")
        registry.promote("r1")
        assert registry.prune(keep=2) == ("r3", "r2")
        assert sorted(path.name for path in (tmp_path / "releases").iterdir()) == ["r0", "r1", "r4", "r5"]
        with pytest.raises(BadRequest):
            registry.promote("r3")

    def test_none_goes_back_to_a_release_that_was_gone_back_from(self, registry: SqlRegistry) -> None:
        for number in (1, 2, 3):
            registry.publish(release(number))
        registry.promote("r1")
        registry.promote("r2")
        registry.rollback()
        registry.promote("r3")
        assert registry.rollback().release_id == "r1"

    def test_pruning_keeps_what_was_live_before_by_promotion_not_by_age(
        self, registry: SqlRegistry, tmp_path: Path
    ) -> None:
        for number in range(8):
            registry.publish(release(number))
        for release_id in ("r0", "r1", "r2", "r0", "r1"):  # before r1 there was r0, the oldest
            registry.promote(release_id)
        assert registry.prune(keep=2) == ("r5", "r4", "r3", "r2")

    def test_pruning_removes_what_a_run_that_died_left_half_written(
        self, registry: SqlRegistry, tmp_path: Path
    ) -> None:
        for name in (".r7.writing", "mine"):
            (tmp_path / "releases" / name).mkdir(parents=True)
        registry.prune(keep=2)
        assert [each.name for each in (tmp_path / "releases").iterdir()] == ["mine"]

    def test_a_release_whose_row_cannot_be_written_leaves_no_folder(self, engine: Engine, tmp_path: Path) -> None:
        folder = tmp_path / "releases" / "r1"
        folder.mkdir(parents=True)
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE releases RENAME COLUMN reason TO why"))
        with pytest.raises(SQLAlchemyError):
            SqlRegistry(engine, Clock(), tmp_path / "releases").publish(release(1, str(folder)))
        assert not folder.exists()

    def test_runs_are_listed_newest_first_with_how_they_ended(self, registry: SqlRegistry) -> None:
        registry.start_run("run-1", NOON, "demo")
        registry.start_run("run-2", NOON + timedelta(hours=1), "demo")
        registry.end_run("run-1", NOON + timedelta(seconds=90), "failed", None, "no events")
        verdict = Verdict("r7", True, "promoted", METRICS)
        registry.end_run("run-2", NOON + timedelta(hours=2), "done", verdict, verdict.reason)
        newest, oldest = registry.runs(10)
        assert (newest.run_id, newest.state, newest.release_id, newest.seconds, newest.metrics) == (
            "run-2", "done", "r7", 3600.0, METRICS,
        )  # fmt: skip
        assert (oldest.state, oldest.message, oldest.seconds, oldest.ended_at) == (
            "failed", "no events", 90.0, NOON + timedelta(seconds=90),
        )  # fmt: skip
        assert len(registry.runs(1)) == 1
