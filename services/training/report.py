"""One training run from the edge: the lease, the run's row, its numbers for TensorBoard and a report for people.

All of it is left behind also when the run fails.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

import structlog
from sqlalchemy import Connection

from services.domain import FreshrankError, Metric, Verdict
from services.retrain import ExamplesT, FittedT, Training, retrain
from services.training.lease import Lease
from services.training.registry import SqlRegistry

log = structlog.get_logger()
REPORT, METRICS = "report.md", "metrics.json"
ORDER = ("hr@10", "ndcg@10", "mrr")
PROTOCOL = """\
Each user's first positive event after the cut, on an item new to them, is looked for in the list of the whole pipeline,
asked at the cut with features frozen there; items taken before are left out. Baselines rank every item. Sampled
candidates stand where the sources would have proposed them: what was really shown and passed over says more."""


@dataclass(frozen=True, slots=True)
class Run:
    """How a run is recorded: its folder is `folder / run_id`."""

    registry: SqlRegistry
    lease: Lease
    folder: Path
    effort: str
    now: Callable[[], datetime]
    release_keep: int = 5


def run_training(training: Training[ExamplesT, FittedT], run: Run) -> Verdict:
    """Hold the lease, retrain, and write down how it went. What fails is raised again after it was written down.

    A thread renews the lease while the run lasts. A run that lost it all the same (its process slept) publishes and
    promotes nothing: the registry asks within its transaction whose the lease is.
    """
    started_at = run.now()
    run_id = f"run-{started_at:%Y%m%d-%H%M%S}-{started_at.microsecond:06d}"
    with run.lease.held() as check:

        def confirm(connection: Connection) -> None:
            check()
            run.lease.confirm(connection)

        run.registry.start_run(run_id, started_at, run.effort)
        log.info("training_started", run_id=run_id, effort=run.effort)
        try:
            verdict = retrain(replace(training, registry=run.registry.fenced(confirm)), started_at)
        except BaseException as error:  # an interruption is written down too
            message = str(error) if isinstance(error, FreshrankError) else f"{type(error).__name__}: {error}"
            message = "interrupted" if isinstance(error, KeyboardInterrupt | SystemExit) else message
            run.registry.end_run(run_id, run.now(), "failed", None, message)
            _write_report(run, run_id, started_at, None, message, traceback.format_exc())
            raise
        run.registry.end_run(run_id, run.now(), "done", verdict, verdict.reason)
        _write_report(run, run_id, started_at, verdict, verdict.reason, "")
        removed = run.registry.prune(run.release_keep)
    log.info("training_ended", run_id=run_id, promoted=verdict.promoted, reason=verdict.reason, removed=list(removed))
    return verdict


def report_text(
    run_id: str, started_at: datetime, seconds: float, effort: str, verdict: Verdict | None, message: str
) -> str:
    """The report as markdown: the verdict in one sentence, then every number by model and part of the slice."""
    lines = [f"# Training {run_id}", "", f"{message}", ""]
    lines += [f"- started: {started_at:%Y-%m-%d %H:%M:%S} UTC", f"- seconds: {seconds:.1f}", f"- effort: {effort}"]
    if verdict is None:
        return "\n".join([*lines, "- state: failed", ""])
    lines += [f"- release: {verdict.release_id}", f"- promoted: {'yes' if verdict.promoted else 'no'}", ""]
    lines += [verdict.learned_from, ""] if verdict.learned_from else []
    ranked = tuple(each for each in verdict.metrics if each.name in ORDER)
    lines += ["## The judged slice", "", *_table(ranked), ""]
    lines += [PROTOCOL, ""]
    for paragraph in verdict.told:
        lines += [paragraph, ""]
    if others := [each for each in verdict.metrics if each.name not in ORDER]:
        lines += ["| what | part | number | value | users |", "|---|---|---|---|---|"]
        lines += [f"| {m.model} | {m.part} | {m.name} | {m.value:.4f} | {m.users} |" for m in others]
        lines.append("")
    return "\n".join(lines)


def _table(metrics: tuple[Metric, ...]) -> list[str]:
    values = {(m.part, m.model, m.name): m for m in metrics}
    parts = tuple(dict.fromkeys(m.part for m in metrics))
    rows = sorted(dict.fromkeys((m.part, m.model) for m in metrics), key=lambda row: parts.index(row[0]))
    lines = ["| part | model | users | " + " | ".join(ORDER) + " |", "|---|---|---|" + "---|" * len(ORDER)]
    for part, model in rows:
        numbers = [values[part, model, name] for name in ORDER]
        figures = " | ".join(f"{each.value:.4f}" for each in numbers)
        lines.append(f"| {part} | {model} | {numbers[0].users} | {figures} |")
    return lines


def _write_report(
    run: Run, run_id: str, started_at: datetime, verdict: Verdict | None, message: str, trace: str
) -> None:
    folder = run.folder / run_id
    folder.mkdir(parents=True, exist_ok=True)
    seconds = (run.now() - started_at).total_seconds()
    text = report_text(run_id, started_at, seconds, run.effort, verdict, message)
    (folder / REPORT).write_text(text + (f"\n```\n{trace}```\n" if trace else ""))
    metrics = verdict.metrics if verdict else ()
    (folder / METRICS).write_text(json.dumps([asdict(each) for each in metrics], indent=1) + "\n")
    _write_scalars(folder, metrics, seconds, started_at)


def _write_scalars(folder: Path, metrics: tuple[Metric, ...], seconds: float, started_at: datetime) -> None:
    """For TensorBoard; one point per run, at the run's time, so that runs line up as curves."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(log_dir=str(folder))
    step, at = int(started_at.timestamp()), started_at.timestamp()
    for each in metrics:
        name = f"{each.model}/{each.part}/{each.name}".replace(" ", "_")
        writer.add_scalar(name, each.value, step, walltime=at)
    writer.add_scalar("run/seconds", seconds, step, walltime=at)
    writer.close()
