"""The parts of a training run: how examples are built, fitted, judged and stored.

Time, oldest first:   [ tower ............ | ranking requests ..... | judged slice ]
                                         newest                    cut

The tower is fitted on what lies before `newest`. Then it goes through the newest events in a few rounds: it
scores the requests of a round before it learns from them, so its scores are as honest and as fresh there as they will
be in serving; the reranker learns from all rounds. What lies after the cut is seen by neither.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import structlog
from numpy.typing import NDArray

from models.batches import Prefixes, Progress, RankingExamples
from models.checkpoint import forget
from models.config import BlockName, Effort, ModelConfig, Size
from models.fit import FittedTower, assemble, continue_tower, fit_reranker, fit_tower
from models.release import ModelRelease, ReleaseDamaged
from services.domain import SECOND_US, BadRequest, Metric, ReleaseInfo, ReleaseInvalid, Verdict, from_us, to_us
from services.items import ItemTable
from services.ports import LIVE_ITEMS_KEPT, FeatureHistory
from services.retrain import TrainingParts
from services.signals import RANKING_FEATURES
from services.training.columns import EventColumns
from services.training.cutoff import FrozenRows, rows_at
from services.training.evaluate import (
    StagesFor,
    faults_of,
    knn_places,
    metrics_of,
    pipeline_places,
    popularity_places,
    tower_places,
)
from services.training.examples import (
    Corpus,
    Requests,
    corpus_of,
    held_out_after,
    joined_examples,
    ranking_examples,
    requests_between,
    rows_of_requests,
)
from services.training.gate import Gate, Slice, choose_cut, decide, slice_after
from services.training.negatives import Pools, TowerScores, draw_candidates
from services.training.schedule import spare_cores
from services.training.served import Learned, ServedLists, ServedRules, learned_from, list_examples, nothing_served

if TYPE_CHECKING:
    from services.recommend import Stages

log = structlog.get_logger()

FEATURE_SERVICE = "ranking_v1"
REQUESTS_MIN = 50
REQUESTS_MAX: dict[Effort, int] = {"demo": 20_000, "normal": 40_000, "full": 100_000}
NEWEST_SHARE = 0.2
ROUNDS = 3
LAST_EPOCHS = 2
LOGITS_MAX = 20_000_000


@dataclass(frozen=True, slots=True)
class Sources:
    """What a run reads, handed in. `events(until)` are all archived events before a time, as columns;
    `items_at(before, cut_us)` is the item table as of the cut; `load` opens a published release; `served(since_us,
    until_us, rules)` are the lists that were served, with what came of them."""

    events: Callable[[datetime], EventColumns]
    history: FeatureHistory
    items_at: Callable[[EventColumns, int], ItemTable]
    stages_for: StagesFor
    load: Callable[[ReleaseInfo], ModelRelease]
    served: Callable[[int, int, ServedRules], ServedLists] = nothing_served


@dataclass(frozen=True, slots=True)
class Choices:
    """How a run is to be done. `threads` 0: all cores but one. `cut_us` fixes the cut (for evaluation); None: the gate
    chooses. `model`: its hyper-parameters; None: the defaults for the size of the data, with a tower of `block`s and of
    `size` (None: by the size of the data, too). `checkpoints`: where the tower leaves how far it has come."""

    effort: Effort
    seed: int
    releases: Path
    text_encoder: str
    device: str = "auto"
    threads: int = 0
    gate: Gate = field(default_factory=Gate)
    cut_us: int | None = None
    model: ModelConfig | None = None
    block: BlockName = "ligr"
    size: Size | None = None
    checkpoints: Path | None = None
    served: ServedRules = field(default_factory=ServedRules)


@dataclass(frozen=True, slots=True)
class Examples:
    """What was read: everything before the cut in `corpus`, the judged slice, and the items as of the cut."""

    now: datetime
    corpus: Corpus
    judged: Slice
    items: ItemTable


class ReleaseParts(TrainingParts[Examples, ModelRelease]):
    """TrainingParts over the archive, the feature history and the models."""

    def __init__(self, sources: Sources, choices: Choices, progress: Progress) -> None:
        self._sources = sources
        self._choices = choices
        self._progress = progress

    def build(self, now: datetime, live: ReleaseInfo | None) -> Examples:
        """TrainingParts."""
        self._progress(0, 3, "reading the archive")
        events = self._sources.events(now)
        cut_us = self._choices.cut_us
        if cut_us is None:
            cut_us = choose_cut(events, self._choices.gate, to_us(live.data_until) if live else 0)
        judged = slice_after(events, cut_us, self._choices.gate.users_max, self._choices.seed)
        self._progress(1, 3, "items as of the cut")
        before = events.before(cut_us)
        items = self._sources.items_at(before, cut_us)
        self._progress(2, 3, "sequences")
        corpus = corpus_of(before, items)
        self._progress(3, 3, "examples read")
        log.info("training_read", events=len(events), before=len(before), judged=len(judged), items=len(items))
        return Examples(now, corpus, judged, items)

    def fit(self, examples: Examples) -> ModelRelease:
        """TrainingParts."""
        self._set_threads()
        corpus, choices = examples.corpus, self._choices
        config = choices.model or ModelConfig.for_data(
            len(corpus.events), len(corpus.vocabulary), choices.effort, choices.seed, choices.block, choices.size
        )
        newest_us = _newest_from(corpus, REQUESTS_MAX[choices.effort])
        held_out = held_out_after(corpus, newest_us, config.history, config.held_out_max, choices.seed)
        older = corpus.sequences.before(newest_us // SECOND_US)
        tower = fit_tower(
            older, corpus.vocabulary, corpus.text_vectors, config, self._progress, held_out, choices.device,
            choices.checkpoints,
        )  # fmt: skip
        ranking, newest_tower, learned = self._rounds(examples, tower, newest_us)
        reranker = fit_reranker(tower, ranking, config, self._progress)
        tower = newest_tower
        notes = {
            "ranking_requests": float(len(ranking)),
            "tower_epochs": float(tower.epochs),
            "tower_held_out_ndcg": tower.held_out_ndcg,
            "reranker_held_out_ndcg": reranker.held_out_ndcg,
            "reranker_retrieval_ndcg": reranker.retrieval_ndcg,
            **learned.notes(),
        }
        log.info("training_fitted", **notes)
        release_id = f"r{examples.now:%Y%m%d-%H%M%S}-{examples.now.microsecond:06d}"
        return assemble(
            release_id, tower, reranker, RANKING_FEATURES, FEATURE_SERVICE, choices.text_encoder,
            examples.judged.cut_us, notes,
        )  # fmt: skip

    def judge(self, challenger: ModelRelease, live: ReleaseInfo | None, examples: Examples) -> Verdict:
        """TrainingParts."""
        judged, before = examples.judged, examples.corpus.events
        features = rows_at(self._sources.history, before, judged.user_codes, judged.cut_us)
        stages = self._sources.stages_for(challenger, examples.items, features)
        faults = faults_of(challenger, stages, judged, before)
        pipeline = self._metrics("pipeline", stages, examples)
        popularity = metrics_of("popularity 7d", popularity_places(judged, before), judged, before)
        others = (
            metrics_of("tower", tower_places(challenger, features, judged, before), judged, before)
            + popularity
            + metrics_of("item-knn", knn_places(judged, before), judged, before)
        )
        standing = self._live_metrics(live, features, examples)
        promoted, reason = decide(pipeline, standing, popularity, faults)
        metrics = pipeline + (standing or ()) + others
        return Verdict(challenger.release_id, promoted, reason, metrics, learned_from(challenger.manifest.notes))

    def store(self, challenger: ModelRelease, verdict: Verdict) -> ReleaseInfo:
        """TrainingParts."""
        folder = self._choices.releases / challenger.release_id
        challenger.save(folder)
        if self._choices.checkpoints:
            forget(self._choices.checkpoints)
        return ReleaseInfo(
            challenger.release_id,
            str(folder),
            _made_at(challenger.release_id),
            from_us(challenger.manifest.data_until_us),
            reason=verdict.reason,
            metrics=verdict.metrics,
        )

    def measure(self, release: ReleaseInfo, now: datetime) -> tuple[Metric, ...]:
        """A published release's numbers on everything that came after what it learned from. Nothing is fitted."""
        cut_us = to_us(release.data_until)
        events = self._sources.events(now)
        judged = slice_after(events, cut_us, self._choices.gate.users_max, self._choices.seed)
        if len(judged) == 0:
            raise BadRequest(f"nobody did anything new since release {release.release_id} was cut: nothing to measure")
        before = events.before(cut_us)
        items = self._sources.items_at(before, cut_us)
        examples = Examples(now, corpus_of(before, items), judged, items)
        return self.judge(self._sources.load(release), None, examples).metrics

    def _rounds(
        self, examples: Examples, tower: FittedTower, newest_us: int
    ) -> tuple[RankingExamples, FittedTower, Learned]:
        """Ranking examples from `newest_us` to the cut, the tower after it has learned from all of it, and how many
        examples came from where."""
        corpus, choices = examples.corpus, self._choices
        requests = requests_between(
            corpus, newest_us, examples.judged.cut_us, REQUESTS_MAX[choices.effort], choices.seed
        )
        if len(requests) < ROUNDS:
            raise BadRequest("hardly anybody took anything new lately: there is nothing to learn ranking from")
        since_us = max(newest_us, to_us(examples.now - LIVE_ITEMS_KEPT))
        lists = self._sources.served(since_us, examples.judged.cut_us, choices.served)
        learned = Learned(lists, choices.served.lists_min)
        made = []
        asked_before_us = newest_us
        for number, places in enumerate(np.array_split(np.arange(len(requests)), ROUNDS)):
            sampled = self._ranking_examples(examples, tower, requests.take(places))
            made.append(sampled)
            learned.sampled += len(sampled)
            until_us = max(int(requests.asked_us[places[-1]]), newest_us)
            last = number == ROUNDS - 1
            if learned.enough:
                asked = (lists.asked_us >= asked_before_us) & (last | (lists.asked_us < until_us))
                made += self._list_examples(examples, tower, lists.take(np.flatnonzero(asked)), learned)
            asked_before_us = until_us
            newer = corpus.sequences if last else corpus.sequences.before(until_us // SECOND_US)
            tower = continue_tower(tower, newer, LAST_EPOCHS if last else 1, self._progress)
        return joined_examples(made), tower, learned

    def _list_examples(
        self, examples: Examples, tower: FittedTower, lists: ServedLists, learned: Learned
    ) -> list[RankingExamples]:
        """The lists that can be learned from, as examples; counted in `learned`."""
        if len(lists) == 0:
            return []
        history, length = self._sources.history, tower.config.history
        made, left_out = list_examples(examples.corpus, examples.items, history, lists, length, _scores_of(tower))
        learned.took(made, left_out)
        return [made] if len(made) else []

    def _ranking_examples(self, examples: Examples, tower: FittedTower, requests: Requests) -> RankingExamples:
        corpus, choices = examples.corpus, self._choices
        self._progress(0, 3, "ranking requests")
        known = rows_of_requests(corpus, self._sources.history, requests, tower.config.history)
        self._progress(1, 3, "candidates of the requests")
        pools = Pools(batch=max(1, min(256, LOGITS_MAX // len(corpus.vocabulary))))
        rows, score, reached = draw_candidates(
            corpus, examples.items, requests, known, _scores_of(tower), pools, choices.seed
        )
        self._progress(2, 3, "features of the candidates, point-in-time")
        log.info("training_requests", requests=len(requests), reached=round(float(reached.mean()), 4))
        if np.count_nonzero(reached) >= REQUESTS_MIN:
            places = np.flatnonzero(reached)
            requests, known, rows, score = requests.take(places), known.take(places), rows[places], score[places]
        made = ranking_examples(corpus, examples.items, self._sources.history, requests, known, rows, score)
        self._progress(3, 3, "ranking examples made")
        return made

    def _metrics(self, model: str, stages: Stages, examples: Examples) -> tuple[Metric, ...]:
        before = examples.corpus.events
        places = pipeline_places(stages, examples.judged, before, self._progress)
        return metrics_of(model, places, examples.judged, before)

    def _live_metrics(
        self, live: ReleaseInfo | None, features: FrozenRows, examples: Examples
    ) -> tuple[Metric, ...] | None:
        """The live release's numbers on the same slice; None when there is none or its directory is damaged."""
        if live is None:
            return None
        try:
            release = self._sources.load(live)
        except (ReleaseDamaged, ReleaseInvalid) as error:
            log.warning("live_release_damaged", release_id=live.release_id, error=str(error))
            return None
        return self._metrics("live", self._sources.stages_for(release, examples.items, features), examples)

    def _set_threads(self) -> None:
        import torch

        torch.set_num_threads(self._choices.threads or spare_cores())


def _newest_from(corpus: Corpus, requests_max: int) -> int:
    """Where the ranking requests begin: the newest fifth of the events, or less when that is more than enough."""
    times = corpus.events.occurred_us
    wanted = min(int(len(times) * NEWEST_SHARE), 3 * requests_max)
    return int(times[max(0, len(times) - 1 - wanted)])


def _scores_of(tower: FittedTower) -> TowerScores:
    vectors = tower.item_vectors()

    def scores(prefixes: Prefixes) -> NDArray[np.float32]:
        found: NDArray[np.float32] = tower.user_vectors(prefixes) @ vectors.T
        return found

    return scores


def _made_at(release_id: str) -> datetime:
    """The time that is in the id: the run's `now`."""
    return datetime.strptime(release_id + " +0000", "r%Y%m%d-%H%M%S-%f %z")
