"""What goes into the models, as numpy arrays. Single letters for dimensions, declared here and used everywhere:

B batch, R requests, H history, C candidates, D width of a vector, F features, T width of a text vector,
V rows of the vocabulary (row 0 is padding), U users, N events.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

PLACES_MAX = 50
"""Places of a list that are told apart; what stood below stood at the last of them."""

Progress = Callable[[int, int, str], None]
"""Told `(done, total, text)` while a model is fitted."""


def no_progress(done: int, total: int, text: str) -> None:
    """A listener that does not listen."""


@dataclass(frozen=True, slots=True)
class History:
    """One user's history for one request, oldest first. H may be 0.

    `vectors` float32 [H, D], the item vectors of the release (or cold ones; a zero row is an item of which nothing is
    known); `actions` int64 [H]; `times_s` int64 [H].
    """

    vectors: NDArray[np.float32]
    actions: NDArray[np.int64]
    times_s: NDArray[np.int64]

    def __post_init__(self) -> None:
        lengths = len(self.vectors), len(self.actions), len(self.times_s)
        assert len(set(lengths)) == 1, f"a history of unequal lengths: {lengths}"


@dataclass(frozen=True, slots=True)
class Prefixes:
    """B histories by rows, oldest first, padded at the front with row 0, each asked at its own time.

    `rows` int32, `actions` int16, `times_s` int64, all [B, H]; `now_s` int64 [B].
    """

    rows: NDArray[np.int32]
    actions: NDArray[np.int16]
    times_s: NDArray[np.int64]
    now_s: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.now_s)

    def take(self, places: NDArray[np.int64]) -> Prefixes:
        """Some of them, in the order asked."""
        return Prefixes(self.rows[places], self.actions[places], self.times_s[places], self.now_s[places])


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What a tower is stopped by: B histories and the row that each user took next. `target_rows` int32 [B]"""

    prefixes: Prefixes
    target_rows: NDArray[np.int32]

    def take(self, places: NDArray[np.int64]) -> HeldOut:
        """Some of them, in the order asked."""
        return HeldOut(self.prefixes.take(places), self.target_rows[places])


@dataclass(frozen=True, slots=True)
class Sequences:
    """All events of U users, user after user, each user's oldest first; user u has `offsets[u]:offsets[u + 1]`.

    `rows` int32 [N] (0: unknown item), `actions` int16 [N], `positive` bool [N] (may be a target), `times_s` int64 [N],
    `offsets` int64 [U + 1].
    """

    rows: NDArray[np.int32]
    actions: NDArray[np.int16]
    positive: NDArray[np.bool_]
    times_s: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def __post_init__(self) -> None:
        lengths = len(self.rows), len(self.actions), len(self.positive), len(self.times_s), int(self.offsets[-1])
        assert len(set(lengths)) == 1, f"sequences of unequal lengths: {lengths}"

    @staticmethod
    def of_events(
        users: NDArray[np.integer],
        rows: NDArray[np.integer],
        actions: NDArray[np.integer],
        positive: NDArray[np.bool_],
        times_s: NDArray[np.int64],
    ) -> Sequences:
        """Events in any order, by user number (0..U-1), as sequences; those of equal user and time keep their order."""
        order = np.lexsort((times_s, users))
        counts = np.bincount(users, minlength=int(users.max()) + 1 if len(users) else 0)
        return Sequences(
            rows[order].astype(np.int32),
            actions[order].astype(np.int16),
            positive[order].astype(np.bool_),
            times_s[order].astype(np.int64),
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        )

    @property
    def users(self) -> int:
        """U"""
        return len(self.offsets) - 1

    def owners(self) -> NDArray[np.int64]:
        """The user number of each event. int64 [N]"""
        return np.repeat(np.arange(self.users, dtype=np.int64), np.diff(self.offsets))

    def keep(self, kept: NDArray[np.bool_]) -> Sequences:
        """Only the events marked, with the same users (some may be empty now)."""
        counts = np.bincount(self.owners()[kept], minlength=self.users)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return Sequences(self.rows[kept], self.actions[kept], self.positive[kept], self.times_s[kept], offsets)

    def before(self, time_s: int) -> Sequences:
        """Only what happened strictly before a time, with the same users."""
        return self.keep(self.times_s < time_s)

    def prefixes_of(self, places: NDArray[np.int64], length: int) -> Prefixes:
        """What stood before each of the events at `places`, newest `length`, asked at that event's time."""
        starts = self.offsets[:-1][self.owners()[places]]
        return self._prefixes(starts, places, self.times_s[places], length)

    def prefixes_at(self, users: NDArray[np.int64], now_s: NDArray[np.int64], length: int) -> Prefixes:
        """What each user had done strictly before a time, newest `length`. `users`, `now_s` [B]"""
        starts, stops = self.offsets[:-1][users], self.offsets[1:][users]
        pairs = zip(starts.tolist(), stops.tolist(), now_s.tolist(), strict=True)
        ends = [start + int(np.searchsorted(self.times_s[start:stop], now)) for start, stop, now in pairs]
        return self._prefixes(starts, np.asarray(ends, dtype=np.int64), now_s, length)

    def _prefixes(
        self, starts: NDArray[np.int64], ends: NDArray[np.int64], now_s: NDArray[np.int64], length: int
    ) -> Prefixes:
        places = ends[:, None] - np.arange(length, 0, -1, dtype=np.int64)[None, :]
        real = places >= starts[:, None]
        places = np.where(real, places, 0)
        if len(self.rows) == 0:
            blank = np.zeros(places.shape, dtype=np.int64)
            return Prefixes(blank.astype(np.int32), blank.astype(np.int16), blank, now_s.astype(np.int64))
        return Prefixes(
            np.where(real, self.rows[places], 0).astype(np.int32),
            np.where(real, self.actions[places], 0).astype(np.int16),
            np.where(real, self.times_s[places], 0).astype(np.int64),
            now_s.astype(np.int64),
        )


