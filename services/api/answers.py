"""The shapes of what the instance shows of itself: an item, a user, releases, runs, the quarantine, health.
Documentation only: these answers are written directly."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class CardAnswer(BaseModel):
    """What the catalogue was told of an item."""

    title: str
    text: str
    categories: list[str]
    attributes: dict[str, str]
    available: bool
    published_at: str | None
    expires_at: str | None
    deleted: bool


class TogetherAnswer(BaseModel):
    """An item that is taken together with this one."""

    item_id: str
    weight: float


class ItemAnswer(BaseModel):
    """What is known of one item; `counts` by counter and half-life, decayed to now."""

    item_id: str
    title: str
    categories: list[str]
    card: CardAnswer | None = Field(description="null for an item that only events have named.")
    degraded: list[str]
    servable: bool = Field(description="Whether lists may show it now, as far as this server has heard.")
    has_text_vector: bool
    counts: dict[str, dict[str, float]]
    counts_at: str | None
    taken_together: list[TogetherAnswer]


class InteractionAnswer(BaseModel):
    """One event of a user's row."""

    item_id: str
    title: str
    kind: str
    value: float | None
    weight: float
    occurred_at: str


class HiddenAnswer(BaseModel):
    """An item that a user does not want to see."""

    item_id: str
    title: str
    hidden_at: str


class InterestAnswer(BaseModel):
    """A category that a user likes, with its decayed share."""

    category: str
    share: float


class UserAnswer(BaseModel):
    """A user's row."""

    user_id: str
    known: bool
    features_as_of: str | None
    first_seen: str | None
    seconds_since_newest_event: float | None
    history: list[InteractionAnswer] = Field(description="The newest 64 events, newest first.")
    hidden: list[HiddenAnswer] = Field(description="The newest 100; older ones may be shown again.")
    distinct_items_seen: int
    features: dict[str, float]
    interests: list[InterestAnswer]


class MetricAnswer(BaseModel):
    """One number of a verdict."""

    model: str
    part: str
    name: str
    value: float
    users: int


class ReleaseAnswer(BaseModel):
    """One release; `reason` is the verdict in a sentence."""

    release_id: str
    live: bool
    promoted: bool
    created_at: str
    data_until: str
    reason: str
    metrics: list[MetricAnswer]


class ReleasesAnswer(BaseModel):
    """Every release, newest first; `serving` is the one this process serves."""

    serving: str | None
    releases: list[ReleaseAnswer]


class PromotedAnswer(BaseModel):
    """The release that is live now, and the one this process still serves."""

    live: str
    serving: str | None


class RunAnswer(BaseModel):
    """One training run; `ended_at` is null while it runs."""

    run_id: str
    state: str
    effort: str
    started_at: str
    ended_at: str | None
    seconds: float
    release_id: str | None
    message: str
    metrics: list[MetricAnswer]


class RunsAnswer(BaseModel):
    """Training runs, newest first."""

    runs: list[RunAnswer]


class RejectedEntryAnswer(BaseModel):
    """One message that could not be read, and where it stood."""

    number: int
    reason: str
    detail: str
    accepted_at: str
    log_id: str
    topic: str
    partition: int
    offset: int
    value: str = Field(description="As text; bytes that are none are shown as U+FFFD.")
    size: int
    replayed_at: str | None


class RejectedAnswer(BaseModel):
    """The quarantine: how many entries by reason, how many were forgotten for room, and some of them."""

    count: dict[str, int]
    forgotten: int
    rejected: list[RejectedEntryAnswer]


class LiveAnswer(BaseModel):
    """The process runs."""

    status: Literal["live"]


class PartAnswer(BaseModel):
    """One part of the instance."""

    state: Literal["green", "yellow", "red"]
    detail: str


class ReadyAnswer(BaseModel):
    """Whether no part is red, and each part's state."""

    ready: bool
    parts: dict[str, PartAnswer]
