"""The settings of Kafka: what is passed on to its clients, what is refused with a sentence, and what is never shown."""

from __future__ import annotations

import gc
import json
import logging
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition, errors
from structlog.testing import capture_logs
from typer.testing import CliRunner

from services.bus.kafka_client import (
    SECURITY,
    KafkaChoices,
    OwnershipMoved,
    as_unavailable,
    checked_security,
    choices_of,
    open_client,
    quieten,
)
from services.bus.kafka_topics import topic_settings
from services.bus.kafka_view import KafkaView
from services.cli import app
from services.domain import BadRequest, Partition, SettingsInvalid, StageUnavailable
from services.settings import load_settings

SCRAM = {
    "security_protocol": "SASL_SSL",
    "sasl_mechanism": "SCRAM-SHA-512",
    "sasl_plain_username": "freshrank",
    "sasl_plain_password": "hunter2",
    "ssl_check_hostname": "false",
}


@pytest.mark.parametrize("client", [KafkaProducer, KafkaConsumer, KafkaAdminClient])
def test_every_option_that_may_be_set_is_one_that_kafka_python_knows(client: type) -> None:
    assert set(SECURITY) <= set(client.DEFAULT_CONFIG)  # type: ignore[attr-defined]


def test_tls_and_sasl_options_reach_the_clients(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("a certificate")
    given = {**SCRAM, "ssl_cafile": str(tmp_path / "ca.pem")}
    settings = load_settings(kafka_servers="a:9093, b:9093", kafka_security=given, kafka_replication=3)
    choices = choices_of(settings)
    seen: dict[str, object] = {}
    open_client(choices, lambda **options: seen.update(options), acks="all")
    assert {name: seen[name] for name in given} == {**given, "ssl_check_hostname": False}
    assert (seen["bootstrap_servers"], seen["acks"]) == (["a:9093", "b:9093"], "all")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ssl_caflie": "x"}, "ssl_caflie is no option of this kind; there are security_protocol, ssl_cafile"),
        ({"security_protocol": "TLS"}, "security_protocol is 'TLS'; it must be one of PLAINTEXT, SSL"),
        ({"security_protocol": "SASL_SSL"}, "sasl_mechanism is missing; security_protocol=SASL_SSL needs one"),
        ({**SCRAM, "sasl_mechanism": "MAGIC"}, "sasl_mechanism is 'MAGIC'; it must be one of PLAIN, SCRAM-SHA-256"),
        ({**SCRAM, "sasl_plain_password": ""}, "sasl_plain_password is missing; sasl_mechanism=SCRAM-SHA-512 needs it"),
        ({"ssl_cafile": "/nowhere.pem"}, "ssl_cafile names no file: /nowhere.pem"),
        ({"ssl_check_hostname": "perhaps"}, "ssl_check_hostname is 'perhaps'; it must be true or false"),
    ],
)
def test_a_security_option_that_cannot_work_is_refused_with_the_fix(given: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsInvalid, match=f"kafka_security: {said}"):
        checked_security(given)


@pytest.mark.parametrize("servers", ["", " , ", "broker", "broker:", ":9092", "broker:x"])
def test_servers_without_host_or_port_are_refused(servers: str) -> None:
    with pytest.raises(SettingsInvalid, match="kafka_servers"):
        choices_of(load_settings(kafka_servers=servers))


