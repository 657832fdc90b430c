"""Candidates for ranking requests, drawn from where serving draws them, as of the time of each request.

A reranker that learns from other candidates than it will be asked about learns another task: random items are told from
liked ones by popularity alone. So the pool of a request is the tower's best, what trends, what stands together with
the user's newest items and what is new. For the same reason a request whose target stands in none of them teaches the
wrong thing (that what nobody proposes is liked): its caller leaves it out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.batches import Prefixes
from services.domain import DAY_US, HOUR_US
from services.items import ItemTable
from services.training.examples import Candidates, Corpus, RequestRows, Requests
from services.training.together import Together, strength_of

TowerScores = Callable[[Prefixes], NDArray[np.float32]]
"""Scores of every row of the vocabulary for B histories: [B, V]."""

TREND_STEP_US = HOUR_US


@dataclass(frozen=True, slots=True)
class Pools:
    """How many candidates each source proposes in serving, and how many of them a request learns from."""

    tower: int = 150
    trending: int = 30
    covisits: int = 40
    newest: int = 20
    drawn: int = 36
    uniform: int = 0
    batch: int = 256


def draw_candidates(
    corpus: Corpus,
    items: ItemTable,
    requests: Requests,
    known: RequestRows,
    scores_of: TowerScores,
    pools: Pools,
    seed: int,
) -> tuple[Candidates, NDArray[np.int64]]:
    """Candidates [R, 1 + drawn + uniform] with the target first and row 0 where there was nothing left to draw, and
    how many stood in the pool, 0 where the target did not [R]. Requests must be in time order."""
    rng = np.random.default_rng(seed)
    width = 1 + pools.drawn + pools.uniform
    rows = np.zeros((len(requests), width), dtype=np.int64)
    score = np.zeros((len(requests), width), dtype=np.float32)
    strength = np.zeros((len(requests), width), dtype=np.float32)
    reached = np.zeros(len(requests), dtype=np.int64)
    trends, together = Trends(corpus, pools.trending), Together(corpus)
    starts = together.starts(known.users)
    newest = _Newest(corpus, items, pools.newest)
    taken = _Taken(corpus)
    for start in range(0, len(requests), pools.batch):
        places = np.arange(start, min(start + pools.batch, len(requests)))
        scores = scores_of(known.prefixes.take(places))
        for n, place in enumerate(places.tolist()):
            now_us, target = int(requests.asked_us[place]), int(requests.target_rows[place])
            mask = np.ones(len(corpus.vocabulary), dtype=np.bool_)
            mask[taken.of(int(requests.user_codes[place]), now_us)] = False
            mask[0] = False
            led, how = together.of(starts[place], now_us)
            pool = np.concatenate([
                _best(scores[n], mask, pools.tower),
                trends.at(now_us),
                led[np.argsort(-how, kind="stable")[: pools.covisits]],
                newest.at(now_us),
            ])  # fmt: skip
            pool = np.unique(pool[mask[pool]])
            reached[place] = len(pool) if target in pool else 0
            chosen = _drawn(rng, pool, target, pools, mask)
            rows[place, 0], score[place, 0] = target, scores[n, target]
            rows[place, 1 : 1 + len(chosen)], score[place, 1 : 1 + len(chosen)] = chosen, scores[n, chosen]
            strength[place] = strength_of(rows[place], led, how)
    return Candidates(rows, score, strength), reached


def _drawn(
    rng: np.random.Generator, pool: NDArray[np.int64], target: int, pools: Pools, mask: NDArray[np.bool_]
) -> NDArray[np.int64]:
    others = pool[pool != target]
    chosen = rng.permutation(others)[: pools.drawn]
    uniform = rng.integers(1, len(mask), size=pools.uniform)
    uniform = np.unique(uniform[mask[uniform] & (uniform != target) & ~np.isin(uniform, chosen)])
    return np.concatenate([chosen, uniform])


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
