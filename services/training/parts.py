"""The parts of a training run: how examples are built, fitted, judged and stored. What is learned from what: plans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import structlog
from numpy.typing import NDArray

from models.batched import in_this_thread
from models.batches import Prefixes, Progress, RankingExamples
from models.blank import with_random_reranker
from models.checkpoint import forget
from models.config import BlockName, Effort, ModelConfig, Size
from models.device import pick_device
from models.fit import FittedTower, assemble, fit_reranker
from models.release import ModelRelease, ReleaseDamaged
from services import heap
from services.bounds import BOUNDED, Bounds
from services.domain import BadRequest, Metric, ReleaseInfo, ReleaseInvalid, Verdict, from_us, to_us
from services.items import ItemTable
from services.ports import LIVE_ITEMS_KEPT, FeatureHistory
from services.retrain import EVENTS_UNTIL, TrainingParts
from services.signals import MODEL_FEATURES
from services.training.chances import chances_of, chances_told, drawn_from_pools
from services.training.columns import EventColumns
from services.training.cutoff import FrozenRows, rows_at
from services.training.drift import target_half_life_days
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
    ranking_examples,
    rows_of_requests,
)
from services.training.faithfulness import faithfulness, faithfulness_metrics, faithfulness_told, queries_of
from services.training.gate import Gate, Slice, choose_cut, decide, slice_after
from services.training.negatives import Pools, TowerScores, draw_candidates
from services.training.orders import Orders, orders_of
from services.training.plans import REQUESTS_MAX, Plan, newest_from, newest_rounds
from services.training.schedule import spare_cores
from services.training.served import Learned, ServedLists, ServedRules, learned_from, list_examples, nothing_served

if TYPE_CHECKING:
    from services.recommend import Stages

log = structlog.get_logger()

FEATURE_SERVICE = "ranking_v1"
REQUESTS_MIN = 50
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
    chooses. `model`: its hyper-parameters; None: the defaults for the size and the drift of the data. `plan`: what is
    learned from what; None: `newest_rounds`. `embedded_by`: the encoder of the text vectors that are taken; empty: the
    one of most items. `checkpoints`: where the tower leaves how far it has come. `explained_max`: judged users whose
    lists' reasons are measured."""

    effort: Effort
    seed: int
    releases: Path
    text_encoder: str
    device: str = "auto"
    threads: int = 0
    gate: Gate = field(default_factory=Gate)
    cut_us: int | None = None
    model: ModelConfig | None = None
    checkpoints: Path | None = None
    served: ServedRules = field(default_factory=ServedRules)
    plan: Plan | None = None
    embedded_by: str = ""
    bounds: Bounds = BOUNDED
    explained_max: int = 100


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
        corpus = corpus_of(before, items, self._choices.embedded_by, self._choices.bounds)
        self._progress(3, 3, "examples read")
        log.info("training_read", events=len(events), before=len(before), judged=len(judged), items=len(items))
        return Examples(now, corpus, judged, items)

    def fit(self, examples: Examples) -> ModelRelease:
        """TrainingParts."""
        self._set_threads()
        corpus, choices = examples.corpus, self._choices
        config = choices.model or config_for(corpus.events, choices.effort, choices.seed)
        planned = (choices.plan or newest_rounds)(self, examples, config)
        ranking, tower, learned = planned.ranking, planned.tower, planned.learned
        heap.give_back()
        reranker = fit_reranker(planned.scoring, ranking, config, self._progress)
        heap.give_back()
        chances = chances_of(planned.scoring, reranker, ranking)
        notes = {
            "ranking_requests": float(len(ranking)),
            "tower_epochs": float(tower.epochs),
            "tower_held_out_ndcg": tower.held_out_ndcg,
            "reranker_held_out_ndcg": reranker.held_out_ndcg,
            "reranker_retrieval_ndcg": reranker.retrieval_ndcg,
            EVENTS_UNTIL: float(examples.judged.until_us),
            **learned.notes(),
        }
        log.info("training_fitted", **notes)
        release_id = f"r{examples.now:%Y%m%d-%H%M%S}-{examples.now.microsecond:06d}"
        release = assemble(
            release_id, tower, reranker, MODEL_FEATURES, FEATURE_SERVICE, choices.text_encoder,
            examples.judged.cut_us, notes,
        )  # fmt: skip
        release = release.calibrated(*chances)
        return replace(release, manifest=replace(release.manifest, embedded_by=corpus.encoder))

    def judge(self, challenger: ModelRelease, live: ReleaseInfo | None, examples: Examples) -> Verdict:
        """TrainingParts. A reranker that is worse than the retrieval score is not judged, and not published as one."""
        features = self._features(examples)
        with in_this_thread():
            orders = self._orders(challenger, features, examples)
            return self._judged(challenger.ordered_by(orders.earned), orders, live, features, examples)

    def _judged(
        self, release: ModelRelease, orders: Orders, live: ReleaseInfo | None, features: FrozenRows, examples: Examples
    ) -> Verdict:
        judged, before = examples.judged, examples.corpus.events
        stages = self._sources.stages_for(release, examples.items, features)
        faults = faults_of(release, stages, judged, before)
        pipeline = self._metrics("pipeline", stages, examples)
        popularity = metrics_of("popularity 7d", popularity_places(judged, before), judged, before)
        others = (
            metrics_of("tower", tower_places(release, features, judged, before), judged, before)
            + popularity
            + metrics_of("item-knn", knn_places(judged, before), judged, before)
        )
        standing = self._live_metrics(live, features, examples)
        promoted, reason = decide(pipeline, standing, popularity, faults)
        reasons = self._reasons(release, stages, features, examples)
        metrics = pipeline + (standing or ()) + others
        metrics += orders.metrics() + orders.calibration(release.manifest, judged.known) + reasons
        told = (orders.told(), chances_told(release.manifest), faithfulness_told(reasons))
        return Verdict(
            release.release_id, promoted, reason, metrics, learned_from(release.manifest.notes), release.reranks,
            tuple(each for each in told if each),
        )  # fmt: skip

    def store(self, challenger: ModelRelease, verdict: Verdict) -> ReleaseInfo:
        """TrainingParts."""
        folder = self._choices.releases / challenger.release_id
        challenger.ordered_by(verdict.rerank).save(folder)
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

    def newest_us(self, examples: Examples) -> int:
        """Where the events begin that ranking is learned from."""
        return newest_from(examples.corpus, REQUESTS_MAX[self._choices.effort])

    def measure(self, release: ReleaseInfo, now: datetime) -> tuple[Metric, ...]:
        """A published release's numbers on everything that came after what it learned from. Nothing is fitted."""
        cut_us = to_us(release.data_until)
        events = self._sources.events(now)
        judged = slice_after(events, cut_us, self._choices.gate.users_max, self._choices.seed)
        if len(judged) == 0:
            raise BadRequest(f"nobody did anything new since release {release.release_id} was cut: nothing to measure")
        before = events.before(cut_us)
        items = self._sources.items_at(before, cut_us)
        examples = Examples(now, corpus_of(before, items, bounds=self._choices.bounds), judged, items)
        loaded, features = self._sources.load(release), self._features(examples)
        with in_this_thread():
            return self._judged(loaded, self._orders(loaded, features, examples), None, features, examples).metrics

    @property
    def choices(self) -> Choices:
        """How the run is to be done."""
        return self._choices

    @property
    def progress(self) -> Progress:
        """Where steps are told."""
        return self._progress

    def lists_since(self, since_us: int, examples: Examples) -> ServedLists:
        """The lists served from a time to the cut that can be joined exactly."""
        since_us = max(since_us, to_us(examples.now - LIVE_ITEMS_KEPT))
        return self._sources.served(since_us, examples.judged.cut_us, self._choices.served)

    def list_examples(
        self, examples: Examples, tower: FittedTower, lists: ServedLists, learned: Learned
    ) -> list[RankingExamples]:
        """The lists that can be learned from, as examples; counted in `learned`."""
        if len(lists) == 0:
            return []
        history, length = self._sources.history, tower.config.history
        made, left_out = list_examples(examples.corpus, examples.items, history, lists, length, _scores_of(tower))
        learned.took(made, left_out)
        return [made] if len(made) else []

    def ranking_examples(self, examples: Examples, tower: FittedTower, requests: Requests) -> RankingExamples:
        corpus, choices = examples.corpus, self._choices
        heap.give_back()  # what a tower's fit has freed: beside an instance on one machine it is missed
        self._progress(0, 3, "ranking requests")
        known = rows_of_requests(corpus, self._sources.history, requests, tower.config.history)
        self._progress(1, 3, "candidates of the requests")
        pools = Pools(batch=max(1, min(256, LOGITS_MAX // len(corpus.vocabulary))))
        drawn, reached = draw_candidates(
            corpus, examples.items, requests, known, _scores_of(tower), pools, choices.seed, self._processes()
        )
        self._progress(2, 3, "features of the candidates, point-in-time")
        log.info("training_requests", requests=len(requests), reached=round(float((reached > 0).mean()), 4))
        drawn_from = drawn_from_pools(drawn.rows, reached)
        if np.count_nonzero(reached) >= REQUESTS_MIN:
            places = np.flatnonzero(reached)
            drawn_from = drawn_from[places]
            requests, known, drawn = requests.take(places), known.take(places), drawn.take(places)
        made = ranking_examples(corpus, examples.items, self._sources.history, requests, known, drawn)
        self._progress(3, 3, "ranking examples made")
        heap.give_back()
        return replace(made, drawn_from=drawn_from)

    def _metrics(self, model: str, stages: Stages, examples: Examples) -> tuple[Metric, ...]:
        before = examples.corpus.events
        places = pipeline_places(stages, examples.judged, before, self._progress, self._processes())
        return metrics_of(model, places, examples.judged, before)

    def _features(self, examples: Examples) -> FrozenRows:
        """The rows of the judged users just before the cut."""
        judged = examples.judged
        return rows_at(self._sources.history, examples.corpus.events, judged.user_codes, judged.cut_us)

    def _orders(self, release: ModelRelease, features: FrozenRows, examples: Examples) -> Orders:
        stages = self._sources.stages_for(release.ordered_by(True), examples.items, features)
        seed, events = self._choices.seed, examples.corpus.events
        return orders_of(stages, examples.judged, events, seed, self._progress, self._processes())

    def _reasons(
        self, release: ModelRelease, stages: Stages, features: FrozenRows, examples: Examples
    ) -> tuple[Metric, ...]:
        """How far the reasons can be trusted, over some of the judged users."""
        blank = self._sources.stages_for(with_random_reranker(release, self._choices.seed), examples.items, features)
        queries = queries_of(examples.judged, examples.corpus.events, self._choices.explained_max)
        found = faithfulness(
            stages, blank.probe if release.reranks else None, queries, self._choices.seed, self._progress,
            self._processes(),
        )  # fmt: skip
        return faithfulness_metrics(found)

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

    def _processes(self) -> int:
        """How many processes ask the judged users' questions: small forwards, for which threads are no use. A copy of
        a process has no use of its GPU."""
        return (self._choices.threads or spare_cores()) if pick_device(self._choices.device).type == "cpu" else 1


def config_for(
    events: EventColumns, effort: Effort, seed: int, block: BlockName = "ligr", size: Size | None = None
) -> ModelConfig:
    """The hyper-parameters for the size of the data, and for how fast what is liked passes in it."""
    items = len(np.unique(events.item_codes[events.weight != 0]))
    by_size = ModelConfig.for_data(len(events), items, effort, seed, block, size)
    return replace(by_size, recency_half_life_days=target_half_life_days(events))


def _scores_of(tower: FittedTower) -> TowerScores:
    vectors = tower.item_vectors()

    def scores(prefixes: Prefixes) -> NDArray[np.float32]:
        found: NDArray[np.float32] = tower.user_vectors(prefixes) @ vectors.T
        return found

    return scores


def _made_at(release_id: str) -> datetime:
    """The time that is in the id: the run's `now`."""
    return datetime.strptime(release_id + " +0000", "r%Y%m%d-%H%M%S-%f %z")
