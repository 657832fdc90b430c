"""Does the reranker earn its place, and are its scores chances? Both are asked of the candidates that serving proposes,
features frozen at the cut, over the judged users.

The same candidates stand in two orders, the reranker's and that of the retrieval score. A reranker that is
significantly worse is not served. Reading another user's history it should lose what it has won: what is left then is
won by knowing the items, not the user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.batches import Progress
from models.metrics import calibration, mean_and_interval
from services.domain import Candidate, Metric, Query, from_us
from services.recommend import Stages, gather, read_user, sift
from services.sharing import shared, shares_of
from services.training.columns import EventColumns
from services.training.gate import Slice

if TYPE_CHECKING:
    from models.release import Manifest

DEPTH = 10
TOLD_EVERY = 50
Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Orders:
    """NDCG@10 of each judged user's target under the orders, float64 [users]: the reranker's, that of the retrieval
    score, and the reranker's when it reads another user's history. And every candidate of every user, [rows]: its
    scores under the first two (the reranker's is a chance), whether it was taken, and whose it is."""

    reranked: Numbers
    retrieved: Numbers
    shuffled: Numbers
    chances: NDArray[np.float32]
    retrieval_scores: NDArray[np.float32]
    taken: Flags
    new_items: Flags
    owners: NDArray[np.int64]

    @property
    def earned(self) -> bool:
        """False where the reranker is significantly worse than the retrieval score. A tie keeps it."""
        return self.gain()[2] >= 0

    def gain(self) -> tuple[float, float, float]:
        """What the reranker adds to NDCG@10, with its paired 95 % interval."""
        return mean_and_interval(self.reranked - self.retrieved, seed=1)

    def gain_shuffled(self) -> tuple[float, float, float]:
        """What it adds when it reads another user's history."""
        return mean_and_interval(self.shuffled - self.retrieved, seed=1)

    def told(self) -> str:
        """Both in a sentence."""
        (gain, low, high), (left, left_low, left_high) = self.gain(), self.gain_shuffled()
        served = "the reranker orders" if self.earned else "served without it, by the retrieval score"
        return (
            f"Reranker against retrieval score on the same candidates, {len(self.reranked):,} users: NDCG@10 "
            f"{gain:+.4f} ({low:+.4f} to {high:+.4f}), with another user's history {left:+.4f} ({left_low:+.4f} to "
            f"{left_high:+.4f}): {served}."
        )

    def metrics(self) -> tuple[Metric, ...]:
        """The same as numbers."""
        users = len(self.reranked)
        told = {"gain": self.gain(), "gain, other history": self.gain_shuffled()}
        return tuple(
            Metric("reranker", "all", f"ndcg@{DEPTH} {name}{end}", value, users)
            for name, interval in told.items()
            for end, value in zip(("", " low", " high"), interval, strict=True)
        )

    def calibration(self, manifest: Manifest, known: Flags) -> tuple[Metric, ...]:
        """ECE, PCOC and Brier score of the chances that are served: overall, for new users (those that are not `known`
        [users] before the cut), and for items that nobody had taken before."""
        chances = self.chances if manifest.rerank else manifest.retrieval_chances.chances(self.retrieval_scores)
        parts = {"all": np.ones(len(chances), dtype=np.bool_), "new users": ~known[self.owners]}
        parts["new items"] = self.new_items
        found: list[Metric] = []
        for part, chosen in parts.items():
            if not self.taken[chosen].any():
                continue
            ones = np.ones(int(chosen.sum()))
            users = len(np.unique(self.owners[chosen]))
            numbers = calibration(chances[chosen].astype(np.float64), self.taken[chosen], ones)
            found += [Metric("chances", part, name, value, users) for name, value in numbers.items()]
        return tuple(found)


def orders_of(
    stages: Stages, judged: Slice, before: EventColumns, seed: int, progress: Progress, processes: int = 1
) -> Orders:
    """`stages`: of the release ordering by its reranker."""
    shares = shares_of(len(judged), processes)
    found = shared(shares, partial(_share_of, stages, judged, before, _another(len(judged), seed), progress, shares))
    progress(len(judged), len(judged), "comparing orders")
    gains = np.sum([each.gains for each in found], axis=0)  # what another share looked at is 0
    lists = sorted((each for share in found for each in share.lists), key=lambda each: each.owner)
    sizes = [len(each.taken) for each in lists]
    none = _List(0, np.zeros(0, np.float32), np.zeros(0, np.float32), np.zeros(0, np.bool_), np.zeros(0, np.bool_))
    every = [none, *lists]
    return Orders(
        gains[0], gains[1], gains[2],
        np.concatenate([each.chances for each in every]), np.concatenate([each.retrieval for each in every]),
        np.concatenate([each.taken for each in every]), np.concatenate([each.new_items for each in every]),
        np.repeat(np.array([each.owner for each in lists], dtype=np.int64), sizes),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _List:
    """The candidates of one user: what `Orders` has of each."""

    owner: int
    chances: NDArray[np.float32]
    retrieval: NDArray[np.float32]
    taken: Flags
    new_items: Flags


@dataclass(frozen=True, slots=True)
class _Share:
    """What one process has found: gains float64 [3, users], 0 for users of the others, and its own users' lists."""

    gains: Numbers
    lists: list[_List]


def _share_of(
    stages: Stages, judged: Slice, before: EventColumns, others: NDArray[np.int64], progress: Progress, shares: int,
    share: int,
) -> _Share:  # fmt: skip
    probe = stages.probe
    assert probe is not None, "stages of a release have a probe"
    liked = {before.item_ids[code] for code in np.unique(before.item_codes[before.positive]).tolist()}
    gains = np.zeros((3, len(judged)))
    lists: list[_List] = []
    user_ids = [before.user_ids[code] for code in judged.user_codes.tolist()]
    for n in range(share, len(judged), shares):
        query = Query(f"orders-{n}", user_ids[n], DEPTH, from_us(judged.cut_us), record=False)
        user, _ = read_user(stages.features, query)
        found, _ = gather(stages.sources, query, user)
        kept, _ = sift(stages.filters, query, user, found)
        if not kept:
            continue
        scores = np.array(stages.scorer.score(query, user, kept).values, dtype=np.float32)
        by_retrieval = probe.by_retrieval(query, user, kept)
        by_other = probe.with_history_of(query, user, kept, stages.features.read(user_ids[others[n]]))
        wanted = before.item_ids[judged.target_codes[n]]
        gains[:, n] = [_gain(kept, each, wanted) for each in (scores, by_retrieval, by_other)]
        taken = np.array([each.item_id == wanted for each in kept], dtype=np.bool_)
        new_items = np.array([each.item_id not in liked for each in kept], dtype=np.bool_)
        lists.append(_List(n, scores, by_retrieval, taken, new_items))
        if share == 0 and n % TOLD_EVERY < shares:
            progress(n, len(judged), "comparing orders")
    return _Share(gains, lists)


def _gain(kept: Sequence[Candidate], scores: NDArray[np.float32], wanted: str) -> float:
    """1 / log2(place + 2) of the wanted item in the first DEPTH of the candidates, ties by id as in a list; else 0."""
    own = next((n for n, each in enumerate(kept) if each.item_id == wanted), None)
    if own is None:
        return 0.0
    level = [n for n in np.flatnonzero(scores == scores[own]).tolist() if kept[n].item_id < wanted]
    place = int(np.count_nonzero(scores > scores[own])) + len(level)
    return float(1.0 / np.log2(place + 2.0)) if place < DEPTH else 0.0


def _another(users: int, seed: int) -> NDArray[np.int64]:
    """For each of some users another one, by lot; with one user there is nobody else."""
    order = np.random.default_rng(seed).permutation(users)
    others = np.empty(users, dtype=np.int64)
    others[order] = np.roll(order, 1)
    return others
