"""Who gets which partitions: every topic by itself in equal shares, kept where they were as far as that goes."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment


class TopicByTopic(CooperativeStickyAssignor):  # type: ignore[misc]
    """kafka-python's assignor makes the sum over all topics equal: of two members of trends one got every partition of
    the events and the other those of the slates, so a second process helped nobody."""

    def assign(self, cluster: Any, members: Sequence[Any]) -> dict[str, ConsumerProtocolAssignment]:
        """CooperativeStickyAssignor, for one topic after the other."""
        shares: dict[str, list[Any]] = {member.member_id: [] for member in members}
        for topic in sorted({topic for member in members for topic in member.metadata.topics}):
            readers = [_of_topic(member, topic) for member in members if topic in member.metadata.topics]
            for member_id, given in super().assign(cluster, readers).items():
                shares[member_id] += given.assigned_partitions
        return {member_id: ConsumerProtocolAssignment(self.version, share, b"") for member_id, share in shares.items()}


def _of_topic(member: Any, topic: str) -> SimpleNamespace:
    """The member as if it read nothing else."""
    given = member.metadata
    owned = [each for each in given.owned_partitions or () if each.topic == topic]
    metadata = SimpleNamespace(topics=[topic], owned_partitions=owned, generation_id=given.generation_id)
    return SimpleNamespace(member_id=member.member_id, metadata=metadata)
