"""What the models are fitted to: sequences for the tower, requests with candidates for the reranker. Ids become rows.

A request is a positive event on an item new to its user, asked some time before it: most of them one microsecond, the
others up to days (but after the user's event before), because a list is also read long after the user's last click.
What a request may know is joined point-in-time at the moment it is asked; its candidates are drawn from where serving
draws them (the tower, trends, co-visits, new items).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.batches import HeldOut, Prefixes, RankingExamples, Sequences
from models.vocabulary import Vocabulary
from services.bounds import BOUNDED, Bounds
from services.domain import DAY_US, HOUR_US, SECOND_US
from services.items import ItemTable
from services.ports import FeatureHistory
from services.signals import RANKING_FEATURES, HistoryBlock, ItemBlock, UserRows, model_features, ranking_features
from services.training.columns import EventColumns
from services.training.trust import taught, votes

ITEMS_ASKED_AT_ONCE = 200_000
ASKED_AHEAD_SHARE = 0.25
ASKED_AHEAD_US_MAX = 7 * DAY_US
Counted = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Item counts [R, C, COUNTS_WIDTH] and their stamps [R, C]."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """The events before the cut in the words of a vocabulary. `rows` int64 [items]: the row of each item code, 0 for
    items without a positive or negative event. Sequence u belongs to user code u. `text_vectors` are by `encoder`.

    `taught` bool and `votes` float64 [events]: which are learned to foretell, and how much each counts."""

    events: EventColumns
    vocabulary: Vocabulary
    rows: NDArray[np.int64]
    text_vectors: NDArray[np.float32]
    sequences: Sequences
    taught: NDArray[np.bool_]
    votes: NDArray[np.float64]
    encoder: str = ""


@dataclass(frozen=True, slots=True)
class Requests:
    """R positive events to learn ranking from, in the order asked: user code, when the list is asked for (before the
    event, and after what the user did before) and the row that was taken. All int64 [R]."""

    user_codes: NDArray[np.int64]
    asked_us: NDArray[np.int64]
    target_rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.user_codes)

    def take(self, places: NDArray[np.int64]) -> Requests:
        """Some of them, in the order asked."""
        return Requests(self.user_codes[places], self.asked_us[places], self.target_rows[places])


@dataclass(frozen=True, slots=True)
class RequestRows:
    """The user rows of R requests in the words of the models: what the reranker and the tower are given."""

    prefixes: Prefixes
    users: UserRows

    def take(self, places: NDArray[np.int64]) -> RequestRows:
        """Some of them, in the order asked."""
        users = self.users
        lengths = np.diff(users.offsets)[places]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        events = np.repeat(users.offsets[places] - offsets[:-1], lengths) + np.arange(offsets[-1])
        some = UserRows(
            offsets, users.row_time_us[places], users.item_codes[events], users.item_ids, users.kind_codes[events],
            users.kinds, users.occurred_us[events], users.weight[events],
        )  # fmt: skip
        return RequestRows(self.prefixes.take(places), some)


@dataclass(frozen=True, slots=True)
class Candidates:
    """The candidates of R requests: `rows` int64 [R, C], 0 for padding; the tower's `score` of them and how strongly
    co-visits of the user's newest items lead to them, `together`, float32 [R, C]."""

    rows: NDArray[np.int64]
    score: NDArray[np.float32]
    together: NDArray[np.float32]

    def take(self, places: NDArray[np.int64]) -> Candidates:
        """Those of some requests."""
        return Candidates(self.rows[places], self.score[places], self.together[places])


