"""The embedded log: topics, partitions, offsets and groups in one SQLite file, shared by several processes.

Publishing is durable when it returns (WAL, synchronous=FULL); threads that publish at once share one transaction.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path

import structlog

from services.bus import files
from services.bus.groups import SESSION_S
from services.bus.member import EmbeddedSource
from services.domain import TOPICS, Coordinate, Outgoing, Partition, StageUnavailable, to_us
from services.placing import partition_of

log = structlog.get_logger()

MESSAGES_PER_TRANSACTION = 20_000
TRIM_CHUNK = 5000


class EmbeddedBus:
    """The log in one file. `open` before use, `close` at the end; sources are closed by whoever made them, or here."""

    def __init__(
        self,
        path: Path,
        partitions: int,
        busy_timeout_ms: int,
        retention_hours: float,
        *,
        now: Callable[[], datetime],
        bytes_max: int | None = None,
        session_s: float = SESSION_S,
    ) -> None:
        self.path = path
        self.partitions = partitions
        self._busy_timeout_ms = busy_timeout_ms
        self._retention = timedelta(hours=retention_hours)
        self._now = now
        self._bytes_max = bytes_max
        self._session_s = session_s
        self._log_id = ""
        self._sink: EmbeddedSink | None = None
        self._view: EmbeddedView | None = None
        self._sources: list[EmbeddedSource] = []
        self.published = threading.Condition()

    def open(self) -> EmbeddedBus:
        """Make or open the file. Raises StageUnavailable with one sentence when it is damaged or locked."""
        with files.as_unavailable(self.path, "be opened"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            writer = self._connect()
            self._log_id, self.partitions = files.prepare(writer, TOPICS, self.partitions)
            self._sink = EmbeddedSink(self, writer, self._log_id)
            self._view = EmbeddedView(self.path, self._connect(), self._log_id)
        return self

    def close(self) -> None:
        """Leave all groups and close the file. Closing twice is harmless."""
        for source in self._sources:
            source.close()
        for part in (self._sink, self._view):
            if part is not None:
                part.close()
        self._sources, self._sink, self._view = [], None, None

    def sink(self) -> EmbeddedSink:
        """Where this process publishes; one per process, shared by its threads."""
        assert self._sink is not None, "the bus is not open"
        return self._sink

    def view(self) -> EmbeddedView:
        """A look at ends and committed offsets; one per process, shared by its threads."""
        assert self._view is not None, "the bus is not open"
        return self._view

    def source(self, group: str, topics: Sequence[str], now: Callable[[], datetime] | None = None) -> EmbeddedSource:
        """A new member of a group, with a connection of its own; it joins at its first poll."""
        with files.as_unavailable(self.path, f"open a source for {group}"):
            connection = self._connect()
            with files.transaction(connection):
                for topic in topics:
                    files.add_topic(connection, topic, self.partitions)
        source = EmbeddedSource(
            self.path, connection, self._log_id, group, tuple(topics), now=now or self._now, published=self.published,
            session_s=self._session_s,
        )  # fmt: skip
        self._sources.append(source)
        return source

    def trim(self, now: datetime) -> Mapping[Partition, int]:
        """Delete what is older than the retention and committed by every known group of its topic.

        Returns how many old messages are held back, by partition, because some group has not committed them: that is a
        red health state, never a deletion.
        """
        with files.as_unavailable(self.path, "be trimmed"):
            connection = self._connect()
            try:
                return self._trim(connection, to_us(now - self._retention))
            finally:
                connection.close()

    def forget(self, *groups: str) -> None:
        """Forget groups that will not come back, so that they no longer hold messages back."""
        with files.as_unavailable(self.path, f"forget {', '.join(groups)}"):
            connection = self._connect()
            try:
                with files.transaction(connection):
                    for table in ("groups", "subscriptions", "members", "owners", "committed"):
                        connection.executemany(f"DELETE FROM {table} WHERE name = ?", [(each,) for each in groups])
            finally:
                connection.close()

    def _trim(self, connection: sqlite3.Connection, before_us: int) -> dict[Partition, int]:
        held: dict[Partition, int] = {}
        for place, partition in files.places_of(connection, self._topics(connection)).items():
            old_end = _old_end(connection, place, before_us)
            deletable = min(old_end, _slowest(connection, place, partition.topic))
            while connection.execute(
                'DELETE FROM messages WHERE place = ? AND "offset" IN ('
                'SELECT "offset" FROM messages WHERE place = ? AND "offset" < ? ORDER BY "offset" LIMIT ?)',
                (place, place, deletable, TRIM_CHUNK),
            ).rowcount:
                pass  # chunk by chunk, so that a publisher never waits long for the lock
            count = connection.execute(
                'SELECT count(*) FROM messages WHERE place = ? AND "offset" < ?', (place, old_end)
            ).fetchone()[0]
            if count:
                held[partition] = count
        if held:
            log.warning("retention_held_back", messages=sum(held.values()), partitions=len(held))
        return held

    def _topics(self, connection: sqlite3.Connection) -> tuple[str, ...]:
        return tuple(topic for (topic,) in connection.execute("SELECT DISTINCT topic FROM places"))

    def _connect(self) -> sqlite3.Connection:
        return files.connect(self.path, self._busy_timeout_ms, self._bytes_max)

    def accepted_us(self) -> int:
        """The moment of acceptance of what is being published."""
        return to_us(self._now())


def _old_end(connection: sqlite3.Connection, place: int, before_us: int) -> int:
    """The first offset accepted at or after `before_us`: a binary search, as offsets rise with acceptance."""
    low, high = connection.execute(
        'SELECT coalesce(min("offset"), 0), coalesce(max("offset"), -1) + 1 FROM messages WHERE place = ?', (place,)
    ).fetchone()
    while low < high:
        middle = (low + high) // 2
        found = connection.execute(
            'SELECT accepted_us FROM messages WHERE place = ? AND "offset" >= ? ORDER BY "offset" LIMIT 1',
            (place, middle),
        ).fetchone()
        if found[0] < before_us:
            low = middle + 1
        else:
            high = middle
    return int(low)


def _slowest(connection: sqlite3.Connection, place: int, topic: str) -> int:
    """The least committed offset among the groups that read this topic; without any group, nothing may go."""
    row = connection.execute(
        "SELECT min(coalesce(c.next_offset, 0)) FROM subscriptions s"
        " LEFT JOIN committed c ON c.name = s.name AND c.place = ? WHERE s.topic = ?",
        (place, topic),
    ).fetchone()
    return int(row[0] or 0)


@dataclass(slots=True)
class _Ticket:
    """One caller's messages waiting for a transaction, and what became of them."""

    messages: Sequence[Outgoing]
    coordinates: tuple[Coordinate, ...] = ()
    error: Exception | None = None
    done: bool = field(default=False)


