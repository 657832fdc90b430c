"""The tower and the whole pipeline on cases: trained as a release is, asked as a server is, everything in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.batched import in_this_thread
from models.batches import Progress
from models.metrics import MISSING
from services.candidates.vectors import ItemVectors
from services.catalogue.cards import card_text
from services.domain import HISTORY_MAX, BadRequest, ItemCard, Query, ReleaseInfo, from_us
from services.evaluation.baselines import Ranker, Scores
from services.evaluation.cases import Cases
from services.evaluation.files import Item
from services.evaluation.knowledge import CaseRows
from services.evaluation.learned import ServedByFile
from services.evaluation.ranking import NOBODY, Board, Ranked
from services.evaluation.reasons import Measured, measured
from services.evaluation.shown import ShownLists
from services.evaluation.variants import PIPELINE, Variant
from services.item_parts import CardPart, CovisitsPart, ItemChanged, StatsPart, VectorPart
from services.items import ItemTable
from services.ports import FeatureStore
from services.recommend import Stages, recommend
from services.sharing import shared, shares_of
from services.training.columns import EventColumns
from services.training.cutoff import covisits
from services.training.drift import FOREVER_DAYS
from services.training.examples import corpus_of
from services.training.gate import Slice
from services.training.history import EventsHistory
from services.training.parts import Choices, Examples, ReleaseParts, Sources, config_for
from services.training.plans import REQUESTS_MAX, Plan, last_events, newest_rounds
from services.training.served import ServedLists, ServedRules, nothing_served
from services.training.trust import labelled

if TYPE_CHECKING:
    from models.config import ModelConfig
    from models.release import ModelRelease
    from services.evaluation.run import Means

TABLES_MAX = 24
"""Where cases are asked at many moments, the item counts are worked out for this many of them."""
ALL_OVER_SHARE = 0.2
"""Cases lie all over the time of a log when half of them have this share of its events behind them or more."""
LONG_HISTORY = 200
"""Events of a history that are read where no server has to keep them, once the data are worth the arithmetic."""
LONG_FROM_EVENTS = 200_000
PATIENCE = 8
"""Epochs without a gain before a fit ends where nothing is old or new: there it goes on rising for long."""
UNKNOWN = -1e9
"""The score of an item that the tower has no vector of: below all that it has one of."""


class Trainer:
    """Trains releases on the training events of some cases and ranks the cases by them."""

    def __init__(
        self,
        items: Sequence[Item],
        cases: Cases,
        means: Means,
        progress: Progress,
        learned: ShownLists | None = None,
        texts: Embedded | None = None,
    ) -> None:
        """`learned`: lists that the reranker may learn from. `texts`: the items' text vectors, of another trainer."""
        self.texts = texts or Embedded(items, means, progress)
        self._cases = cases
        self._means = means
        self._progress = progress
        self._plan = plan_of(cases)
        self._config = means.model or _config(cases, self._plan, means)
        length = max(HISTORY_MAX, self._config.history)
        self._history = EventsHistory(cases.train, length, means.bounds)
        self._learned = learned
        self._known = _Known(items, cases, means, self._history, self.texts)
        self._features = CaseRows(cases, length)
        self.reasons: list[Measured] = []
        """How far reasons can be trusted, of each seed whose pipeline was ranked."""

    def ranked(
        self, board: Board, models: Sequence[str], seed: int, variants: Sequence[Variant] = ()
    ) -> Mapping[str, Ranked]:
        """One release, trained with a seed, and what tower, pipeline and its variants make of the cases."""
        release = self.fitted(seed)
        found: dict[str, Ranked] = {}
        if "tower" in models:
            text = f"ranking by tower {seed}"
            found["tower"] = board.rank(self.tower(release), self._progress, text)
        for variant in (PIPELINE, *variants) if "pipeline" in models else ():
            found[variant.name] = self._by_pipeline(release, board.depth, seed, variant)
        if "pipeline" in models:
            self.reasons.append(self._reasons(release, seed))
        return found

    def tower(self, release: ModelRelease) -> Ranker:
        """The tower of a release as a ranker of the whole catalogue."""
        return _Tower(release, self._known, self._features)

    def tower_among(self, release: ModelRelease, lists: ShownLists, text: str) -> Scores:
        """What the tower scores the items of each case's own list, in their order. float64 [M]"""
        tower, found = _Tower(release, self._known, self._features), np.zeros(len(lists.items))
        for done, case in enumerate(np.argsort(self._cases.until_us, kind="stable").tolist()):
            shown = slice(lists.offsets[case], lists.offsets[case + 1])
            found[shown] = tower.among(self._cases, case, lists.items[shown])
            if done % 1000 == 0:
                self._progress(done, len(self._cases), text)
        return np.maximum(found, UNKNOWN)

    def vectors_of(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The text vectors of some of the items' texts, by the encoder that all items were embedded by."""
        return self._known.embedded.of(texts)

    def scores_among(self, release: ModelRelease, lists: ShownLists, text: str) -> Scores:
        """What the pipeline scores the items of each case's own list (the chance of a click), in their order; 0 where
        it would not show an item. float64 [M]"""
        found = np.zeros(len(lists.items))
        ids = lists.item_ids
        done = 0
        for moment, some in self._known.moments():
            stages = self._means.stages_for(release, self._known.at(moment), self._features)
            for case in some.tolist():
                asked_at = from_us(int(self._cases.until_us[case]))
                shown = slice(lists.offsets[case], lists.offsets[case + 1])
                among = tuple(ids[code] for code in lists.items[shown].tolist())
                query = Query(f"case-{case}", str(case), len(among), asked_at, among=among, seen="keep", record=False)
                by_item = {pick.item_id: pick.score for pick in recommend(query, stages).items}
                found[shown] = [by_item.get(item_id, 0.0) for item_id in among]
            done += len(some)
            self._progress(done, len(self._cases), text)
        return found

    def fitted(self, seed: int) -> ModelRelease:
        """A release trained with a seed; nothing is saved."""
        known = self._known
        served = nothing_served if self._learned is None else ServedByFile(self._learned, self._history, seed)
        items = known.at(known.end_us)
        means = replace(self._means, model=self._config)
        return fitted_release(
            self._cases.train, self._history, items, known.end_us, means, seed, self._progress, self._plan, served
        )  # fmt: skip

    def _reasons(self, release: ModelRelease, seed: int) -> Measured:
        def stages_at(made: ModelRelease, moment: int) -> Stages:
            return self._means.stages_for(made, self._known.at(moment), self._features)

        means = self._means
        with in_this_thread():
            return measured(
                release, self._cases, self._known.moments(), stages_at, seed, self._progress, means.processes(),
                means.explained_max,
            )  # fmt: skip

    def _by_pipeline(self, release: ModelRelease, depth: int, seed: int, variant: Variant) -> Ranked:
        cases = self._cases
        code = {item_id: n for n, item_id in enumerate(cases.train.item_ids)}
        places = np.full(len(cases), MISSING, dtype=np.int64)
        lists = np.full((len(cases), depth), NOBODY, dtype=np.int64)
        done = 0
        for moment, some in self._known.moments():
            stages = variant.stages(self._means.stages_for(release, self._known.at(moment), self._features))
            shares = shares_of(len(some), self._means.processes())

            def listed(
                share: int, stages: Stages = stages, some: NDArray[np.int64] = some, shares: int = shares
            ) -> list[list[int]]:
                asked = []
                for case in some[share::shares].tolist():
                    asked_at = from_us(int(cases.until_us[case]))
                    query = Query(f"case-{case}", str(case), depth, asked_at, seen=cases.seen, record=False)
                    asked.append([code[pick.item_id] for pick in recommend(variant.query(query), stages).items])
                return asked

            with in_this_thread():
                found = shared(shares, listed)
            for share, answers in enumerate(found):
                for case, answer in zip(some[share::shares].tolist(), answers, strict=True):
                    lists[case, : len(answer)] = answer
                    if cases.targets[case] in answer:
                        places[case] = answer.index(int(cases.targets[case]))
            done += len(some)
            self._progress(done, len(cases), f"ranking by {variant.name}, seed {seed}")
        return Ranked(places, lists)


def fitted_release(  # noqa: PLR0913
    train: EventColumns,
    history: EventsHistory,
    items: ItemTable,
    cut_us: int,
    means: Means,
    seed: int,
    progress: Progress,
    plan: Plan = newest_rounds,
    served: Callable[[int, int, ServedRules], ServedLists] = nothing_served,
) -> ModelRelease:
    """A release trained with a seed on the events before a cut, as a training run fits one; nothing is saved."""
    sources = Sources(lambda _: train, history, lambda *_: items, means.stages_for, _nothing, served)
    model = means.model or config_for(train, means.effort, seed, means.block, means.size)
    choices = Choices(
        means.effort, seed, Path(), means.text_encoder, means.device, means.threads, cut_us=cut_us,
        model=replace(model, seed=seed, pretrain=means.pretrain), plan=plan, bounds=means.bounds,
        served=ServedRules(lists_max=REQUESTS_MAX[means.effort]),
    )  # fmt: skip
    nobody = np.zeros(0, dtype=np.int64)
    judged = Slice(cut_us, cut_us, nobody, nobody, np.zeros(0, dtype=np.bool_))
    labels = None if means.labels == 1.0 else labelled(train, means.labels, seed)
    corpus = corpus_of(train, items, bounds=means.bounds, labels=labels)
    examples = Examples(from_us(cut_us), corpus, judged, items)
    return ReleaseParts(sources, choices, progress).fit(examples)


class _Known:
    """What is known of the items at a moment: cards and text vectors as in the file, counts as of the moment, co-visits
    of all that may be learned from."""

    def __init__(
        self,
        items: Sequence[Item],
        cases: Cases,
        means: Means,
        history: EventsHistory,
        texts: Embedded,
    ) -> None:
        self.end_us = int(cases.train.occurred_us[-1]) + 1
        if (cases.until_us == cases.until_us[0]).all():
            self.end_us = int(cases.until_us[0])  # temporal: all that is learned from ends at the cut
        self._cases = cases
        self._items = items
        self._history = history
        self._together = covisits(cases.train, self.end_us, means.bounds)
        codes, first = np.unique(cases.train.item_codes, return_index=True)
        times = cases.train.occurred_us[first].tolist()
        self._first_us = {cases.train.item_ids[c]: us for c, us in zip(codes.tolist(), times, strict=True)}
        self.embedded = texts
        self._last: tuple[int, ItemTable] | None = None

    def at(self, moment_us: int) -> ItemTable:
        """The item table as of a moment; the last one is kept."""
        if self._last is None or self._last[0] != moment_us:
            self._last = (moment_us, self._table(moment_us))
        return self._last[1]

    def moments(self) -> list[tuple[int, NDArray[np.int64]]]:
        """The cases in the order of their moments, in at most TABLES_MAX runs, each with its first moment."""
        until_us = self._cases.until_us
        order = np.argsort(until_us, kind="stable")
        runs = np.array_split(order, min(TABLES_MAX, len(np.unique(until_us))))
        return [(int(until_us[run[0]]), run) for run in runs]

    def _table(self, moment_us: int) -> ItemTable:
        table = ItemTable()
        ids = self._cases.train.item_ids
        by_id, vectors = {item.item_id: item for item in self._items}, self.embedded.by_id
        counts, stamps = self._history.items_at(ids, np.full(len(ids), moment_us, dtype=np.int64))
        for place, item_id in enumerate(ids):
            item = by_id.get(item_id)
            parts: list[CardPart | StatsPart | CovisitsPart | VectorPart] = []
            if item is not None:
                first_us = self._first_us.get(item_id, moment_us)
                created_us = first_us if first_us < moment_us else 0
                parts.append(CardPart(item.title, list(item.categories), True, False, item.published_us, 0, created_us))
                parts += [vectors[item_id]] if item_id in vectors else []
            elif self._first_us.get(item_id, moment_us) >= moment_us:
                continue  # nobody has heard of it yet
            parts.append(StatsPart(counts[place].tolist(), int(stamps[place])))
            parts += [self._together[item_id]] if item_id in self._together else []
            table.apply(ItemChanged(item_id, part, 1) for part in parts)
        return table


class _Tower:
    """The inner product of the tower's user vector with every item's, new items by their text."""

    def __init__(self, release: ModelRelease, known: _Known, features: FeatureStore) -> None:
        self._release = release
        self._known = known
        self._features = features
        self._at: tuple[int, ItemTable, ItemVectors, NDArray[np.float32]] | None = None
        self._starts = np.array([moment for moment, _ in known.moments()], dtype=np.int64)

    def scores(self, cases: Cases, places: NDArray[np.int64]) -> Scores:
        """Ranker."""
        found = np.empty((len(places), len(cases.train.item_ids)))
        for row, case in enumerate(places.tolist()):
            until_us = int(cases.until_us[case])
            table, vectors, matrix = self._at_moment(until_us, cases.train.item_ids)
            query = Query(f"case-{case}", str(case), 1, from_us(until_us), record=False)
            user_vector = vectors.reading(query, self._features.read(str(case))).user_vector
            found[row] = np.where(matrix.any(axis=1), matrix @ user_vector, UNKNOWN)
            found[row, ~table.servable(cases.train.item_ids, until_us)] = -np.inf
        return found

    def among(self, cases: Cases, case: int, codes: NDArray[np.int64]) -> Scores:
        """The scores of some items for one case."""
        until_us, item_ids = int(cases.until_us[case]), cases.train.item_ids
        table, vectors, matrix = self._at_moment(until_us, item_ids)
        query = Query(f"case-{case}", str(case), 1, from_us(until_us), record=False)
        user_vector = vectors.reading(query, self._features.read(str(case))).user_vector
        some = matrix[codes]
        found = np.where(some.any(axis=1), some @ user_vector, UNKNOWN).astype(np.float64)
        found[~table.servable([item_ids[code] for code in codes.tolist()], until_us)] = -np.inf
        return found

    def _at_moment(self, until_us: int, item_ids: Sequence[str]) -> tuple[ItemTable, ItemVectors, NDArray[np.float32]]:
        moment = int(self._starts[np.searchsorted(self._starts, until_us, side="right") - 1])
        if self._at is None or self._at[0] != moment:
            table = self._known.at(moment)
            vectors = ItemVectors(self._release, table)
            vectors.load()
            self._at = (moment, table, vectors, vectors.of(item_ids))
        return self._at[1:]


def plan_of(cases: Cases) -> Plan:
    """What is learned from what: as the cases lie. Those at the end of a log want what is new to count for more."""
    later = 1.0 - np.searchsorted(cases.train.occurred_us, cases.until_us) / max(len(cases.train), 1)
    return last_events if float(np.median(later)) >= ALL_OVER_SHARE else newest_rounds


def _config(cases: Cases, plan: Plan, means: Means) -> ModelConfig:
    config = config_for(cases.train, means.effort, 1, means.block, means.size)
    if plan is newest_rounds:
        return config
    length = LONG_HISTORY if len(cases.train) >= LONG_FROM_EVENTS else config.history
    return replace(config, recency_half_life_days=FOREVER_DAYS, history=length, patience=PATIENCE)


def embedded(items: Sequence[Item], means: Means, progress: Progress) -> dict[str, VectorPart]:
    """The text vectors of the items that have a text."""
    encoder = means.open_encoder(means.text_encoder)
    texts = {item.item_id: _text_of(item) for item in items}
    item_ids = [item_id for item_id, text in texts.items() if text]
    found: dict[str, VectorPart] = {}
    step = 16 * means.text_batch_max
    for start in range(0, len(item_ids), step):
        some = item_ids[start : start + step]
        vectors = encoder.embed([texts[item_id] for item_id in some]).astype("<f2")
        parts = [VectorPart(encoder.name, each.tobytes()) for each in vectors]
        found |= dict(zip(some, parts, strict=True))
        progress(len(found), len(item_ids), "embedding texts")
    return found


class Embedded:
    """The text vectors of some items, made when they are first asked for."""

    def __init__(self, items: Sequence[Item], means: Means, progress: Progress) -> None:
        self._items, self._means, self._progress = items, means, progress

    @cached_property
    def by_id(self) -> Mapping[str, VectorPart]:
        """By item id."""
        return embedded(self._items, self._means, self._progress)

    @cached_property
    def _by_text(self) -> Mapping[str, VectorPart]:
        return {_text_of(item): self.by_id[item.item_id] for item in self._items if item.item_id in self.by_id}

    def of(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of some texts, 0 for an empty one; those of the items are known. [n, T]"""
        encoder = self._means.open_encoder(self._means.text_encoder)
        fresh = [text for text in dict.fromkeys(texts) if text and text not in self._by_text]
        more = dict(zip(fresh, encoder.embed(fresh), strict=True)) if fresh else {}
        found = np.zeros((len(texts), encoder.width), dtype=np.float32)
        for row, text in zip(found, texts, strict=True):
            if text:
                row[:] = more[text] if text in more else np.frombuffer(self._by_text[text].float16, dtype="<f2")
        return found


def _text_of(item: Item) -> str:
    return card_text(ItemCard(item.item_id, item.title, item.text, item.categories))


def _nothing(info: ReleaseInfo) -> ModelRelease:
    raise BadRequest(f"an evaluation on files has no release {info.release_id}")
