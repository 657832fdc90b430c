"""Two rows of one user side by side: are they the same, and if not, why. Pure.

Row times are left out: they tell how often a row changed, not what it holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from services.domain import HOUR_US, Interaction, UserState
from services.features.namespaces import Definition
from services.ports import FeatureStore

BATCH = 500
EXAMPLES_MAX = 20

SINCE, KINDS, LENGTH = "before --from", "kinds", "length"
MISSING, MISSING_LIVE, OTHER = "missing in the new rows", "missing in the live rows", "other"
EXPLAINED = frozenset({SINCE, KINDS, LENGTH})
"""Differences that the two definitions ask for; any other one is a loss on one side."""


@dataclass(slots=True)
class Comparison:
    """How many rows were looked at, how many are the same, and for the others how many by cause, with examples."""

    rows: int = 0
    equal: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)

    @property
    def unexplained(self) -> int:
        """Differences that the definitions do not ask for."""
        return sum(count for cause, count in self.causes.items() if cause not in EXPLAINED)


@dataclass(frozen=True, slots=True)
class Side:
    """One set of rows: who has one, how they are read, and what made them."""

    user_ids: Callable[[], Iterable[str]]
    store: FeatureStore
    definition: Definition


def compare(live: Side, new: Side, users_max: int, settle: Callable[[], None]) -> Comparison:
    """Both sets, user by user, up to `users_max`. What differs is looked at once more after `settle`, because events
    go on coming in and one side may be a moment ahead."""
    result = Comparison()
    differing: list[str] = []
    for user_ids in _pieces(islice(_everyone(live, new), users_max)):
        pairs = zip(user_ids, live.store.read_many(user_ids), new.store.read_many(user_ids), strict=True)
        result.rows += len(user_ids)
        differing += [user_id for user_id, a, b in pairs if differences(a, b, live.definition, new.definition)]
    if differing:
        settle()
    for user_ids in _pieces(iter(differing)):
        for user_id, a, b in zip(user_ids, live.store.read_many(user_ids), new.store.read_many(user_ids), strict=True):
            causes = differences(a, b, live.definition, new.definition)
            result.causes.update(causes)
            result.equal -= bool(causes)
            if causes and len(result.examples) < EXAMPLES_MAX:
                result.examples.append((user_id, causes))
    result.equal += result.rows
    return result


def differences(live: UserState, new: UserState, before: Definition, after: Definition) -> tuple[str, ...]:
    """Why the rows differ, sorted; empty where they do not."""
    causes: set[str] = set()
    mine, theirs = ({each.event_key: each for each in state.events} for state in (live, new))
    for key, each in mine.items():
        if each != theirs.get(key):
            causes.add(_why_missing(each, new, after, MISSING) if key not in theirs else _why_other(each, theirs[key]))
    causes |= {_why_missing(each, live, before, MISSING_LIVE) for key, each in theirs.items() if key not in mine}
    if live.hidden != new.hidden or live.seen != new.seen or live.first_seen_us != new.first_seen_us:
        causes |= _why_rest(live, new, before, after)
    return tuple(sorted(causes))


def _why_missing(each: Interaction, other: UserState, definition: Definition, otherwise: str) -> str:
    """Why a row lacks an event that the other one has."""
    if each.occurred_us < definition.since_us:
        return SINCE
    if definition.rules.signed_weight(each.kind, each.value) == 0.0:
        return KINDS
    if len(other.events) == definition.events_max and _order(each) < _order(other.events[-1]):
        return LENGTH
    return otherwise


def _why_other(mine: Interaction, theirs: Interaction) -> str:
    same = (mine.occurred_us, mine.item_id, mine.kind) == (theirs.occurred_us, theirs.item_id, theirs.kind)
    return KINDS if same and mine.weight != theirs.weight else OTHER


def _why_rest(live: UserState, new: UserState, before: Definition, after: Definition) -> set[str]:
    """Hidden and seen items and the first event reach further back than the events: the cause is told by time."""
    causes: set[str] = set()
    since_us = max(before.since_us, after.since_us)
    changed = {at for at, _ in {*live.hidden} ^ {*new.hidden}}
    changed |= {hour * HOUR_US + HOUR_US - 1 for hour, _ in {*live.seen} ^ {*new.seen}}
    changed |= {live.first_seen_us, new.first_seen_us} if live.first_seen_us != new.first_seen_us else set()
    for at_us in changed - {0}:
        if since_us and at_us - HOUR_US < since_us:
            causes.add(SINCE)
        elif before.rules != after.rules:
            causes.add(KINDS)
        else:
            causes.add(OTHER)
    if since_us and SINCE in causes:
        causes.discard(OTHER)
    return causes


def _everyone(live: Side, new: Side) -> Iterator[str]:
    """Who has a row in either, each once."""
    known = set()
    for user_id in new.user_ids():
        known.add(user_id)
        yield user_id
    yield from (user_id for user_id in live.user_ids() if user_id not in known)


def _pieces(user_ids: Iterator[str]) -> Iterator[list[str]]:
    while piece := list(islice(user_ids, BATCH)):
        yield piece


def _order(each: Interaction) -> tuple[int, int]:
    return each.occurred_us, each.event_key
