"""A shop of eight films whose right answers can be worked out by hand, a hand-made release, a runtime in memory.

Space films s1..s4 lie along the first axis, love films l1..l4 along the second. `cold` came after the release was made:
only its text is known (a space film). `gone` cannot be had, `plain` is known from events only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np

from models.batches import History
from models.vocabulary import Vocabulary
from services.api.runtime import Run
from services.bus.spool import Taken
from services.candidates.filters import standard_filters
from services.candidates.sources import standard_sources
from services.candidates.vectors import ItemVectors
from services.catalogue.cards import MemoryCatalogue
from services.domain import (
    Candidate,
    Interaction,
    Outgoing,
    PartHealth,
    Query,
    Seen,
    UserState,
    hash64,
    to_us,
)
from services.freshness import figures
from services.item_parts import CardPart, CovisitsPart, ItemChanged, StatsPart, VectorPart
from services.items import ItemTable
from services.memory import MemoryBus, MemoryFeatureStore, MemoryQuarantine, MemoryRegistry, MemorySlateLog
from services.mix import BY_SCORE, Mix
from services.ranking.arrange import TopByScore
from services.ranking.erasure import ErasureProbe
from services.ranking.scorers import AttentionScorer, RetrievalOrderScorer
from services.recommend import Stages
from services.reports import Report, Told
from services.settings import Settings

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
NOW_US = to_us(NOW)
HOUR = timedelta(hours=1)
SPACE, LOVE = ("s1", "s2", "s3", "s4"), ("l1", "l2", "l3", "l4")
CLICKS_24H = {"s1": 8.0, "l1": 7.0, "s2": 6.0, "l2": 5.0, "plain": 4.0, "gone": 9.0}
COVISITS = {"s1": ("s3", "s4"), "s2": ("s4",), "l1": ("l3",)}
TEXT_WIDTH = 3


def angle(degrees: float) -> np.ndarray:
    return np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], dtype=np.float32)


VECTORS = {name: angle(5 * place) for place, name in enumerate(SPACE)} | {
    name: angle(90 - 5 * place) for place, name in enumerate(LOVE)
}


@dataclass(frozen=True)
class HandRelease:
    """A user's vector is the mean of their positive items'; a candidate's score is its retrieval score."""

    vocabulary: Vocabulary = field(default_factory=lambda: Vocabulary(SPACE + LOVE, ("click", "hide")))
    width: int = 2
    text_width: int = TEXT_WIDTH

    @property
    def item_vectors(self) -> np.ndarray:
        return np.stack([np.zeros(2, dtype=np.float32), *(VECTORS[i] for i in SPACE + LOVE)])

    def new_item_vectors(self, text_vectors: np.ndarray) -> np.ndarray:
        return text_vectors[:, :2].astype(np.float32)

    def user_vector(self, history: History, now_s: int) -> np.ndarray:
        positive = history.vectors[history.actions % 2 == 1]
        return positive.mean(axis=0).astype(np.float32) if len(positive) else np.zeros(2, dtype=np.float32)

    def search(self, user_vector: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        scores = self.item_vectors[1:] @ user_vector
        best = np.argsort(-scores, kind="stable")[:k]
        return best.astype(np.int64) + 1, scores[best].astype(np.float32)

    related = search

    def rerank(self, history, now_s, candidate_vectors, features, retrieval_score) -> np.ndarray:
        assert len(candidate_vectors) == len(features) == len(retrieval_score)
        return retrieval_score.astype(np.float32)

    @property
    def reranks(self) -> bool:
        return True

    def user_vectors(self, histories: Sequence[History], now_s: int) -> np.ndarray:
        return np.stack([self.user_vector(each, now_s) for each in histories])

    def rerank_rows(self, histories, now_s, candidate_vectors, features, retrieval_score) -> np.ndarray:
        assert len(histories) == len(features) == len(retrieval_score)
        return retrieval_score.astype(np.float32)

    def attention(self, history: History, now_s: int, candidate_vectors: np.ndarray) -> np.ndarray:
        """The same for nothing and every event."""
        length = len(history.times_s) + 1
        return np.full((len(candidate_vectors), length), 1 / length, dtype=np.float32)


def film_table() -> ItemTable:
    """The eight films, the unavailable, the cold and the plain one."""
    table = ItemTable()
    published = to_us(datetime(2025, 1, 1, tzinfo=UTC))
    payloads: list[tuple[str, object]] = []
    for place, name in enumerate(SPACE + LOVE):
        category = "Space" if name in SPACE else "Love"
        payloads.append((name, CardPart(f"Film {name}", [category], True, False, published + place, 0, published)))
    payloads.append(("gone", CardPart("Film gone", ["Space"], False, False, published + 99, 0, published)))
    payloads.append(("cold", CardPart("Film cold", ["Space"], True, False, NOW_US - 1000, 0, NOW_US - 1000)))
    payloads.append(("cold", VectorPart("hand", np.array([1, 0, 0], dtype="<f2").tobytes())))
    for name, clicks in CLICKS_24H.items():
        payloads.append((name, StatsPart([0, 0, 0, 0, clicks, clicks, 0, 0, 0], NOW_US)))
    for name, others in COVISITS.items():
        payloads.append((name, CovisitsPart(list(others), [2.0 - n for n in range(len(others))])))
    table.apply([ItemChanged(name, payload, seq) for seq, (name, payload) in enumerate(payloads, start=1)])
    return table


def user(*taken: str, hidden: Sequence[str] = (), user_id: str = "ada") -> UserState:
    """A user who clicked these, the last one newest, a minute apart, up to a minute ago."""
    count = len(taken)
    times = [NOW_US - (count - n) * 60_000_000 for n in range(count)]
    events = [
        Interaction(us, hash64(f"{user_id}{n}"), i, "click", None, 1.0)
        for n, (i, us) in enumerate(zip(taken, times, strict=True))
    ]
    taken_at = {hash64(e.item_id): e.occurred_us // 3_600_000_000 for e in events}
    seen = Seen.of(sorted(((hour, each) for each, hour in taken_at.items()), reverse=True))
    newest = times[-1] if times else (NOW_US - 60_000_000 if hidden else 0)
    hides = tuple((NOW_US - 60_000_000, item_id) for item_id in hidden)
    return UserState(user_id, tuple(reversed(events)), hides, seen, times[0] if times else newest, newest)


def query(**given) -> Query:
    return Query(**{"request_id": "r", "user_id": "ada", "limit": 5, "asked_at": NOW, **given})


def proposed(*item_ids: str, source: str = "given") -> tuple[Candidate, ...]:
    return tuple(Candidate(item_id, source, 1 / (1 + rank), rank) for rank, item_id in enumerate(item_ids))


def stages_of(
    items: ItemTable,
    features: MemoryFeatureStore,
    release: HandRelease | None,
    slates: MemorySlateLog | None = None,
    mix: Mix = BY_SCORE,
) -> Stages:
    """Everything that answers, by hand-made parts or by the release given."""
    vectors = None
    if release is not None:
        vectors = ItemVectors(release, items)
        vectors.load()
    scorer = AttentionScorer(release, items, vectors) if release and vectors else RetrievalOrderScorer()
    return Stages(
        "hand" if release else None,
        items.as_of,
        features,
        standard_sources(items, vectors, mix),
        standard_filters(items),
        scorer,
        TopByScore(items, mix),
        slates or MemorySlateLog(),
        probe=ErasureProbe(release, items, vectors, lambda: 0.0) if release and vectors else None,
    )


class MemoryRuntime:
    """A whole instance in memory; the clock stands still unless it is moved."""

    def __init__(self, settings: Settings, rows: Mapping[str, UserState] | None = None) -> None:
        self.settings = settings
        self.clock = NOW
        self.bus = MemoryBus(2, self.now)
        self.sink, self.view = self.bus.sink(), self.bus.view()
        self.features = MemoryFeatureStore(rows)
        self.items = film_table()
        self.catalogue = MemoryCatalogue()
        self.registry = MemoryRegistry()
        self.quarantine = MemoryQuarantine()
        self.slates = MemorySlateLog()
        self.release: HandRelease | None = HandRelease()
        self.health = {"bus": PartHealth("green"), "model": PartHealth("yellow", "no release yet")}
        self.reports: tuple[Report, ...] = ()
        self.history: list[str] = []
        self.past_runs: tuple[Run, ...] = ()

    def now(self) -> datetime:
        return self.clock

    def take(self, events: Sequence[Outgoing]) -> Taken:
        return Taken(self.sink.publish(events), 0)

    def start(self) -> None:
        self.history.append("started")

    def stop(self) -> None:
        self.history.append("stopped")

    def stages(self) -> Stages:
        return stages_of(self.items, self.features, self.release, self.slates, self.settings.mix())

    def parts(self) -> Mapping[str, PartHealth]:
        return self.health

    def told(self) -> Told:
        windows = [window for report in self.reports for window in report.windows]
        now_us = to_us(self.clock)
        return Told(self.reports, figures(windows, now_us, self.settings.freshness_window_s), now_us)

    def ages_s(self) -> Mapping[str, float]:
        return {"changed": 7.0, "fed": 0.25}

    def waiting_s(self) -> Mapping[str, float]:
        return {"features": 3.0}

    def runs(self, limit: int) -> Sequence[Run]:
        return self.past_runs[:limit]
