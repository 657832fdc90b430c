"""What the store knows of one user: history, features, freshness."""

from __future__ import annotations

from datetime import datetime

from fastapi import APIRouter
from starlette.responses import Response

from services.api.answers import UserAnswer
from services.api.recommendations import checked_id, json_response
from services.api.runtime import Runtime
from services.domain import UserState, from_us, to_us
from services.items import ItemTable
from services.signals import USER_FEATURES, category_interest, user_features

INTERESTS_SHOWN = 10


def router(runtime: Runtime) -> APIRouter:
    """The routes of this family over one runtime."""
    routes = APIRouter(tags=["users"])

    @routes.get("/v1/users/{user_id:path}", response_model=UserAnswer)
    def get_user(user_id: str) -> Response:
        """History, features and freshness of one user; `known` is false for a stranger."""
        user = runtime.features.read(checked_id("user_id", user_id))
        return json_response(user_answer(user, runtime.items, runtime.now()))

    return routes


def user_answer(user: UserState, items: ItemTable, now: datetime) -> dict[str, object]:
    """A user's row as people read it; every feature is computed from the row at `now`, as serving does."""
    history = items.history(user)
    features = user_features(history, to_us(now)).tolist()
    newest_us = user.events[0].occurred_us if user.events else None
    return {
        "user_id": user.user_id,
        "known": not user.is_stranger,
        "features_as_of": from_us(user.row_time_us) if user.row_time_us else None,
        "first_seen": from_us(user.first_seen_us) if user.first_seen_us else None,
        "seconds_since_newest_event": None if newest_us is None else round((to_us(now) - newest_us) / 1e6, 3),
        "history": [
            {
                "item_id": e.item_id, "title": items.title(e.item_id), "kind": e.kind, "value": e.value,
                "weight": e.weight, "occurred_at": from_us(e.occurred_us),
            }
            for e in user.events
        ],
        "hidden": [{"item_id": i, "title": items.title(i), "hidden_at": from_us(us)} for us, i in user.hidden],
        "distinct_items_seen": len(user.seen),
        "features": {name: round(value, 4) for name, value in zip(USER_FEATURES, features, strict=True)},
        "interests": _interests(user, items, now),
    }  # fmt: skip


def _interests(user: UserState, items: ItemTable, now: datetime) -> list[dict[str, object]]:
    """The categories liked most, by the same decayed shares that the ranking reads."""
    if not user.events:
        return []
    history = items.history(user)
    liked, _ = category_interest(history, history.categories, to_us(now))
    share_of: dict[str, float] = {}
    for event, numbers in zip(user.events, history.categories.tolist(), strict=True):
        names = items.category_names(event.item_id)
        share_of.update(zip(names, (float(liked[n]) for n in numbers if n), strict=True))
    best = sorted(share_of.items(), key=lambda each: (-each[1], each[0]))[:INTERESTS_SHOWN]
    return [{"category": name, "share": round(share, 4)} for name, share in best if share > 0]
