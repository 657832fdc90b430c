"""The records and errors that every part of freshrank speaks in. No imports but the standard library, msgspec,
`services.explanations` and `services.seen`.

Times are aware UTC datetimes at the edge of a record and integer microseconds since 1970 (`..._us`) where
they are compared, sorted or stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Literal, NamedTuple

import msgspec

from services.explanations import Explanation as Explanation  # noqa: PLC0414 (handed on)
from services.explanations import LookedAt as LookedAt  # noqa: PLC0414 (handed on)
from services.explanations import Reason as Reason  # noqa: PLC0414 (handed on)
from services.seen import NOTHING_SEEN
from services.seen import Seen as Seen  # noqa: PLC0414 (handed on)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US
DAY_US = 24 * HOUR_US

TOPIC_EVENTS = "freshrank.events"
TOPIC_ITEMS = "freshrank.items"
TOPIC_SLATES = "freshrank.slates"
TOPICS = (TOPIC_EVENTS, TOPIC_ITEMS, TOPIC_SLATES)

NO_PROPERTIES: Mapping[str, str] = MappingProxyType({})


def to_us(moment: datetime) -> int:
    """Microseconds since 1970 of an aware datetime, exact (no float in between)."""
    return (moment - EPOCH) // MICROSECOND


def from_us(us: int) -> datetime:
    """The aware UTC datetime of a number of microseconds since 1970."""
    return EPOCH + timedelta(microseconds=us)


def hash64(text: str) -> int:
    """A stable signed 64-bit hash of a text: the same in every process, on every machine and release."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


# ---------------------------------------------------------------------------------------------- errors


class FreshrankError(Exception):
    """The root of every error that freshrank raises on purpose."""


class StageUnavailable(FreshrankError):
    """A source, store or scorer did not answer in time: degrade, and name it in the slate."""


class ReleaseInvalid(FreshrankError):
    """Checksum, shape or vocabulary disagree: refuse to load, keep the old release."""


class SettingsInvalid(FreshrankError):
    """A missing or bad setting: refuse to start; says the key, the value and the fix."""


class BadRequest(FreshrankError):
    """The caller's mistake: answered with a 4xx problem document or a non-zero exit."""


class WireError(FreshrankError):
    """A message that cannot be read; `reason` is a short stable word that metrics count by."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


# ------------------------------------------------------------------------------------------- the stream


class Partition(msgspec.Struct, frozen=True, order=True, gc=False):
    """One partition of one topic."""

    topic: str
    number: int


class Coordinate(msgspec.Struct, frozen=True, order=True, gc=False):
    """Where a message stands. `log_id` is made when a log is created, so a recreated log never looks old."""

    log_id: str
    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.log_id}/{self.topic}/{self.partition}@{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Coordinate:
        """The coordinate that `str` wrote. Raises ValueError where it is none."""
        log_id, topic, place = text.rsplit("/", 2)
        partition, offset = place.split("@")
        return cls(log_id, topic, int(partition), int(offset))


class Message(msgspec.Struct, frozen=True, gc=False):
    """One stored message as the bus hands it out; `accepted_at` is the moment the bus made it durable. A foreign
    producer may leave out key and value: neither is of use here."""

    coordinate: Coordinate
    key: str | None
    value: bytes | None
    accepted_at: datetime


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message to publish; equal keys of a topic go to one partition (murmur2) and keep their order."""

    topic: str
    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """What one poll returned: messages in partition order, and how the ownership changed since the last poll."""

    messages: tuple[Message, ...]
    generation: int = 0
    gained: tuple[Partition, ...] = ()
    lost: tuple[Partition, ...] = ()

    def next_offsets(self) -> dict[Partition, int]:
        """The offset after the last message, by partition: what a commit of this batch stores."""
        offsets: dict[Partition, int] = {}
        for message in self.messages:
            c = message.coordinate
            offsets[Partition(c.topic, c.partition)] = c.offset + 1
        return offsets


# --------------------------------------------------------------------------------------- what it carries


class Event(msgspec.Struct, frozen=True, gc=False):
    """One thing a user did, unique by `event_id`; `request_id` ties it to the slate that caused it."""

    event_id: str
    user_id: str
    item_id: str
    kind: str
    occurred_at: datetime
    accepted_at: datetime
    value: float | None = None
    request_id: str | None = None
    session_id: str | None = None
    properties: Mapping[str, str] = msgspec.field(default_factory=lambda: NO_PROPERTIES)


Operation = Literal["put", "patch", "delete"]


@dataclass(frozen=True, slots=True)
class ItemChange:
    """One change of the catalogue. `fields` holds only what the caller named; a put replaces, a patch merges."""

    item_id: str
    operation: Operation
    fields: Mapping[str, object]
    updated_at: datetime
    accepted_at: datetime


@dataclass(frozen=True, slots=True)
class ItemCard:
    """What is known of an item by its catalogue entry; `deleted` is a tombstone."""

    item_id: str
    title: str = ""
    text: str = ""
    categories: tuple[str, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=lambda: NO_PROPERTIES)
    available: bool = True
    published_at: datetime | None = None
    expires_at: datetime | None = None
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class KindRule:
    """What a kind of event means. A `threshold` splits a valued kind: at or above it positive, below negative."""

    sign: Literal["positive", "negative", "neutral"]
    weight: float = 1.0
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class KindRules:
    """The declared kinds. An undeclared kind is neutral."""

    by_kind: Mapping[str, KindRule]

    def signed_weight(self, kind: str, value: float | None) -> float:
        """Above zero for a positive event, below for a negative one, 0.0 for a neutral or undeclared one."""
        rule = self.by_kind.get(kind)
        if rule is None or rule.sign == "neutral":
            return 0.0
        if rule.threshold is not None and value is not None:
            return rule.weight if value >= rule.threshold else -rule.weight
        return rule.weight if rule.sign == "positive" else -rule.weight


