"""Candidates for ranking requests, drawn from where serving draws them, as of the time of each request.

A reranker that learns from other candidates than it will be asked about learns another task: random items are told from
liked ones by popularity alone. So the pool of a request is the tower's best, what trends, what stands together with
the user's newest items and what is new. For the same reason a request whose target stands in none of them teaches the
wrong thing (that what nobody proposes is liked): its caller leaves it out.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.batched import in_this_thread
from models.batches import Prefixes
from services.domain import DAY_US, HOUR_US
from services.items import ItemTable
from services.sharing import shared, shares_of
from services.training.examples import Candidates, Corpus, RequestRows, Requests
from services.training.together import Together, strength_of

TowerScores = Callable[[Prefixes], NDArray[np.float32]]
"""Scores of every row of the vocabulary for B histories: [B, V]."""

Drawn = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]
"""Rows, the tower's score and the strength of co-visits [R, 1 + drawn], and how many stood in the pool [R]."""

TREND_STEP_US = HOUR_US


@dataclass(frozen=True, slots=True)
class Pools:
    """How many candidates each source proposes in serving, and how many of them a request learns from."""

    tower: int = 150
    trending: int = 30
    covisits: int = 40
    newest: int = 20
    drawn: int = 36
    batch: int = 256


def draw_candidates(
    corpus: Corpus, items: ItemTable, requests: Requests, known: RequestRows, scores_of: TowerScores, pools: Pools,
    seed: int, processes: int = 1,
) -> tuple[Candidates, NDArray[np.int64]]:  # fmt: skip
    """Candidates [R, 1 + drawn] with the target first and row 0 where there was nothing left to draw, and how many
    stood in the pool, 0 where the target did not [R]. Requests must be in time order. Among `processes` they are shared
    out, and what is drawn is the same."""
    proposals = _Proposals(corpus, items, requests, known, scores_of, pools, seed)
    batches = -(-len(requests) // pools.batch)
    shares = shares_of(len(requests), min(processes, batches))
    ends = [min(len(requests), batches * share // shares * pools.batch) for share in range(shares + 1)]
    with in_this_thread() if shares > 1 else nullcontext():
        found = shared(shares, lambda share: proposals.drawn(ends[share], ends[share + 1]))
    rows, score, strength, reached = (np.concatenate(each) for each in zip(*found, strict=True))
    return Candidates(rows, score, strength), reached


class _Proposals:
    """What serving would propose at each request, worked through in time order."""

    def __init__(
        self, corpus: Corpus, items: ItemTable, requests: Requests, known: RequestRows, scores_of: TowerScores,
        pools: Pools, seed: int,
    ) -> None:  # fmt: skip
        self._requests, self._known, self._scores_of = requests, known, scores_of
        self._pools, self._seed, self._width = pools, seed, len(corpus.vocabulary)
        self._trends, self._together = Trends(corpus, pools.trending), Together(corpus)
        self._starts = self._together.starts(known.users)
        self._newest = _Newest(corpus, items, pools.newest)
        self._taken = _Taken(corpus)

    def drawn(self, first: int, last: int) -> Drawn:
        """Of the requests from `first` to before `last`; `first` is the beginning of a batch."""
        requests, pools = self._requests, self._pools
        shape = last - first, 1 + pools.drawn
        rows, reached = np.zeros(shape, dtype=np.int64), np.zeros(last - first, dtype=np.int64)
        score, strength = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
        self._trends.pass_over(requests.asked_us[:first])
        self._together.pass_over(requests.asked_us[:first])
        for start in range(first, last, pools.batch):
            places = np.arange(start, min(start + pools.batch, last))
            scores = self._scores_of(self._known.prefixes.take(places))
            for n, place in enumerate(places.tolist()):
                target, row = int(requests.target_rows[place]), place - first
                pool, led, how = self._pool(place, scores[n])
                reached[row] = len(pool) if target in pool else 0
                # Chance by the request, so that it does not depend on who works on it.
                rng = np.random.default_rng([self._seed, place])
                chosen = rng.permutation(pool[pool != target])[: pools.drawn]
                rows[row, 0], score[row, 0] = target, scores[n, target]
                rows[row, 1 : 1 + len(chosen)], score[row, 1 : 1 + len(chosen)] = chosen, scores[n, chosen]
                strength[row] = strength_of(rows[row], led, how)
        return rows, score, strength, reached

    def _pool(
        self, place: int, scores: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """The rows that all sources propose, and the rows that co-visits lead to with how strongly they do."""
        now_us, pools = int(self._requests.asked_us[place]), self._pools
        mask = np.ones(self._width, dtype=np.bool_)
        mask[self._taken.of(int(self._requests.user_codes[place]), now_us)] = False
        mask[0] = False
        led, how = self._together.of(self._starts[place], now_us)
        pool = np.concatenate([
            _best(scores, mask, pools.tower),
            self._trends.at(now_us),
            led[np.argsort(-how, kind="stable")[: pools.covisits]],
            self._newest.at(now_us),
        ])  # fmt: skip
        return np.unique(pool[mask[pool]]), led, how


def _best(scores: NDArray[np.float32], mask: NDArray[np.bool_], limit: int) -> NDArray[np.int64]:
    shown = np.where(mask, scores, -np.inf)
    limit = min(limit, len(shown))
    return np.argpartition(-shown, limit - 1)[:limit].astype(np.int64)


class Trends:
    """The rows with the most decayed positive events, over 24 h and 7 d in turn, at full hours as time goes on."""

    def __init__(self, corpus: Corpus, limit: int) -> None:
        liked = corpus.events.keep(corpus.events.positive)
        self._rows = corpus.rows[liked.item_codes]
        self._times = liked.occurred_us
        self._votes = corpus.votes[corpus.events.positive]
        self._counts = np.zeros((2, len(corpus.vocabulary)))
        self._half_lives = np.array([[DAY_US], [7 * DAY_US]], dtype=np.float64)
        self._limit = limit
        self._hour_us = int(self._times[0]) // TREND_STEP_US * TREND_STEP_US if len(self._times) else 0
        self._best: NDArray[np.int64] | None = None

    def at(self, now_us: int) -> NDArray[np.int64]:
        """At most `limit` rows, best first, as of the full hour before. Times must not fall."""
        hour_us = now_us // TREND_STEP_US * TREND_STEP_US
        if hour_us > self._hour_us:
            self._advance(hour_us)
            self._best = None
        if self._best is None:
            top = [np.argsort(-counts, kind="stable")[: self._limit] for counts in self._counts]
            merged = np.fromiter(dict.fromkeys(np.stack(top, axis=1).ravel().tolist()), dtype=np.int64)
            merged = merged[self._counts[1][merged] > 0]
            self._best = merged[: self._limit]
        return self._best

    def pass_over(self, times_us: NDArray[np.int64]) -> None:
        """Stand where being asked at these times would have led."""
        for hour_us in np.unique(times_us // TREND_STEP_US * TREND_STEP_US).tolist():
            if hour_us > self._hour_us:
                self._advance(hour_us)
        self._best = None

    def _advance(self, hour_us: int) -> None:
        first, last = np.searchsorted(self._times, [self._hour_us, hour_us])
        self._counts *= np.exp2(-(hour_us - self._hour_us) / self._half_lives)
        age_us = hour_us - self._times[first:last]
        for counts, half_life in zip(self._counts, self._half_lives[:, 0], strict=True):
            np.add.at(counts, self._rows[first:last], self._votes[first:last] * np.exp2(-age_us / half_life))
        self._hour_us = hour_us


class _Newest:
    """The rows published last before a time."""

    def __init__(self, corpus: Corpus, items: ItemTable, limit: int) -> None:
        published = items.block(("", *corpus.vocabulary.item_ids)).published_us
        dated = np.flatnonzero(published > 0)
        self._rows = dated[np.argsort(published[dated], kind="stable")]
        self._times = published[self._rows]
        self._limit = limit

    def at(self, now_us: int) -> NDArray[np.int64]:
        end = int(np.searchsorted(self._times, now_us, side="right"))
        return self._rows[max(0, end - self._limit) : end]


class _Taken:
    """The rows that a user had had a positive event on before a time."""

    def __init__(self, corpus: Corpus) -> None:
        liked = corpus.events.keep(corpus.events.positive)
        order = np.lexsort((liked.occurred_us, liked.user_codes))
        self._rows = corpus.rows[liked.item_codes[order]]
        self._times = liked.occurred_us[order]
        self._offsets = np.searchsorted(liked.user_codes[order], np.arange(len(liked.user_ids) + 1))

    def of(self, user_code: int, now_us: int) -> NDArray[np.int64]:
        first, last = self._offsets[user_code : user_code + 2]
        last = first + np.searchsorted(self._times[first:last], now_us)
        return self._rows[first:last]
