"""A training run that begins by tuning the text encoder: all that follows (vectors of all items, tower, reranker,
verdict, release) is made with the tuned one, and becomes live with it, in the one moment of promotion.

Until then nothing of it is seen: a release takes the vectors of its own encoder alone, and those of the tuned one are
written beside the live ones just before the release is published. If the gate refuses, or the run dies on the way, they
are what nobody asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import structlog
from numpy.typing import NDArray

from models.batches import Progress
from models.release import ModelRelease
from models.text import TextEncoder
from models.transformer import TransformerEncoder, UnfitModel
from models.tuning import Pairs, Tuned, TuningConfig, TuningMissing, tune
from services.domain import SECOND_US, BadRequest, ReleaseInfo, Verdict
from services.items import ItemTable
from services.retrain import TrainingParts
from services.training.examples import Corpus, text_matrix
from services.training.parts import Examples, ReleaseParts

log = structlog.get_logger()
LAGS = 3
PAIRS_MIN = 200


@dataclass(frozen=True, slots=True)
class Texts:
    """Where texts and encoders are, handed in. `encoder` is tuned; `of_items` are the texts of all items that have one,
    as of now; `keep` stores what was tuned and opens it; `fill` gives a table the vectors of all these texts; `write`
    puts them beside those that are live; `forget` removes what no release names."""

    encoder: TransformerEncoder
    config: TuningConfig
    of_items: Callable[[], Mapping[str, str]]
    keep: Callable[[Tuned], TextEncoder]
    fill: Callable[[ItemTable, TextEncoder], None]
    write: Callable[[TextEncoder], None]
    forget: Callable[[], None]


class TunedParts(TrainingParts[Examples, ModelRelease]):
    """TrainingParts that tune first and then do as ReleaseParts do. For one run."""

    def __init__(self, parts: ReleaseParts, texts: Texts, progress: Progress) -> None:
        self._parts = parts
        self._texts = texts
        self._progress = progress
        self._tuned: TextEncoder | None = None

    def build(self, now: datetime, live: ReleaseInfo | None) -> Examples:
        """TrainingParts."""
        self._texts.forget()
        return self._parts.build(now, live)

    def fit(self, examples: Examples) -> ModelRelease:
        """TrainingParts. Raises BadRequest when tuning leads nowhere."""
        tuned = self._tune(examples, self._texts.of_items())
        encoder = self._tuned = self._texts.keep(tuned)
        self._texts.fill(examples.items, encoder)
        corpus = examples.corpus
        matrix = text_matrix(examples.items, corpus.vocabulary.item_ids, encoder.name)
        made = self._parts.fit(replace(examples, corpus=replace(corpus, text_vectors=matrix, encoder=encoder.name)))
        notes = {
            **made.manifest.notes,
            "tuning_epochs": float(tuned.epochs),
            "pair_accuracy": tuned.accuracy,
            "pair_accuracy_before": tuned.accuracy_before,
        }
        return replace(made, manifest=replace(made.manifest, notes=notes))

    def judge(self, challenger: ModelRelease, live: ReleaseInfo | None, examples: Examples) -> Verdict:
        """TrainingParts: the live release by the vectors of its own encoder."""
        verdict = self._parts.judge(challenger, live, examples)
        notes = challenger.manifest.notes
        tuned = (
            f"The text encoder {challenger.manifest.embedded_by} was tuned in {notes['tuning_epochs']:.0f} epochs: "
            f"{notes['pair_accuracy']:.1%} of the held-out pairs right, {notes['pair_accuracy_before']:.1%} before."
        )
        return replace(verdict, learned_from=f"{tuned} {verdict.learned_from}".rstrip())

    def store(self, challenger: ModelRelease, verdict: Verdict) -> ReleaseInfo:
        """TrainingParts. The vectors of a release that will be promoted are there before it is."""
        assert self._tuned is not None, "store before fit"
        if verdict.promoted:
            self._texts.write(self._tuned)
        return self._parts.store(challenger, verdict)

    def _tune(self, examples: Examples, texts: Mapping[str, str]) -> Tuned:
        rows = ["", *(texts.get(item_id, "") for item_id in examples.corpus.vocabulary.item_ids)]
        has_text = np.array([bool(text.strip()) for text in rows])
        pairs, held_out = pairs_of(examples.corpus, has_text, self._parts.newest_us(examples))
        if min(len(pairs), 10 * len(held_out)) < PAIRS_MIN:
            raise BadRequest(
                f"{len(pairs)} pairs of items with a text to tune on and {len(held_out)} to stop by are too few"
            )
        log.info("tuning_started", encoder=self._texts.encoder.name, pairs=len(pairs), held_out=len(held_out))
        try:
            tuned = tune(self._texts.encoder, rows, pairs, held_out, self._texts.config, self._progress)
        except (TuningMissing, UnfitModel) as error:
            raise BadRequest(str(error)) from error
        if tuned.epochs == 0:
            raise BadRequest(
                f"tuning did not raise the accuracy on held-out pairs above {tuned.accuracy_before:.1%}: "
                "nothing is changed"
            )
        return tuned


def pairs_of(corpus: Corpus, has_text: NDArray[np.bool_], newest_us: int) -> tuple[Pairs, Pairs]:
    """Pairs of rows that one user took within LAGS positive events, in their order: those that were complete before
    `newest_us`, and those of which both came later. Ranking is learned from what is newer, so it must not be learned
    from here. `has_text` bool [V]"""
    sequences = corpus.sequences
    sequences = sequences.keep(sequences.positive & has_text[sequences.rows])
    owners, rows, times_s = sequences.owners(), sequences.rows.astype(np.int64), sequences.times_s
    newest_s = newest_us // SECOND_US
    older, newer = [], []
    for lag in range(1, LAGS + 1):
        one, other = rows[:-lag], rows[lag:]
        real = (owners[:-lag] == owners[lag:]) & (one != other)
        before, after = real & (times_s[lag:] < newest_s), real & (times_s[:-lag] >= newest_s)
        older.append((one[before], other[before]))
        newer.append((one[after], other[after]))
    return _joined(older), _joined(newer)


def _joined(parts: list[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> Pairs:
    return Pairs(np.concatenate([one for one, _ in parts]), np.concatenate([other for _, other in parts]))
