"""The second of the three functions: a query into a slate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.domain import (
    HISTORY_MAX,
    HOUR_US,
    SECOND_US,
    SEEN_MAX,
    Candidate,
    Dropped,
    Interaction,
    Pick,
    Query,
    Scored,
    Seen,
    Slate,
    StageUnavailable,
    UserState,
    hash64,
    to_us,
)
from services.ports import CandidateSource, FeatureStore, Filter, Scorer, SlateLog
from services.signals import Known

STRANGER = UserState(user_id="")


class Arranger(Protocol):
    """Puts scored candidates into their final order and says why each is there. Deterministic."""

    def __call__(self, query: Query, user: UserState, scored: Sequence[Scored]) -> tuple[Pick, ...]:
        """At most `query.limit` picks, best first."""


class Probe(Protocol):
    """Asks the scorer what its scores hang on: other histories, the same candidates, in one forward. Called only where
    a query asks for it, and by whoever judges; holds nothing between calls."""

    def explain(
        self, query: Query, user: UserState, picks: tuple[Pick, ...], scored: Sequence[Scored]
    ) -> tuple[tuple[Pick, ...], bool]:
        """The picks with the reasons that erasure finds, and whether there was time for all of them."""

    def shares(self, query: Query, user: UserState, candidates: Sequence[Candidate]) -> NDArray[np.float32]:
        """How much each candidate looks at nothing (first) and at each item of `items_of(user)`. [C, 1 + U]"""

    def without(
        self, query: Query, user: UserState, candidates: Sequence[Candidate], erased: Sequence[frozenset[str]]
    ) -> NDArray[np.float32]:
        """The scores if the user had never touched the items of each set. [len(erased), C]"""

    def with_history_of(
        self, query: Query, user: UserState, candidates: Sequence[Candidate], other: UserState
    ) -> NDArray[np.float32]:
        """The scores if the scorer read another user's history; the retrieval score stays the user's own. [C]"""

    def by_retrieval(self, query: Query, user: UserState, candidates: Sequence[Candidate]) -> NDArray[np.float32]:
        """The retrieval scores alone. [C]"""


@dataclass(frozen=True, slots=True)
class Stages:
    """What answers queries: all of one release and one view of the items; swapped as one reference. `missing`: what an
    answer lacks whatever is asked (the items have not been heard of for a while)."""

    release_id: str | None
    items_as_of: int
    features: FeatureStore
    sources: tuple[CandidateSource, ...]
    filters: tuple[Filter, ...]
    scorer: Scorer
    arrange: Arranger
    slates: SlateLog
    items_as_of_us: int = 0
    missing: tuple[str, ...] = ()
    probe: Probe | None = None


def recommend(query: Query, stages: Stages) -> Slate:
    """Answer one query. Every step is a plain call; the order below is the product."""
    user, unread = read_user(stages.features, query)
    found, unfound = gather(stages.sources, query, user)
    kept, dropped = sift(stages.filters, query, user, found)
    scored, unscored, known = score(stages.scorer, query, user, kept)
    known = known or Known(stages.items_as_of, stages.items_as_of_us)
    picks = stages.arrange(query, user, scored)
    picks, unexplained = explain(stages.probe, query, user, picks, () if unscored else scored)
    degraded = stages.missing + unread + unfound + unscored + unexplained
    slate = Slate(
        query.request_id, query.user_id, stages.release_id, user.row_time_us, known.items_as_of, picks, degraded,
        dropped, query.asked_at, known.items_as_of_us, features_of(picks, kept, known),
    )  # fmt: skip
    if query.record:
        stages.slates.record(slate)
    return slate


def read_user(features: FeatureStore, query: Query) -> tuple[UserState, tuple[str, ...]]:
    """The user's row; an outage reads as a stranger and is named. Recent items of the query stand in for a row."""
    if query.recent:
        return anonymous_user(query), ()
    if query.user_id is None:
        return STRANGER, ()
    try:
        return features.read(query.user_id), ()
    except StageUnavailable:
        return UserState(query.user_id), ("features",)