class EmbeddedSink:
    """Publishes with group commit: whoever gets the lock writes for all that are waiting."""

    def __init__(self, bus: EmbeddedBus, connection: sqlite3.Connection, log_id: str) -> None:
        self._bus = bus
        self._connection = connection
        self._log_id = log_id
        self._waiting: list[_Ticket] = []
        self._waiting_lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._places: dict[Partition, int] = {}
        self._number = lru_cache(maxsize=100_000)(lambda key: partition_of(key, bus.partitions))

    def publish(self, messages: Sequence[Outgoing]) -> tuple[Coordinate, ...]:
        """EventSink."""
        if not messages:
            return ()
        ticket = _Ticket(messages)
        with self._waiting_lock:
            self._waiting.append(ticket)
        try:
            with self._write_lock:
                while not ticket.done:
                    self._write(self._take())
        except BaseException:
            self._withdraw(ticket)
            raise
        if ticket.error is not None:
            raise ticket.error
        return ticket.coordinates

    def flush(self) -> None:
        """EventSink: what `publish` returned is durable, so only callers in flight are waited for."""
        with self._write_lock:
            pass

    def close(self) -> None:
        """Close the connection once the running transaction is over."""
        with self._write_lock:
            self._connection.close()

    def _take(self) -> list[_Ticket]:
        """The callers that share the next transaction, oldest first: at least one, bounded by their messages."""
        with self._waiting_lock:
            taken, size = 0, 0
            for ticket in self._waiting:
                size += len(ticket.messages)
                if taken and size > MESSAGES_PER_TRANSACTION:
                    break
                taken += 1
            tickets, self._waiting = self._waiting[:taken], self._waiting[taken:]
        return tickets

    def _withdraw(self, ticket: _Ticket) -> None:
        """Its caller hears an error: nobody may publish it any more."""
        with self._waiting_lock:
            self._waiting = [each for each in self._waiting if each is not ticket]

    def _write(self, tickets: list[_Ticket]) -> None:
        """One transaction for all. Whatever ends it early, every caller of the batch hears of it: nothing was taken."""
        try:
            with files.as_unavailable(self._bus.path, f"take {sum(len(t.messages) for t in tickets)} messages"):
                self._append(tickets)
        except Exception as error:
            self._fail(tickets, error)
        except BaseException as error:  # an interruption of this thread; the others only learn that it failed
            self._fail(tickets, StageUnavailable(f"the log {self._bus.path} was interrupted: {type(error).__name__}"))
            raise
        finally:
            for ticket in tickets:
                ticket.done = True
        with self._bus.published:
            self._bus.published.notify_all()

    def _fail(self, tickets: list[_Ticket], error: Exception) -> None:
        for ticket in tickets:
            ticket.error, ticket.coordinates = error, ()

    def _append(self, tickets: list[_Ticket]) -> None:
        number = self._number
        placed = [[Partition(m.topic, number(m.key)) for m in t.messages] for t in tickets]  # before the lock is taken
        with files.transaction(self._connection):
            accepted_us = self._bus.accepted_us()
            ends: dict[Partition, int] = {}
            rows: list[tuple[int, int, str, bytes, int]] = []
            for ticket, partitions in zip(tickets, placed, strict=True):
                ticket.coordinates = tuple(self._coordinates(partitions, ends))
                rows += [
                    (self._places[p], c.offset, m.key, m.value, accepted_us)
                    for p, c, m in zip(partitions, ticket.coordinates, ticket.messages, strict=True)
                ]
            self._connection.executemany("INSERT INTO messages VALUES (?, ?, ?, ?, ?)", rows)
            self._connection.executemany(
                "UPDATE places SET next_offset = ? WHERE place = ?", [(o, self._places[p]) for p, o in ends.items()]
            )

    def _coordinates(self, partitions: Sequence[Partition], ends: dict[Partition, int]) -> Iterator[Coordinate]:
        for partition in partitions:
            offset = ends.get(partition)
            if offset is None:
                offset = self._end(partition)
            ends[partition] = offset + 1
            yield Coordinate(self._log_id, partition.topic, partition.number, offset)

    def _end(self, partition: Partition) -> int:
        query = "SELECT place, next_offset FROM places WHERE topic = ? AND number = ?"
        found = self._connection.execute(query, (partition.topic, partition.number)).fetchone()
        if found is None:
            files.add_topic(self._connection, partition.topic, self._bus.partitions)
            found = self._connection.execute(query, (partition.topic, partition.number)).fetchone()
        self._places[partition] = found[0]
        return int(found[1])


