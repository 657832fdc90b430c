"""Tower and pipeline on a stream: the walk that consumes it event by event and asks just before."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from models.batched import one_thread
from models.batches import Progress
from models.metrics import MISSING
from services.bounds import BOUNDED, Bounds
from services.domain import Query, UserState, from_us
from services.evaluation.asking import Asking
from services.evaluation.files import Item
from services.evaluation.knowledge import FLUSH_EVENTS, Items, Rows
from services.evaluation.ranking import Board, Ranked, nothing_ranked
from services.evaluation.stream import Segment, Stream, chunks
from services.evaluation.trained import UNKNOWN
from services.item_parts import VectorPart
from services.items import ItemTable
from services.sharing import shared, shares_of
from services.training.evaluate import StagesFor

if TYPE_CHECKING:
    from models.release import ModelRelease

ASKED_AT_ONCE = 256
PROCESSES_MAX = 4
Vectors = NDArray[np.float32]
Places = NDArray[np.int64]
Question = tuple[Query, UserState]
Train = Callable[[Segment, ItemTable], "ModelRelease"]
"""A release fitted on what may be learned from where a segment begins, over the items as they are known then."""
Step = Literal["catching up", "training", "walking"]


class Walk:
    """One walk over a stream, for the models of one seed. `took`: the seconds that went to each step. Several processes
    walk all of it side by side, and each asks its share of the cases."""

    def __init__(
        self,
        stream: Stream,
        items: Sequence[Item],
        vectors: Mapping[str, VectorPart],
        train: Train,
        stages_for: StagesFor,
        progress: Progress,
        processes: int = 1,
        bounds: Bounds = BOUNDED,
    ) -> None:
        self.took: dict[Step, float] = dict.fromkeys(("catching up", "training", "walking"), 0.0)
        self._processes = processes
        self._stream = stream
        self._train = train
        self._stages_for = stages_for
        self._progress = progress
        self._together = 1 if stream.is_live else FLUSH_EVENTS
        self._known = np.searchsorted(stream.events.occurred_us, stream.known_us).tolist()
        published = {item.item_id: item.published_us for item in items}
        self._published_us = np.array([published.get(i, 0) for i in stream.events.item_ids], dtype=np.int64)
        self._code = {item_id: code for code, item_id in enumerate(stream.events.item_ids)}
        with self._timed("catching up"):
            self._rows = Rows(stream.events)
            self._rows.advance(stream.start)
            self._items = Items(stream.events, items, vectors, bounds)
            self._items.advance(stream.start)

    def ranked(self, parts: Sequence[Segment], models: Sequence[str], depth: int, text: str) -> Mapping[str, Ranked]:
        """What each of `tower` and `pipeline` makes of the cases, trained anew where each part begins."""
        size = len(self._stream.cases)
        found = {model: nothing_ranked(size, depth) for model in models}
        for part in parts:
            with self._timed("training"):
                asking = Asking(self._train(part, self._items.table), self._items.table, self._stages_for)
            leg = _Leg(part, asking, Board(part.asked, depth, part.learned), tuple(models))
            shares = shares_of(len(part.places), self._processes)
            if shares > 1:
                one_thread()  # a copy of a process has none of its threads
            with self._timed("walking"):
                for places, made in shared(shares, partial(self._walked, leg, shares, text)):
                    for model, ranked in made.items():
                        cases = part.places[places]
                        found[model].places[cases], found[model].lists[cases] = ranked.places, ranked.lists
        return found

    def _walked(self, leg: _Leg, shares: int, text: str, share: int) -> tuple[Places, dict[str, Ranked]]:
        """Every so many cases of a leg: their places in it, and what the models make of them."""
        every = np.arange(share, len(leg.part.places), shares)
        depth = leg.board.depth
        found: dict[str, list[Ranked]] = {model: [] for model in leg.models}
        for places in chunks(every, ASKED_AT_ONCE):
            cases = leg.part.places[places].tolist()
            questions = [self._question(case, depth) for case in cases]
            vectors = leg.asking.user_vectors(questions)
            if "tower" in found:
                found["tower"].append(self._by_tower(leg, places, vectors))
            if "pipeline" in found:
                found["pipeline"].append(self._by_pipeline(leg, cases, questions, vectors))
            if share == 0:
                self._progress(cases[-1] + 1, len(self._stream.cases), text)
        return every, {model: _joined(ranked) for model, ranked in found.items()}

    def _question(self, case: int, depth: int) -> Question:
        """A case with the row that it may know. Asked under its number: a user may stand in one batch twice."""
        cases = self._stream.cases
        self._rows.advance(self._known[case])
        asked_at = from_us(int(cases.until_us[case]))
        query = Query(f"case-{case}", str(case), depth, asked_at, seen=cases.seen, record=False)
        return query, self._rows.of(int(cases.users[case]))

    def _by_tower(self, leg: _Leg, places: Places, user_vectors: Vectors) -> Ranked:
        """The whole catalogue by the inner product; an item of which nothing is known stands below all others."""
        vectors = leg.asking.item_vectors(self._stream.events.item_ids)
        scores = np.where(vectors.any(axis=1), user_vectors @ vectors.T, UNKNOWN).astype(np.float64)
        until_us = self._stream.cases.until_us[leg.part.places[places]]
        scores[self._published_us[None, :] > until_us[:, None]] = -np.inf
        ranked = nothing_ranked(len(places), leg.board.depth)
        for n, place in enumerate(places.tolist()):
            ranked.places[n], ranked.lists[n] = leg.board.place_and_list(scores[n], place)
        return ranked

    def _by_pipeline(
        self, leg: _Leg, cases: Sequence[int], questions: Sequence[Question], user_vectors: Vectors
    ) -> Ranked:
        begun = []
        for case, (query, row), user_vector in zip(cases, questions, user_vectors, strict=True):
            self._items.advance(self._known[case], self._together)
            begun.append(leg.asking.begin(query, row, user_vector))
        ranked = nothing_ranked(len(cases), leg.board.depth)
        for n, (case, picks) in enumerate(zip(cases, leg.asking.finish(begun), strict=True)):
            listed = [self._code[pick.item_id] for pick in picks]
            ranked.lists[n, : len(listed)] = listed
            target = int(self._stream.cases.targets[case])
            ranked.places[n] = listed.index(target) if target in listed else MISSING
        return ranked

    @contextmanager
    def _timed(self, step: Step) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.took[step] += time.perf_counter() - started


@dataclass(frozen=True, slots=True)
class _Leg:
    """What is walked with one release."""

    part: Segment
    asking: Asking
    board: Board
    models: tuple[str, ...]


def _joined(ranked: Sequence[Ranked]) -> Ranked:
    return Ranked(np.concatenate([each.places for each in ranked]), np.concatenate([each.lists for each in ranked]))
