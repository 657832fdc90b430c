"""A run from the edge: one at a time, its row, its report, its numbers; all of it also when the run fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine

from services.domain import BadRequest, Metric, ReleaseInfo, StageUnavailable, Verdict
from services.retrain import Training
from services.training.lease import Lease
from services.training.registry import SqlRegistry
from services.training.report import Run, report_text, run_training

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
METRICS = tuple(
    Metric(model, part, name, value, users)
    for model, value in (("pipeline", 0.25), ("popularity 7d", 0.125))
    for part, users in (("all", 640), ("new users", 40))
    for name in ("hr@10", "ndcg@10", "mrr")
)


@dataclass
class Clock:
    at: datetime = NOON

    def __call__(self) -> datetime:
        self.at += timedelta(seconds=1)
        return self.at


class Parts:
    """TrainingParts that decide at once."""

    def __init__(self, folder: Path, promoted: bool = True, broken: bool = False) -> None:
        self.folder, self.promoted, self.broken = folder, promoted, broken

    def build(self, now: datetime, live: ReleaseInfo | None) -> datetime:
        if self.broken:
            raise BadRequest("there is no positive event")
        return now

    def fit(self, examples: datetime) -> str:
        return f"r{examples:%H%M%S}"

    def judge(self, challenger: str, live: ReleaseInfo | None, examples: datetime) -> Verdict:
        return Verdict(challenger, self.promoted, "promoted: better" if self.promoted else "not promoted", METRICS)

    def store(self, challenger: str, verdict: Verdict) -> ReleaseInfo:
        (self.folder / challenger).mkdir(parents=True)
        return ReleaseInfo(challenger, str(self.folder / challenger), NOON, NOON, metrics=verdict.metrics)


class Sleepy(Parts):
    """Parts whose process sleeps in one of the steps."""

    def __init__(self, folder: Path, slept_in: str, sleep: Callable[[], None]) -> None:
        super().__init__(folder)
        self.slept_in, self.sleep = slept_in, sleep

    def fit(self, examples: datetime) -> str:
        self._maybe("fit")
        return super().fit(examples)

    def judge(self, challenger: str, live: ReleaseInfo | None, examples: datetime) -> Verdict:
        self._maybe("judge")
        return super().judge(challenger, live, examples)

    def store(self, challenger: str, verdict: Verdict) -> ReleaseInfo:
        self._maybe("store")
        return super().store(challenger, verdict)

    def _maybe(self, step: str) -> None:
        if step == self.slept_in:
            self.sleep()


def run_of(engine: Engine, folder: Path, keep: int = 5) -> Run:
    clock = Clock()
    registry = SqlRegistry(engine, clock, folder.parent / "releases")
    return Run(registry, Lease(engine, "retrain", "me", clock), folder, "demo", clock, keep)


def test_a_run_leaves_a_row_a_report_numbers_and_a_curve(engine: Engine, tmp_path: Path) -> None:
    run = run_of(engine, tmp_path / "runs")
    verdict = run_training(Training(Parts(tmp_path / "releases"), run.registry), run)
    (row,) = run.registry.runs(10)
    folder = tmp_path / "runs" / row.run_id
    assert (row.state, row.release_id, row.message) == ("done", verdict.release_id, "promoted: better")
    assert row.seconds > 0
    report = (folder / "report.md").read_text()
    assert "promoted: better" in report
    assert "| all | pipeline | 640 | 0.2500 | 0.2500 | 0.2500 |" in report
    assert "| new users | popularity 7d | 40 | 0.1250 | 0.1250 | 0.1250 |" in report
    assert len(json.loads((folder / "metrics.json").read_text())) == len(METRICS)
    assert list(folder.glob("events.out.tfevents.*"))
    live = run.registry.live()
    assert live is not None
    assert live.release_id == verdict.release_id


def test_a_run_that_fails_leaves_the_same_and_raises(engine: Engine, tmp_path: Path) -> None:
    run = run_of(engine, tmp_path / "runs")
    with pytest.raises(BadRequest, match="no positive event"):
        run_training(Training(Parts(tmp_path, broken=True), run.registry), run)
    (row,) = run.registry.runs(10)
    assert (row.state, row.message, row.release_id) == ("failed", "there is no positive event", "")
    report = (tmp_path / "runs" / row.run_id / "report.md").read_text()
    assert "state: failed" in report
    assert "Traceback" in report
    Lease(engine, "retrain", "another", run.now).acquire()  # the lease was given back


def test_two_runs_at_once_are_refused_and_the_refused_one_leaves_nothing(engine: Engine, tmp_path: Path) -> None:
    run = run_of(engine, tmp_path / "runs")
    Lease(engine, "retrain", "another", run.now).acquire()
    with pytest.raises(BadRequest, match="running already, by another"):
        run_training(Training(Parts(tmp_path), run.registry), run)
    assert run.registry.runs(10) == []


@pytest.mark.parametrize("slept_in", ["fit", "judge", "store"])
def test_a_run_that_slept_while_another_took_over_publishes_and_promotes_nothing(
    engine: Engine, tmp_path: Path, slept_in: str
) -> None:
    """The first run sleeps for two minutes; the second begins, promotes and ends meanwhile."""
    clock = Clock()
    registry = SqlRegistry(engine, clock, tmp_path / "releases")
    first = Run(registry, Lease(engine, "retrain", "first", clock), tmp_path / "runs", "demo", clock)
    second = replace(first, lease=Lease(engine, "retrain", "second", clock))
    promoted: list[str] = []

    def sleep() -> None:
        clock.at += timedelta(minutes=2)
        parts = Parts(tmp_path / "releases")
        promoted.append(run_training(Training(parts, registry), second).release_id)

    with pytest.raises(StageUnavailable, match="retrain was lost"):
        run_training(Training(Sleepy(tmp_path / "releases", slept_in, sleep), registry), first)
    assert [(each.release_id, each.live) for each in registry.all()] == [(promoted[0], True)]
    assert sorted(each.state for each in registry.runs(10)) == ["done", "failed"]
    assert [each.name for each in (tmp_path / "releases").iterdir()] == promoted


def test_a_run_that_lost_its_lease_between_publication_and_promotion_does_not_go_live(
    engine: Engine, tmp_path: Path
) -> None:
    run = run_of(engine, tmp_path / "runs")
    another = Lease(engine, "retrain", "another", run.now)
    run.lease.acquire()
    fenced = run.registry.fenced(run.lease.confirm)
    fenced.publish(ReleaseInfo("r1", str(tmp_path / "releases" / "r1"), NOON, NOON))
    run.lease.release()
    another.acquire()
    with pytest.raises(StageUnavailable, match="retrain was lost"):
        fenced.promote("r1")
    assert run.registry.live() is None
    assert [each.promoted for each in run.registry.all()] == [False]


def test_a_release_that_is_not_promoted_is_published_and_does_not_go_live(engine: Engine, tmp_path: Path) -> None:
    run = run_of(engine, tmp_path / "runs")
    run_training(Training(Parts(tmp_path, promoted=False), run.registry), run)
    assert run.registry.live() is None
    assert [each.promoted for each in run.registry.all()] == [False]


def test_old_release_folders_are_removed_after_a_run(engine: Engine, tmp_path: Path) -> None:
    run = run_of(engine, tmp_path / "runs", keep=2)
    for _ in range(4):
        run_training(Training(Parts(tmp_path / "releases"), run.registry), run)
    assert len(list((tmp_path / "releases").iterdir())) == 2
    assert len(run.registry.runs(10)) == 4


def test_a_report_holds_the_other_numbers_and_what_is_told_of_them() -> None:
    others = (Metric("chances", "all", "ece", 0.0125, 640), Metric("reasons", "all", "sufficiency@3", -0.5, 150))
    verdict = Verdict("r1", True, "promoted: better", METRICS + others, told=("Reasons hold.", "Chances do too."))
    text = report_text("run-1", NOON, 1.0, "demo", verdict, "promoted: better")
    assert "| chances | all | ece | 0.0125 | 640 |" in text
    assert "| reasons | all | sufficiency@3 | -0.5000 | 150 |" in text
    assert "\nReasons hold.\n\nChances do too.\n" in text
    assert "| all | pipeline | 640 | 0.2500 | 0.2500 | 0.2500 |" in text
