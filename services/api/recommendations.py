"""Routes that answer with a list: for a user, for a visitor, like an item, of the caller's own items, trending."""

from __future__ import annotations

import threading
import uuid
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Depends
from fastapi import Query as Parameter
from starlette.responses import Response

from services.api.bodies import check_json
from services.api.cursor import cursor_of, shown_before
from services.api.problems import Problem
from services.api.runtime import Runtime
from services.api.schemas import (
    AMONG_MAX,
    CATEGORIES,
    CATEGORY_CAP,
    CURSOR,
    DIVERSITY,
    EXPLAIN,
    EXPLORE,
    LIMIT_DEFAULT,
    LIMIT_MAX,
    RELATED_TO_USER,
    RankBody,
    RecommendationsBody,
    SlateAnswer,
    TrendingAnswer,
)
from services.domain import Query, Slate, WireError, from_us, to_us
from services.fields import check_id
from services.items import ItemTable
from services.recommend import recommend
from services.telemetry import DEGRADED

TRENDING_DEPTH = 5000

Limit = Annotated[int | None, Parameter(ge=1, le=LIMIT_MAX, description=f"How many; {LIMIT_DEFAULT} when left out.")]
LimitAlias = Annotated[int | None, Parameter(ge=1, le=LIMIT_MAX, include_in_schema=False)]
Ids = Annotated[list[str], Parameter(description="May be repeated; commas separate too.")]
Categories = Annotated[list[str], Parameter(description=f"{CATEGORIES} May be repeated.")]
CategoriesAlias = Annotated[list[str], Parameter(include_in_schema=False)]
Record = Annotated[bool, Parameter(description="false for a probe: the answer is not recorded as shown.")]
Explain = Annotated[bool, Parameter(description=EXPLAIN)]
Reasons = Annotated[
    Literal["source", "erasure"],
    Parameter(description="`erasure`: name an item of the history only if the score falls without it."),
]
Cursor = Annotated[str | None, Parameter(description=CURSOR)]
Diversity = Annotated[float | None, Parameter(ge=0, le=1, description=DIVERSITY)]
CategoryCap = Annotated[int | None, Parameter(ge=0, le=LIMIT_MAX, description=CATEGORY_CAP)]
Explore = Annotated[bool | None, Parameter(description=EXPLORE)]


def router(runtime: Runtime) -> APIRouter:
    """The routes of this family over one runtime."""
    routes = APIRouter(tags=["lists"])
    _add_user_list(routes, runtime)
    _add_bodies(routes, runtime)
    _add_related(routes, runtime)
    _add_trending(routes, runtime)
    return routes


def _add_user_list(routes: APIRouter, runtime: Runtime) -> None:
    @routes.get("/v1/users/{user_id:path}/recommendations", response_model=SlateAnswer)
    def user_recommendations(  # noqa: PLR0913 (each one is a parameter of the route)
        user_id: str,
        limit: Limit = None,
        cursor: Cursor = None,
        category: Categories = [],  # noqa: B006
        exclude: Ids = [],  # noqa: B006
        seen: Literal["drop", "keep"] = "drop",
        diversity: Diversity = None,
        category_cap: CategoryCap = None,
        explore: Explore = None,
        record: Record = True,
        reasons: Reasons = "source",
        explain: Explain = False,
        n: LimitAlias = None,
        numResults: LimitAlias = None,  # noqa: N803
        count: LimitAlias = None,
        size: LimitAlias = None,
        categories: CategoriesAlias = [],  # noqa: B006
    ) -> Response:
        """The list of one user. A user never seen gets what is trending and new."""
        query = Query(
            request_id=uuid.uuid4().hex,
            user_id=checked_id("user_id", user_id),
            limit=limit or n or numResults or count or size or LIMIT_DEFAULT,
            asked_at=runtime.now(),
            exclude=_split(exclude) | shown_before(cursor),
            categories=frozenset([*category, *categories]),
            seen=seen,
            record=record,
            diversity=diversity,
            category_cap=category_cap,
            explore=explore,
            reasons="erasure" if explain else reasons,
        )
        return answer(query, runtime, cursor, explain=explain)


