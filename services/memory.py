"""The in-memory implementations of the ports: the whole product in one process, for tests, evaluation and notebooks.

They keep the same promises as the durable ones, within the life of the process; the contract suites hold them to it.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from services.domain import (
    BadRequest,
    Batch,
    Coordinate,
    Event,
    ItemChange,
    Message,
    Outgoing,
    Partition,
    ReleaseInfo,
    Slate,
    UserState,
    Verdict,
    to_us,
)
from services.placing import partition_of
from services.ports import EventSource, LogView
from services.quarantine import (
    ALL,
    ENTRY_BYTES_MAX,
    QUARANTINE_BYTES_MAX,
    Entry,
    Rejected,
    Wanted,
    entry_bytes,
    is_wanted,
    kept_part,
)


class MemoryBus:
    """A partitioned log in lists. One group member at a time owns a partition; ownership is dealt out by `source`."""

    def __init__(self, partitions: int, now: Callable[[], datetime]) -> None:
        self.identity = uuid.uuid4().hex
        self.partitions = partitions
        self.now = now
        self.changed = threading.Condition()
        self.logs: dict[Partition, list[Message]] = defaultdict(list)
        self.offsets: dict[tuple[str, Partition], int] = {}
        self.members: dict[tuple[str, tuple[str, ...]], list[MemorySource]] = defaultdict(list)
        self.subscribed: dict[str, set[str]] = defaultdict(set)

    def publish(self, messages: Sequence[Outgoing]) -> tuple[Coordinate, ...]:
        """EventSink: append all, in order."""
        accepted_at = self.now()
        with self.changed:
            coordinates = tuple(self._append(message, accepted_at) for message in messages)
            self.changed.notify_all()
        return coordinates

    def flush(self) -> None:
        """EventSink: nothing is ever pending."""

    def ends(self, topic: str) -> Mapping[Partition, int]:
        """LogView: the next offset of every partition."""
        return {p: len(self.logs[p]) for p in self.of_topic(topic)}

    def begins(self, topic: str) -> Mapping[Partition, int]:
        """LogView: nothing is ever forgotten."""
        return dict.fromkeys(self.of_topic(topic), 0)

    def committed(self, group: str, topic: str) -> Mapping[Partition, int]:
        """LogView: the committed offset of the group."""
        return {p: self.offsets.get((group, p), 0) for p in self.of_topic(topic)}

    def topics(self, group: str) -> tuple[str, ...]:
        """LogView: what the group's members read now, or its last one did."""
        return tuple(sorted(self.subscribed[group]))

    def log_id(self, topic: str) -> str:  # noqa: ARG002
        """LogView: the identity of this log."""
        return self.identity

    def sink(self) -> MemoryBus:
        """The log is its own EventSink."""
        return self

    def view(self) -> LogView:
        """The log is its own LogView."""
        return self

    def source(self, group: str, topics: Sequence[str]) -> MemorySource:
        """A new member of a group; the group's partitions are dealt out anew among its members."""
        return MemorySource(self, group, tuple(topics))

    def trim(self, now: datetime) -> Mapping[Partition, int]:  # noqa: ARG002
        """Bus: nothing is ever forgotten."""
        return {}

    def forget(self, *groups: str) -> None:
        """Bus."""
        self.offsets = {key: offset for key, offset in self.offsets.items() if key[0] not in groups}
        for group in groups:
            self.subscribed.pop(group, None)

    def of_topic(self, topic: str) -> tuple[Partition, ...]:
        """The partitions of one topic."""
        return tuple(Partition(topic, number) for number in range(self.partitions))

    def _append(self, message: Outgoing, accepted_at: datetime) -> Coordinate:
        partition = Partition(message.topic, partition_of(message.key, self.partitions))
        log = self.logs[partition]
        coordinate = Coordinate(self.identity, message.topic, partition.number, len(log))
        log.append(Message(coordinate, message.key, message.value, accepted_at))
        return coordinate


