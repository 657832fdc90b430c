"""Tower and pipeline on a stream: the walk that consumes it event by event and asks just before."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from models.batches import Progress
from models.metrics import MISSING
from services.domain import Query, UserState, from_us
from services.evaluation.asking import Asking
from services.evaluation.files import Item
from services.evaluation.knowledge import Items, Rows
from services.evaluation.ranking import Board, Ranked, nothing_ranked
from services.evaluation.stream import Segment, Stream, chunks
from services.evaluation.trained import UNKNOWN
from services.items import ItemTable, VectorPart
from services.training.evaluate import StagesFor

if TYPE_CHECKING:
    from models.release import ModelRelease

ASKED_AT_ONCE = 256
Vectors = NDArray[np.float32]
Question = tuple[Query, UserState]
Train = Callable[[Segment, ItemTable], "ModelRelease"]
"""A release fitted on what may be learned from where a segment begins, over the items as they are known then."""
Step = Literal["catching up", "training", "rows", "tower", "pipeline"]


class Walk:
    """One walk over a stream, for the models of one seed. `took`: the seconds that went to each step; `rows` are the
    folds and the user vectors, which tower and pipeline share."""

    def __init__(
        self,
        stream: Stream,
        items: Sequence[Item],
        vectors: Mapping[str, VectorPart],
        train: Train,
        stages_for: StagesFor,
        progress: Progress,
    ) -> None:
        self.took: dict[Step, float] = dict.fromkeys(("catching up", "training", "rows", "tower", "pipeline"), 0.0)
        self._stream = stream
        self._train = train
        self._stages_for = stages_for
        self._progress = progress
        self._known = np.searchsorted(stream.events.occurred_us, stream.known_us).tolist()
        published = {item.item_id: item.published_us for item in items}
        self._published_us = np.array([published.get(i, 0) for i in stream.events.item_ids], dtype=np.int64)
        self._code = {item_id: code for code, item_id in enumerate(stream.events.item_ids)}
        with self._timed("catching up"):
            self._rows = Rows(stream.events)
            self._rows.advance(stream.start)
            self._items = Items(stream.events, items, vectors)
            self._items.advance(stream.start)

    def ranked(self, parts: Sequence[Segment], models: Sequence[str], depth: int, text: str) -> Mapping[str, Ranked]:
        """What each of `tower` and `pipeline` makes of the cases, trained anew where each part begins."""
        size = len(self._stream.cases)
        found = {model: nothing_ranked(size, depth) for model in models}
        for part in parts:
            with self._timed("training"):
                asking = Asking(self._train(part, self._items.table), self._items.table, self._stages_for)
            tower = _Tower(asking, part, Board(part.asked, depth, part.learned), self._published_us)
            for some in chunks(np.arange(len(part.places)), ASKED_AT_ONCE):
                cases = part.places[some]
                with self._timed("rows"):
                    questions = [self._question(case, depth) for case in cases.tolist()]
                    vectors = asking.user_vectors(questions)
                if "tower" in found:
                    with self._timed("tower"):
                        tower.rank(some, vectors, self._stream.cases.until_us[cases], found["tower"])
                if "pipeline" in found:
                    with self._timed("pipeline"):
                        self._by_pipeline(asking, cases.tolist(), questions, vectors, found["pipeline"])
                self._progress(int(cases[-1]) + 1, size, text)
        return found

    def _question(self, case: int, depth: int) -> Question:
        """A case with the row that it may know. Asked under its number: a user may stand in one batch twice."""
        cases = self._stream.cases
        self._rows.advance(self._known[case])
        asked_at = from_us(int(cases.until_us[case]))
        query = Query(f"case-{case}", str(case), depth, asked_at, seen=cases.seen, record=False)
        return query, self._rows.of(int(cases.users[case]))

    def _by_pipeline(
        self, asking: Asking, cases: Sequence[int], questions: Sequence[Question], vectors: Vectors, to: Ranked
    ) -> None:
        begun = []
        for case, (query, row), user_vector in zip(cases, questions, vectors, strict=True):
            self._items.advance(self._known[case])
            begun.append(asking.begin(query, row, user_vector))
        for case, picks in zip(cases, asking.finish(begun), strict=True):
            listed = [self._code[pick.item_id] for pick in picks]
            to.lists[case, : len(listed)] = listed
            target = int(self._stream.cases.targets[case])
            to.places[case] = listed.index(target) if target in listed else MISSING

    @contextmanager
    def _timed(self, step: Step) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.took[step] += time.perf_counter() - started


@dataclass(frozen=True, slots=True)
class _Tower:
    """The tower alone over the whole catalogue; an item of which nothing is known stands below all others."""

    asking: Asking
    part: Segment
    board: Board
    published_us: NDArray[np.int64]

    def rank(self, some: NDArray[np.int64], user_vectors: Vectors, until_us: NDArray[np.int64], to: Ranked) -> None:
        """Cases of the part, asked at `until_us`, into the whole."""
        vectors = self.asking.item_vectors(self.part.asked.train.item_ids)
        known = vectors.any(axis=1)
        scores = np.where(known, user_vectors @ vectors.T, UNKNOWN).astype(np.float64)
        for row, n in enumerate(some.tolist()):
            scores[row, self.published_us > until_us[row]] = -np.inf
            case = self.part.places[n]
            to.places[case], to.lists[case] = self.board.place_and_list(scores[row], n)
