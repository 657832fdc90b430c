"""The shapes of bodies and answers: bodies are checked by them, answers only documented (they are written directly)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from services.signals import CATEGORIES_MAX

LIMIT_DEFAULT = 20
LIMIT_MAX = 500
LIMIT_ALIASES = ("n", "numResults", "count", "size")
AMONG_MAX = 1000
RECENT_MAX = 1000

DIVERSITY = "0: by score alone, 1: by unlikeness alone, 0.3: spread out a little; the instance's when left out."
CATEGORY_CAP = (
    "At most so many items of any category (of those not asked for) in one answer; 0: no cap; the instance's when left "
    "out."
)
CATEGORIES = f"Items with any of these; the first {CATEGORIES_MAX} categories of an item count."
CURSOR = "`next` of the answer before; send everything else of the question again."
RELATED_TO_USER = "Makes the order personal, and leaves out what this user has seen unless `seen` is `keep`."
EXPLAIN = (
    "Also say which gathered candidates were then dropped, and by which filter; what a source leaves out itself "
    "(seen, excluded, other categories) is not among them. Reasons are by erasure."
)
EXPLORE = "Whether places may explore (`explore_every`); when left out, those of a list that is recorded."

_LIMIT = AliasChoices("limit", *LIMIT_ALIASES)
_USER = AliasChoices("user_id", "userId", "UserId", "user", "visitorId", "uid")


class Asking(BaseModel):
    """What every question may say."""

    model_config = ConfigDict(extra="forbid")

    exclude: list[str] = Field([], max_length=5000, description="Items that must not be in the answer.")
    categories: list[str] = Field(
        [], max_length=100, validation_alias=AliasChoices("categories", "category"), description=CATEGORIES
    )
    record: bool = Field(True, description="false for a probe: the answer is not recorded as shown.")
    diversity: float | None = Field(None, ge=0, le=1, description=DIVERSITY)
    category_cap: int | None = Field(None, ge=0, le=LIMIT_MAX, description=CATEGORY_CAP)
    reasons: Literal["source", "erasure"] = Field(
        "source", description="`erasure`: name an item of the history only if the score falls without it."
    )
    explain: bool = Field(False, description=EXPLAIN)


class RecommendationsBody(Asking):
    """A question for a user, or for an anonymous visitor by a bare list of recent items."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"recent": ["tt0468569", "tt1375666"], "limit": 5}, {"user_id": "42"}]},
    )

    user_id: str | None = Field(None, validation_alias=_USER, description="Whose list; leave out for a visitor.")
    recent: list[str] = Field(
        [], max_length=RECENT_MAX, description="Items taken lately, oldest first; they stand in for a history."
    )
    limit: int = Field(LIMIT_DEFAULT, ge=1, le=LIMIT_MAX, validation_alias=_LIMIT)
    seen: Literal["drop", "keep"] = Field("drop", description="Whether what was taken before is dropped.")
    cursor: str | None = Field(None, description=CURSOR)
    explore: bool | None = Field(None, description=EXPLORE)


class RankBody(Asking):
    """The caller's own list, to be put in order for a user or a visitor."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"user_id": "42", "item_ids": ["tt0468569", "tt1375666", "tt0111161"]}]},
    )

    item_ids: list[str] = Field(
        min_length=1,
        max_length=AMONG_MAX,
        validation_alias=AliasChoices("item_ids", "items", "inputList"),
        description="All of them come back, also hidden and unavailable ones: the list is yours.",
    )
    user_id: str | None = Field(None, validation_alias=_USER)
    recent: list[str] = Field([], max_length=RECENT_MAX, description="As in /v1/recommendations.")
    limit: int | None = Field(None, ge=1, le=AMONG_MAX, validation_alias=_LIMIT, description="All when left out.")
    seen: Literal["drop", "keep"] = Field("keep", description="`drop` also takes out what was taken before.")


class ReasonAnswer(BaseModel):
    """Why an item is shown; `item_ids` names what a co-visit or similar-to source started from or, by erasure, the item
    of the history without which the score falls most."""

    kind: Literal["because_you_clicked", "trending_in", "new_in", "similar_to", "explored", "for_you"]
    item_ids: list[str]
    text: str


class LookedAtAnswer(BaseModel):
    """An item of the history that the model looked at. Its `share` of the attention is no reason; `drop` is what the
    score falls by when the user never touched it."""

    item_id: str
    title: str
    share: float
    drop: float


class ExplanationAnswer(BaseModel):
    """What the score of a pick hangs on, by erasure from the user's row."""

    drop: float | None = Field(description="Of the item that the reason names; null where it names none.")
    looked_at: list[LookedAtAnswer] = Field(description="What the model looked at, most first: not a reason.")
    at_nothing: float = Field(description="The share of attention that went to nothing in the history.")


class PickAnswer(BaseModel):
    """One place of a list; `rank` counts from 0. A pick of the source `explored` was drawn to learn about it."""

    item_id: str
    title: str
    rank: int
    score: float
    source: str
    reason: ReasonAnswer
    propensity: float = Field(
        1.0, gt=0, le=1, description="The chance with which this item was drawn for this place, given those before."
    )
    explanation: ExplanationAnswer | None = Field(None, description="Only with reasons by erasure.")


