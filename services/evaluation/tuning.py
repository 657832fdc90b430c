"""Baselines by name, well tuned: what is not given is chosen by NDCG@10 on cases cut from the training events alone."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.batches import Progress
from models.metrics import MISSING
from services.domain import BadRequest
from services.evaluation.baselines import (
    EASE_ITEMS_MAX,
    Ease,
    ItemKnn,
    LastClick,
    Popularity,
    Ranker,
    Trending,
    days_us,
)
from services.evaluation.cases import Cases, Protocol, leave_one_out, temporal
from services.evaluation.measures import gains
from services.evaluation.ranking import Board
from services.training.baselines import item_similarity, strongest
from services.training.columns import EventColumns

if TYPE_CHECKING:
    from scipy.sparse import csr_array

TUNED_AT = 10
CASES_TO_TUNE = 1000
EASE_ITEMS_TO_TUNE = 1500
WHOLE = 2**31
"""Events of a history that no history has."""
Fit = Callable[[EventColumns], Ranker]


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to set a baseline: what it is called, how it is fitted, and how it is fitted while ways are compared."""

    label: str
    fit: Fit
    try_out: Fit


@dataclass(frozen=True, slots=True)
class Tuned:
    """A fitted baseline and what there is to say of it: its setting and what it leaves out."""

    ranker: Ranker
    setting: str


def choices_of(name: str, given: str | None) -> Sequence[Choice]:
    """The ways to set a baseline, or the one that is given (`popularity:7d`, `ease:300`). Raises BadRequest."""
    if name == "popularity":
        return [_popularity(each) for each in ([given] if given else ["1d", "3d", "7d", "14d", "30d", "90d", "all"])]
    if name == "trending":
        return [_trending(each) for each in ([given] if given else ["0.5d", "1d", "3d", "7d", "14d", "30d", "90d"])]
    if name == "itemknn":
        if given:
            return [_item_knn(_whole(name, given), None, _Similar(_whole(name, given)))]
        similar = _Similar(500)
        return [_item_knn(neighbours, newest, similar) for neighbours in (20, 100, 500) for newest in (1, 5, 20, None)]
    if name == "ease":
        return [_ease(_number(name, given))] if given else [_ease(each) for each in (20.0, 100.0, 300.0, 1000.0)]
    assert name == "last-click", name
    if given:
        return [_last_click(_whole(name, given), math.inf)]
    return [_last_click(lags, days) for lags in (1, 3, 10) for days in (3, 14, 60, math.inf)]


def tuned(cases: Cases, choices: Sequence[Choice], protocol: Protocol, progress: Progress, text: str) -> Tuned:
    """The best of the choices on cases cut from the training events, fitted on all of these events."""
    inner = _inner(cases, protocol) if len(choices) > 1 else None
    return fitted(best_of(inner, inner.train, choices, progress, text) if inner else choices[0], cases.train)


def best_of(inner: Cases, learned: EventColumns, choices: Sequence[Choice], progress: Progress, text: str) -> Choice:
    """The choice with the best NDCG on some cases, the first of equals, each fitted on what may be learned from."""
    if len(choices) == 1:
        return choices[0]
    board = Board(inner, TUNED_AT, learned)
    found = []
    for number, choice in enumerate(choices):
        ranked = board.rank(choice.try_out(learned), _unwatched, "")
        found.append(float(gains(np.where(inner.judged, ranked.places, MISSING), TUNED_AT).sum()))
        progress(number + 1, len(choices), text)
    return choices[int(np.argmax(found))]


def fitted(best: Choice, train: EventColumns) -> Tuned:
    """A choice fitted on some events."""
    ranker = best.fit(train)
    left_out = getattr(ranker, "left_out", 0)
    note = f"; {left_out:,} items with fewer users left to popularity (at most {EASE_ITEMS_MAX:,})" if left_out else ""
    return Tuned(ranker, best.label + note)


def _inner(cases: Cases, protocol: Protocol) -> Cases | None:
    """Cases of the same kind inside the training events, at most CASES_TO_TUNE; None where none can be cut."""
    try:
        if protocol == "temporal":
            inner = temporal(cases.train, "0.8", cases.seen, 1)
        else:
            inner = leave_one_out(cases.train, cases.seen)
    except BadRequest:
        return None
    chosen = some_of(inner.judged)
    return Cases(
        inner.train, inner.users[chosen], inner.targets[chosen], inner.until_us[chosen], inner.history[chosen],
        inner.judged[chosen], inner.seen,
    )  # fmt: skip


def some_of(judged: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The places of the judged cases, at most CASES_TO_TUNE of them, in their order."""
    chosen = np.flatnonzero(judged)
    if len(chosen) > CASES_TO_TUNE:
        chosen = np.sort(np.random.default_rng(0).choice(chosen, CASES_TO_TUNE, replace=False))
    return chosen


def _popularity(window: str) -> Choice:
    ranker = Popularity(None if window == "all" else days_us(_days("popularity", window)))
    return _same(f"window {window}", lambda _: ranker)


def _trending(half_life: str) -> Choice:
    ranker = Trending(days_us(_days("trending", half_life)))
    return _same(f"half-life {half_life}", lambda _: ranker)


class _Similar:
    """The similarity of the last training events asked for, worked out once for all numbers of neighbours."""

    def __init__(self, neighbours_max: int) -> None:
        self._neighbours_max = neighbours_max
        self._of: tuple[EventColumns, csr_array] | None = None

    def __call__(self, train: EventColumns, neighbours: int) -> csr_array:
        if self._of is None or self._of[0] is not train:
            self._of = (train, item_similarity(train, self._neighbours_max))
        return strongest(self._of[1], neighbours)


def _item_knn(neighbours: int, newest: int | None, similar: _Similar) -> Choice:
    label = f"{neighbours} neighbours, {'whole history' if newest is None else f'newest {newest} of the history'}"
    return _same(label, lambda train: ItemKnn(similar(train, neighbours), newest or WHOLE))


def _ease(regularisation: float) -> Choice:
    def small(train: EventColumns) -> Ranker:
        return Ease(train, regularisation, EASE_ITEMS_TO_TUNE)

    return Choice(f"lambda {regularisation:g}", lambda train: Ease(train, regularisation), small)


def _last_click(lags: int, days: float) -> Choice:
    label = f"{lags} events apart at most, {'no decay' if math.isinf(days) else f'half-life {days:g}d'}"
    return _same(label, lambda train: LastClick(train, lags, math.inf if math.isinf(days) else days_us(days)))


def _same(label: str, fit: Fit) -> Choice:
    return Choice(label, fit, fit)


def _days(name: str, given: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)d", given)
    if found is None or float(found[1]) == 0:
        also = " or all" if name == "popularity" else ""
        raise BadRequest(f"{name}:{given}: what stands behind the colon is a number of days like 7d{also}")
    return float(found[1])


def _whole(name: str, given: str) -> int:
    if not given.isdecimal() or int(given) == 0:
        raise BadRequest(f"{name}:{given}: what stands behind the colon is a whole number above 0")
    return int(given)


def _number(name: str, given: str) -> float:
    try:
        number = float(given)
    except ValueError:
        number = 0.0
    if not 0.0 < number < math.inf:
        raise BadRequest(f"{name}:{given}: what stands behind the colon is a number above 0")
    return number


def _unwatched(_done: int, _total: int, _text: str) -> None:
    """Progress that nobody watches."""
