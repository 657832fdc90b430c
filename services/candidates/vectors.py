"""Ids into vectors of one release: its own rows, and cold vectors made from text for items it was not trained on.

The cold ones lie in a small flat index of their own (the delta), searched beside the release's index, so an item that
arrives now can be found now. One thread adds, many read.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.batches import History
from models.vocabulary import Vocabulary
from services.domain import SECOND_US, Query, UserState, to_us
from services.items import ItemTable

Vectors = NDArray[np.float32]
Hashes = NDArray[np.int64]
EMBED_AT_ONCE = 4096


class RetrievalModel(Protocol):
    """What candidates need of a release. All of it is immutable and safe to share between threads."""

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def width(self) -> int: ...

    @property
    def text_width(self) -> int: ...

    @property
    def item_vectors(self) -> Vectors:
        """float32 [V, D], row 0 zeros, L2-normed."""

    def new_item_vectors(self, text_vectors: Vectors) -> Vectors:
        """float32 [n, D] of raw text vectors [n, T]."""

    def user_vector(self, history: History, now_s: int) -> Vectors:
        """float32 [D]."""

    def search(self, user_vector: Vectors, k: int) -> tuple[NDArray[np.int64], Vectors]:
        """Rows and inner products, best first."""

    def related(self, vector: Vectors, k: int) -> tuple[NDArray[np.int64], Vectors]:
        """Rows and inner products of the items nearest to an item's vector, best first."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A user as one release reads them for one question; `user_vector` float32 [D]; strangers have one too."""

    history: History
    user_vector: Vectors


@dataclass(frozen=True, slots=True)
class _Delta:
    """The cold items so far; `vectors` may have spare rows behind the last id. `hashes`: of the release's items, then
    of these."""

    places: dict[str, int]
    item_ids: tuple[str, ...]
    hashes: Hashes
    vectors: Vectors


@dataclass(frozen=True, slots=True)
class Near:
    """Items, best first, ties by id: their ids, hash64 int64 [n] and inner products float32 [n]."""

    item_ids: list[str]
    hashes: Hashes
    scores: Vectors


