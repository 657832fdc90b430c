"""The topics on Kafka: made with settings that keep the promises, and checked where they are there already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from kafka import KafkaAdminClient, errors
from kafka.admin import ConfigResource, ConfigResourceType

from services.bus.kafka_client import KafkaChoices
from services.domain import SettingsInvalid
from services.wire import BYTES_MAX

log = structlog.get_logger()

HOUR_MS = 3_600_000
MESSAGE_BYTES_MAX = 1_048_576
"""Largest batch of messages the broker takes: Kafka's own default, and what the producer sends at most."""
MESSAGE_BYTES_LEAST = 2 * BYTES_MAX
"""Below this a single message that the program accepts may not fit."""


def prepare(admin: KafkaAdminClient, choices: KafkaChoices, topics: Sequence[str]) -> None:
    """Make the topics that are missing and check the others.

    Raises SettingsInvalid where one cannot hold what is promised, and says in the log what differs from the settings:
    Kafka's own settings win, and only whoever runs it changes them.
    """
    names = [choices.topic_there(topic) for topic in topics]
    missing = [name for name in names if name not in described(admin, names)]
    if missing:
        _create(admin, choices, missing)
    _check(admin, choices, names)


def described(admin: KafkaAdminClient, names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """What the broker knows of each topic that exists, by its name there."""
    return {each["name"]: each for each in admin.describe_topics(list(names)) if not each["error_code"]}


def topic_settings(choices: KafkaChoices) -> dict[str, str]:
    """How a topic is made. Two of three copies must have a message before it counts, where there are three."""
    return {
        "cleanup.policy": "delete",
        "retention.ms": str(int(choices.retention_hours * HOUR_MS)),
        "min.insync.replicas": str(max(1, choices.replication - 1)),
        "max.message.bytes": str(MESSAGE_BYTES_MAX),
        "compression.type": "producer",
        "message.timestamp.type": "CreateTime",
    }


def _create(admin: KafkaAdminClient, choices: KafkaChoices, names: Sequence[str]) -> None:
    made = {"num_partitions": choices.partitions, "replication_factor": choices.replication}
    try:
        admin.create_topics({name: {**made, "configs": topic_settings(choices)} for name in names})
        log.info("topics_created", topics=names, **made)
    except errors.TopicAlreadyExistsError:
        pass  # another process was faster with at least one; the others are looked at below
    admin.wait_for_topics(names, timeout_ms=choices.deadline_ms)


def _check(admin: KafkaAdminClient, choices: KafkaChoices, names: Sequence[str]) -> None:
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    configs = admin.describe_configs(resources, config_filter="all")["topic"]
    for name, topic in described(admin, names).items():
        has = {key: str(each["value"]) for key, each in configs[name].items()}
        _refuse(name, has)
        partitions = topic["partitions"]
        differing = {
            "partitions": (len(partitions), choices.partitions),
            "replication": (min(len(each["replica_nodes"]) for each in partitions), choices.replication),
            "retention_ms": (int(has["retention.ms"]), int(topic_settings(choices)["retention.ms"])),
            "min_insync_replicas": (int(has["min.insync.replicas"]), max(1, choices.replication - 1)),
        }
        differing = {what: both for what, both in differing.items() if both[0] != both[1]}
        if differing:
            said = {what: f"{there} on Kafka, {here} in the settings" for what, (there, here) in differing.items()}
            log.warning("topic_differs", topic=name, **said)


def _refuse(name: str, has: Mapping[str, str]) -> None:
    """What would lose messages."""
    if "compact" in has["cleanup.policy"]:
        raise SettingsInvalid(
            f"the topic {name} has cleanup.policy={has['cleanup.policy']}: it forgets all but the newest message of a"
            " key; set it to delete"
        )
    if int(has["max.message.bytes"]) < MESSAGE_BYTES_LEAST:
        raise SettingsInvalid(
            f"the topic {name} has max.message.bytes={has['max.message.bytes']}: messages of up to {BYTES_MAX} bytes"
            f" are accepted, so set it to {MESSAGE_BYTES_LEAST} at least"
        )