class EmbeddedView:
    """Ends and committed offsets, read from outside the groups."""

    def __init__(self, path: Path, connection: sqlite3.Connection, log_id: str) -> None:
        self._path = path
        self._connection = connection
        self._log_id = log_id
        self._lock = threading.Lock()

    def ends(self, topic: str) -> Mapping[Partition, int]:
        """LogView."""
        return self._read("SELECT number, next_offset FROM places WHERE topic = ? ORDER BY number", (topic,), topic)

    def begins(self, topic: str) -> Mapping[Partition, int]:
        """LogView."""
        return self._read(
            'SELECT number, coalesce((SELECT min(m."offset") FROM messages m WHERE m.place = p.place), next_offset)'
            " FROM places p WHERE topic = ? ORDER BY number",
            (topic,),
            topic,
        )

    def committed(self, group: str, topic: str) -> Mapping[Partition, int]:
        """LogView."""
        return self._read(
            "SELECT p.number, coalesce(c.next_offset, 0) FROM places p"
            " LEFT JOIN committed c ON c.place = p.place AND c.name = ? WHERE p.topic = ? ORDER BY p.number",
            (group, topic),
            topic,
        )

    def topics(self, group: str) -> tuple[str, ...]:
        """LogView."""
        with self._lock, files.as_unavailable(self._path, "be read"):
            rows = self._connection.execute("SELECT topic FROM subscriptions WHERE name = ? ORDER BY topic", (group,))
            return tuple(topic for (topic,) in rows)

    def log_id(self, topic: str) -> str:  # noqa: ARG002
        """LogView: one file, one identity."""
        return self._log_id

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()

    def _read(self, query: str, values: tuple[str, ...], topic: str) -> dict[Partition, int]:
        with self._lock, files.as_unavailable(self._path, "be read"):
            return {Partition(topic, number): offset for number, offset in self._connection.execute(query, values)}
