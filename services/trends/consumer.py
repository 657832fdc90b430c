"""The trends consumer: what many users do, as item counts, co-visits and hour rows of `item_stats`.

What it takes in is buffered; a flush writes state, parts of the change feed and offsets in one transaction.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import structlog
from sqlalchemy import Connection, Engine

from services import intake
from services.bounds import BOUNDED, Bounds, Share
from services.domain import (
    HOUR_US,
    SECOND_US,
    TOPIC_EVENTS,
    TOPIC_SLATES,
    Batch,
    Event,
    KindRules,
    Message,
    Partition,
    Slate,
    hash64,
    to_us,
)
from services.freshness import LIVE, Arrived, arrived
from services.item_parts import CovisitsPart, Payload, StatsPart
from services.ports import EventSource
from services.tables import next_number
from services.telemetry import EVENTS_REJECTED
from services.trends import store
from services.trends.counters import (
    IMPRESSION,
    RING_MAX,
    HourCounts,
    Once,
    Standing,
    decayed_hours,
    end_us,
)
from services.trends.covisits import Users
from services.trends.tally import IMPRESSION_KIND, Action, Tally

WriteParts = Callable[[Connection, Sequence[tuple[str, Payload]], Arrived | None], int]
"""Writes parts of the change feed inside the caller's transaction; `services.catalogue.live.write_parts`."""

GRACE_US = 600 * SECOND_US
"""An hour is closed this long after its end when all partitions are read to their end: phones send late."""
IDLE_FLUSH_S = 1.0
FLUSHING_SHARE = 0.25
"""Of the time, at most this much goes into flushes while messages keep coming. A flush costs what it touches: by the
clock alone, a consumer that is slow for any reason flushes few events at a time and becomes slower by it."""
FLUSH_S_MAX = 60.0
"""However long flushes take, what is counted is stored this often."""
IDLE_HOUR_S = 60.0
_LOCK = "trends_flush"
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class TrendsSettings:
    """How the consumer flushes and what it counts."""

    flush_s: float = 5.0
    flush_events: int = 50_000
    covisits_items_max: int = 50
    impressions_from: str = "slates"
    ring_max: int = RING_MAX
    bounds: Bounds = BOUNDED


@dataclass(slots=True)
class _Owned:
    """An owned partition: what it remembers and how far it is. `stored` is what its row should say; None: no row."""

    once: Once
    log_id: str
    next_offset: int
    newest_us: int
    until_us: int
    share: Share
    stored: store.Stored | None


@dataclass(slots=True)
class _Buffer:
    """What came since the last flush."""

    tally: Tally = field(default_factory=Tally)
    messages: int = 0
    moments: list[tuple[datetime, bool]] = field(default_factory=list)


class OwnershipLost(Exception):
    """Somebody else has stored one of our partitions."""