def anonymous_user(query: Query) -> UserState:
    """The row that a caller's recent items (oldest first) stand for: clicks, a second apart, up to the question."""
    asked_us = to_us(query.asked_at)
    newest_first = tuple(reversed(query.recent))
    events = tuple(
        Interaction(asked_us - (place + 1) * SECOND_US, -place, item_id, "click", None, 1.0)
        for place, item_id in enumerate(newest_first[:HISTORY_MAX])
    )
    hashes = sorted({hash64(item_id) for item_id in newest_first[:SEEN_MAX]}, reverse=True)
    seen = Seen.of((asked_us // HOUR_US, each) for each in hashes)
    return UserState(query.user_id or "", events, (), seen, events[-1].occurred_us, events[0].occurred_us)


def gather(
    sources: tuple[CandidateSource, ...], query: Query, user: UserState
) -> tuple[tuple[Candidate, ...], tuple[str, ...]]:
    """Every source's proposals, in the order of the sources; the first to propose an item keeps it."""
    found: dict[str, Candidate] = {}
    unfound: list[str] = []
    for source in sources:
        try:
            for candidate in source.candidates(query, user):
                found.setdefault(candidate.item_id, candidate)
        except StageUnavailable:
            unfound.append(source.name)
    return tuple(found.values()), tuple(unfound)


def sift(
    filters: tuple[Filter, ...], query: Query, user: UserState, found: tuple[Candidate, ...]
) -> tuple[tuple[Candidate, ...], tuple[Dropped, ...]]:
    """What every filter keeps, and who dropped the rest."""
    dropped: list[Dropped] = []
    for each in filters:
        verdicts = each.keep(query, user, found)
        assert len(verdicts) == len(found), f"{each.name} answered {len(verdicts)} of {len(found)}"
        if all(verdicts):
            continue
        dropped += [Dropped(c.item_id, each.name) for c, keep in zip(found, verdicts, strict=True) if not keep]
        found = tuple(c for c, keep in zip(found, verdicts, strict=True) if keep)
    return found, tuple(dropped)


def score(
    scorer: Scorer, query: Query, user: UserState, kept: tuple[Candidate, ...]
) -> tuple[tuple[Scored, ...], tuple[str, ...], Known | None]:
    """A score for each candidate and what it was worked out from; when the scorer is down, the order of retrieval."""
    if not kept:
        return (), (), None
    try:
        scores = scorer.score(query, user, kept)
    except StageUnavailable:
        return tuple(Scored(c, -float(place)) for place, c in enumerate(kept)), (scorer.name,), None
    assert len(scores.values) == len(kept), f"{scorer.name} scored {len(scores.values)} of {len(kept)}"
    return tuple(Scored(c, float(s)) for c, s in zip(kept, scores.values, strict=True)), (), scores.known


def explain(
    probe: Probe | None, query: Query, user: UserState, picks: tuple[Pick, ...], scored: tuple[Scored, ...]
) -> tuple[tuple[Pick, ...], tuple[str, ...]]:
    """The picks with reasons by erasure where the query asks for them; when there is no time, those of the sources."""
    if query.reasons == "source" or probe is None or not scored:
        return picks, ()
    try:
        picks, complete = probe.explain(query, user, picks, scored)
    except StageUnavailable:
        complete = False
    return picks, () if complete else ("explanations",)


def items_of(user: UserState) -> tuple[str, ...]:
    """The distinct items of a user's row, by their newest event, newest first."""
    return tuple(dict.fromkeys(each.item_id for each in user.events))


def features_of(picks: tuple[Pick, ...], kept: tuple[Candidate, ...], known: Known) -> bytes:
    """The features of the picks, pick after pick; empty where none were kept."""
    if not known.features:
        return b""
    places = {candidate.item_id: place for place, candidate in enumerate(kept)}
    return known.features_of([places[pick.item_id] for pick in picks])
