"""The user rows that are live, for a process that goes on while they change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

import structlog

from services.domain import UserState
from services.ports import FeatureStore

log = structlog.get_logger()


class FollowingStore:
    """FeatureStore of the live namespace. A call takes the reference once, so it never mixes two sets of rows."""

    def __init__(self, open_store: Callable[[str], FeatureStore], name: str) -> None:
        self._open = open_store
        self._held: tuple[str, FeatureStore] = name, open_store(name)

    def follow(self, name: str) -> None:
        """From now on read these rows; the ones before stay open for calls that run."""
        if name != self._held[0]:
            self._held = name, self._open(name)
            log.info("rows_swapped", live=name)

    def read(self, user_id: str) -> UserState:
        """FeatureStore."""
        return self._held[1].read(user_id)

    def read_many(self, user_ids: Sequence[str]) -> tuple[UserState, ...]:
        """FeatureStore."""
        return self._held[1].read_many(user_ids)

    def write(self, states: Sequence[UserState]) -> tuple[str, ...]:
        """FeatureStore."""
        return self._held[1].write(states)

    def append_history(self, states: Sequence[UserState], created_at: datetime) -> None:
        """FeatureStore."""
        self._held[1].append_history(states, created_at)
