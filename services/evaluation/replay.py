"""Every model on a stream: baselines tuned at the cut, tower and pipeline trained there, all asked event by event."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from models.batches import Progress
from services.domain import BadRequest, from_us
from services.evaluation.cases import Cases
from services.evaluation.files import Data
from services.evaluation.ranking import Board, Made, Ranked, nothing_ranked
from services.evaluation.stream import CUT, Features, Retrain, Segment, Stream, as_asked, segments, stream_of
from services.evaluation.tuning import Choice, best_of, choices_of, fitted, some_of
from services.items import ItemTable
from services.training.columns import EventColumns
from services.training.history import EventsHistory

if TYPE_CHECKING:
    from models.release import ModelRelease
    from services.evaluation.run import Means, Wanted


def replay(
    wanted: Wanted, data: Data, baselines: Sequence[str], learned: Sequence[str], means: Means, progress: Progress
) -> Made:
    """The baselines (names as given, a setting behind a colon) and the learned models (`tower`, `pipeline`)."""
    features, retrain = wanted.features or "live", wanted.retrain or "never"
    stream = stream_of(data.events, wanted.cut or CUT, wanted.seen, features, wanted.history_min or 0)
    parts = segments(stream, retrain)
    ranked: dict[str, Sequence[Ranked]] = {}
    settings: dict[str, str] = {}
    inner = _inner(stream, features)
    for model in baselines:
        name, _, given = model.partition(":")
        choices = choices_of(name, given or None)
        best = best_of(*inner, choices, progress, f"tuning {name}") if inner else choices[0]
        made, settings[model] = by_baseline(
            best, len(stream.cases), parts, max(wanted.at), progress, f"walking by {model}"
        )
        ranked[model] = [made]
    facts = _facts(stream, features, retrain, parts)
    if learned:
        walked, facts["walk"] = _learned(stream, parts, data, learned, wanted, means, progress)
        how = f"effort {means.effort}, text encoder {means.text_encoder}, seeds 1 to {wanted.seeds}"
        ranked |= walked
        settings |= dict.fromkeys(learned, how)
    return Made(stream.cases, ranked, settings, facts)


def by_baseline(
    best: Choice, cases: int, parts: Sequence[Segment], depth: int, progress: Progress, text: str
) -> tuple[Ranked, str]:
    """What one baseline, fitted where each part begins, makes of all cases, and how it was set."""
    ranked = nothing_ranked(cases, depth)
    setting = ""
    for part in parts:
        tuned = fitted(best, part.learned)
        setting = setting or tuned.setting
        made = Board(part.asked, depth, part.learned).rank(tuned.ranker, progress, text)
        ranked.places[part.places], ranked.lists[part.places] = made.places, made.lists
    return ranked, setting


def _inner(stream: Stream, features: Features) -> tuple[Cases, EventColumns] | None:
    """For tuning: a stream within the training events, of which some cases are asked, and what they learn from."""
    try:
        inner = stream_of(stream.cases.train, CUT, stream.cases.seen, features)
    except BadRequest:
        return None
    return as_asked(inner, some_of(inner.cases.judged)), inner.cases.train


def _learned(
    stream: Stream,
    parts: Sequence[Segment],
    data: Data,
    models: Sequence[str],
    wanted: Wanted,
    means: Means,
    progress: Progress,
) -> tuple[dict[str, list[Ranked]], str]:
    """Tower and pipeline, a walk per seed, and how long these took."""
    from models.device import pick_device
    from services.evaluation.trained import embedded, fitted_release
    from services.evaluation.walk import PROCESSES_MAX, Walk

    def train(seed: int, part: Segment, items: ItemTable) -> ModelRelease:
        return fitted_release(
            part.learned, EventsHistory(part.learned, bounds=means.bounds), items, part.until_us, means, seed, progress
        )

    vectors = embedded(data.items, means, progress)
    found: dict[str, list[Ranked]] = {model: [] for model in models}
    took: dict[str, list[float]] = {}
    processes = 1 if pick_device(means.device).type != "cpu" else min(PROCESSES_MAX, os.cpu_count() or 1)
    for seed in range(1, wanted.seeds + 1):
        walk = Walk(
            stream, data.items, vectors, partial(train, seed), means.stages_for, progress, processes, means.bounds
        )
        text = f"walking by {' and '.join(models)} {seed}"
        for model, ranked in walk.ranked(parts, models, max(wanted.at), text).items():
            found[model].append(ranked)
        for step, seconds in walk.took.items():
            took.setdefault(step, []).append(seconds)
    means_s = {step: float(np.mean(of)) for step, of in took.items()}
    return found, _pace(means_s, len(stream.events) - stream.start, models, processes)


def _pace(took_s: Mapping[str, float], events: int, models: Sequence[str], processes: int) -> str:
    """Events per second of the walk (consumed, asked, ranked), and its seconds; those of training stand apart."""
    pace = f"{events / took_s['walking']:,.0f} events/s by {' and '.join(models)} on {processes} processes"
    return f"{pace}; {', '.join(f'{step} {seconds:.1f} s' for step, seconds in took_s.items())} (means over the seeds)"


def _facts(stream: Stream, features: Features, retrain: Retrain, parts: Sequence[Segment]) -> dict[str, str]:
    walked, begins = len(stream.events) - stream.start, from_us(stream.cut_us)
    return {
        "stream": f"{walked:,} events from {begins:%Y-%m-%d %H:%M:%S} on, {len(stream.cases):,} of them cases",
        "features": features,
        "retraining": f"{retrain}: {len(parts) - 1:,} times after the training at the cut",
    }
