"""Three mends of how kafka-python 3.0.12 joins a group, without which some groups never settle, or never grow."""

from __future__ import annotations

import time
from typing import Any

from kafka import KafkaConsumer
from kafka.coordinator.consumer import ConsumerCoordinator

LEADER_S = 4.0
"""How long the leader may take to see what another member has seen: it looks every 3 s."""


def finish_what_is_begun(consumer: KafkaConsumer) -> None:
    """Give the consumer the coordinator below. No option of kafka-python does: it makes its own."""
    coordinator = consumer._coordinator
    coordinator.__class__ = Coordinator
    coordinator.unclaimed = None
    coordinator.joined_with, coordinator.grown_at = {}, 0.0


class Coordinator(ConsumerCoordinator):  # type: ignore[misc]
    """A rebalance may take longer than a poll: it goes on in the background, and a later poll takes up the result.

    kafka-python forgets it in two cases. When the result has come between two polls, the next one throws it away and
    begins another rebalance, so members that poll for 200 ms and work for a while in between go round for ever. And
    when new partitions made the leader rebalance, it believes after the assignment that nothing is left to do, never
    takes it up, and the group stands still.

    Only the leader looks for new partitions, and a static leader that came back without a rebalance does not know that
    it leads. So every member looks, and asks for a rebalance when nobody else has.
    """

    unclaimed: tuple[float, Any] | None
    """When the group's assignment for this member came, and what it is, until a poll has taken it up."""

    joined_with: dict[str, set[int]]
    """The partitions of each topic that were known when the group last dealt them out."""
    grown_at: float
    """When more were seen; 0 when there are no more."""

    def need_rejoin(self) -> bool:
        """BaseCoordinator: what is begun is gone through with, and new partitions get an owner."""
        return bool(self.rejoining or super().need_rejoin() or self._has_grown())

    def _has_grown(self) -> bool:
        seen = self._seen()
        self.joined_with = {**seen, **self.joined_with}  # what was not known at the time of joining is known now
        if not any(self.joined_with[topic] < each for topic, each in seen.items()):
            self.grown_at = 0.0
            return False
        self.grown_at = self.grown_at or time.monotonic()
        return time.monotonic() - self.grown_at > LEADER_S

    def _seen(self) -> dict[str, set[int]]:
        read = self._subscription.subscription or ()
        return {topic: set(known) for topic in read if (known := self._cluster.partitions_for_topic(topic))}

    def reset_generation(self, *args: Any, **named: Any) -> None:
        """BaseCoordinator: thrown out of the group, so what it gave is void."""
        self.unclaimed = None
        super().reset_generation(*args, **named)

    async def _do_join_and_sync_async(self) -> Any:
        came, self.unclaimed = self.unclaimed, None
        if came is not None and time.monotonic() - came[0] < self.config["session_timeout_ms"] / 1000:
            return came[1]
        assignment = await super()._do_join_and_sync_async()
        self.unclaimed = (time.monotonic(), assignment)
        return assignment

    async def _on_join_complete_async(self, *args: Any) -> None:
        self.unclaimed = None
        self.joined_with, self.grown_at = self._seen(), 0.0
        await super()._on_join_complete_async(*args)
