"""What is particular to Kafka: slow members, static ones, new partitions, lost messages, and both buses alike.

Everything here happens on a real broker; what takes it away is in `test_kafka_outages.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from contracts.test_event_source import EVENTS, ITEMS, WAIT_S, drained, first, outgoing, settled, texts
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from services import wire
from services.bus.embedded import EmbeddedBus
from services.bus.kafka import KafkaBus
from services.bus.kafka_client import KafkaChoices
from services.domain import BadRequest, Batch, Event, ItemChange, Outgoing, Partition, SettingsInvalid, StageUnavailable
from services.ports import EventSource

NOW = datetime.now(UTC).replace(microsecond=123_456)
SHORT_POLL_MS = 10_000
Open = Callable[..., KafkaBus]


@pytest.fixture
def opened(kafka_servers: str, topic_prefix: str) -> Iterator[Open]:
    """`opened(instance_id="a")`: a bus as one process has it, all on the same topics."""
    buses: list[KafkaBus] = []

    def make(**chosen: object) -> KafkaBus:
        choices = KafkaChoices(tuple(kafka_servers.split(",")), prefix=topic_prefix, **chosen)  # type: ignore[arg-type]
        buses.append(KafkaBus(choices, lambda: NOW).open())
        return buses[-1]

    yield make
    for bus in buses:
        bus.close()


@pytest.fixture
def admin(kafka_servers: str) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(bootstrap_servers=kafka_servers)
    yield client
    client.close()


def until(fact: Callable[[], bool], *polled: EventSource, wait_s: float = 2 * WAIT_S) -> None:
    """Poll until the fact holds."""
    end = time.monotonic() + wait_s
    while not fact():
        assert time.monotonic() < end, "it did not come true in time"
        for source in polled:
            source.poll(0, 0.02)


def gained_and_lost(*sources: EventSource, wait_s: float) -> list[Batch]:
    """Every batch that reports a change, from polling in turn for some time."""
    end = time.monotonic() + wait_s
    changes: list[Batch] = []
    while time.monotonic() < end:
        changes += [batch for source in sources if (batch := source.poll(0, 0.05)).gained or batch.lost]
    return changes


# ---------------------------------------------------------------------------------------- the former owner


def test_what_a_member_commits_after_it_heard_of_the_loss_is_stored_before_the_next_owner_begins(opened: Open) -> None:
    bus = opened()
    bus.sink().publish([outgoing(f"user-{n}", str(n)) for n in range(40)])
    one = bus.source("features", [EVENTS])
    read = Batch(tuple(drained(one, 40))).next_offsets()
    two = bus.source("features", [EVENTS])
    lost: tuple[Partition, ...] = ()
    end = time.monotonic() + WAIT_S
    while not lost and time.monotonic() < end:
        lost = one.poll(10, 0.02).lost
        assert two.poll(10, 0.02).gained == ()  # nobody else has them before the owner polls again
    assert len(lost) == 2
    one.commit(read)  # the flush that the loss asks for
    settled(one, two)
    assert bus.view().committed("features", EVENTS) == read
    assert two.poll(10, 0.2).messages == ()


def test_a_member_that_took_too_long_has_lost_its_partitions_and_its_late_commit_is_refused(opened: Open) -> None:
    slow_bus, bus = opened(poll_interval_ms_max=SHORT_POLL_MS), opened()
    bus.sink().publish([outgoing(f"user-{n}", str(n)) for n in range(40)])
    slow = slow_bus.source("features", [EVENTS])
    read = Batch(tuple(drained(slow, 40))).next_offsets()
    other = bus.source("features", [EVENTS])
    until(lambda: len(other.lag()) == 4, other, wait_s=60)  # the slow one is put out: it does not poll
    with capture_logs() as logs:
        slow.commit(read)
    assert "commit_refused" in [line["event"] for line in logs]
    assert sum(bus.view().committed("features", EVENTS).values()) == 0
    assert slow.poll(10, 0.5).lost == tuple(Partition(EVENTS, n) for n in range(4))
    assert len(texts(drained(other, 40))) == 40


def test_nothing_is_read_twice_or_left_out_while_members_come_and_go(opened: Open) -> None:
    bus = opened()
    members: list[EventSource] = [bus.source("features", [EVENTS])]
    read: list[str] = []
    coordinates = []
    for n in range(6):
        coordinates += bus.sink().publish([outgoing(f"user-{k}", f"{n}:{k}") for k in range(50)])
        if n in (1, 3):
            members.append(bus.source("features", [EVENTS]))
        if n == 4:
            members.pop(0).close()  # type: ignore[attr-defined]
        end = time.monotonic() + 0.7
        while time.monotonic() < end:
            for member in members:
                batch = member.poll(30, 0.01)
                read += texts(batch.messages)
                member.commit(batch.next_offsets())
    end = time.monotonic() + WAIT_S
    while len(read) < 300 and time.monotonic() < end:
        for member in members:
            batch = member.poll(30, 0.02)
            read += texts(batch.messages)
            member.commit(batch.next_offsets())
    assert sorted(read) == sorted({f"{n}:{k}" for n in range(6) for k in range(50)})


# ----------------------------------------------------------------------------------------- static members


def test_a_static_member_comes_back_without_a_rebalance(opened: Open) -> None:
    bus = opened(instance_id="a")
    one, two = bus.source("features", [EVENTS]), opened(instance_id="b").source("features", [EVENTS])
    settled(one, two)
    before = two.poll(0, 0.1).generation
    bus.close()
    again = opened(instance_id="a").source("features", [EVENTS])
    assert len(first(again).gained) == 2
    assert gained_and_lost(again, two, wait_s=1.5) == []
    assert two.poll(0, 0.1).generation == before


def test_a_second_process_of_the_same_name_stops_the_first_and_says_which_setting_is_wrong(opened: Open) -> None:
    one = opened(instance_id="a").source("features", [EVENTS])
    first(one)
    first(opened(instance_id="a").source("features", [EVENTS]))
    with pytest.raises(SettingsInvalid, match="kafka_instance_id='a' is used by another process"):
        one.commit({Partition(EVENTS, 0): 1})


# ----------------------------------------------------------------------------------------------- growth


def test_new_partitions_are_written_and_read_within_seconds(
    opened: Open, admin: KafkaAdminClient, topic_prefix: str
) -> None:
    bus = opened()
    source = bus.source("features", [EVENTS])
    first(source)
    bus.sink().publish([outgoing("ann", "before")])
    admin.create_partitions({topic_prefix + EVENTS: 8})
    until(lambda: len(source.lag()) == 8, source)
    end = time.monotonic() + WAIT_S
    used: set[int] = set()
    while max(used, default=0) < 4 and time.monotonic() < end:
        used |= {c.partition for c in bus.sink().publish([outgoing(f"user-{n}", "after") for n in range(30)])}
        time.sleep(0.1)
    assert max(used) >= 4
    assert len(bus.view().ends(EVENTS)) == 8
    assert "after" in texts(drained(source, 20))


def test_new_partitions_are_read_also_when_the_leader_came_back_as_a_static_member(
    opened: Open, admin: KafkaAdminClient, topic_prefix: str
) -> None:
    bus = opened(instance_id="a")
    first(bus.source("features", [EVENTS]))
    bus.close()
    again = opened(instance_id="a").source("features", [EVENTS])
    first(again)
    admin.create_partitions({topic_prefix + EVENTS: 8})
    until(lambda: len(again.lag()) == 8, again)


# ------------------------------------------------------------------------------------- what is kept there


def test_messages_are_the_same_bytes_on_both_buses(
    opened: Open, kafka_servers: str, topic_prefix: str, tmp_path: Path
) -> None:
    at = datetime(2026, 11, 20, 8, 30, 0, 5, tzinfo=UTC)
    event = Event("e-1", "ann", "film-7", "rating", at, NOW, 8.5, "r-1", "s-1", {"place": "Zürich"})
    change = ItemChange("film-7", "put", {"title": "Sieben"}, at, NOW)
    messages = [wire.encode_event(event), wire.encode_item(change)]
    embedded = EmbeddedBus(tmp_path / "bus.db", 4, 5000, 24, now=lambda: NOW).open()
    stored = []
    for bus in (embedded, opened()):
        bus.sink().publish(messages)
        read = drained(bus.source("archive", [EVENTS, ITEMS]), 2)
        stored.append(sorted((m.coordinate.topic, m.coordinate.partition, m.key, m.value) for m in read))
        assert {wire.decode_event(m.value, m.accepted_at).event_id for m in read if m.coordinate.topic == EVENTS}
    embedded.close()
    assert stored[0] == stored[1]
    assert [value for *_, value in stored[0]] == [
        b'{"v":1,"event_id":"e-1","user_id":"ann","item_id":"film-7","kind":"rating",'
        b'"occurred_at":"2026-11-20T08:30:00.000005Z","value":8.5,"request_id":"r-1","session_id":"s-1",'
        b'"properties":{"place":"Z\xc3\xbcrich"}}',
        b'{"v":1,"item_id":"film-7","operation":"put","updated_at":"2026-11-20T08:30:00.000005Z",'
        b'"fields":{"title":"Sieben"}}',
    ]
    raw = KafkaConsumer(
        topic_prefix + EVENTS, bootstrap_servers=kafka_servers, auto_offset_reset="earliest", consumer_timeout_ms=20_000
    )
    record = next(raw)
    raw.close()
    assert (record.key, record.value, record.headers) == (b"ann", messages[0].value, [])
    assert record.timestamp == int(NOW.timestamp() * 1000) + 1  # rounded up: never before what it tells of


def test_a_topic_made_anew_has_another_identity(opened: Open, admin: KafkaAdminClient, topic_prefix: str) -> None:
    bus = opened()
    events, items = bus.view().log_id(EVENTS), bus.view().log_id(ITEMS)
    assert events != items
    bus.close()
    admin.delete_topics([topic_prefix + EVENTS])
    again = opened()

    def another() -> bool:
        try:
            return again.view().log_id(EVENTS) != events
        except StageUnavailable:  # brokers hear of a deletion one after the other: for a moment there may be none
            return False

    until(another)
    assert again.view().log_id(ITEMS) == items


def test_messages_deleted_before_they_were_read_are_counted_and_reading_goes_on_at_the_earliest(
    opened: Open, admin: KafkaAdminClient, topic_prefix: str
) -> None:
    bus = opened()
    (place,) = {
        Partition(c.topic, c.partition) for c in bus.sink().publish([outgoing("ann", str(n)) for n in range(9)])
    }
    before = bus.source("lossy", [EVENTS])
    drained(before, 9)
    before.commit({place: 2})
    before.close()
    admin.delete_records({TopicPartition(topic_prefix + EVENTS, place.number): 5})
    with capture_logs() as logs:
        read = drained(bus.source("lossy", [EVENTS]), 4)
    assert texts(read) == ["5", "6", "7", "8"]
    (said,) = [line for line in logs if line["event"] == "messages_missed"]
    assert (said["log_level"], said["wanted"], said["earliest"], said["missed"]) == ("error", 2, 5, 3)
    assert REGISTRY.get_sample_value("freshrank_messages_missed_total", {"group": "lossy"}) == 3


def test_retention_reports_what_no_group_has_read_before_it_is_gone(opened: Open) -> None:
    bus = opened(retention_hours=10)
    bus.sink().publish([outgoing("ann", str(n)) for n in range(9)])
    source = bus.source("features", [EVENTS])
    (place,) = Batch(tuple(drained(source, 9))).next_offsets()
    source.commit({place: 4})
    assert bus.trim(NOW + timedelta(hours=7.9)) == {}
    assert bus.trim(NOW + timedelta(hours=8.1)) == {place: 5}
    source.commit({place: 9})
    assert bus.trim(NOW + timedelta(hours=8.1)) == {}


def test_a_group_is_forgotten_when_nobody_reads_for_it_and_then_reads_from_the_beginning(opened: Open) -> None:
    bus = opened()
    bus.sink().publish([outgoing("ann", "1")])
    source = bus.source("features", [EVENTS])
    source.commit(Batch(tuple(drained(source, 1))).next_offsets())
    with pytest.raises(StageUnavailable, match=r"keeps the group .*features: NonEmptyGroupError"):
        bus.forget()
    source.close()
    bus.forget()
    assert bus.view().topics("features") == ()
    assert texts(drained(bus.source("features", [EVENTS]), 1)) == ["1"]


# ------------------------------------------------------------------------------------------------ topics


def test_a_topic_that_differs_from_the_settings_is_named_with_both(opened: Open) -> None:
    opened(partitions=2, retention_hours=1)
    with capture_logs() as logs:
        opened(partitions=6, retention_hours=2)
    said = [line for line in logs if line["event"] == "topic_differs"]
    assert len(said) == 3
    assert said[0]["partitions"] == "2 on Kafka, 6 in the settings"
    assert said[0]["retention_ms"] == "3600000 on Kafka, 7200000 in the settings"


@pytest.mark.parametrize(
    ("config", "value", "said"),
    [("cleanup.policy", "compact", "set it to delete"), ("max.message.bytes", "1000", "1000")],
)
def test_a_topic_that_would_lose_messages_is_refused(
    opened: Open, admin: KafkaAdminClient, topic_prefix: str, config: str, value: str, said: str
) -> None:
    opened()
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic_prefix + EVENTS, {config: value})])
    heard: list[str] = []

    def refused() -> bool:  # the broker takes a moment to say what it was told
        try:
            opened()
        except SettingsInvalid as error:
            heard.append(str(error))
        return bool(heard)

    until(refused)
    assert said in heard[0]


def test_a_message_that_nobody_would_take_is_the_callers_mistake(opened: Open) -> None:
    with pytest.raises(BadRequest, match="MessageSizeTooLarge"):
        opened().sink().publish([Outgoing(EVENTS, "ann", b"x" * 2_000_000)])
