"""Who owns which partition: membership of a consumer group in the embedded log.

A partition moves in two polls of its old owner: the first reports it lost (the owner flushes), the second releases it;
only then may another member take it. A member whose process is gone, or that has not been heard of for `session_s`, is
put out by the others; its late commits are left alone because it owns nothing any more.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Mapping
from datetime import datetime

import psutil

from services.bus.files import places_of, transaction
from services.domain import SECOND_US, Partition, to_us

HEARTBEAT_S = 2.0
SESSION_S = 30.0
"""Silence after which a living process counts as stuck, by default; longer than any batch should take."""

Change = tuple[Mapping[int, int], tuple[int, ...]]
"""Places gained with the offset to start from, and places lost."""


class Membership:
    """One member's part in its group. Used by one thread, on that member's connection."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        group: str,
        topics: tuple[str, ...],
        now: Callable[[], datetime],
        session_s: float = SESSION_S,
    ) -> None:
        self._connection = connection
        self._group = group
        self._topics = topics
        self._now = now
        self._session_us = session_s * SECOND_US
        self._member = 0
        self._held: set[int] = set()
        self._leaving: set[int] = set()
        self._heard_us = 0
        self.generation = 0
        self.places: dict[int, Partition] = {}

    def settle(self) -> Change | None:
        """Bring ownership up to date; what changed for this member, or None. Cheap when nothing happened."""
        now_us = to_us(self._now())
        row = self._connection.execute("SELECT generation FROM groups WHERE name = ?", (self._group,)).fetchone()
        generation = row[0] if row else -1
        due = now_us - self._heard_us >= HEARTBEAT_S * SECOND_US
        if self._member and generation == self.generation and not due and not self._leaving:
            return None
        with transaction(self._connection):
            gained, lost = self._settle(now_us)
            self.generation = self._read_generation()
        self._held = (self._held - set(lost)) | set(gained)
        self._leaving = set(lost)
        self._heard_us = now_us
        return (gained, lost) if gained or lost else None

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Store next offsets of the places this member owns in the file; never backwards."""
        wanted = [(offsets[p], self._group, place) for place, p in self.places.items() if p in offsets]
        with transaction(self._connection):
            owned = self._owned()
            self._connection.executemany(
                "UPDATE committed SET next_offset = ?1 WHERE name = ?2 AND place = ?3 AND next_offset < ?1",
                [row for row in wanted if row[2] in owned],
            )

    def leave(self) -> None:
        """Give up everything; the others notice at their next poll."""
        if self._member:
            with transaction(self._connection):
                self._put_out(self._member)
            self._member = 0

    def _settle(self, now_us: int) -> tuple[dict[int, int], tuple[int, ...]]:
        self._put_out_the_dead(now_us)
        known = self._connection.execute(
            "UPDATE members SET heartbeat_us = ? WHERE member = ?", (now_us, self._member)
        ).rowcount
        if not known:
            self._join(now_us)
        owned = self._owned()
        self._release(owned & self._leaving)
        wanted = self._wanted()
        lost = self._held - (wanted & owned)  # taken away while it slept counts as lost, even if it comes back
        taken = {p for (p,) in self._connection.execute("SELECT place FROM owners WHERE name = ?", (self._group,))}
        gained = wanted - taken - lost
        self._connection.executemany(
            "INSERT INTO owners VALUES (?, ?, ?)", [(self._group, place, self._member) for place in gained]
        )
        return self._starts(gained), tuple(sorted(lost))

    def _join(self, now_us: int) -> None:
        pid = os.getpid()
        cursor = self._connection.execute(
            "INSERT INTO members (name, topics, pid, born, heartbeat_us) VALUES (?, ?, ?, ?, ?)",
            (self._group, "\n".join(self._topics), pid, psutil.Process(pid).create_time(), now_us),
        )
        self._member = cursor.lastrowid or 0
        self.places = places_of(self._connection, self._topics)
        subscribed = [(self._group, topic) for topic in self._topics]
        self._connection.executemany("INSERT OR IGNORE INTO subscriptions VALUES (?, ?)", subscribed)
        self._unsubscribe()
        begun = [(self._group, place) for place in self.places]
        self._connection.executemany("INSERT OR IGNORE INTO committed VALUES (?, ?, 0)", begun)
        self._next_generation()

    def _unsubscribe(self) -> None:
        """Drop topics that no member reads any more: they would hold the retention back for ever.

        A group without members keeps them all: it will come back.
        """
        rows = self._connection.execute("SELECT topics FROM members WHERE name = ?", (self._group,)).fetchall()
        if not rows:
            return
        read = {topic for (topics,) in rows for topic in topics.split("\n")}
        known = self._connection.execute("SELECT topic FROM subscriptions WHERE name = ?", (self._group,)).fetchall()
        self._connection.executemany(
            "DELETE FROM subscriptions WHERE name = ? AND topic = ?",
            [(self._group, topic) for (topic,) in known if topic not in read],
        )

    def _put_out_the_dead(self, now_us: int) -> None:
        rows = self._connection.execute(
            "SELECT member, pid, born, heartbeat_us FROM members WHERE name = ? AND member <> ?",
            (self._group, self._member),
        ).fetchall()
        for member, pid, born, heartbeat_us in rows:
            if now_us - heartbeat_us > self._session_us or not _is_running(pid, born):
                self._put_out(member)

    def _put_out(self, member: int) -> None:
        self._connection.execute("DELETE FROM owners WHERE name = ? AND member = ?", (self._group, member))
        self._connection.execute("DELETE FROM members WHERE member = ?", (member,))
        self._unsubscribe()
        self._next_generation()

    def _release(self, places: set[int]) -> None:
        if places:
            rows = [(self._group, place, self._member) for place in places]
            self._connection.executemany("DELETE FROM owners WHERE name = ? AND place = ? AND member = ?", rows)
            self._next_generation()

    def _wanted(self) -> set[int]:
        """This member's share: places in turn among the members that read their topic, oldest member first."""
        rows = self._connection.execute(
            "SELECT member, topics FROM members WHERE name = ? ORDER BY member", (self._group,)
        ).fetchall()
        members = [(member, topics.split("\n")) for member, topics in rows]
        wanted: set[int] = set()
        for place, partition in self.places.items():
            readers = [member for member, topics in members if partition.topic in topics]
            if readers[partition.number % len(readers)] == self._member:
                wanted.add(place)
        return wanted

    def _owned(self) -> set[int]:
        rows = self._connection.execute(
            "SELECT place FROM owners WHERE name = ? AND member = ?", (self._group, self._member)
        )
        return {place for (place,) in rows}

    def _starts(self, places: set[int]) -> dict[int, int]:
        rows = self._connection.execute("SELECT place, next_offset FROM committed WHERE name = ?", (self._group,))
        return {place: offset for place, offset in rows if place in places}

    def _next_generation(self) -> None:
        self._connection.execute(
            "INSERT INTO groups VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET generation = generation + 1",
            (self._group,),
        )

    def _read_generation(self) -> int:
        query = "SELECT generation FROM groups WHERE name = ?"
        return int(self._connection.execute(query, (self._group,)).fetchone()[0])


def _is_running(pid: int, born: float) -> bool:
    """Whether the process that joined still lives: a number may have been given to another one since."""
    try:
        return abs(psutil.Process(pid).create_time() - born) < 1.0
    except psutil.Error:
        return False