def _add_bodies(routes: APIRouter, runtime: Runtime) -> None:
    strict = [Depends(check_json)]

    @routes.post("/v1/recommendations", response_model=SlateAnswer, dependencies=strict)
    def recommendations(body: RecommendationsBody) -> Response:
        """The list of a user, or of a visitor who is known by recent items only."""
        query = Query(
            request_id=uuid.uuid4().hex,
            user_id=_user(body.user_id, body.recent),
            limit=body.limit,
            asked_at=runtime.now(),
            recent=tuple(checked_id("recent", each) for each in body.recent),
            exclude=_left_out(body.exclude) | shown_before(body.cursor),
            categories=frozenset(body.categories),
            seen=body.seen,
            record=body.record,
            diversity=body.diversity,
            category_cap=body.category_cap,
            explore=body.explore,
            reasons="erasure" if body.explain else body.reasons,
        )
        return answer(query, runtime, body.cursor, explain=body.explain)

    @routes.post("/v1/rank", response_model=SlateAnswer, dependencies=strict)
    def rank(body: RankBody) -> Response:
        """The caller's own list, best first for this user. Nothing of it is left out unless asked for."""
        query = Query(
            request_id=uuid.uuid4().hex,
            user_id=_user(body.user_id, body.recent),
            limit=body.limit or AMONG_MAX,
            asked_at=runtime.now(),
            recent=tuple(checked_id("recent", each) for each in body.recent),
            among=tuple(checked_id("item_ids", each) for each in body.item_ids),
            exclude=_left_out(body.exclude),
            categories=frozenset(body.categories),
            seen=body.seen,
            record=body.record,
            diversity=body.diversity,
            category_cap=body.category_cap,
            reasons="erasure" if body.explain else body.reasons,
        )
        return answer(query, runtime, explain=body.explain, is_continued=False)


def _add_related(routes: APIRouter, runtime: Runtime) -> None:
    @routes.get("/v1/items/{item_id:path}/related", response_model=SlateAnswer)
    def related(  # noqa: PLR0913 (each one is a parameter of the route)
        item_id: str,
        user_id: Annotated[str | None, Parameter(description=RELATED_TO_USER)] = None,
        limit: Limit = None,
        cursor: Cursor = None,
        category: Categories = [],  # noqa: B006
        exclude: Ids = [],  # noqa: B006
        seen: Literal["drop", "keep"] = "drop",
        diversity: Diversity = None,
        category_cap: CategoryCap = None,
        explore: Explore = None,
        record: Record = True,
        reasons: Reasons = "source",
        explain: Explain = False,
        n: LimitAlias = None,
        numResults: LimitAlias = None,  # noqa: N803
        count: LimitAlias = None,
        size: LimitAlias = None,
        categories: CategoriesAlias = [],  # noqa: B006
    ) -> Response:
        """Items like one item: near by vector, and taken together with it."""
        query = Query(
            request_id=uuid.uuid4().hex,
            user_id=None if user_id is None else checked_id("user_id", user_id),
            limit=limit or n or numResults or count or size or LIMIT_DEFAULT,
            asked_at=runtime.now(),
            like=checked_id("item_id", item_id),
            exclude=_split(exclude) | shown_before(cursor),
            categories=frozenset([*category, *categories]),
            seen=seen,
            record=record,
            diversity=diversity,
            category_cap=category_cap,
            explore=explore,
            reasons="erasure" if explain else reasons,
        )
        return answer(query, runtime, cursor, explain=explain)