class ItemVectors:
    """Vectors by item id under one release. `encoder`: the one whose text vectors the release takes; empty where it
    does not say (one from before they did): the newest, of the right width."""

    def __init__(self, release: RetrievalModel, items: ItemTable, encoder: str = "") -> None:
        self._release = release
        self._encoder = encoder
        self._items = items
        self._count = len(release.vocabulary.item_ids)
        hashes = items.hashes(release.vocabulary.item_ids)
        self._delta = _Delta({}, (), hashes, np.zeros((0, release.width), dtype=np.float32))
        self._writing = threading.Lock()
        self._local = threading.local()

    # ------------------------------------------------------------------------------------------ writing

    def load(self) -> None:
        """Take in every item of the table that the release does not know; called before the release serves."""
        known = self._delta.places
        self._add(item_id for item_id in self._items.item_ids() if item_id not in known)

    def add(self, fresh: Iterable[tuple[str, str]]) -> None:
        """Take in the text vectors that the table has got (encoder and item, what `ItemTable.take_new_vectors` tells);
        a newer one of an item replaces it. Those of the release's own items and of other encoders are passed over."""
        self._add(item_id for encoder, item_id in fresh if self._encoder in ("", encoder))

    def _add(self, item_ids: Iterable[str]) -> None:
        found = ((i, self._items.vector(i, self._encoder)) for i in item_ids if i not in self._release.vocabulary)
        fresh = {i: vector for i, vector in found if vector is not None and len(vector) == self._release.text_width}
        waiting = list(fresh.items())
        for start in range(0, len(waiting), EMBED_AT_ONCE):
            some = waiting[start : start + EMBED_AT_ONCE]
            vectors = self._release.new_item_vectors(np.stack([vector for _, vector in some]))
            self._append([item_id for item_id, _ in some], vectors)

    def _append(self, item_ids: list[str], vectors: Vectors) -> None:
        with self._writing:
            old = self._delta
            new_ids = [item_id for item_id in item_ids if item_id not in old.places]
            places = {**old.places, **{item_id: len(old.item_ids) + n for n, item_id in enumerate(new_ids)}}
            used = len(places)
            held = np.zeros((max(used, len(old.vectors)), self._release.width), dtype=np.float32)
            held[: len(old.vectors)] = old.vectors
            held[[places[item_id] for item_id in item_ids]] = vectors
            hashes = np.concatenate([old.hashes, self._items.hashes(new_ids)])
            self._delta = _Delta(places, old.item_ids + tuple(new_ids), hashes, held)

    # ------------------------------------------------------------------------------------------ reading

    @property
    def cold_ids(self) -> tuple[str, ...]:
        """The items that are served by their text vector, in the order they came."""
        return self._delta.item_ids

    def of(self, item_ids: Sequence[str]) -> Vectors:
        """The vectors of some items, float32 [n, D], in the order asked; zeros where nothing is known."""
        rows = self._release.vocabulary.rows(item_ids)
        vectors = self._release.item_vectors[rows]
        delta = self._delta
        if delta.item_ids:
            for n in np.flatnonzero(rows == 0).tolist():
                place = delta.places.get(item_ids[n])
                if place is not None:
                    vectors[n] = delta.vectors[place]
        return vectors

    def reading(self, query: Query, user: UserState) -> Reading:
        """The user as this release reads them at `query.asked_at`; made once per question and thread."""
        last: tuple[UserState, int, Reading] | None = getattr(self._local, "last", None)
        now_s = to_us(query.asked_at) // SECOND_US
        if last is not None and last[0] is user and last[1] == now_s:
            return last[2]
        history = self._history(user)
        reading = Reading(history, self._release.user_vector(history, now_s))
        self._local.last = (user, now_s, reading)
        return reading

    def nearest(self, vector: Vectors, k: int, *, to_item: bool = False) -> Near:
        """The k items with the highest inner product."""
        rows, scores = (self._release.related if to_item else self._release.search)(vector, k)
        delta = self._delta
        places, cold_scores = _highest(delta.vectors[: len(delta.item_ids)] @ vector, k)
        numbers = np.concatenate([rows - 1, places + self._count])  # the release's items, then the cold ones
        scores = np.concatenate([scores, cold_scores])
        order = np.argsort(-scores, kind="stable")
        first = scores[order[: k + 1]]
        if bool((first[1:] == first[:-1]).any()):
            item_ids = self._ids(delta, numbers)
            order = np.array(sorted(range(len(numbers)), key=lambda n: (-scores[n], item_ids[n])), dtype=np.int64)
        best = order[:k]
        return Near(self._ids(delta, numbers[best]), delta.hashes[numbers[best]], scores[best])

    def _ids(self, delta: _Delta, numbers: NDArray[np.int64]) -> list[str]:
        """The ids of some items by number: those of the release, then the cold ones."""
        known, count = self._release.vocabulary.item_ids, self._count
        return [known[n] if n < count else delta.item_ids[n - count] for n in numbers.tolist()]

    def _history(self, user: UserState) -> History:
        oldest_first = user.events[::-1]
        count = len(oldest_first)
        action = self._release.vocabulary.action
        return History(
            vectors=self.of([each.item_id for each in oldest_first]),
            actions=np.fromiter((action(e.kind, e.weight) for e in oldest_first), dtype=np.int64, count=count),
            times_s=np.fromiter((e.occurred_us // SECOND_US for e in oldest_first), dtype=np.int64, count=count),
        )


def _highest(scores: Vectors, k: int) -> tuple[NDArray[np.int64], Vectors]:
    """The places of the k highest scores and these, in no order."""
    best = np.argpartition(-scores, k)[:k] if len(scores) > k else np.arange(len(scores))
    return best, scores[best]
