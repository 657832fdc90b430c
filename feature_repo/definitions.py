"""What the feature store holds: two entities, two views, two services. One file on purpose (`docs/decisions`)."""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, ValueType
from feast.types import Array, Bytes, Float32, Int64, String

user = Entity(
    name="user",
    join_keys=["user_id"],
    value_type=ValueType.STRING,
    description="Whoever acts; the id is the caller's.",
)
item = Entity(
    name="item",
    join_keys=["item_id"],
    value_type=ValueType.STRING,
    description="Whatever is shown; the id is the caller's.",
)


def _pushed(name: str) -> PushSource:
    """Rows come from the consumers; `name` is the folder under the offline store's."""
    return PushSource(
        name=f"{name}_rows",
        batch_source=FileSource(
            name=f"{name}_history", path=name, timestamp_field="event_timestamp", created_timestamp_column="created"
        ),
    )


user_behaviour = FeatureView(
    name="user_behaviour",
    entities=[user],
    ttl=timedelta(0),  # a row never forgets: ages are features
    source=_pushed("user_behaviour"),
    description="The newest events of a user, newest first, after each event that changed them.",
    schema=[
        Field(name="user_id", dtype=String),
        Field(name="recent_items", dtype=Array(String)),
        Field(name="recent_us", dtype=Array(Int64), description="When, in µs since 1970"),
        Field(name="recent_keys", dtype=Array(Int64), description="Hash of the event id"),
        Field(name="recent_kinds", dtype=Array(String)),
        Field(name="recent_values", dtype=Array(Float32), description="The event's value; NaN where it has none"),
        Field(name="recent_weights", dtype=Array(Float32), description="Signed weight of the kind"),
        Field(name="hidden_items", dtype=Array(String), description="Newest hides; they outlive the recent events"),
        Field(name="hidden_us", dtype=Array(Int64)),
        Field(name="seen", dtype=Bytes, description="Packed (hour int32, item hash int64); empty in the history"),
        Field(name="first_seen_us", dtype=Int64),
        Field(name="row_time_us", dtype=Int64, description="The row's event_timestamp, for a join to return"),
        Field(name="previous_row_time_us", dtype=Int64, description="The stored row that this one replaces"),
        Field(name="user_history_length", dtype=Float32, description="As services.signals has it, at the row time"),
        Field(name="user_positive_24h", dtype=Float32, description="As services.signals has it, at the row time"),
        Field(name="user_positive_7d", dtype=Float32, description="As services.signals has it, at the row time"),
        Field(name="user_negative_share", dtype=Float32, description="As services.signals has it, at the row time"),
    ],
)

COUNTS = tuple(
    f"{counter}_{window}" for counter in ("impressions", "clicks", "conversions") for window in ("1h", "24h", "7d")
)

item_stats = FeatureView(
    name="item_stats",
    entities=[item],
    ttl=timedelta(0),
    source=_pushed("item_stats"),
    description="Decayed counts of an item by half-life, at the end of each hour in which it had events.",
    schema=[
        Field(name="item_id", dtype=String),
        *(Field(name=name, dtype=Float32) for name in COUNTS),
        Field(name="click_rate_24h", dtype=Float32, description="Smoothed"),
        Field(name="click_rate_7d", dtype=Float32, description="Smoothed"),
        Field(name="as_of_us", dtype=Int64, description="The row's event_timestamp, for a join to return"),
    ],
)

item_live = FeatureView(
    name="item_live",
    entities=[item],
    ttl=timedelta(0),
    online=False,  # servers get it by the change feed
    source=_pushed("item_live"),
    description="The counts of an item as they were written for the servers, by the moment they were written.",
    schema=[
        Field(name="item_id", dtype=String),
        *(Field(name=name, dtype=Float32) for name in COUNTS),
        Field(name="as_of_us", dtype=Int64, description="The moment that the counts are decayed to"),
        Field(name="written_us", dtype=Int64, description="The row's event_timestamp, for a join to return"),
    ],
)

retrieval_v1 = FeatureService(
    name="retrieval_v1",
    features=[user_behaviour[["recent_items", "recent_us", "recent_kinds", "recent_weights", "row_time_us"]]],
    description="What the user tower reads.",
)
ranking_v1 = FeatureService(
    name="ranking_v1",
    features=[
        user_behaviour[["recent_items", "recent_us", "recent_kinds", "recent_weights", "row_time_us"]],
        item_stats[[*COUNTS, "as_of_us"]],
    ],
    description="What the reranker's features are worked out from.",
)
