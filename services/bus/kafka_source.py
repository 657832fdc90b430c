"""One member of a consumer group on Kafka: polls, hands partitions over in two steps, commits what is durable.

The group uses the cooperative protocol. A partition that moves is first taken from its owner, in a rebalance that gives
it to nobody, and given away only in the next one, which does not begin before the owner polls again. Between the two
stands the batch that reports the loss: the consumer flushes and commits while it is still a member (decision 017).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import structlog
from kafka import ConsumerRebalanceListener, KafkaConsumer, OffsetAndMetadata, TopicPartition, errors
from kafka.admin import OffsetSpec

from services.bus.kafka_client import KafkaChoices, OwnershipMoved, as_unavailable, open_client
from services.bus.kafka_joining import finish_what_is_begun
from services.bus.kafka_sharing import TopicByTopic
from services.bus.kafka_view import KafkaView
from services.domain import Batch, Coordinate, Message, Partition, from_us, to_us
from services.ports import EventSource
from services.telemetry import MESSAGES_MISSED

log = structlog.get_logger()

HEARTBEATS_PER_SESSION = 5
HEARTBEAT_MS_MAX = 500
"""How soon a member hears that another one came or went."""


class KafkaSource(EventSource):
    """A group member. One thread owns it. Made by `KafkaBus.source`; it joins at its first poll."""

    def __init__(
        self, choices: KafkaChoices, view: KafkaView, group: str, topics: tuple[str, ...], now: Callable[[], datetime]
    ) -> None:
        self._choices = choices
        self._view = view
        self._group = group
        self._topics = topics
        self._now = now
        self._consumer: KafkaConsumer | None = None
        self._moves = _Moves()
        self._generation = 0
        self._log_ids: dict[str, str] = {}
        self._next: dict[Partition, int] = {}
        self._stored: dict[Partition, int] = {}
        self._leaving: dict[Partition, int] = {}
        self._waiting: dict[Partition, int] = {}
        self._joined = self._closed = False

    def poll(self, records_max: int, wait_s: float) -> Batch:
        """EventSource. While Kafka is away nothing comes: `lag` and `commit` say so."""
        with as_unavailable(self._choices, f"be polled by {self._group}"):
            consumer = self._opened()
            self._store_waiting(consumer)
            self._leaving = {}  # from here on the next rebalance may give them away
            records: Mapping[Any, Sequence[Any]] = {}
            if not self._moves.any:
                try:
                    records = _polled(consumer, records_max, wait_s)
                except errors.KafkaError as error:
                    if not isinstance(error.__cause__, OwnershipMoved):
                        raise
            if self._moves.any:
                assert not records, "a poll that moves partitions returns no messages"
                return self._moved(consumer)
            return Batch(tuple(self._messages(records)) if records else (), self._generation)

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """EventSource. While the group rebalances Kafka takes no offsets: they are kept, and stored at the next poll,
        before any partition is handed over."""
        before = {**self._leaving, **self._stored, **self._waiting}
        self._waiting.update({p: offset for p, offset in offsets.items() if p in before and offset > before[p]})
        if self._waiting and self._consumer is not None:
            with as_unavailable(self._choices, f"take a commit of {self._group}"):
                self._store_waiting(self._consumer)

    def seek(self, offsets: Mapping[Partition, int]) -> None:
        """EventSource."""
        for partition, offset in offsets.items():
            if partition in self._next and self._consumer is not None:
                self._next[partition] = offset
                self._consumer.seek(self._there(partition), offset)

    def lag(self) -> Mapping[Partition, int]:
        """EventSource: messages still kept and not committed by this group, for each owned partition."""
        owned = list(self._next)
        ends = self._view.offsets(owned, OffsetSpec.LATEST)
        begins = self._view.offsets(owned, OffsetSpec.EARLIEST)
        return {p: ends[p] - max(self._stored.get(p, 0), begins.get(p, 0)) for p in owned if p in ends}

    def close(self) -> None:
        """Leave the group (a static member keeps its place until its session ends). Closing twice is harmless."""
        if self._closed or self._consumer is None:
            self._closed = True
            return
        self._closed = self._moves.closing = True
        with as_unavailable(self._choices, f"let {self._group} leave"):
            self._consumer.close(autocommit=False, timeout_ms=self._choices.deadline_ms)

    # ------------------------------------------------------------------------------------------ ownership

    def _moved(self, consumer: KafkaConsumer) -> Batch:
        """The batch that reports what changed hands; raises, and reports it the next time, when Kafka is away."""
        gained = self._places(self._moves.gained)
        lost = self._places(self._moves.revoked | self._moves.gone)
        if gained:
            self._begin(consumer, gained)
        self._leaving = {p: self._stored[p] for p in self._places(self._moves.revoked)}
        for partition in lost:
            del self._next[partition], self._stored[partition]
        for partition in self._places(self._moves.gone):
            self._waiting.pop(partition, None)
        self._generation = max(self._generation, consumer.group_metadata().generation_id)
        self._moves.clear()
        log.info("ownership", group=self._group, generation=self._generation, gained=len(gained), lost=len(lost))
        return Batch((), self._generation, gained=gained, lost=lost)

    def _begin(self, consumer: KafkaConsumer, gained: Sequence[Partition]) -> None:
        """Where to read each from: what the group has stored, or the earliest; and what retention has taken away."""
        self._log_ids = {topic: self._view.log_id(topic) for topic in self._topics}
        stored = self._view.stored(self._group)
        begins = self._view.offsets(gained, OffsetSpec.EARLIEST)
        ends = self._view.offsets(gained, OffsetSpec.LATEST)
        starts = {p: stored.get(p, begins[p]) for p in gained}
        for partition, offset in starts.items():
            if not begins[partition] <= offset <= ends[partition]:
                self._missed(partition, offset, begins[partition])
                starts[partition] = begins[partition]
        new = {p: starts[p] for p in gained if p not in stored}
        if new:  # a group that has offsets is known, whether somebody reads for it now or not
            with suppress(errors.CommitFailedError, errors.RebalanceInProgressError):
                self._store(consumer, new)
        for partition, offset in starts.items():
            consumer.seek(self._there(partition), offset)
        self._next.update(starts)
        self._stored.update({p: stored.get(p, 0) for p in gained})
        if not self._joined:
            self._drop_unread(stored)
            self._joined = True

    def _drop_unread(self, stored: Iterable[Partition]) -> None:
        """Offsets of topics that no member reads any more would look like a backlog for ever."""
        unread = {p.topic for p in stored} - self._view.subscribed(self._group) - set(self._topics)
        if unread:
            self._view.drop_offsets(self._group, unread)

    def _missed(self, partition: Partition, wanted: int, begin: int) -> None:
        """The log does not have what comes next: said loudly, and reading goes on at the earliest there is."""
        count = max(begin - wanted, 0)
        MESSAGES_MISSED.labels(group=self._group).inc(max(count, 1))
        log.error(
            "messages_missed", group=self._group, topic=partition.topic, partition=partition.number, wanted=wanted,
            earliest=begin, missed=count,
            why="deleted by retention before it was read" if count else "the log ends before it: it was made anew",
        )  # fmt: skip

    # -------------------------------------------------------------------------------------------- reading

    def _messages(self, records: Mapping[Any, Sequence[Any]]) -> Iterable[Message]:
        moments: dict[int, datetime] = {}
        for place, taken in records.items():
            partition = Partition(self._choices.topic_here(place.topic), place.partition)
            self._follow(partition, taken[0].offset, taken[-1].offset)
            topic, number, log_id = partition.topic, partition.number, self._log_ids[partition.topic]
            for record in taken:
                at = moments.get(record.timestamp)
                if at is None:
                    at = moments[record.timestamp] = self._accepted_at(record.timestamp)
                key = None if record.key is None else record.key.decode(errors="backslashreplace")
                yield Message(Coordinate(log_id, topic, number, record.offset), key, record.value, at)

    def _follow(self, partition: Partition, first: int, last: int) -> None:
        """See that nothing is left out between two polls. Offsets that transactions use up are no messages."""
        wanted = self._next[partition]
        if first != wanted:
            begin = self._view.offsets([partition], OffsetSpec.EARLIEST).get(partition, first)
            if first < wanted or begin > wanted:
                self._missed(partition, wanted, begin)
                self._log_ids[partition.topic] = self._view.log_id(partition.topic)
        self._next[partition] = last + 1

    def _accepted_at(self, timestamp_ms: int) -> datetime:
        """The moment of acceptance; a foreign message without a time counts as accepted now."""
        return from_us(timestamp_ms * 1000 if timestamp_ms > 0 else to_us(self._now()))

    # ------------------------------------------------------------------------------------------ committing

    def _store_waiting(self, consumer: KafkaConsumer) -> None:
        if not self._waiting:
            return
        try:
            self._store(consumer, self._waiting)
        except errors.RebalanceInProgressError:
            return  # at the next poll
        except errors.CommitFailedError as error:
            if error.args and isinstance(error.args[0], errors.RebalanceInProgressError):
                return
            log.warning("commit_refused", group=self._group, partitions=len(self._waiting), error=str(error))
        self._waiting = {}

    def _store(self, consumer: KafkaConsumer, offsets: Mapping[Partition, int]) -> None:
        stored = {self._there(p): OffsetAndMetadata(offset, "", -1) for p, offset in offsets.items()}
        consumer.commit(stored, timeout_ms=self._choices.deadline_ms)
        self._stored.update({p: offset for p, offset in offsets.items() if p in self._stored})

    def _places(self, there: Iterable[TopicPartition]) -> tuple[Partition, ...]:
        return tuple(sorted(Partition(self._choices.topic_here(p.topic), p.partition) for p in there))

    def _there(self, partition: Partition) -> TopicPartition:
        return TopicPartition(self._choices.topic_there(partition.topic), partition.number)

    def _opened(self) -> KafkaConsumer:
        if self._consumer is None:
            c = self._choices
            self._view.prepare(self._topics)
            consumer = open_client(
                c,
                KafkaConsumer,
                group_id=c.group_there(self._group),
                group_instance_id=f"{c.instance_id}.{self._group}" if c.instance_id else None,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                isolation_level="read_committed",
                partition_assignment_strategy=[TopicByTopic],
                session_timeout_ms=c.session_timeout_ms,
                heartbeat_interval_ms=min(HEARTBEAT_MS_MAX, c.session_timeout_ms // HEARTBEATS_PER_SESSION),
                max_poll_interval_ms=c.poll_interval_ms_max,
                request_timeout_ms=c.deadline_ms,
                allow_auto_create_topics=False,
                metrics_enabled=False,
            )
            finish_what_is_begun(consumer)
            for topic in self._topics:  # known before joining: the group's first assignment has them
                consumer.partitions_for_topic(c.topic_there(topic))
            consumer.subscribe([c.topic_there(topic) for topic in self._topics], listener=self._moves)
            self._consumer = consumer
        return self._consumer


class _Moves(ConsumerRebalanceListener):  # type: ignore[misc]
    """What changed hands, noted on kafka-python's own thread while the owner's thread waits in `poll`.

    Each note ends that `poll` at once. Otherwise it would go on: read from partitions whose consumer has not started
    yet, or join the rebalance that gives the lost ones away before they are flushed.
    """

    def __init__(self) -> None:
        self.gained: set[TopicPartition] = set()
        self.revoked: set[TopicPartition] = set()
        self.gone: set[TopicPartition] = set()
        self.closing = False

    @property
    def any(self) -> bool:
        """Whether something is not reported yet."""
        return bool(self.gained or self.revoked or self.gone)

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """ConsumerRebalanceListener."""
        self._note(self.gained, assigned)

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """ConsumerRebalanceListener: this member may still commit."""
        self._note(self.revoked, revoked)

    def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        """ConsumerRebalanceListener: others may own them already."""
        self._note(self.gone, lost)

    def clear(self) -> None:
        """All is reported."""
        self.gained, self.revoked, self.gone = set(), set(), set()

    def _note(self, kind: set[TopicPartition], partitions: Iterable[TopicPartition]) -> None:
        moved = set(partitions)
        kind |= moved
        if moved and not self.closing:
            raise OwnershipMoved


def _polled(consumer: KafkaConsumer, records_max: int, wait_s: float) -> Mapping[Any, Sequence[Any]]:
    """Messages, or none; `records_max` 0 only moves the group on."""
    timeout_ms = int(wait_s * 1000)
    if records_max > 0:
        return dict(consumer.poll(timeout_ms, records_max))
    owned = consumer.assignment()
    consumer.pause(*owned)
    try:
        return dict(consumer.poll(timeout_ms, 1))
    finally:
        consumer.resume(*(owned & consumer.assignment()))