def test_no_command_shows_a_password(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FRESHRANK_HOME", str(tmp_path))
    monkeypatch.setenv("FRESHRANK_KAFKA_SECURITY", json.dumps(SCRAM))
    for options in ([], ["--json"]):
        shown = CliRunner().invoke(app, ["settings", *options]).output
        assert "hunter2" not in shown
        assert "SCRAM-SHA-512" in shown.replace("\n", "") or not options


def test_names_on_a_shared_cluster_carry_the_prefix() -> None:
    choices = KafkaChoices(("a:1",), prefix="shop.")
    assert choices.topic_there("freshrank.events") == "shop.freshrank.events"
    assert choices.topic_here("shop.freshrank.events") == "freshrank.events"
    assert choices.group_there("features") == "shop.freshrank.features"


def test_of_three_copies_two_must_have_a_message_and_retention_is_as_set() -> None:
    made = topic_settings(KafkaChoices(("a:1",), retention_hours=2, replication=3))
    assert (made["min.insync.replicas"], made["retention.ms"], made["cleanup.policy"]) == ("2", "7200000", "delete")
    assert topic_settings(KafkaChoices(("a:1",)))["min.insync.replicas"] == "1"


@pytest.mark.parametrize(
    ("raised", "ours", "said"),
    [
        (errors.KafkaTimeoutError("no answer"), StageUnavailable, "Kafka at a:1 could not commit: KafkaTimeoutError"),
        (errors.NotEnoughReplicasError(), StageUnavailable, "NotEnoughReplicas"),
        (errors.TopicAuthorizationFailedError({"t"}), SettingsInvalid, "refuses to commit"),
        (errors.SaslAuthenticationFailedError("bad password"), SettingsInvalid, "bad password"),
        (errors.MessageSizeTooLargeError("9 MB"), BadRequest, "9 MB"),
        (errors.FencedInstanceIdError(), SettingsInvalid, "kafka_instance_id='x' is used by another process"),
    ],
)
def test_what_kafka_python_raises_becomes_ours(raised: Exception, ours: type[Exception], said: str) -> None:
    with pytest.raises(ours, match=said), as_unavailable(KafkaChoices(("a:1",), instance_id="x"), "commit"):
        raise raised


def test_a_mistake_of_ours_stays_one() -> None:
    with pytest.raises(errors.IllegalStateError), as_unavailable(KafkaChoices(("a:1",)), "poll"):
        raise errors.IllegalStateError("closed")


def test_a_client_that_cannot_be_made_leaves_nothing_running() -> None:
    before = threading.active_count()
    with pytest.raises(StageUnavailable, match=r"Kafka at 127\.0\.0\.1:1 could not be reached"):
        open_client(KafkaChoices(("127.0.0.1:1",), deadline_ms=300), KafkaConsumer)
    assert threading.active_count() == before


def test_kafka_pythons_warnings_become_lines_of_ours_once_in_a_while() -> None:
    quieten()
    with capture_logs() as logs:
        for node in (1, 2):
            logging.getLogger("kafka.test").warning("node %s is gone", node)
        logging.getLogger("kafka.test").info("of no interest")
        try:
            raise OwnershipMoved
        except OwnershipMoved:
            logging.getLogger("kafka.test.listener").exception("the listener failed")
    assert [(line["event"], line["said"]) for line in logs] == [("kafka_client", "node 1 is gone")]


@pytest.mark.parametrize("client", [KafkaProducer, KafkaConsumer, KafkaAdminClient])
def test_a_broker_that_is_away_costs_no_file_descriptors(client: type) -> None:
    process = psutil.Process()
    gc.collect()
    gc.disable()  # a socket in a cycle of garbage would be closed by its collection
    try:
        before = process.num_fds()
        with pytest.raises(StageUnavailable):
            open_client(KafkaChoices(("127.0.0.1:1",), deadline_ms=300), client)
        assert process.num_fds() == before
    finally:
        gc.enable()


def test_a_command_says_in_one_sentence_that_kafka_is_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bus.kafka").touch()
    settings = {"HOME": str(tmp_path), "BUS": "kafka", "KAFKA_SERVERS": "127.0.0.1:1", "KAFKA_DEADLINE_MS": "1500"}
    for name, value in settings.items():
        monkeypatch.setenv(f"FRESHRANK_{name}", value)
    command = [sys.executable, "-m", "services.cli", "status"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    said = "Kafka at 127.0.0.1:1 could not be reached: KafkaTimeoutError: Unable to bootstrap from ['127.0.0.1:1']"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"freshrank: {said}\n")


class Settling:
    """Stands for the client of a broker that has just begun to look after groups."""

    def __init__(self, refusals: int) -> None:
        self.refusals = [errors.CoordinatorNotAvailableError(), errors.CoordinatorLoadInProgressError()] * refusals

    def list_group_offsets(self, group: str) -> dict[str, dict[object, object]]:
        if self.refusals:
            raise self.refusals.pop()
        return {group: {TopicPartition("t", 0): OffsetAndMetadata(7, "", -1)}}


def test_a_group_whose_coordinator_is_just_being_found_is_asked_again_for_a_while() -> None:
    for refusals, deadline_ms in ((2, 6000), (1000, 300)):
        view = KafkaView(KafkaChoices(("a:1",), deadline_ms=deadline_ms), ())
        view._admin = Settling(refusals)
        if refusals == 2:
            assert view.stored("features") == {Partition("t", 0): 7}
        else:
            with pytest.raises(StageUnavailable, match=r"could not say the offsets of features: .*Coordinator"):
                view.stored("features")


def test_checksums_are_not_computed_in_python() -> None:
    """They took a third of all the work of reading and of publishing one by one."""
    from kafka.record import util

    assert util.crc32c_c is not None