class MemorySource(EventSource):
    """A member of a group on a MemoryBus."""

    def __init__(self, bus: MemoryBus, group: str, topics: tuple[str, ...]) -> None:
        self._bus = bus
        self._group = group
        self._topics = topics
        self._positions: dict[Partition, int] = {}
        self._members = bus.members[(group, topics)]
        with bus.changed:
            self._members.append(self)
            read = [topics for (name, topics), members in bus.members.items() if name == group and members]
            bus.subscribed[group] = {topic for topics in read for topic in topics}
        self._generation = 0

    def poll(self, records_max: int, wait_s: float) -> Batch:
        """EventSource."""
        until = time.monotonic() + wait_s
        with self._bus.changed:
            gained, lost = self._settle()
            messages = self._take(records_max)
            while not messages and not gained and not lost and (left := until - time.monotonic()) > 0:
                self._bus.changed.wait(left)
                gained, lost = self._settle()
                messages = self._take(records_max)
            if gained:  # the consumer may seek first: its first messages come with the next poll
                for message in messages:
                    c = message.coordinate
                    place = Partition(c.topic, c.partition)
                    self._positions[place] = min(self._positions[place], c.offset)
                messages = []
        return Batch(tuple(messages), self._generation, gained, lost)

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """EventSource."""
        with self._bus.changed:
            for partition, offset in offsets.items():
                key = (self._group, partition)
                if partition in self._positions and offset > self._bus.offsets.get(key, 0):
                    self._bus.offsets[key] = offset

    def seek(self, offsets: Mapping[Partition, int]) -> None:
        """EventSource."""
        self._positions.update({p: o for p, o in offsets.items() if p in self._positions})

    def lag(self) -> Mapping[Partition, int]:
        """EventSource."""
        return {p: len(self._bus.logs[p]) - self._bus.offsets.get((self._group, p), 0) for p in self._positions}

    def close(self) -> None:
        """Leave the group; the others take the partitions over."""
        with self._bus.changed:
            self._members.remove(self)
            self._bus.changed.notify_all()

    def _settle(self) -> tuple[tuple[Partition, ...], tuple[Partition, ...]]:
        everything = [p for topic in self._topics for p in self._bus.of_topic(topic)]
        place, size = self._members.index(self), len(self._members)
        mine = set(everything[place::size])
        lost = tuple(sorted(self._positions.keys() - mine))
        gained = tuple(sorted(mine - self._positions.keys()))
        for partition in lost:
            del self._positions[partition]
        for partition in gained:
            self._positions[partition] = self._bus.offsets.get((self._group, partition), 0)
        self._generation += bool(lost or gained)
        return gained, lost

    def _take(self, records_max: int) -> list[Message]:
        taken: list[Message] = []
        for partition, position in sorted(self._positions.items()):
            fresh = self._bus.logs[partition][position : position + records_max - len(taken)]
            taken += fresh
            self._positions[partition] = position + len(fresh)
        return taken


class MemoryFeatureStore:
    """User rows in a dict, and their history in a list."""

    def __init__(self, rows: Mapping[str, UserState] | None = None) -> None:
        self._lock = threading.Lock()
        self._rows: dict[str, UserState] = dict(rows or {})
        self.history: list[tuple[UserState, datetime]] = []

    def read(self, user_id: str) -> UserState:
        """FeatureStore."""
        return self._rows.get(user_id) or UserState(user_id)

    def read_many(self, user_ids: Sequence[str]) -> tuple[UserState, ...]:
        """FeatureStore."""
        return tuple(self.read(user_id) for user_id in user_ids)

    def write(self, states: Sequence[UserState]) -> tuple[str, ...]:
        """FeatureStore."""
        refused: list[str] = []
        with self._lock:
            for state in states:
                if self.read(state.user_id).row_time_us == state.previous_row_time_us:
                    self._rows[state.user_id] = state
                else:
                    refused.append(state.user_id)
        return tuple(refused)

    def append_history(self, states: Sequence[UserState], created_at: datetime) -> None:
        """FeatureStore."""
        with self._lock:
            self.history += [(state, created_at) for state in states]


class MemoryArchive:
    """The archive in dicts by coordinate."""

    def __init__(self, erased: Callable[[], Mapping[str, int]] = dict) -> None:
        self._lock = threading.Lock()
        self._erased = erased
        self._events: dict[Coordinate, Event] = {}
        self._slates: dict[Coordinate, Slate] = {}
        self.items: dict[Coordinate, ItemChange] = {}

    def append(
        self,
        events: Sequence[tuple[Coordinate, Event]],
        slates: Sequence[tuple[Coordinate, Slate]],
        items: Sequence[tuple[Coordinate, ItemChange]],
    ) -> None:
        """Archive."""
        with self._lock:
            self._events.update(events)
            self._slates.update(slates)
            self.items.update(items)

    def events(self, since: datetime, until: datetime) -> Iterator[Event]:
        """Archive."""
        erased = self._erased()
        within = [e for e in self._events.values() if since <= e.occurred_at < until]
        known: set[tuple[object, str]] = set()
        for event in sorted(within, key=lambda e: (e.occurred_at, e.event_id)):
            once = (event.occurred_at.date(), event.event_id)
            if once not in known and to_us(event.accepted_at) >= erased.get(event.user_id, 0):
                known.add(once)
                yield event

    def slates(self, since: datetime, until: datetime, request_ids: Collection[str] | None = None) -> Iterator[Slate]:
        """Archive."""
        erased = self._erased()
        for slate in sorted(self._slates.values(), key=lambda s: (s.asked_at, s.request_id)):
            wanted = request_ids is None or slate.request_id in request_ids
            kept = to_us(slate.asked_at) >= erased.get(slate.user_id or "", 0)
            if since <= slate.asked_at < until and wanted and kept:
                yield slate

    def bounds(self) -> tuple[datetime, datetime] | None:
        """Archive."""
        times = [event.occurred_at for event in self._events.values()]
        return (min(times), max(times)) if times else None


