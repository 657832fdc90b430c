"""A look at Kafka from outside the groups: ends, committed offsets, what groups read, and what retention threatens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from kafka import KafkaAdminClient, TopicPartition, errors
from kafka.admin import OffsetSpec

from services.bus import kafka_topics
from services.bus.kafka_client import KafkaChoices, as_unavailable, open_client
from services.domain import Partition, StageUnavailable

Answer = TypeVar("Answer")
MOVING = (errors.CoordinatorNotAvailableError, errors.NotCoordinatorError, errors.CoordinatorLoadInProgressError)
MOVING_PAUSE_S = 0.1
KNOWN_S = 2.0
"""How long what a topic is (its identity, its partitions) is taken as known."""


class KafkaView:
    """LogView. Thread-safe; the connection opens when it is first needed, and topics are prepared with it."""

    def __init__(self, choices: KafkaChoices, topics: Sequence[str]) -> None:
        self._choices = choices
        self._standard = tuple(topics)
        self._lock = threading.Lock()
        self._admin: KafkaAdminClient | None = None
        self._failed_at, self._failure = 0.0, ""
        self._prepared: set[str] = set()
        self._known: dict[str, tuple[float, Mapping[str, Any]]] = {}

    def prepare(self, topics: Iterable[str] = ()) -> None:
        """Make and check the standard topics and these, once per process."""
        wanted = [each for each in (*self._standard, *topics) if each not in self._prepared]
        if wanted:
            self._ask("prepare its topics", lambda admin: kafka_topics.prepare(admin, self._choices, wanted))
            self._prepared.update(wanted)

    def ends(self, topic: str) -> Mapping[Partition, int]:
        """LogView."""
        return self.offsets(self._partitions(topic), OffsetSpec.LATEST)

    def begins(self, topic: str) -> Mapping[Partition, int]:
        """The first offset that is still kept, of every partition of the topic."""
        return self.offsets(self._partitions(topic), OffsetSpec.EARLIEST)

    def committed(self, group: str, topic: str) -> Mapping[Partition, int]:
        """LogView."""
        stored = self.stored(group)
        return {partition: stored.get(partition, 0) for partition in self._partitions(topic)}

    def topics(self, group: str) -> tuple[str, ...]:
        """LogView: what its members read; without members, what it has stored offsets of."""
        read = self.subscribed(group)
        return tuple(sorted(read or {partition.topic for partition in self.stored(group)}))

    def log_id(self, topic: str) -> str:
        """LogView: the identity that Kafka gave the topic when it was made; another one with the same name differs."""
        return str(self._topic(topic)["topic_id"]).replace("-", "")

    def offsets(self, partitions: Iterable[Partition], at: OffsetSpec | int) -> dict[Partition, int]:
        """The first offset at or after a moment (milliseconds) or a named place; none there: left out."""
        asked = {TopicPartition(self._choices.topic_there(p.topic), p.number): at for p in partitions}
        if not asked:
            return {}
        found = self._ask("say its offsets", lambda admin: admin.list_partition_offsets(asked))
        return {self._here(place): each.offset for place, each in found.items() if each.offset >= 0}

    def stored(self, group: str) -> dict[Partition, int]:
        """Every offset that the group has stored. A coordinator that is just being found (on a new broker the first
        group makes Kafka's own topic for it) is asked again until the deadline."""
        name = self._choices.group_there(group)
        until = time.monotonic() + self._choices.deadline_ms / 1000
        while True:
            try:
                found = self._ask(f"say the offsets of {group}", lambda admin: admin.list_group_offsets(name))
                break
            except _NoGroup:
                return {}
            except StageUnavailable as error:
                if not isinstance(error.__cause__, MOVING) or time.monotonic() > until:
                    raise
                time.sleep(MOVING_PAUSE_S)
        return {self._here(place): each.offset for place, each in found[name].items() if each.offset >= 0}

    def subscribed(self, group: str) -> set[str]:
        """The topics that the group's present members read."""
        name = self._choices.group_there(group)
        try:
            found = self._ask(f"say who reads for {group}", lambda admin: admin.describe_groups([name]))[name]
        except _NoGroup:
            return set()
        read: set[str] = set()
        for member in found["members"]:
            metadata = member["member_metadata"]
            if metadata:
                read.update(self._choices.topic_here(topic) for topic in metadata["topics"])
        return read

    def groups(self) -> tuple[str, ...]:
        """The groups of this instance."""
        start = self._choices.group_there("")
        found = self._ask("say its groups", lambda admin: admin.list_groups())
        return tuple(
            sorted(each["group_id"].removeprefix(start) for each in found if each["group_id"].startswith(start))
        )

    def drop_offsets(self, group: str, topics: Iterable[str]) -> None:
        """Forget the group's offsets of topics that none of its members reads any more."""
        gone = [p for p in self.stored(group) if p.topic in set(topics)]
        name = self._choices.group_there(group)
        places = [TopicPartition(self._choices.topic_there(p.topic), p.number) for p in gone]
        if places:
            self._ask("forget offsets", lambda admin: admin.delete_group_offsets(name, places))

    def forget(self, groups: Sequence[str]) -> None:
        """Forget groups and their offsets. Raises StageUnavailable while one of them has members."""
        names = [self._choices.group_there(group) for group in groups]
        if names:
            done = self._ask("forget groups", lambda admin: admin.delete_groups(names))
            for name, said in done.items():
                if said not in ("OK", errors.GroupIdNotFoundError.__name__):
                    raise StageUnavailable(f"Kafka at {self._choices.where} keeps the group {name}: {said}")

    def delete_topics(self, topics: Sequence[str]) -> None:
        """Delete topics with all that is in them."""
        names = [self._choices.topic_there(topic) for topic in topics]
        self._ask("delete topics", lambda admin: admin.delete_topics(list(kafka_topics.described(admin, names))))
        self._prepared.clear()
        self._known.clear()

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            admin, self._admin = self._admin, None
        if admin is not None:
            admin.close()

    def _partitions(self, topic: str) -> list[Partition]:
        numbers = sorted(each["partition_index"] for each in self._topic(topic)["partitions"])
        return [Partition(topic, number) for number in numbers]

    def _topic(self, topic: str) -> Mapping[str, Any]:
        looked_at, known = self._known.get(topic, (-KNOWN_S, {}))
        if time.monotonic() - looked_at > KNOWN_S:
            try:
                known = self._look_at(topic)
            except StageUnavailable:
                if not known:
                    raise
            self._known[topic] = (time.monotonic(), known)
        return known

    def _look_at(self, topic: str) -> Mapping[str, Any]:
        self.prepare([topic])
        name = self._choices.topic_there(topic)
        found = self._ask("describe a topic", lambda admin: kafka_topics.described(admin, [name]))
        if name not in found:
            self._prepared.discard(topic)
            raise StageUnavailable(f"Kafka at {self._choices.where} has no topic {name} any more")
        return found[name]

    def _here(self, place: TopicPartition) -> Partition:
        return Partition(self._choices.topic_here(place.topic), place.partition)

    def _ask(self, doing: str, question: Callable[[KafkaAdminClient], Answer]) -> Answer:
        """One question at a time: kafka-python refuses the sixth that is under way at once.

        Who waited for one that failed hears the same at once: a broker that hangs costs its deadline once a second,
        not once for each that asks.
        """
        asked_at = time.monotonic()
        if not self._lock.acquire(timeout=self._choices.deadline_ms / 1000):
            raise StageUnavailable(f"Kafka at {self._choices.where} could not {doing}: others wait for an answer")
        try:
            if self._failed_at > asked_at:
                raise StageUnavailable(self._failure)
            with as_unavailable(self._choices, doing):
                return question(self._opened())
        except StageUnavailable as error:
            self._failed_at, self._failure = time.monotonic(), str(error)
            if isinstance(error.__cause__, errors.GroupIdNotFoundError):
                self._failed_at = 0.0
                raise _NoGroup from None
            raise
        finally:
            self._lock.release()

    def _opened(self) -> KafkaAdminClient:
        if self._admin is None:
            timeout_ms = self._choices.deadline_ms
            self._admin = open_client(self._choices, KafkaAdminClient, request_timeout_ms=timeout_ms)
        return self._admin


class _NoGroup(Exception):
    """The group has never joined, or is forgotten."""
