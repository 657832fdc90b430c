"""One member of a consumer group on the embedded log: reads, waits, commits."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from services.bus import files
from services.bus.groups import Membership
from services.domain import Batch, Coordinate, Message, Partition, from_us
from services.ports import EventSource

SLEEP_MIN_S = 0.002
SLEEP_MAX_S = 0.01
"""How long a poll sleeps between two looks for messages of another process: the longest delay it adds."""


class EmbeddedSource(EventSource):
    """A group member. One thread owns it. Made by `EmbeddedBus.source`."""

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        log_id: str,
        group: str,
        topics: tuple[str, ...],
        *,
        now: Callable[[], datetime],
        published: threading.Condition,
        session_s: float,
    ) -> None:
        self._path = path
        self._connection = connection
        self._log_id = log_id
        self._group = group
        self._published = published
        self._membership = Membership(connection, group, topics, now, session_s)
        self._positions: dict[int, int] = {}
        self._turn = 0
        self._closed = False

    def poll(self, records_max: int, wait_s: float) -> Batch:
        """EventSource."""
        until = time.monotonic() + wait_s
        sleep_s = SLEEP_MIN_S
        seen_version = -1
        with files.as_unavailable(self._path, f"be polled by {self._group}"):
            while True:
                change = self._membership.settle()
                if change is not None:
                    return self._changed(*change)
                version = self._connection.execute("PRAGMA data_version").fetchone()[0]
                if version != seen_version:
                    seen_version = version
                    messages = self._take(records_max)
                    if messages:
                        return Batch(tuple(messages), self._membership.generation)
                left = until - time.monotonic()
                if left <= 0:
                    return Batch((), self._membership.generation)
                with self._published:
                    self._published.wait(min(sleep_s, left))
                sleep_s = min(sleep_s * 1.5, SLEEP_MAX_S)

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """EventSource."""
        if offsets:
            with files.as_unavailable(self._path, f"take a commit of {self._group}"):
                self._membership.commit(offsets)

    def seek(self, offsets: Mapping[Partition, int]) -> None:
        """EventSource."""
        for place in self._positions:
            offset = offsets.get(self._membership.places[place])
            if offset is not None:
                self._positions[place] = offset

    def lag(self) -> Mapping[Partition, int]:
        """EventSource: messages still kept and not committed by this group, for each owned partition."""
        query = (
            "SELECT p.place, p.next_offset, coalesce(c.next_offset, 0), p.next_offset - coalesce("
            '(SELECT min("offset") FROM messages m WHERE m.place = p.place), p.next_offset)'
            " FROM places p LEFT JOIN committed c ON c.place = p.place AND c.name = ?"
        )
        with files.as_unavailable(self._path, "be read"):
            rows = self._connection.execute(query, (self._group,)).fetchall()
        places = self._membership.places
        return {places[p]: min(end - done, kept) for p, end, done, kept in rows if p in self._positions}

    def close(self) -> None:
        """Leave the group; the others take the partitions over. Closing twice is harmless."""
        if self._closed:
            return
        self._closed = True
        try:
            with files.as_unavailable(self._path, f"let {self._group} leave"):
                self._membership.leave()
        finally:
            self._connection.close()

    def _changed(self, gained: Mapping[int, int], lost: tuple[int, ...]) -> Batch:
        for place in lost:
            del self._positions[place]
        self._positions.update(gained)
        places = self._membership.places
        return Batch(
            (),
            self._membership.generation,
            gained=tuple(sorted(places[place] for place in gained)),
            lost=tuple(sorted(places[place] for place in lost)),
        )

    def _take(self, records_max: int) -> list[Message]:
        """The next messages: an equal share of each partition that has some, then what is left in turn.

        Equal shares keep partitions level in time, and a busy one never starves the others.
        """
        ready = self._ready()
        messages: list[Message] = []
        for rest, place in zip(range(len(ready), 0, -1), ready, strict=True):
            share = -(-(records_max - len(messages)) // rest)
            if share > 0:
                messages += self._read(place, share)
        return messages

    def _ready(self) -> list[int]:
        """Owned places with unread messages, the fullest last (it takes what the others left), ties in turn."""
        ends = self._connection.execute("SELECT place, next_offset FROM places").fetchall()
        backlog = {place: end - self._positions[place] for place, end in ends if place in self._positions}
        self._turn += 1
        size = len(backlog) or 1
        waiting = [(count, (place + self._turn) % size, place) for place, count in backlog.items() if count > 0]
        return [place for _, _, place in sorted(waiting)]

    def _read(self, place: int, limit: int) -> list[Message]:
        rows = self._connection.execute(
            'SELECT "offset", key, value, accepted_us FROM messages WHERE place = ? AND "offset" >= ?'
            ' ORDER BY "offset" LIMIT ?',
            (place, self._positions[place], limit),
        ).fetchall()
        if not rows:
            return []
        self._positions[place] = rows[-1][0] + 1
        partition = self._membership.places[place]
        log_id, topic, number = self._log_id, partition.topic, partition.number
        moments = {us: from_us(us) for us in {row[3] for row in rows}}
        return [
            Message(Coordinate(log_id, topic, number, offset), key, value, moments[us])
            for offset, key, value, us in rows
        ]
