"""Two mends of how kafka-python 3.0.12 joins a group, without which short polls keep a group from ever settling."""

from __future__ import annotations

import time
from typing import Any

from kafka import KafkaConsumer
from kafka.coordinator.consumer import ConsumerCoordinator


def finish_what_is_begun(consumer: KafkaConsumer) -> None:
    """Give the consumer the coordinator below. No option of kafka-python does: it makes its own."""
    coordinator = consumer._coordinator
    coordinator.__class__ = Coordinator
    coordinator.unclaimed = None


class Coordinator(ConsumerCoordinator):  # type: ignore[misc]
    """A rebalance may take longer than a poll: it goes on in the background, and a later poll takes up the result.

    kafka-python forgets it in two cases. When the result has come between two polls, the next one throws it away and
    begins another rebalance, so members that poll for 200 ms and work for a while in between go round for ever. And
    when new partitions made the leader rebalance, it believes after the assignment that nothing is left to do, never
    takes it up, and the group stands still.
    """

    unclaimed: tuple[float, Any] | None
    """When the group's assignment for this member came, and what it is, until a poll has taken it up."""

    def need_rejoin(self) -> bool:
        """BaseCoordinator: what is begun is gone through with."""
        return bool(self.rejoining or super().need_rejoin())

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
        await super()._on_join_complete_async(*args)