class DroppedAnswer(BaseModel):
    """A candidate that a filter took out."""

    item_id: str
    by: str


class SlateAnswer(BaseModel):
    """A list. Send `request_id` back on the events it causes."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "request_id": "0b0c6f0e5f3c4d0c9d8f2f6f6a1d2c3e",
                    "user_id": "42",
                    "release_id": "20260101T000000-1",
                    "features_as_of": "2026-01-01T12:00:00Z",
                    "items_as_of": 4711,
                    "degraded": [],
                    "next": "eJwLCQkAAQ8A",
                    "items": [
                        {
                            "item_id": "tt1375666",
                            "title": "Inception (2010)",
                            "rank": 0,
                            "score": 2.31,
                            "source": "covisits",
                            "reason": {
                                "kind": "because_you_clicked",
                                "item_ids": ["tt0468569"],
                                "text": "Because you picked The Dark Knight (2008)",
                            },
                            "propensity": 1.0,
                        }
                    ],
                }
            ]
        }
    )

    request_id: str
    user_id: str | None
    release_id: str | None = Field(description="null before the first release.")
    features_as_of: str | None = Field(description="Time of the user's row; null for a stranger and a visitor.")
    items_as_of: int
    degraded: list[str] = Field(description="What did not answer in time; the list is worse for it.")
    next: str | None = Field(
        description="Send it as `cursor` for more of this list; null at its end, which comes after 1,000 items at most."
    )
    items: list[PickAnswer]
    dropped: list[DroppedAnswer] | None = Field(None, description="Only with explain.")


class TrendingAnswer(BaseModel):
    """What most people take lately; `score` is the decayed number of clicks."""

    items: list[PickAnswer]
    items_as_of: int


class RefusedAnswer(BaseModel):
    """One record that was not accepted, by its place in the body."""

    index: int
    reason: str
    detail: str


class WaitedAnswer(BaseModel):
    """How long the wait took, and whether it was reached."""

    group: str
    reached: bool
    milliseconds: float


class EventsAnswer(BaseModel):
    """What became of a body of events: accepted ones are durable."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "accepted": 2,
                    "spooled": 0,
                    "rejected": [{"index": 2, "reason": "missing_item_id", "detail": "item_id is required"}],
                    "retry_not_recognised": 0,
                    "undeclared_kinds": [],
                    "unknown_fields": [],
                    "waited": {"group": "features", "reached": True, "milliseconds": 38.1},
                }
            ]
        }
    )

    accepted: int
    spooled: int = Field(0, description="How many of the accepted ones wait, durably, for a log that is away.")
    rejected: list[RefusedAnswer]
    retry_not_recognised: int = Field(
        0, description="Events with neither event_id nor time: sent again, they count twice."
    )
    undeclared_kinds: list[str] = Field([], description="Kinds that no setting declares: kept, but neutral.")
    unknown_fields: list[str] = Field([], description="Names of fields that say nothing here: they were not read.")
    waited: WaitedAnswer | None = None


class ItemsAnswer(BaseModel):
    """What became of a body of items: accepted ones are durable."""

    accepted: int
    rejected: list[RefusedAnswer]
    waited: WaitedAnswer | None = None


class EventBody(BaseModel):
    """An event. Other spellings are taken too: userId, itemId, event_type, timestamp, ..."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"user_id": "42", "item_id": "tt1375666", "kind": "click", "occurred_at": "2026-01-01T12:00:00Z"}
            ]
        }
    )

    user_id: str
    item_id: str
    kind: str = Field("click", description="A declared kind (`freshrank settings`), else it is neutral.")
    occurred_at: str | float | None = Field(None, description="ISO 8601, or epoch in s or ms; now when left out.")
    value: float | None = None
    event_id: str | None = Field(
        None,
        description="What makes a retry the same event: unique among the events of all users. Derived from all fields "
        "when left out and a time is given; with neither, every event is another one.",
    )
    request_id: str | None = Field(None, description="Of the list that caused it.")
    session_id: str | None = None
    properties: dict[str, Any] = {}


class ItemFields(BaseModel):
    """What can be said of an item. Only what is named is changed by PATCH; PUT replaces all."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"title": "Inception (2010)", "categories": ["Sci-Fi", "Thriller"], "available": True}]
        }
    )

    title: str = ""
    text: str = ""
    categories: list[str] = Field(
        [], description=f"The first {CATEGORIES_MAX} count in lists, caps and interests; the others are only shown."
    )
    attributes: dict[str, Any] = {}
    available: bool = True
    published_at: str | float | None = None
    expires_at: str | float | None = None
    updated_at: str | float | None = Field(None, description="Refuses older writes; now when left out.")


class ItemBody(ItemFields):
    """An item with its id."""

    item_id: str


class ProblemAnswer(BaseModel):
    """RFC 9457; `type` is stable. Some say more: `errors` field by field, or all that a body's answer says."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["urn:freshrank:problem:bad-parameter"])
    title: str
    status: int
    detail: str
