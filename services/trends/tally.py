"""One event into counts and co-visits: what the trends consumer and the trends in memory do alike. No SQL, no clock."""

from __future__ import annotations

from dataclasses import dataclass

from services.bounds import Bounds, Share
from services.domain import hash64
from services.trends.counters import CLICK, CONVERSION, IMPRESSION, Deltas, Once
from services.trends.covisits import Pairs, Users

PURCHASE = "purchase"
IMPRESSION_KIND = "impression"


@dataclass(frozen=True, slots=True)
class Action:
    """What a user did with an item, positive or (an impression) not."""

    event_key: int
    user_id: str
    item_id: str
    kind: str
    occurred_us: int
    positive: bool


class Tally:
    """What came since the last flush."""

    def __init__(self) -> None:
        self.deltas = Deltas()
        self.pairs = Pairs()

    def take(self, action: Action, once: Once, share: Share, users: Users, bounds: Bounds) -> None:
        """Count an action for as much as its user's vote; `once`, `share` and `users` remember it."""
        user_id, item_id, occurred_us = action.user_id, action.item_id, action.occurred_us
        if once.knows(action.event_key):
            return
        pair_key = hash64(f"{user_id}\x1f{item_id}\x1f{action.kind}")
        since_last_us = once.since_last_us(pair_key, occurred_us)
        fresh = once.counts(action.event_key, pair_key, occurred_us)
        if not action.positive:
            if fresh:
                self.deltas.add(item_id, occurred_us, IMPRESSION)
            return
        record = users.record(user_id)
        newcomer = record.met(occurred_us)  # of a repetition, too: it is how machines are known
        if not fresh or not record.within(bounds):
            return
        vote = share.weight(newcomer, occurred_us, since_last_us, bounds)
        if vote == 0.0:
            return
        self.deltas.add(item_id, occurred_us, CLICK, vote)
        if action.kind == PURCHASE:
            self.deltas.add(item_id, occurred_us, CONVERSION, vote)
        self.pairs.add(item_id, occurred_us, users.met(user_id, item_id, occurred_us), vote)
