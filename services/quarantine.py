"""What a quarantine holds, and how much of it: entries, which of them are wanted, what is kept of a large message."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from services.domain import TOPICS, BadRequest, Coordinate

ENTRY_BYTES_MAX = 1_000_000
QUARANTINE_BYTES_MAX = 256_000_000
ENTRY_BYTES = 300
"""What an entry takes beside its texts and bytes, about."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A message that could not be read: a bad message is data. `size`: its bytes as it came, where `value` was cut."""

    coordinate: Coordinate
    reason: str
    detail: str
    value: bytes
    accepted_at: datetime
    key: str | None = None
    size: int = -1

    @property
    def is_whole(self) -> bool:
        return self.size <= len(self.value)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the quarantine. `replayed_at`: a replay was begun then; `replayed_as`: where its message stands
    (None while that is not known: it runs, or its process died on the way)."""

    number: int
    rejected: Rejected
    replayed_at: datetime | None = None
    replayed_as: Coordinate | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which entries of the quarantine: all where nothing is named; `since <= accepted_at < until`."""

    reason: str | None = None
    topic: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    replayed: bool | None = None


ALL = Wanted()


def topic_named(given: str) -> str:
    """A topic by its name, or by the short one that people write (`events`). Raises BadRequest for any other."""
    topic = given if given.startswith("freshrank.") else f"freshrank.{given}"
    if topic not in TOPICS:
        raise BadRequest(f"there is no topic {topic}; the topics are {', '.join(TOPICS)}")
    return topic


def kept_part(rejected: Rejected, bytes_max: int) -> Rejected:
    """A rejected message as a quarantine keeps it: its first bytes, and how many it had."""
    size = max(rejected.size, len(rejected.value))
    return replace(rejected, value=rejected.value[:bytes_max], size=size)


def entry_bytes(rejected: Rejected) -> int:
    """What an entry counts against the bound of a quarantine: an empty message is an entry, too."""
    return ENTRY_BYTES + len(rejected.value) + len(rejected.detail.encode()) + len(rejected.key or "")


def is_wanted(entry: Entry, wanted: Wanted) -> bool:
    each = entry.rejected
    return (
        wanted.reason in (None, each.reason)
        and wanted.topic in (None, each.coordinate.topic)
        and (wanted.since is None or each.accepted_at >= wanted.since)
        and (wanted.until is None or each.accepted_at < wanted.until)
        and wanted.replayed in (None, entry.replayed_at is not None)
    )
