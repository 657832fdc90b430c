"""The baselines: windowed and decayed popularity, item-kNN, EASE and co-visits of the last click."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from services.domain import DAY_US
from services.evaluation.cases import Cases, Histories
from services.training.columns import EventColumns
from services.training.cutoff import covisit_pairs

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Scores = NDArray[np.float64]
EASE_ITEMS_MAX = 5000
"""EASE inverts a dense matrix of items: 200 MB and some seconds for this many."""
COVISITS_KEPT = 1000
EVER_US = 2**61


class Ranker(Protocol):
    """Scores of the whole catalogue; equal scores are ranked by popularity. 0 says: nothing known."""

    def scores(self, cases: Cases, places: NDArray[np.int64]) -> Scores:
        """Of the cases at `places`, whose moments do not fall: [places, items]."""


@dataclass(frozen=True, slots=True)
class Popularity:
    """Positive events in the window before the moment asked; `window_us` None: all that may be learned from (of a
    stream: all before the moment). `votes` [N]: how much each training event counts; None: all the same."""

    window_us: int | None
    votes: Scores | None = None

    def scores(self, cases: Cases, places: NDArray[np.int64]) -> Scores:
        """Ranker."""
        liked = cases.train.keep(cases.train.positive)
        size = len(liked.item_ids)
        vote = np.ones(len(liked)) if self.votes is None else self.votes[cases.train.positive]
        if self.window_us is None and not cases.streamed:
            counts = np.bincount(liked.item_codes, vote, minlength=size).astype(np.float64)
            return np.broadcast_to(counts, (len(places), size)).copy()
        moments, place = np.unique(cases.until_us[places], return_inverse=True)
        first = np.searchsorted(liked.occurred_us, moments - (EVER_US if self.window_us is None else self.window_us))
        last = np.searchsorted(liked.occurred_us, moments)
        found = [np.bincount(liked.item_codes[a:b], vote[a:b], size) for a, b in zip(first, last, strict=True)]
        return np.stack(found).astype(np.float64)[place]


@dataclass(frozen=True, slots=True)
class Trending:
    """Positive events before the moment asked, each counting half after every half-life; `votes` as in Popularity."""

    half_life_us: int
    votes: Scores | None = None

    def scores(self, cases: Cases, places: NDArray[np.int64]) -> Scores:
        """Ranker."""
        liked = cases.train.keep(cases.train.positive)
        vote = np.ones(len(liked)) if self.votes is None else self.votes[cases.train.positive]
        moments, place = np.unique(cases.until_us[places], return_inverse=True)
        counts = np.zeros(len(liked.item_ids))
        found = np.zeros((len(moments), len(counts)))
        start, before_us = 0, int(moments[0])
        for number, moment in enumerate(moments.tolist()):
            stop = int(np.searchsorted(liked.occurred_us, moment))
            counts *= np.exp2(-(moment - before_us) / self.half_life_us)
            age = (moment - liked.occurred_us[start:stop]) / self.half_life_us
            counts += np.bincount(liked.item_codes[start:stop], vote[start:stop] * np.exp2(-age), len(counts))
            found[number], start, before_us = counts, stop, moment
        return found[place]


class ItemKnn:
    """Summed cosine similarity (of the sets of users) to the newest `newest` items of the history."""

    def __init__(self, similarity: csr_array, newest: int) -> None:
        self._similarity = similarity
        self._liked = _Liked()
        self._newest = newest

    def scores(self, cases: Cases, places: NDArray[np.int64]) -> Scores:
        """Ranker."""
        items = [np.unique(each[-self._newest :]) for each in self._liked.of(cases, places)]
        return np.asarray((_indicators(items, self._similarity.shape[0]) @ self._similarity).todense())


class Ease:
    """EASE (Steck 2019): the item-to-item regression with a zero diagonal, in closed form, B = I - P / diag(P) with
    P = (XᵀX + λI)⁻¹. Only the EASE_ITEMS_MAX items with most users take part; `left_out` are the others."""

    def __init__(self, train: EventColumns, regularisation: float, items_max: int = EASE_ITEMS_MAX) -> None:
        from scipy.linalg import lapack

        liked = train.keep(train.positive)
        taken = _taken(liked)
        users = np.asarray(taken.sum(axis=0)).ravel()
        kept = np.sort(np.lexsort((np.arange(len(users)), -users))[:items_max])
        self._items = kept[users[kept] > 0]
        self.left_out = int(np.count_nonzero(users)) - len(self._items)
        of_kept = taken[:, self._items]
        gram = np.asfortranarray((of_kept.T @ of_kept).toarray())
        gram[np.diag_indices_from(gram)] += regularisation
        factor, failed = lapack.dpotrf(gram, lower=1, overwrite_a=1, clean=0)
        assert failed == 0, f"XᵀX + {regularisation} I is not positive definite: {failed}"
        inverse, failed = lapack.dpotri(factor, lower=1, overwrite_c=1)
        assert failed == 0, f"no inverse: {failed}"
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
        self._weights = -inverse / np.diag(inverse)[None, :]
        np.fill_diagonal(self._weights, 0.0)
        self._liked = _Liked()

    def scores(self, cases: Cases, places: NDArray[np.int64]) -> Scores:
        """Ranker."""
        size = len(cases.train.item_ids)
        items = [np.unique(each) for each in self._liked.of(cases, places)]
        found = np.zeros((len(places), size))
        found[:, self._items] = _indicators(items, size)[:, self._items] @ self._weights
        return found


class LastClick:
    """Items that stood within `lags` positive events of the case's last item in some user's history, by how often,
    each time counting half after every half-life (infinite: all count the same). In a stream, what happened between
    fitting and the case's moment counts too."""

    def __init__(self, train: EventColumns, lags: int, half_life_us: float) -> None:
        from scipy.sparse import coo_array, csr_array

        until_us = int(train.occurred_us[-1]) + 1
        rows, columns, weights = covisit_pairs(train, until_us, lags, half_life_us, COVISITS_KEPT)
        shape = (len(train.item_ids), len(train.item_ids))
        self._together = csr_array(coo_array((weights, (rows, columns)), shape=shape))
        self._liked = _Liked()
        self._since = _MetSince(until_us, lags, half_life_us)

    def scores(self, cases: Cases, places: NDArray[np.int64]) -> Scores:
        """Ranker."""
        items = [each[-1:] for each in self._liked.of(cases, places)]
        found = np.asarray((_indicators(items, self._together.shape[0]) @ self._together).todense())
        if cases.streamed:
            liked = self._liked.histories(cases.train)
            for row, (place, last) in enumerate(zip(places.tolist(), items, strict=True)):
                self._since.advance(cases.train, liked, int(cases.until_us[place]))
                if len(last):
                    self._since.add_to(found[row], int(last[0]))
        return found