def corpus_of(
    before: EventColumns,
    items: ItemTable,
    encoder: str = "",
    bounds: Bounds = BOUNDED,
    labels: NDArray[np.bool_] | None = None,
) -> Corpus:
    """Vocabulary, text vectors and sequences of everything before the cut. No `encoder`: the one of most items.

    `labels` bool [N]: the events that may be targets; None: all. The others are history alone."""
    believed = taught(before, bounds)
    if labels is not None:
        believed &= labels
    of_interest = before.keep(before.weight != 0)
    codes = np.unique(of_interest.item_codes).astype(np.int64)
    item_ids = tuple(before.item_ids[code] for code in codes.tolist())
    rows = np.zeros(len(before.item_ids), dtype=np.int64)
    rows[codes] = np.arange(1, len(codes) + 1)
    kinds = tuple(sorted({before.kinds[code] for code in np.unique(of_interest.kind_codes).tolist()}))
    vocabulary = Vocabulary(item_ids, kinds)
    sequences = Sequences.of_events(
        np.append(of_interest.user_codes, len(before.user_ids) - 1),  # one more event, taken out again: U is all users
        np.append(rows[of_interest.item_codes], 0),
        np.append(vocabulary.actions(before.kinds, of_interest.kind_codes, of_interest.weight), 0),
        np.append(believed[before.weight != 0], False),
        np.append(of_interest.occurred_us // SECOND_US, np.iinfo(np.int64).max),
    )
    sequences = sequences.keep(sequences.rows > 0)
    encoder = encoder or items.encoder_of_most()
    vectors = text_matrix(items, item_ids, encoder)
    return Corpus(before, vocabulary, rows, vectors, sequences, believed, votes(before, bounds), encoder)


def text_matrix(items: ItemTable, item_ids: tuple[str, ...], encoder: str) -> NDArray[np.float32]:
    """The raw text vectors of a vocabulary by an encoder [V, T]; row 0 and items without one are zero."""
    vectors = [items.vector(item_id, encoder) for item_id in item_ids]
    width = next((len(each) for each in vectors if each is not None), 1)
    matrix = np.zeros((len(item_ids) + 1, width), dtype=np.float32)
    for row, vector in enumerate(vectors, start=1):
        if vector is not None:
            matrix[row] = vector
    return matrix


def held_out_after(corpus: Corpus, since_us: int, length: int, users_max: int, seed: int) -> HeldOut | None:
    """For early stopping: the first positive event of each user from `since_us` on, on an item that others knew before,
    with what stood before it; None when there is none."""
    sequences = corpus.sequences
    later = sequences.times_s >= since_us // SECOND_US
    known = np.isin(sequences.rows, np.unique(sequences.rows[~later]))
    wanted = np.flatnonzero(later & sequences.positive & known)
    _, first = np.unique(sequences.owners()[wanted], return_index=True)
    wanted = wanted[first]
    if len(wanted) == 0:
        return None
    if len(wanted) > users_max:
        wanted = np.sort(np.random.default_rng(seed).choice(wanted, users_max, replace=False))
    return HeldOut(sequences.prefixes_of(wanted, length), sequences.rows[wanted])


def requests_between(
    corpus: Corpus,
    since_us: int,
    until_us: int,
    requests_max: int,
    seed: int,
    ahead_share: float = ASKED_AHEAD_SHARE,
) -> Requests:
    """First positive events of a user on an item in `[since_us, until_us)`, in time order, at most `requests_max`."""
    events = corpus.events
    pairs = events.user_codes.astype(np.int64) * len(events.item_ids) + events.item_codes
    positive = np.flatnonzero(events.weight > 0)
    _, first = np.unique(pairs[positive], return_index=True)
    fresh = np.sort(positive[first])
    fresh = fresh[corpus.taught[fresh]]
    fresh = fresh[(events.occurred_us[fresh] >= since_us) & (events.occurred_us[fresh] < until_us)]
    if len(fresh) > requests_max:
        fresh = np.sort(np.random.default_rng(seed).choice(fresh, requests_max, replace=False))
    asked_us = _asked(events, fresh, ahead_share, seed)
    order = np.argsort(asked_us, kind="stable")
    fresh = fresh[order]
    return Requests(events.user_codes[fresh].astype(np.int64), asked_us[order], corpus.rows[events.item_codes[fresh]])


def _asked(events: EventColumns, places: NDArray[np.int64], ahead_share: float, seed: int) -> NDArray[np.int64]:
    """When the list is asked for that leads to each of the events at `places`. int64 [places]"""
    rng = np.random.default_rng(seed)
    order = np.lexsort((events.occurred_us, events.user_codes))
    users, times = events.user_codes[order], events.occurred_us[order]
    before = np.zeros(len(order), dtype=np.int64)
    before[order[1:]] = np.where(users[1:] == users[:-1], times[:-1], 0)
    ahead = np.where(rng.random(len(places)) < ahead_share, rng.integers(1, ASKED_AHEAD_US_MAX, len(places)), 1)
    early = np.maximum(events.occurred_us[places] - ahead, before[places] + 1)
    return np.minimum(early, events.occurred_us[places] - 1)


def rows_of_requests(corpus: Corpus, history: FeatureHistory, requests: Requests, length: int) -> RequestRows:
    """The user rows at the moment of each request, and the newest `length` known events of each as a prefix."""
    user_ids = [corpus.events.user_ids[code] for code in requests.user_codes.tolist()]
    return rows_known(corpus, history.users_at(user_ids, requests.asked_us), requests.asked_us, length)


def rows_known(corpus: Corpus, users: UserRows, asked_us: NDArray[np.int64], length: int) -> RequestRows:
    """User rows [R] with the newest `length` known events of each as a prefix, asked at `asked_us` [R]."""
    by_code = corpus.vocabulary.rows(users.item_ids) if users.item_ids else np.zeros(1, dtype=np.int64)
    rows = by_code[users.item_codes]
    actions = corpus.vocabulary.actions(users.kinds, users.kind_codes, users.weight)
    known = rows > 0
    owners = np.repeat(np.arange(len(asked_us)), np.diff(users.offsets))[known]
    first = np.searchsorted(owners, np.arange(len(asked_us)))
    newness = np.arange(len(owners)) - first[owners]  # 0: the newest known event
    kept = newness < length
    place = (owners[kept], length - 1 - newness[kept])

    def padded(values: NDArray[np.int64]) -> NDArray[np.int64]:
        matrix = np.zeros((len(asked_us), length), dtype=np.int64)
        matrix[place] = values[known][kept]
        return matrix

    prefixes = Prefixes(
        padded(rows).astype(np.int32),
        padded(actions).astype(np.int16),
        padded(users.occurred_us // SECOND_US),
        asked_us // SECOND_US,
    )
    return RequestRows(prefixes, users)


def ranking_examples(
    corpus: Corpus,
    items: ItemTable,
    history: FeatureHistory,
    requests: Requests,
    known: RequestRows,
    candidates: Candidates,
) -> RankingExamples:
    """The requests with their candidates and every feature of each."""
    labels = (candidates.rows == requests.target_rows[:, None]) & (candidates.rows > 0)
    counts = counts_of(corpus, history, requests, candidates.rows)
    return examples_of(corpus, items, known, requests.asked_us, candidates, labels, counts)


def examples_of(
    corpus: Corpus,
    items: ItemTable,
    known: RequestRows,
    asked_us: NDArray[np.int64],
    candidates: Candidates,
    labels: NDArray[Any],
    counts: Counted,
) -> RankingExamples:
    """R requests asked at `asked_us` with their candidates [R, C], labels and counts."""
    prefixes = known.prefixes
    features = feature_tensor(corpus, items, known.users, asked_us, candidates.rows, counts)
    return RankingExamples(
        prefixes.rows, prefixes.actions, prefixes.times_s, prefixes.now_s, candidates.rows.astype(np.int32),
        model_features(features, candidates.together), candidates.score.astype(np.float32), labels.astype(np.float32),
        np.zeros(len(asked_us), dtype=np.float32),
    )  # fmt: skip


def joined_examples(parts: list[RankingExamples]) -> RankingExamples:
    """The requests of all parts, one after the other, padded to the most candidates of a request."""
    width = max(part.candidate_rows.shape[1] for part in parts)
    wide = {"candidate_rows", "features", "retrieval_score", "labels", "places"}

    def padded(part: RankingExamples, name: str) -> NDArray[Any]:
        array: NDArray[Any] = getattr(part, name)
        missing = width - array.shape[1] if name in wide else 0
        return np.pad(array, [(0, 0), (0, missing), *[(0, 0)] * (array.ndim - 2)]) if missing else array

    names = [field.name for field in fields(RankingExamples)]
    return RankingExamples(*(np.concatenate([padded(part, name) for part in parts]) for name in names))


def feature_tensor(
    corpus: Corpus,
    items: ItemTable,
    users: UserRows,
    asked_us: NDArray[np.int64],
    candidate_rows: NDArray[np.int64],
    counted: Counted,
) -> NDArray[np.float32]:
    """The RANKING_FEATURES of each candidate as of the moment it is asked. float32 [R, C, F]"""
    requests_n, candidates_n = candidate_rows.shape
    candidates = items.block(("", *corpus.vocabulary.item_ids))
    in_rows = items.block(users.item_ids)
    counts, stamps = counted
    features = np.zeros((requests_n, candidates_n, len(RANKING_FEATURES)), dtype=np.float32)
    for number in range(requests_n):
        start, stop = int(users.offsets[number]), int(users.offsets[number + 1])
        codes, rows = users.item_codes[start:stop], candidate_rows[number]
        row = HistoryBlock(
            in_rows.item_hash[codes], users.occurred_us[start:stop], users.weight[start:stop], in_rows.categories[codes]
        )
        block = ItemBlock(
            candidates.item_hash[rows], counts[number], stamps[number], candidates.published_us[rows],
            candidates.categories[rows],
        )  # fmt: skip
        features[number] = ranking_features(row, block, int(asked_us[number]))
    features[candidate_rows == 0] = 0.0
    return features


def counts_of(
    corpus: Corpus, history: FeatureHistory, requests: Requests, candidate_rows: NDArray[np.int64]
) -> Counted:
    """Item counts [R, C, COUNTS_WIDTH] and their stamps [R, C] as of the moment each request is asked.

    Counts are stamped at full hours, so the newest up to a time is the newest up to its hour: each (item, hour) is
    asked once, however many requests share it.
    """
    hours = requests.asked_us // HOUR_US
    span = int(hours.max(initial=0)) + 1
    keys, place = np.unique(candidate_rows * span + hours[:, None], return_inverse=True)
    rows, asked_us = keys // span, (keys % span) * HOUR_US
    item_ids = ("", *corpus.vocabulary.item_ids)
    parts = []
    for start in range(0, len(keys), ITEMS_ASKED_AT_ONCE):
        some = slice(start, start + ITEMS_ASKED_AT_ONCE)
        parts.append(history.items_at([item_ids[row] for row in rows[some].tolist()], asked_us[some]))
    counts = np.concatenate([part[0] for part in parts])
    stamps = np.concatenate([part[1] for part in parts])
    place = place.reshape(candidate_rows.shape)
    return counts[place], stamps[place]
