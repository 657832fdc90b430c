"""The features consumer: events into user rows, offline before online before commit."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime

import structlog

from services import intake
from services.domain import (
    HISTORY_MAX,
    TOPIC_EVENTS,
    Batch,
    Event,
    Interaction,
    KindRules,
    Message,
    Partition,
    UserState,
    to_us,
)
from services.features.fold import fold_each, interaction
from services.freshness import Ages, are_live, microseconds
from services.ports import EventSource, FeatureStore
from services.telemetry import EVENTS_CLAMPED, EVENTS_DUPLICATE, EVENTS_LATE, ROWS_LOST, ROWS_REFUSED

ATTEMPTS_MAX = 50
Taken = tuple[Message, Event]
log = structlog.get_logger()


class FeaturesConsumer:
    """Consumer of the events topic. What it keeps between batches is only a cache of rows that are stored."""

    name = "features"
    topics = (TOPIC_EVENTS,)

    def __init__(
        self,
        store: FeatureStore,
        rules: KindRules,
        now: Callable[[], datetime],
        cache_users: int = 20_000,
        erased: Callable[[], Mapping[str, int]] = dict,
        ages: Ages | None = None,
        events_max: int = HISTORY_MAX,
        since_us: int = 0,
    ) -> None:
        self._store = store
        self._rules = rules
        self._events_max = events_max
        self._since_us = since_us
        self._now = now
        self._erased = erased
        self._ages = ages or Ages()
        self._stored = RowCache(cache_users)

    def start(self, source: EventSource, gained: tuple[Partition, ...]) -> None:  # noqa: ARG002
        """Consumer: another member may have written the rows of these partitions."""
        self._stored.clear()

    def stop(self, lost: tuple[Partition, ...]) -> Mapping[Partition, int]:  # noqa: ARG002
        """Consumer: nothing is ever buffered."""
        self._stored.clear()
        return {}

    def apply(self, batch: Batch) -> Mapping[Partition, int]:
        """Consumer. A crash between the steps repeats the batch: the same rows again, which readers and the store know.

        1. read the rows, 2. fold, 3. append one row per event to the history, 4. write the last row of each user.
        """
        if not batch.messages:
            return {}
        read = intake.read(batch.messages).events
        entered = self.take([event for _, event in read])
        self._measure(read, [read[place] for place in entered])
        return batch.next_offsets()

    def take(self, events: Sequence[Event]) -> list[int]:
        """Take these events in, wherever they come from, durably; the places of those that enter rows."""
        started = time.perf_counter()
        by_user, entered = self._interactions(events)
        rows = refused = 0
        while by_user:
            assert refused < ATTEMPTS_MAX, f"{refused} writes of {len(by_user)} rows were refused one after the other"
            last, appended = self._fold(by_user)
            denied = self._write(last)
            rows += appended
            refused += bool(denied)
            by_user = {user_id: by_user[user_id] for user_id in denied}
        seconds = time.perf_counter() - started
        log.info("features", events=len(events), rows=rows, refused=refused, ms=round(seconds * 1000, 1))

        return entered

    def _measure(self, read: Sequence[Taken], entered: Sequence[Taken]) -> None:
        """The rows are written with the events that entered some, and servers read a row anew for each answer: what
        entered is servable now."""
        EVENTS_CLAMPED.labels("stream").inc(sum(event.occurred_at >= event.accepted_at for _, event in read))
        accepted_us = microseconds([event.accepted_at for _, event in entered])
        logged_us = microseconds([message.accepted_at for message, _ in entered])
        live = are_live(logged_us, microseconds([event.occurred_at for _, event in entered]))
        self._ages.observe("row", accepted_us, live, to_us(self._now()))

    def _interactions(self, events: Iterable[Event]) -> tuple[dict[str, list[Interaction]], list[int]]:
        """What enters rows, by user, in the order it came, and the places it comes from; nothing of before an erasure,
        or of before rows begin."""
        erased = self._erased()
        entered: list[int] = []
        by_user: dict[str, list[Interaction]] = {}
        for place, event in enumerate(events):
            if erased and to_us(event.accepted_at) < erased.get(event.user_id, 0):
                continue
            each = interaction(event, self._rules)
            if each is not None and each.occurred_us >= self._since_us:
                by_user.setdefault(event.user_id, []).append(each)
                entered.append(place)
        return by_user, entered

    def _fold(self, by_user: Mapping[str, Sequence[Interaction]]) -> tuple[list[UserState], int]:
        """Fold onto what is stored and append every row to the history; the last of each user, and how many rows."""
        rows: list[UserState] = []
        last: list[UserState] = []
        late = duplicates = 0
        for state in self._read(tuple(by_user)):
            folded = fold_each(state, by_user[state.user_id], self._events_max)
            late += folded.late
            duplicates += folded.duplicates
            rows += folded.rows
            last += folded.rows[-1:]
        EVENTS_LATE.inc(late)
        EVENTS_DUPLICATE.inc(duplicates)
        self._store.append_history(rows, self._now())
        return last, len(rows)

    def _read(self, user_ids: Sequence[str]) -> list[UserState]:
        missing = [user_id for user_id in user_ids if user_id not in self._stored]
        read = {state.user_id: state for state in self._store.read_many(missing)}
        return [read[user_id] if user_id in read else self._stored[user_id] for user_id in user_ids]

    def _write(self, last: Sequence[UserState]) -> tuple[str, ...]:
        """Write the rows; the users whose row somebody else has written since it was read, to be folded again."""
        refused = self._store.write(last)
        denied = set(refused)
        if refused:
            ROWS_REFUSED.inc(len(refused))
            self._stored.clear()
            self._look_for_losses({s.user_id: s.previous_row_time_us for s in last if s.user_id in denied})
        self._stored.keep(state for state in last if state.user_id not in denied)
        return refused

    def _look_for_losses(self, followed_us: Mapping[str, int]) -> None:
        """A stored row that is older than one that was stored before: the store has forgotten writes."""
        stored = self._store.read_many(tuple(followed_us))
        lost = sum(state.row_time_us < followed_us[state.user_id] for state in stored)
        if lost:
            ROWS_LOST.inc(lost)
            log.error("store_lost_rows", rows=lost, mend="freshrank replay --consumer features --into live")


class RowCache:
    """The rows written last, at most `users_max`."""

    def __init__(self, users_max: int) -> None:
        self._users_max = users_max
        self._rows: OrderedDict[str, UserState] = OrderedDict()

    def __contains__(self, user_id: str) -> bool:
        return user_id in self._rows

    def __getitem__(self, user_id: str) -> UserState:
        self._rows.move_to_end(user_id)
        return self._rows[user_id]

    def keep(self, states: Iterable[UserState]) -> None:
        """These are stored now; the least used make room."""
        for state in states:
            self._rows[state.user_id] = state
            self._rows.move_to_end(state.user_id)
        while len(self._rows) > self._users_max:
            self._rows.popitem(last=False)

    def clear(self) -> None:
        """Know nothing."""
        self._rows.clear()
