"""The whole pipeline measured on a slice: through `recommend`, features frozen at the cut, beside the baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from models.batches import History, Progress
from models.metrics import MISSING, hit_ratio, mrr, ndcg
from services.domain import DAY_US, SECOND_US, Metric, Query, UserState, from_us
from services.items import ItemTable
from services.ports import FeatureStore
from services.recommend import Stages, recommend
from services.sharing import shared, shares_of
from services.training.baselines import item_similarity, knn_scores, place_of, windowed_popularity
from services.training.columns import EventColumns
from services.training.cutoff import FrozenRows
from services.training.gate import Slice

if TYPE_CHECKING:
    from models.release import ModelRelease

LIST_LENGTH = 100
"""Places that a judged list has; an item further down counts as missing, also for MRR."""
WINDOW_US = 7 * DAY_US
SMOKE_USERS = 3
TOLD_EVERY = 50


class StagesFor(Protocol):
    """Builds what answers queries from a release, an item table and a feature store, as serving does."""

    def __call__(self, release: ModelRelease, items: ItemTable, features: FeatureStore) -> Stages:
        """Nothing is recorded through these stages."""


def pipeline_places(
    stages: Stages, judged: Slice, before: EventColumns, progress: Progress, processes: int = 1
) -> NDArray[np.int64]:
    """The place of each user's target in their list, asked at the cut. int64 [users]"""
    shares = shares_of(len(judged), processes)

    def listed(share: int) -> NDArray[np.int64]:
        places = np.full(len(judged), MISSING, dtype=np.int64)
        for number in range(share, len(judged), shares):
            slate = recommend(_query(number, before.user_ids[judged.user_codes[number]], judged.cut_us), stages)
            wanted = before.item_ids[judged.target_codes[number]]
            places[number] = next((pick.rank for pick in slate.items if pick.item_id == wanted), MISSING)
            if share == 0 and number % TOLD_EVERY < shares:
                progress(number, len(judged), "judging")
        return places

    found = shared(shares, listed)
    progress(len(judged), len(judged), "judging")
    places: NDArray[np.int64] = np.minimum.reduce(found)  # a place that another share looked for is MISSING here
    return places


def tower_places(release: ModelRelease, features: FrozenRows, judged: Slice, before: EventColumns) -> NDArray[np.int64]:
    """The place of each user's target by the tower alone, over all its items, what the user has taken left out."""
    places = np.full(len(judged), MISSING, dtype=np.int64)
    taken = TakenItems(before)
    rows = release.vocabulary.rows(before.item_ids)
    for number, (user, target) in enumerate(zip(judged.user_codes.tolist(), judged.target_codes.tolist(), strict=True)):
        if rows[target] == 0:
            continue
        history = history_of(release, features.read(before.user_ids[user]))
        vector = release.user_vector(history, judged.cut_us // SECOND_US)
        scores = (release.item_vectors @ vector).astype(np.float64)
        hidden = np.append(rows[taken.of(user)], 0)
        places[number] = place_of(scores, int(rows[target]), hidden)
    return places


def popularity_places(judged: Slice, before: EventColumns) -> NDArray[np.int64]:
    """The place of each target by positive events of the 7 days before the cut, what the user has taken left out."""
    scores = windowed_popularity(before, judged.cut_us, WINDOW_US)
    taken = TakenItems(before)
    pairs = zip(judged.user_codes.tolist(), judged.target_codes.tolist(), strict=True)
    return np.array([place_of(scores, target, taken.of(user)) for user, target in pairs], dtype=np.int64)


def knn_places(judged: Slice, before: EventColumns) -> NDArray[np.int64]:
    """The place of each target by item-kNN over everything the user has taken."""
    similarity = item_similarity(before)
    taken = TakenItems(before)
    places = np.full(len(judged), MISSING, dtype=np.int64)
    for number, (user, target) in enumerate(zip(judged.user_codes.tolist(), judged.target_codes.tolist(), strict=True)):
        history = taken.of(user)
        scores = knn_scores(similarity, history)
        if scores[target] > 0:  # an item that nothing leads to is not recommended
            places[number] = place_of(scores, target, history)
    return places


def metrics_of(model: str, places: NDArray[np.int64], judged: Slice, before: EventColumns) -> tuple[Metric, ...]:
    """HR@10, NDCG@10 and MRR over all users, users known before the cut, strangers, and items never taken before."""
    warm = np.zeros(len(before.item_ids), dtype=np.bool_)
    warm[before.item_codes[before.positive]] = True
    parts = {
        "all": np.ones(len(judged), dtype=np.bool_),
        "known users": judged.known,
        "new users": ~judged.known,
        "cold items": ~warm[judged.target_codes],
    }
    found: list[Metric] = []
    for part, chosen in parts.items():
        of_part, users = places[chosen], int(chosen.sum())
        if users or part == "all":
            found += [
                Metric(model, part, "hr@10", hit_ratio(of_part, 10), users),
                Metric(model, part, "ndcg@10", ndcg(of_part, 10), users),
                Metric(model, part, "mrr", mrr(of_part), users),
            ]
    return tuple(found)


def faults_of(release: ModelRelease, stages: Stages, judged: Slice, before: EventColumns) -> tuple[str, ...]:
    """Weights that are not finite, and smoke queries (a stranger, a few users) without a sound list; () when sound."""
    faults = []
    broken = [name for name, weight in release.networks.state_dict().items() if not bool(weight.isfinite().all())]
    if broken or not np.isfinite(release.item_vectors).all():
        faults.append(f"weights that are not finite: {', '.join(broken[:3]) or 'item vectors'}")
    users = [before.user_ids[code] for code in judged.user_codes[:SMOKE_USERS].tolist()]
    for number, user_id in enumerate(["nobody-that-was-ever-seen", *users]):
        slate = recommend(_query(number, user_id, judged.cut_us), stages)
        if not slate.items or not all(np.isfinite(pick.score) for pick in slate.items):
            faults.append(f"the smoke query of user {user_id!r} had no sound list")
        if slate.degraded:
            faults.append(f"the smoke query of user {user_id!r} was degraded: {', '.join(slate.degraded)}")
    return tuple(faults)


def history_of(release: ModelRelease, user: UserState) -> History:
    """A user's row in the words of a release, oldest first."""
    oldest_first = user.events[::-1]
    rows = release.vocabulary.rows([each.item_id for each in oldest_first])
    actions = [release.vocabulary.action(each.kind, each.weight) for each in oldest_first]
    times_s = [each.occurred_us // SECOND_US for each in oldest_first]
    return History(release.item_vectors[rows], np.array(actions, dtype=np.int64), np.array(times_s, dtype=np.int64))


class TakenItems:
    """The item codes that each user has had a positive event on."""

    def __init__(self, before: EventColumns) -> None:
        liked = before.keep(before.positive)
        order = np.lexsort((liked.occurred_us, liked.user_codes))
        self._items = liked.item_codes[order].astype(np.int64)
        self._offsets = np.searchsorted(liked.user_codes[order], np.arange(len(before.user_ids) + 1))

    def of(self, user_code: int) -> NDArray[np.int64]:
        """Oldest first, repetitions included."""
        return self._items[self._offsets[user_code] : self._offsets[user_code + 1]]


def _query(number: int, user_id: str, asked_us: int) -> Query:
    return Query(f"judge-{number}", user_id, LIST_LENGTH, from_us(asked_us), record=False)
