"""A feature store behind a circuit breaker: while it is away, answers learn so at once, not each after a deadline."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from services.breaker import Breaker
from services.domain import StageUnavailable, UserState
from services.ports import FeatureStore


class GuardedFeatures:
    """The FeatureStore port over another one; only reads are guarded."""

    def __init__(self, store: FeatureStore, breaker: Breaker | None = None) -> None:
        self._store = store
        self._breaker = breaker or Breaker()

    def read(self, user_id: str) -> UserState:
        """FeatureStore."""
        return self.read_many((user_id,))[0]

    def read_many(self, user_ids: Sequence[str]) -> tuple[UserState, ...]:
        """FeatureStore."""
        if not self._breaker.allows():
            raise StageUnavailable("the feature store is away")
        try:
            states = (self._store.read(user_ids[0]),) if len(user_ids) == 1 else self._store.read_many(user_ids)
        except StageUnavailable:
            self._breaker.failed()
            raise
        self._breaker.worked()
        return states

    def write(self, states: Sequence[UserState]) -> tuple[str, ...]:
        """FeatureStore."""
        return self._store.write(states)

    def append_history(self, states: Sequence[UserState], created_at: datetime) -> None:
        """FeatureStore."""
        self._store.append_history(states, created_at)
