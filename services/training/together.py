"""Co-visits as of a request: what served lists knew of items taken together, worked out again for ranking examples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.domain import DAY_US
from services.signals import TOGETHER_PER_START, TOGETHER_STARTS, UserRows
from services.training.cutoff import together_pairs
from services.training.examples import Corpus

STEP_US = DAY_US
STEPS_MAX = 40


class Together:
    """Rows taken together with some rows, worked out anew every STEP_US (less often in a log so long that this would be
    more than STEPS_MAX times in its newest fifth) from what came before."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._until_us = 0
        times = corpus.events.occurred_us
        self._step_us = max(STEP_US, int(times[-1] - times[0]) // 5 // STEPS_MAX) if len(times) else STEP_US
        self._offsets = np.zeros(len(corpus.vocabulary) + 1, dtype=np.int64)
        self._others = np.zeros(0, dtype=np.int64)
        self._weights = np.zeros(0, dtype=np.float64)

    def starts(self, users: UserRows) -> list[NDArray[np.int64]]:
        """The rows of each user's newest distinct positive items, newest first; 0 for an item of no vocabulary."""
        by_code = self._corpus.vocabulary.rows(users.item_ids) if users.item_ids else np.zeros(1, dtype=np.int64)
        found = []
        for first, last in zip(users.offsets[:-1].tolist(), users.offsets[1:].tolist(), strict=True):
            codes = users.item_codes[first:last][users.weight[first:last] > 0]
            newest = np.fromiter(dict.fromkeys(codes.tolist()), dtype=np.int64)[:TOGETHER_STARTS]
            found.append(by_code[newest])
        return found

    def pass_over(self, times_us: NDArray[np.int64]) -> None:
        """Stand where being asked at these (rising) times would have led."""
        until_us, place = self._until_us, 0
        while True:
            place += int(np.searchsorted(times_us[place:], until_us + self._step_us))
            if place == len(times_us):
                break
            until_us = int(times_us[place])
        if until_us > self._until_us:
            self._work_out(until_us)

    def of(self, starts: NDArray[np.int64], now_us: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The rows that `starts` (newest first) lead to and how strongly, as `ItemTable.together` has it. Times must
        not fall by more than a step."""
        if now_us >= self._until_us + self._step_us:
            self._work_out(now_us)
        first, last = self._offsets[starts], self._offsets[starts + 1]
        ends = np.minimum(last, first + TOGETHER_PER_START)
        found = [
            np.arange(a, b) for a, b, row in zip(first.tolist(), ends.tolist(), starts.tolist(), strict=True) if row
        ]
        if not found:
            return np.zeros(0, dtype=np.int64), np.zeros(0)
        shares = np.concatenate([
            self._weights[places] / (1 + place)
            for place, places in zip(np.flatnonzero(starts > 0).tolist(), found, strict=True)
        ])  # fmt: skip
        rows, inverse = np.unique(self._others[np.concatenate(found)], return_inverse=True)
        return rows.astype(np.int64), np.bincount(inverse, weights=shares, minlength=len(rows)).astype(np.float64)

    def _work_out(self, now_us: int) -> None:
        self._until_us = now_us
        rows = self._corpus.rows
        until = self._corpus.events.before(now_us)
        ones, others, cosines = together_pairs(until, now_us, self._corpus.votes[: len(until)])
        order = np.argsort(rows[ones], kind="stable")  # strongest first, still
        self._others, self._weights = rows[others][order], cosines[order]
        self._offsets = np.searchsorted(rows[ones][order], np.arange(len(self._corpus.vocabulary) + 1))


def strength_of(rows: NDArray[np.int64], led: NDArray[np.int64], strength: NDArray[np.float64]) -> NDArray[np.float32]:
    """How strongly co-visits lead to each of `rows` [C], where they lead to the rows `led` (rising) with `strength`."""
    if len(led) == 0:
        return np.zeros(len(rows), dtype=np.float32)
    place = np.minimum(np.searchsorted(led, rows), len(led) - 1)
    return np.where((led[place] == rows) & (rows > 0), strength[place], 0.0).astype(np.float32)
