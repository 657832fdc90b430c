"""Lists that were served and what came of them: slates joined with later events by `request_id`, as ranking examples.

What an example may know is what the server knew: the user's row of exactly `user_row_time_us`, item counts as they
had been written by exactly `items_as_of_us`, worked into features by the same code. A list without a click is left out:
nobody knows whether it was looked at, and there is nothing in it to compare.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from models.batches import PLACES_MAX, Prefixes, RankingExamples
from services.domain import DAY_US, SECOND_US, KindRules, Slate, from_us, to_us
from services.items import ItemTable
from services.ports import FeatureHistory
from services.signals import COUNTS_WIDTH
from services.training.examples import Candidates, Corpus, RequestRows, examples_of, rows_known
from services.training.together import Together, strength_of

if TYPE_CHECKING:
    import pyarrow as pa

IMPRESSION_KIND = "impression"
TowerScores = Callable[[Prefixes], NDArray[np.float32]]
SCORED_AT_ONCE = 256
LEFT_OUT = "lists_left_out: "


@dataclass(frozen=True, slots=True)
class ServedRules:
    """What counts as an answer to a list and as a pick that was seen.

    With fewer than `lists_min` usable lists nothing is learned from them; of more than `lists_max` the newest count. An
    answer counts up to `window_us` after the list was asked for; clients' clocks may be `skew_us` behind. Where the
    client reported impressions of a list, these are what was seen; otherwise all picks down to `seen_below` places
    under the lowest one that was answered.
    """

    lists_min: int = 200
    lists_max: int = 100_000
    window_us: int = DAY_US
    skew_us: int = 300 * SECOND_US
    seen_below: int = 3
    picks_max: int = 37


class Answer(NamedTuple):
    """An event that names the list it answers; `weight` is the signed weight of its kind."""

    request_id: str
    user_id: str
    item_id: str
    kind: str
    occurred_us: int
    weight: float


@dataclass(frozen=True, slots=True)
class ServedLists:
    """R lists with at least one pick that was taken and one that was not, in the order asked.

    `row_time_us`, `as_of_us`, `asked_us` int64 [R]; `item_ids`, `taken` and `places` (from 1; 0, or no tuples at all,
    where unknown): the picks that were seen, best first.
    `served`: how many lists there were; `left_out`: how many of those with an answer cannot be used, by reason.
    """

    user_ids: tuple[str, ...] = ()
    row_time_us: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    as_of_us: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    asked_us: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    item_ids: tuple[tuple[str, ...], ...] = ()
    taken: tuple[tuple[bool, ...], ...] = ()
    served: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    places: tuple[tuple[int, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.user_ids)

    def take(self, places: NDArray[np.int64]) -> ServedLists:
        """Some of them, in the order asked."""
        return ServedLists(
            tuple(self.user_ids[n] for n in places.tolist()), self.row_time_us[places], self.as_of_us[places],
            self.asked_us[places], tuple(self.item_ids[n] for n in places.tolist()),
            tuple(self.taken[n] for n in places.tolist()), self.served, self.left_out,
            tuple(self.places[n] for n in places.tolist()) if self.places else (),
        )  # fmt: skip


def nothing_served(_since_us: int, _until_us: int, _rules: ServedRules) -> ServedLists:
    """The lists of a log that nobody was served from."""
    return ServedLists()


class ServedLog(Protocol):
    """What is read of the archive."""

    def answers_table(self, since: datetime, until: datetime) -> pa.Table:
        """Events that name a request: `request_id, user_id, item_id, kind, occurred_us, value`."""

    def slates(self, since: datetime, until: datetime, request_ids: Collection[str] | None = None) -> Iterator[Slate]:
        """The slates of some requests, by the time they were asked for."""

    def slates_served(self, since: datetime, until: datetime) -> int:
        """How many slates there are."""


def lists_between(log: ServedLog, kinds: KindRules, since_us: int, until_us: int, rules: ServedRules) -> ServedLists:
    """The lists asked for in `[since_us, until_us)` with what came of them before `until_us`."""
    since, until = from_us(since_us), from_us(until_us)
    answers = answers_of_arrow(log.answers_table(from_us(since_us - rules.skew_us), until), kinds)
    slates = log.slates(since, until, {answer.request_id for answer in answers})
    lists = joined_lists(slates, answers, rules, until_us, log.slates_served(since, until))
    return lists.take(np.arange(max(0, len(lists) - rules.lists_max), len(lists)))


def answers_of_arrow(table: pa.Table, kinds: KindRules) -> list[Answer]:
    """The rows of `ServedLog.answers_table`."""
    names = ("request_id", "user_id", "item_id", "kind", "occurred_us", "value")
    columns = [table.column(name).to_pylist() for name in names]
    return [
        Answer(request_id, user_id, item_id, kind, occurred_us, kinds.signed_weight(kind, value))
        for request_id, user_id, item_id, kind, occurred_us, value in zip(*columns, strict=True)
    ]


def joined_lists(
    slates: Iterable[Slate], answers: Iterable[Answer], rules: ServedRules, until_us: int, served: int = 0
) -> ServedLists:
    """The slates that teach something, with what was taken of what was seen. What came at or after `until_us` is not
    looked at."""
    by_request: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer.occurred_us < until_us:
            by_request.setdefault(answer.request_id, []).append(answer)
    known: set[str] = set()
    left_out: Counter[str] = Counter()
    kept: list[tuple[Slate, tuple[str, ...], tuple[bool, ...]]] = []
    for slate in slates:
        if to_us(slate.asked_at) >= until_us:
            continue
        why = "served again" if slate.request_id in known else _unusable(slate)
        known.add(slate.request_id)
        mine = [] if why else _answers_to(slate, by_request.get(slate.request_id, []), rules)
        taken = {answer.item_id for answer in mine if answer.weight > 0}
        seen = _seen(slate, mine, taken, rules)
        why = why or ("without a click" if not taken else "nothing to compare" if len(seen) == len(taken) else "")
        if why:
            left_out[why] += 1
        else:
            kept.append((slate, seen, tuple(item_id in taken for item_id in seen)))
    return ServedLists(
        tuple(slate.user_id or "" for slate, _, _ in kept),
        np.array([slate.user_row_time_us for slate, _, _ in kept], dtype=np.int64),
        np.array([slate.items_as_of_us for slate, _, _ in kept], dtype=np.int64),
        np.array([to_us(slate.asked_at) for slate, _, _ in kept], dtype=np.int64),
        tuple(seen for _, seen, _ in kept),
        tuple(taken for _, _, taken in kept),
        served,
        dict(left_out),
        tuple(_places(slate, seen) for slate, seen, _ in kept),
    )


def list_examples(
    corpus: Corpus, items: ItemTable, history: FeatureHistory, lists: ServedLists, length: int, scores_of: TowerScores
) -> tuple[RankingExamples, Counter[str]]:
    """The lists whose row and items are known, as examples; and how many were left out, by reason."""
    users = history.users_at(lists.user_ids, lists.row_time_us)
    known = rows_known(corpus, users, lists.asked_us, length)
    rows, labels = _candidates(corpus, lists)
    same_row = users.row_time_us == lists.row_time_us
    compared = (labels > 0).any(axis=1) & ((rows > 0) & (labels == 0)).any(axis=1)
    left_out = Counter({
        "row not in the history": int(np.count_nonzero(~same_row)),
        "items not in the vocabulary": int(np.count_nonzero(same_row & ~compared)),
    })  # fmt: skip
    kept = np.flatnonzero(same_row & compared)
    lists, known, rows, labels = lists.take(kept), known.take(kept), rows[kept], labels[kept]
    counts = _counts_as_of(corpus, history, lists, rows)
    candidates = Candidates(rows, _scores(known, rows, scores_of), _together(corpus, known, lists, rows))
    made = examples_of(corpus, items, known, lists.asked_us, candidates, labels, counts)
    return replace(made, places=_stood(lists, rows)), +left_out


class Learned:
    """Where the ranking examples of a run came from, counted as they are made."""

    def __init__(self, lists: ServedLists, lists_min: int) -> None:
        self.enough = len(lists) >= lists_min
        self.sampled = 0
        self._served, self._answered, self._wanted = lists.served, len(lists), lists_min
        self._left_out = Counter(lists.left_out)
        self._lists = self._picks = self._taken = 0

    def took(self, made: RankingExamples, left_out: Mapping[str, int]) -> None:
        """Some lists became examples, some could not."""
        self._lists += len(made)
        self._picks += int(np.count_nonzero(made.candidate_rows))
        self._taken += int(made.labels.sum())
        self._left_out.update(left_out)

    def notes(self) -> dict[str, float]:
        """The numbers, for a release's manifest."""
        numbers = {
            "sampled_requests": self.sampled, "lists_served": self._served, "lists_answered": self._answered,
            "lists_min": self._wanted, "lists": self._lists, "lists_picks": self._picks, "lists_taken": self._taken,
            "sampled_negatives": int(self._lists == 0),
        }  # fmt: skip
        left_out = {f"{LEFT_OUT}{why}": count for why, count in self._left_out.items()}
        return {name: float(number) for name, number in (numbers | left_out).items()}