class TrendsConsumer:
    """Consumer "trends". One thread owns it."""

    name = "trends"

    def __init__(
        self,
        engine: Engine,
        rules: KindRules,
        history: store.CountsHistory,
        write_parts: WriteParts,
        log_id: Callable[[str], str],
        now: Callable[[], datetime],
        settings: TrendsSettings = TrendsSettings(),
        erased: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self.topics = (TOPIC_EVENTS, TOPIC_SLATES) if settings.impressions_from == "slates" else (TOPIC_EVENTS,)
        self._engine = engine
        self._rules = rules
        self._history = history
        self._write_parts = write_parts
        self._log_id = log_id
        self._now = now
        self._settings = settings
        self._erased = erased
        self._source: EventSource | None = None
        self._owned: dict[Partition, _Owned] = {}
        self._by_place: dict[tuple[str, int], _Owned] = {}
        self._users = Users()
        self._log_ids: dict[str, str] = {}
        self._buffer = _Buffer()
        self._closed = 0
        self._flushed_us = self._flush_took_us = 0

    # ------------------------------------------------------------------------------------- the Consumer port

    def start(self, source: EventSource, gained: tuple[Partition, ...]) -> None:
        """Load the state of the gained partitions and read on from where it ends. Their users may have met others."""
        self._source = source
        self._users.forget_stored()
        self._log_ids |= {topic: self._log_id(topic) for topic in {partition.topic for partition in gained}}
        with self._engine.begin() as connection:
            stored = store.stored_partitions(connection)
            self._closed = next_number(connection, "trends_closed_hour", 0)
            for partition in gained:
                log_id, before = self._log_ids[partition.topic], stored.get(partition)
                self._owned[partition] = _owned(connection, partition, before, log_id, self._settings)
        self._by_place = {(p.topic, p.number): owned for p, owned in self._owned.items()}
        source.seek({p: o.next_offset for p in gained if (o := self._owned[p]).next_offset > 0})
        self._flushed_us = self._flushed_us or to_us(self._now())

    def apply(self, batch: Batch) -> Mapping[Partition, int]:
        """Buffer the batch; flush when it is time. Returns offsets only after a flush."""
        self._take(batch.messages)
        waited_s = (to_us(self._now()) - self._flushed_us) / SECOND_US
        idle = not batch.messages and waited_s >= IDLE_FLUSH_S
        full = self._buffer.messages >= self._settings.flush_events or waited_s >= self._flush_s()
        if self._buffer.messages and (idle or full):
            return self._flush()
        if idle and waited_s >= IDLE_HOUR_S and self._hour_ended():
            return self._flush()
        return {}

    def _flush_s(self) -> float:
        """How long after the last flush the next one is due."""
        affordable_s = min(self._flush_took_us / SECOND_US / FLUSHING_SHARE, FLUSH_S_MAX)
        return max(self._settings.flush_s, affordable_s)

    def stop(self, lost: tuple[Partition, ...]) -> Mapping[Partition, int]:
        """Flush everything, then forget the lost partitions."""
        offsets = self._flush() if self._buffer.messages else {}
        for partition in lost:
            self._owned.pop(partition, None)
        return offsets

    # ------------------------------------------------------------------------------------------- taking in

    def _take(self, given: Sequence[Message]) -> None:
        messages = [message for message in given if self._is_news(message)]
        read = intake.read(messages)
        events, erased = read.events, self._erased()
        for each in read.rejected:
            EVENTS_REJECTED.labels(where=self.name, reason=each.reason).inc()
        if erased:
            events = [(m, e) for m, e in events if to_us(e.accepted_at) >= erased.get(e.user_id, 0)]
        self._load_users(event.user_id for _, event in events)
        for message, event in events:
            self._take_event(self._partition_of(message), event)
        self._buffer.moments += [(e.accepted_at, m.accepted_at - e.occurred_at <= LIVE) for m, e in events]
        for message, slate in read.slates:
            self._take_slate(self._partition_of(message), slate)
        for message in messages:
            owned = self._partition_of(message)
            owned.log_id, owned.next_offset = message.coordinate.log_id, message.coordinate.offset + 1
        self._buffer.messages += len(messages)

    def _take_event(self, owned: _Owned, event: Event) -> None:
        occurred_us = to_us(event.occurred_at)
        owned.newest_us = max(owned.newest_us, occurred_us)
        positive = self._rules.signed_weight(event.kind, event.value) > 0
        shown = event.kind == IMPRESSION_KIND and self._settings.impressions_from == "clients"
        if not positive and not shown:
            return
        action = Action(hash64(event.event_id), event.user_id, event.item_id, event.kind, occurred_us, positive)
        self._buffer.tally.take(action, owned.once, owned.share, self._users, self._settings.bounds)

    def _take_slate(self, owned: _Owned, slate: Slate) -> None:
        asked_us = to_us(slate.asked_at)
        owned.newest_us = max(owned.newest_us, asked_us)
        who = slate.user_id or slate.request_id
        for pick in slate.items:
            shown_key = hash64(f"{slate.request_id}\x1f{pick.item_id}")
            pair_key = hash64(f"{who}\x1f{pick.item_id}\x1f{IMPRESSION_KIND}")
            if owned.once.counts(shown_key, pair_key, asked_us):
                self._buffer.tally.deltas.add(pick.item_id, asked_us, IMPRESSION)

    def _load_users(self, user_ids: Iterable[str]) -> None:
        unknown = {user_id for user_id in user_ids if user_id not in self._users}
        if unknown:
            with self._engine.connect() as connection:
                self._users.load(store.load_recent(connection, unknown))

    def _is_news(self, message: Message) -> bool:
        """Not taken in before: a batch comes again when a flush failed on the way."""
        owned = self._partition_of(message)
        return message.coordinate.offset >= owned.next_offset or message.coordinate.log_id != owned.log_id

    def _partition_of(self, message: Message) -> _Owned:
        return self._by_place[message.coordinate.topic, message.coordinate.partition]

    # ------------------------------------------------------------------------------------------- flushing

    def _flush(self) -> Mapping[Partition, int]:
        """1. lock, 2. refuse what another owner has moved on, 3. state and offsets, 4. parts of the change feed and
        their counts for training, 5. the hour rows, durable before 6. the commit. A crash before 6 leaves at worst rows
        that come again."""
        now = self._now()
        try:
            with self._engine.begin() as connection:
                next_number(connection, _LOCK)
                stored = self._still_owned(connection)
                sums = self._store_state(connection)
                progress = self._store_progress(connection, stored, now)
                rows = self._write_live(connection, sums, progress, now)
                if progress.closed // 24 > progress.closed_before // 24:
                    store.prune(connection, progress.newest_us, progress.closed)
                if rows.item_ids:
                    self._history.append_item_stats(rows.item_ids, rows.counts, rows.at_us, now)
        except OwnershipLost as error:
            _log.warning("trends_ownership_lost", partition=str(error))
            self._read_again()
            return {}
        self._settled(progress)
        self._flushed_us = to_us(now)
        self._flush_took_us = to_us(self._now()) - self._flushed_us
        return {p: owned.next_offset for p, owned in self._owned.items() if owned.next_offset > 0}

    def _still_owned(self, connection: Connection) -> dict[Partition, store.Stored]:
        stored = store.stored_partitions(connection)
        for partition, owned in self._owned.items():
            if stored.get(partition) != owned.stored:
                raise OwnershipLost(f"{partition.topic}/{partition.number}")
        return stored

    def _store_state(self, connection: Connection) -> HourCounts:
        for partition, owned in self._owned.items():
            store.store_once(connection, partition, owned.once)
        store.store_users(connection, self._users)
        sums = self._buffer.tally.deltas.sums()
        store.add_hours(connection, sums)
        return sums

    def _store_progress(
        self, connection: Connection, stored: dict[Partition, store.Stored], now: datetime
    ) -> _Progress:
        ended = self._read_to_end()
        mine: dict[Partition, store.Stored] = {}
        for partition, owned in self._owned.items():
            caught_up_us = to_us(now) - GRACE_US if partition in ended else 0
            until_us = max(owned.until_us, owned.newest_us, caught_up_us)
            share = copy.copy(owned.share)
            state = store.PartitionState(until_us, owned.newest_us, share)
            mine[partition] = store.Stored(owned.log_id, owned.next_offset, state)
        store.store_partitions(connection, mine)
        everywhere = {p: each for p, each in {**stored, **mine}.items() if p.topic in self.topics}
        ids = self._log_ids  # what is stored of a former log nobody reads on: it would keep the hours open for ever
        read = [e for p, e in everywhere.items() if p in mine or e.log_id == ids.get(p.topic, e.log_id)]
        closed = max(self._closed, min(each.state.until_us for each in read) // HOUR_US - 1)
        newest_us = max(each.state.newest_us for each in everywhere.values())
        before = next_number(connection, "trends_closed_hour", 0)
        next_number(connection, "trends_closed_hour", max(closed - before, 0))
        return _Progress(mine, before, max(closed, before), newest_us)

    def _write_live(
        self, connection: Connection, sums: HourCounts, progress: _Progress, now: datetime
    ) -> store.HourRows:
        earliest = dict.fromkeys(
            store.newly_closed(connection, progress.closed_before, progress.closed), progress.closed_before + 1
        )
        for item_id, hour in zip(sums.item_ids, sums.hours.tolist(), strict=True):
            earliest[item_id] = min(hour, earliest.get(item_id, hour))
        newest, rows = store.settle(connection, earliest, progress.closed, progress.closed_before)
        touched = tuple(dict.fromkeys(sums.item_ids))
        written_us = store.rising_us(connection, to_us(now))
        stats = [stats_part(newest[item_id], progress.newest_us, written_us) for item_id in touched]
        if touched:
            counts = np.array([each.counts for each in stats], dtype=np.float32)
            stamps = np.array([each.at_us for each in stats], dtype=np.int64)
            self._history.append_item_live(touched, counts, stamps, written_us, now)
        parts: list[tuple[str, Payload]] = list(zip(touched, stats, strict=True))
        covisits = store.add_pairs(
            connection, self._buffer.tally.pairs.weights, progress.newest_us, self._settings.covisits_items_max
        )
        parts += [(item_id, CovisitsPart(row.item_ids, row.weights)) for item_id, row in covisits]
        self._write_parts(connection, parts, arrived("stats", self._buffer.moments))
        return rows

    def _settled(self, progress: _Progress) -> None:
        """The transaction is committed: what was written is what is stored."""
        self._buffer = _Buffer()
        self._users.stored()
        self._closed = progress.closed
        for partition, owned in self._owned.items():
            owned.once.stored()
            owned.stored = progress.mine[partition]
            owned.until_us = owned.stored.state.until_us

    def _read_again(self) -> None:
        """Forget all that is not stored and read on from what is; a partition that is ours no more is soon reported.
        `start` has no place to seek in one of which nothing is stored: what was let go of it began at the first."""
        taken = [partition for partition, owned in self._owned.items() if owned.next_offset > 0]
        self._buffer, self._users = _Buffer(), Users()
        assert self._source is not None, "a flush comes after a start"
        self.start(self._source, tuple(self._owned))
        self._source.seek({p: 0 for p in taken if self._owned[p].next_offset == 0})

    def _read_to_end(self) -> set[Partition]:
        """Owned partitions with nothing left to read: what lags behind the group's commit is in the buffer already."""
        assert self._source is not None, "a flush comes after a start"
        lag = self._source.lag()
        return {
            p
            for p, owned in self._owned.items()
            if lag.get(p, 0) <= owned.next_offset - (owned.stored.next_offset if owned.stored else 0)
        }

    def _hour_ended(self) -> bool:
        return bool(self._owned) and (to_us(self._now()) - GRACE_US) // HOUR_US - 1 > self._closed


@dataclass(frozen=True, slots=True)
class _Progress:
    """What a flush stores of the owned partitions, and how far the hours are closed."""

    mine: Mapping[Partition, store.Stored]
    closed_before: int
    closed: int
    newest_us: int


def _owned(
    connection: Connection,
    partition: Partition,
    stored: store.Stored | None,
    log_id: str,
    settings: TrendsSettings,
) -> _Owned:
    """The partition as stored; of another log only what it remembers and how far its time is, not its offset."""
    once = store.load_once(connection, partition, settings.ring_max)
    if stored is None:
        return _Owned(once, log_id, 0, 0, 0, Share(), None)
    next_offset = stored.next_offset if stored.log_id == log_id else 0
    state = stored.state
    share = copy.copy(state.share)
    return _Owned(once, log_id, next_offset, state.newest_us, state.until_us, share, stored)


def stats_part(standing: Standing, newest_us: int, written_us: int) -> StatsPart:
    """Counts as of the newest event, which is at most an hour before the standing's end."""
    ends_us = end_us(standing.hour)
    at_us = min(ends_us, newest_us)
    counts = decayed_hours(standing.counts, (at_us - ends_us) / HOUR_US)
    return StatsPart(counts.astype(np.float32).tolist(), at_us, written_us)