# ------------------------------------------------------------------------------------------- user state

HISTORY_MAX = 64
HIDDEN_MAX = 100
SEEN_MAX = 1000
HIDING_KINDS = frozenset({"hide", "dislike"})


class Interaction(NamedTuple):
    """One event of a user's row. `event_key` is `hash64(event_id)`; `weight` is the signed weight of its kind."""

    occurred_us: int
    event_key: int
    item_id: str
    kind: str
    value: float | None
    weight: float


@dataclass(frozen=True, slots=True)
class UserState:
    """A user's row: a function of the *set* of their events, so order, duplicates and replays cannot change it.

    `events`: the newest HISTORY_MAX by `(occurred_us, event_key)`, newest first.
    `hidden`: `(occurred_us, item_id)` of the newest HIDDEN_MAX hidden items, newest first.
    `seen`: `(hour, hash64(item_id))` of the newest SEEN_MAX distinct positive items.
    A stranger is an empty state with `row_time_us == 0`, never None.
    """

    user_id: str
    events: tuple[Interaction, ...] = ()
    hidden: tuple[tuple[int, str], ...] = ()
    seen: Seen = NOTHING_SEEN
    first_seen_us: int = 0
    row_time_us: int = 0
    previous_row_time_us: int = 0

    @property
    def is_stranger(self) -> bool:
        return self.row_time_us == 0


# ------------------------------------------------------------------------------------ asking and answering


@dataclass(frozen=True, slots=True)
class Query:
    """One question. Time is a field: nothing below the edge reads a clock.

    `recent` (oldest first) replaces the stored history for an anonymous caller; `like` asks for items related to one
    item; `among` asks to rank exactly these items. `diversity` (0..1), `category_cap` (0: none) and `explore`: None
    leaves it to the instance.
    """

    request_id: str
    user_id: str | None
    limit: int
    asked_at: datetime
    recent: tuple[str, ...] = ()
    like: str | None = None
    among: tuple[str, ...] = ()
    exclude: frozenset[str] = frozenset()
    categories: frozenset[str] = frozenset()
    seen: Literal["drop", "keep"] = "drop"
    record: bool = True
    diversity: float | None = None
    category_cap: int | None = None
    explore: bool | None = None
    reasons: Literal["source", "erasure"] = "source"


# Structs, made five times as fast as frozen dataclasses: an answer makes hundreds of candidates.
class Candidate(msgspec.Struct, frozen=True, gc=False):
    """One proposal of a source. `rank` counts from 0 within the source; `started_from` is the item that led here."""

    item_id: str
    source: str
    score: float
    rank: int
    started_from: str | None = None


class Scored(msgspec.Struct, frozen=True, gc=False):
    """A candidate with the scorer's score. Scores are finite."""

    candidate: Candidate
    score: float


class Dropped(msgspec.Struct, frozen=True, gc=False):
    """A candidate that a filter took out, with the filter's name."""

    item_id: str
    by: str


@dataclass(frozen=True, slots=True)
class Pick:
    """One place of a slate; `rank` counts from 0; `propensity`: the chance with which this item was drawn for it;
    `explanation`: only where the query asked for erasure."""

    item_id: str
    rank: int
    score: float
    source: str
    reason: Reason
    propensity: float = 1.0
    explanation: Explanation | None = None


@dataclass(frozen=True, slots=True)
class Slate:
    """One answer, with all that is needed to learn from it and to explain it later. `items_as_of_us`: when the newest
    item counts it knew were written; 0: not kept. `features`: those of the picks, float32 little-endian; may be empty.
    """

    request_id: str
    user_id: str | None
    release_id: str | None
    user_row_time_us: int
    items_as_of: int
    items: tuple[Pick, ...]
    degraded: tuple[str, ...]
    dropped: tuple[Dropped, ...]
    asked_at: datetime
    items_as_of_us: int = 0
    features: bytes = b""


# ----------------------------------------------------------------------------------------------- releases


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a report: who (`model`), on which part (`part`), what (`name`), and over how many users."""

    model: str
    part: str
    name: str
    value: float
    users: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's decision: promoted or not, why in one sentence, both sides' numbers, and what was learned from.
    `rerank`: the reranker orders, else the retrieval score; `told`: what else the report says, a paragraph each."""

    release_id: str
    promoted: bool
    reason: str
    metrics: tuple[Metric, ...] = ()
    learned_from: str = ""
    rerank: bool = True
    told: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReleaseInfo:
    """A row of the registry: a published release and where its directory lies."""

    release_id: str
    path: str
    created_at: datetime
    data_until: datetime
    promoted: bool = False
    live: bool = False
    reason: str = ""
    metrics: tuple[Metric, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class PartHealth:
    """How one part of a running instance is: `state` green, yellow (works, but worse) or red (does not)."""

    state: Literal["green", "yellow", "red"]
    detail: str = ""