def learned_from(notes: Mapping[str, float]) -> str:
    """The notes of a release in one sentence; empty for one that was made before they were kept."""
    if "lists_served" not in notes:
        return ""
    n = {name: f"{int(number):,}" for name, number in notes.items()}
    sampled = f"{n['sampled_requests']} requests with sampled candidates"
    reasons = ", ".join(f"{n[name]} {name.removeprefix(LEFT_OUT)}" for name in n if name.startswith(LEFT_OUT))
    left_out = f" Left out: {reasons}." if reasons else ""
    if notes["lists"]:
        lists = f"{n['lists']} served lists ({n['lists_picks']} picks seen, {n['lists_taken']} taken)"
        return f"Ranking was learned from {lists} of {n['lists_served']} and from {sampled}.{left_out}"
    few = f"of {n['lists_served']} served lists {n['lists_answered']} can be learned from, {n['lists_min']} are needed"
    return f"Ranking was learned from {sampled} alone: {few}.{left_out}"


def _unusable(slate: Slate) -> str:
    """Why nothing can be learned from a slate, whatever came of it; empty where something can."""
    if slate.user_id is None:
        return "anonymous"
    if "features" in slate.degraded:
        return "made without the user's row"
    return "" if slate.items_as_of_us else "made before the time of counts was kept"