class MemoryQuarantine:
    """Rejected messages by coordinate."""

    def __init__(self, entry_bytes_max: int = ENTRY_BYTES_MAX, bytes_max: int = QUARANTINE_BYTES_MAX) -> None:
        self._entry_bytes_max = entry_bytes_max
        self._bytes_max = bytes_max
        self._entries: dict[int, Entry] = {}
        self._known: set[Coordinate] = set()
        self._last = 0
        self._forgotten = 0

    def add(self, rejected: Sequence[Rejected]) -> None:
        """Quarantine."""
        for each in rejected:
            if each.coordinate not in self._known:
                self._known.add(each.coordinate)
                self._last += 1
                self._entries[self._last] = Entry(self._last, kept_part(each, self._entry_bytes_max))
        while sum(entry_bytes(entry.rejected) for entry in self._entries.values()) > self._bytes_max:
            oldest = self._entries.pop(min(self._entries))
            self._known.discard(oldest.rejected.coordinate)
            self._forgotten += 1

    def list(self, limit: int, after: int = 0, wanted: Wanted = ALL) -> Sequence[Entry]:
        """Quarantine."""
        return [e for number, e in self._entries.items() if number > after and is_wanted(e, wanted)][:limit]

    def get(self, number: int) -> Entry | None:
        """Quarantine."""
        return self._entries.get(number)

    def count(self) -> Mapping[str, int]:
        """Quarantine."""
        counts: dict[str, int] = defaultdict(int)
        for entry in self._entries.values():
            counts[entry.rejected.reason] += 1
        return dict(counts)

    def forgotten(self) -> int:
        """Quarantine."""
        return self._forgotten

    def claim(self, number: int, at: datetime, again: bool = False) -> bool:
        """Quarantine."""
        entry = self._entries.get(number)
        if entry is None or (entry.replayed_at is not None and not again):
            return False
        self._entries[number] = replace(entry, replayed_at=at, replayed_as=None)
        return True

    def release(self, number: int) -> None:
        """Quarantine."""
        self._entries[number] = replace(self._entries[number], replayed_at=None, replayed_as=None)

    def settle(self, number: int, replayed_as: Coordinate) -> None:
        """Quarantine."""
        self._entries[number] = replace(self._entries[number], replayed_as=replayed_as)


class MemorySlateLog:
    """The newest slates, in a bounded list."""

    def __init__(self, slates_max: int = 10_000) -> None:
        self._slates_max = slates_max
        self.slates: list[Slate] = []
        self.dropped = 0

    def record(self, slate: Slate) -> None:
        """SlateLog."""
        if len(self.slates) < self._slates_max:
            self.slates.append(slate)
        else:
            self.dropped += 1

    def flush(self, wait_s: float) -> None:
        """SlateLog: nothing is ever pending."""


class MemoryRegistry:
    """Releases in a dict, by id."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._releases: dict[str, ReleaseInfo] = {}

    def publish(self, info: ReleaseInfo) -> None:
        """ReleaseRegistry."""
        with self._lock:
            if info.release_id in self._releases:
                raise BadRequest(f"release {info.release_id} is published already")
            self._releases[info.release_id] = replace(info, live=False)

    def promote(self, release_id: str, verdict: Verdict | None = None) -> None:
        """ReleaseRegistry."""
        with self._lock:
            if release_id not in self._releases:
                raise BadRequest(f"there is no release {release_id}")
            for each in self._releases.values():
                promoted = each.release_id == release_id
                reason = verdict.reason if promoted and verdict else each.reason
                self._releases[each.release_id] = replace(
                    each, live=promoted, promoted=each.promoted or promoted, reason=reason
                )

    def live(self) -> ReleaseInfo | None:
        """ReleaseRegistry."""
        return next((each for each in self._releases.values() if each.live), None)

    def all(self) -> Sequence[ReleaseInfo]:
        """ReleaseRegistry."""
        return sorted(self._releases.values(), key=lambda each: (each.created_at, each.release_id), reverse=True)