class _MetSince:
    """The pairs of a stream from a time on, as far as it was walked; weights are as of that time, and so grow."""

    def __init__(self, since_us: int, lags: int, half_life_us: float) -> None:
        self._since_us = since_us
        self._until_us = since_us
        self._lags = lags
        self._half_life_us = half_life_us
        self._met: dict[int, dict[int, float]] = {}

    def advance(self, events: EventColumns, liked: Histories, until_us: int) -> None:
        """Take in what happened before a moment, which is not before the last one."""
        first, last = np.searchsorted(events.occurred_us, (self._until_us, until_us)).tolist()
        for place in range(first, last):
            if events.weight[place] > 0:
                item, at_us = int(events.item_codes[place]), int(events.occurred_us[place])
                self._meet(item, liked.before(int(events.user_codes[place]), at_us)[-self._lags :].tolist(), at_us)
        self._until_us = max(self._until_us, until_us)

    def add_to(self, scores: Scores, item: int) -> None:
        """The weights of all that was met beside an item, onto scores [items]."""
        met = self._met.get(item, {})
        scores[list(met)] += list(met.values())

    def _meet(self, item: int, others: Sequence[int], at_us: int) -> None:
        weight = 2.0 ** ((at_us - self._since_us) / self._half_life_us)
        for other in others:
            if other != item:
                for one, two in ((item, other), (other, item)):
                    met = self._met.setdefault(one, {})
                    met[two] = met.get(two, 0.0) + weight


class _Liked:
    """Each case's positive items before its moment, oldest first, of the events that the cases name."""

    def __init__(self) -> None:
        self._last: tuple[EventColumns, Histories] | None = None

    def of(self, cases: Cases, places: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Of the cases at `places`."""
        histories = self.histories(cases.train)
        pairs = zip(cases.users[places].tolist(), cases.until_us[places].tolist(), strict=True)
        return [histories.before(user, until_us) for user, until_us in pairs]

    def histories(self, events: EventColumns) -> Histories:
        """Those of some events; the last are kept."""
        if self._last is None or self._last[0] is not events:
            self._last = (events, Histories(events, liked=True))
        return self._last[1]


def days_us(days: float) -> int:
    """Days in µs."""
    return round(days * DAY_US)


def _indicators(items: Sequence[NDArray[np.int64]], size: int) -> csr_array:
    """A row per set of items, 1 where an item is in it. [sets, size]"""
    from scipy.sparse import csr_array

    offsets = np.concatenate([[0], np.cumsum([len(each) for each in items])])
    columns = np.concatenate(items) if items else np.zeros(0, dtype=np.int64)
    return csr_array((np.ones(len(columns)), columns, offsets), shape=(len(items), size))


def _taken(liked: EventColumns) -> csr_array:
    """1 where a user has taken an item, however often. [users, items]"""
    from scipy.sparse import coo_array, csr_array

    shape = (len(liked.user_ids), len(liked.item_ids))
    taken = csr_array(coo_array((np.ones(len(liked)), (liked.user_codes, liked.item_codes)), shape=shape))
    taken.data[:] = 1.0
    return taken