def _answers_to(slate: Slate, answers: Sequence[Answer], rules: ServedRules) -> list[Answer]:
    asked_us = to_us(slate.asked_at)
    first_us, last_us = asked_us - rules.skew_us, asked_us + rules.window_us
    shown = {pick.item_id for pick in slate.items}
    return [
        answer
        for answer in answers
        if answer.user_id == slate.user_id and first_us <= answer.occurred_us <= last_us and answer.item_id in shown
    ]


def _seen(slate: Slate, answers: Sequence[Answer], taken: set[str], rules: ServedRules) -> tuple[str, ...]:
    """The picks that the user could have seen, best first; at most `picks_max`, what was taken among them."""
    touched = {answer.item_id for answer in answers}
    ranks = {pick.item_id: pick.rank for pick in slate.items}
    if not any(answer.kind == IMPRESSION_KIND for answer in answers):
        lowest = max((ranks[item_id] for item_id in touched), default=-1)
        touched = {item_id for item_id, rank in ranks.items() if rank <= lowest + rules.seen_below}
    seen = sorted(touched, key=lambda item_id: ranks[item_id])
    room = max(rules.picks_max - len(taken), 0)
    left = [item_id for item_id in seen if item_id not in taken][:room]
    return tuple(item_id for item_id in seen if item_id in taken or item_id in left)


def _places(slate: Slate, seen: Sequence[str]) -> tuple[int, ...]:
    ranks = {pick.item_id: pick.rank + 1 for pick in slate.items}
    return tuple(ranks[item_id] for item_id in seen)


def _stood(lists: ServedLists, rows: NDArray[np.int64]) -> NDArray[np.int16]:
    """Where each candidate stood, from 1; 0 where that is not known, or below where places are told apart. [R, C]"""
    stood = np.zeros(rows.shape, dtype=np.int16)
    for place, each in enumerate(lists.places):
        stood[place, : len(each)] = each
    return np.where((rows > 0) & (stood > 0), np.minimum(stood, PLACES_MAX), 0).astype(np.int16)


def _candidates(corpus: Corpus, lists: ServedLists) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows [R, C] of the vocabulary (0: padding, or an item that is not in it) and what was taken [R, C]."""
    width = max((len(each) for each in lists.item_ids), default=1)
    rows = np.zeros((len(lists), width), dtype=np.int64)
    labels = np.zeros((len(lists), width), dtype=np.float32)
    for place, (item_ids, taken) in enumerate(zip(lists.item_ids, lists.taken, strict=True)):
        rows[place, : len(item_ids)] = corpus.vocabulary.rows(item_ids)
        labels[place, : len(taken)] = taken
    labels[rows == 0] = 0.0
    return rows, labels


def _counts_as_of(
    corpus: Corpus, history: FeatureHistory, lists: ServedLists, rows: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Item counts [R, C, COUNTS_WIDTH] and their stamps [R, C] as the server of each list had them."""
    times, time_place = np.unique(lists.as_of_us, return_inverse=True)
    keys, place = np.unique(time_place[:, None] * len(corpus.vocabulary) + rows, return_inverse=True)
    item_ids = ("", *corpus.vocabulary.item_ids)
    wanted = [item_ids[row] for row in (keys % len(corpus.vocabulary)).tolist()]
    counts, stamps, _ = history.live_items_at(wanted, times[keys // len(corpus.vocabulary)])
    place = place.reshape(rows.shape)
    return counts[place].reshape(*rows.shape, COUNTS_WIDTH), stamps[place]


def _together(corpus: Corpus, known: RequestRows, lists: ServedLists, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """How strongly co-visits lead to each candidate [R, C], as of its list."""
    found = np.zeros(rows.shape, dtype=np.float32)
    together = Together(corpus)
    starts = together.starts(known.users)
    for place in np.argsort(lists.asked_us, kind="stable").tolist():
        found[place] = strength_of(rows[place], *together.of(starts[place], int(lists.asked_us[place])))
    return found


def _scores(known: RequestRows, rows: NDArray[np.int64], scores_of: TowerScores) -> NDArray[np.float32]:
    score = np.zeros(rows.shape, dtype=np.float32)
    for start in range(0, len(rows), SCORED_AT_ONCE):
        places = np.arange(start, min(start + SCORED_AT_ONCE, len(rows)))
        score[places] = np.take_along_axis(scores_of(known.prefixes.take(places)), rows[places], axis=1)
    return np.where(rows > 0, score, 0.0).astype(np.float32)