@dataclass(frozen=True, slots=True)
class RankingExamples:
    """R requests with C candidates each, for the reranker.

    `history_rows` int32, `history_actions` int16, `history_times_s` int64 [R, H], oldest first, row 0 padding at the
    front; `now_s` int64 [R]; `candidate_rows` int32 [R, C], 0 for padding; `features` float32 [R, C, F];
    `retrieval_score` float32 [R, C], the tower's; `labels` float32 [R, C], 1 for what the user took; `drawn_from`
    float32 [R], how many candidates each one that was not taken was drawn from; 0: none was, somebody saw this list;
    `places` int16 [R, C], where a candidate stood in the list that was shown, 1 to PLACES_MAX, and 0 where it was not
    shown or nobody knows (everywhere, if not given).
    """

    history_rows: NDArray[np.int32]
    history_actions: NDArray[np.int16]
    history_times_s: NDArray[np.int64]
    now_s: NDArray[np.int64]
    candidate_rows: NDArray[np.int32]
    features: NDArray[np.float32]
    retrieval_score: NDArray[np.float32]
    labels: NDArray[np.float32]
    drawn_from: NDArray[np.float32]
    places: NDArray[np.int16] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int16))

    def __post_init__(self) -> None:
        candidates, history = self.candidate_rows.shape, self.history_rows.shape
        if self.places.size == 0:
            object.__setattr__(self, "places", np.zeros(candidates, dtype=np.int16))
        assert self.places.shape == candidates, f"{self.places.shape} places of {candidates} candidates"
        assert self.history_actions.shape == self.history_times_s.shape == history, f"histories differ from {history}"
        assert self.features.shape[:2] == candidates, f"{self.features.shape} features of {candidates} candidates"
        assert self.retrieval_score.shape == self.labels.shape == candidates, f"scores or labels differ: {candidates}"
        assert len(self.now_s) == len(self.drawn_from) == candidates[0] == history[0], "requests differ in number"

    def __len__(self) -> int:
        return len(self.now_s)

    @property
    def prefixes(self) -> Prefixes:
        """The histories alone."""
        return Prefixes(self.history_rows, self.history_actions, self.history_times_s, self.now_s)

    def take(self, places: NDArray[np.int64]) -> RankingExamples:
        """Some of the requests, in the order asked."""
        return RankingExamples(
            self.history_rows[places], self.history_actions[places], self.history_times_s[places], self.now_s[places],
            self.candidate_rows[places], self.features[places], self.retrieval_score[places], self.labels[places],
            self.drawn_from[places],
            self.places[places],
        )  # fmt: skip

    def by_time(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The places of the older requests, which a reranker is fitted to, and of the newest tenth, which it is stopped
        and calibrated by; both in time order."""
        order = np.argsort(self.now_s, kind="stable")
        held = max(1, len(order) // 10)
        return order[:-held], order[-held:]