def _add_trending(routes: APIRouter, runtime: Runtime) -> None:
    @routes.get("/v1/trending", response_model=TrendingAnswer)
    def trending(
        category: Categories = [],  # noqa: B006
        limit: Limit = None,
        n: LimitAlias = None,
        numResults: LimitAlias = None,  # noqa: N803
        count: LimitAlias = None,
        size: LimitAlias = None,
        categories: CategoriesAlias = [],  # noqa: B006
    ) -> Response:
        """What most people take lately, the same for everybody; `score` is the decayed number of clicks."""
        wanted = limit or n or numResults or count or size or LIMIT_DEFAULT
        category = [*category, *categories]
        found = runtime.items.trending(to_us(runtime.now()), TRENDING_DEPTH if category else wanted)
        if category:
            carries = runtime.items.has_categories([item_id for item_id, _ in found], frozenset(category)).tolist()
            found = tuple(each for each, carried in zip(found, carries, strict=True) if carried)[:wanted]
        within = f" in {', '.join(category)}" if category else ""
        reason = {"kind": "trending_in", "item_ids": (), "text": f"Popular now{within}"}
        picks = [
            {
                "item_id": item_id, "title": runtime.items.title(item_id), "rank": rank,
                "score": score, "source": "trending", "reason": reason,
            }
            for rank, (item_id, score) in enumerate(found)
        ]  # fmt: skip
        return json_response({"items": picks, "items_as_of": runtime.items.as_of})


_ANSWERING = threading.Lock()
"""One answer is worked out at a time: it is small steps that need the interpreter; threads that hand it to and fro
between them take twice as long for the same work (8 clients: 58 to 69 answers a second without this, 100 with it)."""
TURN_S_MAX = 0.25
"""Nobody waits longer for their turn: behind a store that hangs, answers go on side by side."""


def answer(
    query: Query, runtime: Runtime, cursor: str | None = None, *, explain: bool, is_continued: bool = True
) -> Response:
    """Ask, and write the slate as JSON. `cursor`: what was shown before it, where it goes on."""
    first = _ANSWERING.acquire(timeout=TURN_S_MAX)
    try:
        slate = recommend(query, runtime.stages())
    finally:
        if first:
            _ANSWERING.release()
    for stage in slate.degraded:
        DEGRADED.labels(stage).inc()
    full = is_continued and len(slate.items) == query.limit
    following = cursor_of([*shown_before(cursor), *(p.item_id for p in slate.items)]) if full else None
    return json_response(slate_answer(slate, runtime.items, following, explain=explain))


def slate_answer(slate: Slate, items: ItemTable, following: str | None, *, explain: bool) -> dict[str, object]:
    """A slate in the shape of SlateAnswer."""
    known = slate.user_id is not None and slate.user_row_time_us > 0
    written: dict[str, object] = {
        "request_id": slate.request_id,
        "user_id": slate.user_id,
        "release_id": slate.release_id,
        "features_as_of": from_us(slate.user_row_time_us) if known else None,
        "items_as_of": slate.items_as_of,
        "degraded": slate.degraded,
        "next": following,
        "items": [
            {
                "item_id": pick.item_id, "title": items.title(pick.item_id), "rank": pick.rank,
                "score": pick.score, "source": pick.source, "reason": pick.reason, "propensity": pick.propensity,
                **({"explanation": pick.explanation} if pick.explanation else {}),
            }
            for pick in slate.items
        ],
    }  # fmt: skip
    return {**written, "dropped": slate.dropped} if explain else written


def json_response(content: object, status: int = 200) -> Response:
    """Content as JSON, written by msgspec (records and datetimes included)."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def checked_id(name: str, given: str) -> str:
    """An id from a path, a parameter or a body, trimmed; Problem when no message could ever carry it."""
    trimmed = given.strip()
    try:
        check_id(name, trimmed)
    except WireError as error:
        raise Problem("bad-parameter", error.detail) from None
    return trimmed


def _user(user_id: str | None, recent: list[str]) -> str | None:
    if user_id is not None and recent:
        raise Problem("bad-parameter", "user_id and recent exclude each other: `recent` stands in for a history")
    return None if user_id is None else checked_id("user_id", user_id)


def _split(given: list[str]) -> frozenset[str]:
    parts = [part for each in given for part in each.split(",")]
    return frozenset(checked_id("exclude", part) for part in parts if part.strip())


def _left_out(given: list[str]) -> frozenset[str]:
    return frozenset(checked_id("exclude", each) for each in given)
