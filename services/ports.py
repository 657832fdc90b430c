"""The ports: what the three functions need from the world. Each has an in-memory implementation
(`services/memory.py`, or beside its part) that is production code, and one contract suite over every implementation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.domain import (
    Batch,
    Candidate,
    Coordinate,
    Event,
    ItemCard,
    ItemChange,
    Outgoing,
    Partition,
    Query,
    ReleaseInfo,
    Slate,
    UserState,
    Verdict,
)
from services.quarantine import ALL, Entry, Rejected, Wanted
from services.signals import Scores, UserRows


class EventSource(Protocol):
    """One member of a consumer group on some topics. Not thread-safe: one thread owns it."""

    def poll(self, records_max: int, wait_s: float) -> Batch:
        """The next messages, at most `records_max`, blocking at most `wait_s`; an empty batch when none came.

        Messages of one partition come in order. What is polled and never committed comes again after a restart.
        Ownership changes are reported in `gained` and `lost`; a batch that reports a gain or a loss carries no message
        of those partitions, because the consumer may seek, and has to flush, first.
        """

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Store the group's next offsets, durably. Never moves an offset backwards. A partition that this member does
        not own (any more) is left alone. Empty: nothing happens."""

    def seek(self, offsets: Mapping[Partition, int]) -> None:
        """Read the owned partitions from these offsets at the next poll. Unowned partitions are ignored."""

    def lag(self) -> Mapping[Partition, int]:
        """Messages not yet committed by this group, for each owned partition."""


class EventSink(Protocol):
    """Where messages are published. Thread-safe."""

    def publish(self, messages: Sequence[Outgoing]) -> tuple[Coordinate, ...]:
        """Append all messages and return their coordinates, in order, once they are durable.

        Raises StageUnavailable when the log cannot take them (full disk, lock, no broker): nothing is acknowledged
        then, and whether some of them are in the log is not known. Publishing them again, with the same `event_id`,
        is harmless.
        """

    def flush(self) -> None:
        """Wait until all that was published is durable."""


class LogView(Protocol):
    """A look at the log and its groups from outside, for lag, waiting and health. Thread-safe."""

    def ends(self, topic: str) -> Mapping[Partition, int]:
        """The next offset of every partition of the topic."""

    def begins(self, topic: str) -> Mapping[Partition, int]:
        """The first offset that is still kept, of every partition of the topic; the end of an empty one."""

    def committed(self, group: str, topic: str) -> Mapping[Partition, int]:
        """The committed offset of the group for every partition of the topic; 0 where it has none."""

    def topics(self, group: str) -> tuple[str, ...]:
        """What the group reads, in order; empty for a group that never joined."""

    def log_id(self, topic: str) -> str:
        """The identity of the log that holds the topic: another one when the topic, or all of it, is made anew."""


class Member(EventSource, Protocol):
    """A source that can leave its group."""

    def close(self) -> None:
        """Leave the group: the others take the partitions over. Closing twice is harmless."""


class Bus(Protocol):
    """One log, as one process uses it."""

    def sink(self) -> EventSink:
        """Where this process publishes; shared by its threads."""

    def view(self) -> LogView:
        """A look at it from outside; shared by the threads of a process."""

    def source(self, group: str, topics: Sequence[str]) -> Member:
        """A new member of a group; it joins at its first poll."""

    def trim(self, now: datetime) -> Mapping[Partition, int]:
        """Retention. How many messages stand at or near its end and are not committed by a known group that reads
        them, by partition: a red health state."""

    def forget(self, *groups: str) -> None:
        """Forget groups that will not come back: nothing is kept for them any more. StageUnavailable while one has
        members, where the log minds."""


class Consumer(Protocol):
    """What `consume` drives: one of features, trends, archive, catalogue."""

    @property
    def name(self) -> str:
        """The consumer's name, which is its group's name too."""

    @property
    def topics(self) -> tuple[str, ...]:
        """What it reads."""

    def start(self, source: EventSource, gained: tuple[Partition, ...]) -> None:
        """Called when partitions are gained, before their first message: load state, seek where it says."""

    def apply(self, batch: Batch) -> Mapping[Partition, int]:
        """Take in the batch (it may be empty: time passes too) and return the offsets whose effect is durable now.

        Those are committed. Raising means: nothing is committed and the same messages come again.
        """

    def stop(self, lost: tuple[Partition, ...]) -> Mapping[Partition, int]:
        """Called when partitions are lost, or with () when the loop ends: flush what is buffered; the offsets whose
        effect is durable now."""


class FeatureStore(Protocol):
    """User rows. A stranger is an empty `UserState`, never None."""

    def read(self, user_id: str) -> UserState:
        """The newest row of one user. May block on the store up to its deadline, then raises StageUnavailable."""

    def read_many(self, user_ids: Sequence[str]) -> tuple[UserState, ...]:
        """One state per id asked, in the order asked."""

    def write(self, states: Sequence[UserState]) -> tuple[str, ...]:
        """Write each row if what is stored has `row_time_us == state.previous_row_time_us`; returns the user ids
        refused (somebody else wrote in between). At most one state per user in a call. Durable on return."""

    def append_history(self, states: Sequence[UserState], created_at: datetime) -> None:
        """Append rows to the offline history (several per user are fine), durable on return."""


LIVE_ITEMS_KEPT = timedelta(days=30)
"""What servers were told is kept whole for so long; of older times only each item's newest counts stay."""


