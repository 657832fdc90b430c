"""The third of the three functions: events into a release."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Generic, Protocol, TypeVar

from services.domain import ReleaseInfo, Verdict
from services.ports import ReleaseRegistry

ExamplesT = TypeVar("ExamplesT")
FittedT = TypeVar("FittedT")
EVENTS_UNTIL = "events_until_us"
"""The note of a release that says where the events end that it learned from or was judged on."""


class TrainingParts(Protocol[ExamplesT, FittedT]):
    """How examples are built, fitted, judged and stored; each is called once per run, in this order."""

    def build(self, now: datetime, live: ReleaseInfo | None) -> ExamplesT:
        """Read the archive and the feature history up to `now` and cut off the slice to judge on.

        The slice starts at the cut, never before the live release's `data_until`.
        """

    def fit(self, examples: ExamplesT) -> FittedT:
        """Train on what lies before the cut only."""

    def judge(self, challenger: FittedT, live: ReleaseInfo | None, examples: ExamplesT) -> Verdict:
        """Both sides' numbers on the slice, and the decision."""

    def store(self, challenger: FittedT, verdict: Verdict) -> ReleaseInfo:
        """Write the release directory: exactly what was judged."""


@dataclass(frozen=True, slots=True)
class Training(Generic[ExamplesT, FittedT]):
    """The parts of a run and the registry it publishes to."""

    parts: TrainingParts[ExamplesT, FittedT]
    registry: ReleaseRegistry


def retrain(training: Training[ExamplesT, FittedT], now: datetime) -> Verdict:
    """Build, fit, judge, publish, and only then promote."""
    live = training.registry.live()
    examples = training.parts.build(now, live)
    challenger = training.parts.fit(examples)
    verdict = training.parts.judge(challenger, live, examples)
    training.registry.publish(training.parts.store(challenger, verdict))
    if verdict.promoted:
        training.registry.promote(verdict.release_id, verdict)
    return verdict