class FeatureHistory(Protocol):
    """The offline history, read point-in-time: what a training row may know."""

    def users_at(self, user_ids: Sequence[str], times_us: NDArray[np.int64]) -> UserRows:
        """For each (user, time) the newest row with `row_time_us <= time`, in the order asked; equal pairs are kept."""

    def items_at(
        self, item_ids: Sequence[str], times_us: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """For each (item, time) the newest counts float32 [n, COUNTS_WIDTH] stamped at or before the time, and their
        stamps int64 [n]; zeros where there are none."""

    def live_items_at(
        self, item_ids: Sequence[str], times_us: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        """What servers had been told: for each (item, time) the newest counts written for them at or before the time,
        the counts' stamps, and when they were written; zeros where nothing was. Exact for LIVE_ITEMS_KEPT."""


class Archive(Protocol):
    """Every accepted event once, for ever (until erased)."""

    def append(
        self,
        events: Sequence[tuple[Coordinate, Event]],
        slates: Sequence[tuple[Coordinate, Slate]],
        items: Sequence[tuple[Coordinate, ItemChange]],
    ) -> None:
        """Durable on return. Appending a coordinate again is harmless."""

    def events(self, since: datetime, until: datetime) -> Iterator[Event]:
        """Events with `since <= occurred_at < until`, ordered by `(occurred_at, event_id)`, each coordinate once and,
        within a UTC day, each event_id once."""

    def slates(self, since: datetime, until: datetime, request_ids: Collection[str] | None = None) -> Iterator[Slate]:
        """Slates with `since <= asked_at < until`, ordered by `asked_at`, each coordinate once; only those of some
        requests where these are given."""

    def bounds(self) -> tuple[datetime, datetime] | None:
        """The first and the last `occurred_at` archived; None when empty."""


class Quarantine(Protocol):
    """Messages that could not be read, by coordinate. Bounded: of a large message the first bytes are kept, and when
    all of them together are too many, the oldest are let go and counted."""

    def add(self, rejected: Sequence[Rejected]) -> None:
        """Durable on return; a coordinate added again is stored once."""

    def list(self, limit: int, after: int = 0, wanted: Wanted = ALL) -> Sequence[Entry]:
        """Up to `limit` entries with a running number above `after`, oldest first."""

    def get(self, number: int) -> Entry | None:
        """One entry, or None."""

    def count(self) -> Mapping[str, int]:
        """How many entries there are, by reason."""

    def forgotten(self) -> int:
        """How many entries were let go to make room, ever."""

    def claim(self, number: int, at: datetime, again: bool = False) -> bool:
        """Mark an entry as being replayed, durably; False where it is marked already (and not `again`), or is gone."""

    def release(self, number: int) -> None:
        """Take the mark back: nothing was published."""

    def settle(self, number: int, replayed_as: Coordinate) -> None:
        """Note where the replayed message stands."""


class Catalogue(Protocol):
    """Item cards, applied by coordinate."""

    def apply(self, changes: Sequence[tuple[Coordinate, ItemChange]]) -> tuple[ItemCard, ...]:
        """Merge the changes in order, durably; returns the cards that changed. Applying a coordinate again is
        harmless; an older `updated_at` is refused silently."""

    def cards(self, item_ids: Sequence[str]) -> tuple[ItemCard | None, ...]:
        """One card or None per id asked, in the order asked."""

    def all_cards(self) -> Iterator[ItemCard]:
        """Every card, tombstones too, in id order."""


class CandidateSource(Protocol):
    """Proposes items for a user. Deterministic for a given state."""

    @property
    def name(self) -> str:
        """What slates, metrics and logs call it."""

    @property
    def limit(self) -> int:
        """Most candidates of one answer."""

    def candidates(self, query: Query, user: UserState) -> Sequence[Candidate]:
        """At most `limit` candidates (`query.limit` where more are asked for), best first, no duplicates; empty when it
        has nothing for this user.

        Raises nothing but StageUnavailable.
        """


class Filter(Protocol):
    """Takes candidates out. Pure and idempotent; any two commute."""

    @property
    def name(self) -> str:
        """What slates, metrics and logs call it."""

    def keep(self, query: Query, user: UserState, candidates: Sequence[Candidate]) -> Sequence[bool]:
        """One answer per candidate, in their order: True keeps it."""


class Scorer(Protocol):
    """Gives each candidate a finite score; a candidate's score does not depend on its neighbours."""

    @property
    def name(self) -> str:
        """What slates, metrics and logs call it."""

    def score(self, query: Query, user: UserState, candidates: Sequence[Candidate]) -> Scores:
        """As many scores as candidates, in their order, and what they were worked out from. Raises StageUnavailable
        when it cannot answer."""


class SlateLog(Protocol):
    """Remembers what was served."""

    def record(self, slate: Slate) -> None:
        """Never blocks and never raises: what does not fit the queue is dropped and counted."""

    def flush(self, wait_s: float) -> None:
        """Wait at most `wait_s` until what was recorded is published."""


class ReleaseRegistry(Protocol):
    """Which releases exist and which one is live. Exactly one is live once one has been promoted."""

    def publish(self, info: ReleaseInfo) -> None:
        """Add a release; an id can be published once (BadRequest otherwise)."""

    def promote(self, release_id: str, verdict: Verdict | None = None) -> None:
        """Make it the live one, atomically under two writers. Unknown id: BadRequest."""

    def live(self) -> ReleaseInfo | None:
        """The live release, or None before the first promotion."""

    def all(self) -> Sequence[ReleaseInfo]:
        """Every release, newest first."""
