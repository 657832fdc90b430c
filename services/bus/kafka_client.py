"""Clients of kafka-python: how they are opened, what their errors mean here, and how their logs become ours."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import structlog
from kafka import errors
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import KafkaNetSocket

from services.domain import BadRequest, SettingsInvalid, StageUnavailable
from services.settings import Settings

log = structlog.get_logger()
Client = TypeVar("Client")

METADATA_AGE_MS = 3000
"""How soon a topic's new partitions and a leader's move are seen without anything going wrong."""
SAME_WARNING_S = 10.0
CHATTY = ("kafka.net.selector", "kafka.coordinator.assignors")
"""They warn of a machine that is busy, and of what the next rebalance mends by itself."""

REFUSALS = (
    errors.KafkaConfigurationError,
    errors.AuthorizationError,
    errors.SaslAuthenticationFailedError,
    errors.UnsupportedSaslMechanismError,
    errors.IllegalSaslStateError,
    errors.SecurityDisabledError,
    errors.UnsupportedVersionError,
    errors.InvalidReplicationFactorError,
    errors.PolicyViolationError,
    errors.InvalidSessionTimeoutError,
)
"""What waiting does not mend: somebody has to change a setting, here or on the broker."""
TOO_LARGE = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)

PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI")
FILES = ("ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_crlfile")
DIRECT = "direct"
"""The scheme under which kafka-python finds `DirectSocket`, as it finds the sockets of proxies."""
SECURITY = (
    "security_protocol", *FILES, "ssl_check_hostname", "ssl_password", "sasl_mechanism",
    "sasl_plain_username", "sasl_plain_password", "sasl_kerberos_service_name", "sasl_kerberos_domain_name",
    "proxy_url",
)  # fmt: skip
"""The options of kafka-python that `kafka_security` may set: what a text can say about TLS and SASL, and all of its
clients know."""


@dataclass(frozen=True, slots=True)
class KafkaChoices:
    """What was chosen for Kafka. Names on the broker start with `prefix`; the rest of the program never sees them."""

    servers: tuple[str, ...]
    partitions: int = 4
    retention_hours: float = 24 * 14
    prefix: str = ""
    security: Mapping[str, str | bool] = field(default_factory=dict)
    replication: int = 1
    compression: str = "lz4"
    buffer_messages_max: int = 20_000
    deadline_ms: int = 6000
    session_timeout_ms: int = 10_000
    poll_interval_ms_max: int = 300_000
    instance_id: str = ""

    @property
    def where(self) -> str:
        """The servers for a sentence."""
        return ",".join(self.servers)

    def topic_there(self, topic: str) -> str:
        """What a topic is called on the broker."""
        return self.prefix + topic

    def topic_here(self, name: str) -> str:
        """What a topic of the broker is called here."""
        return name.removeprefix(self.prefix)

    def group_there(self, group: str) -> str:
        """What a group is called on the broker: a shared cluster has other `features` and `archive` groups."""
        return f"{self.prefix}freshrank.{group}"


def choices_of(settings: Settings) -> KafkaChoices:
    """What the settings choose. Raises SettingsInvalid."""
    s = settings
    servers = tuple(each.strip() for each in s.kafka_servers.split(",") if each.strip())
    for server in servers:
        host, _, port = server.rpartition(":")
        if not host or not port.isdigit():
            raise SettingsInvalid(f"kafka_servers: {server!r} is not host:port, as 127.0.0.1:9092")
    if not servers:
        raise SettingsInvalid("kafka_servers is empty; name at least one broker as host:port")
    return KafkaChoices(
        servers, s.bus_partitions, s.bus_retention_hours, s.kafka_prefix, checked_security(s.kafka_security),
        s.kafka_replication, s.kafka_compression, s.kafka_buffer_messages_max, s.kafka_deadline_ms,
        s.kafka_session_timeout_ms, s.kafka_poll_interval_ms_max, s.kafka_instance_id,
    )  # fmt: skip


def checked_security(given: Mapping[str, str]) -> dict[str, str | bool]:
    """The options for the clients. Raises SettingsInvalid where one is unknown, incomplete or names no file."""
    unknown = sorted(set(given) - set(SECURITY))
    if unknown:
        raise _refused(unknown[0], f"is no option of this kind; there are {', '.join(SECURITY)}")
    for name, among in (("security_protocol", PROTOCOLS), ("sasl_mechanism", MECHANISMS)):
        if name in given and given[name] not in among:
            raise _refused(name, f"is {given[name]!r}; it must be one of {', '.join(among)}")
    protocol = given.get("security_protocol", "PLAINTEXT")
    if protocol.startswith("SASL") and "sasl_mechanism" not in given:
        raise _refused("sasl_mechanism", f"is missing; security_protocol={protocol} needs one")
    if given.get("sasl_mechanism", "GSSAPI") != "GSSAPI":
        for name in ("sasl_plain_username", "sasl_plain_password"):
            if not given.get(name):
                raise _refused(name, f"is missing; sasl_mechanism={given['sasl_mechanism']} needs it")
    for name in FILES:
        if name in given and not Path(given[name]).is_file():
            raise _refused(name, f"names no file: {given[name]}")
    options: dict[str, str | bool] = dict(given)
    if "ssl_check_hostname" in given:
        options["ssl_check_hostname"] = _truth(given["ssl_check_hostname"])
    return options


def open_client(choices: KafkaChoices, make: Callable[..., Client], **options: Any) -> Client:
    """A client of kafka-python. Raises StageUnavailable when no server answers in time; nothing is left running then.

    kafka-python starts a thread before it looks for a server, and forgets it when there is none.
    """
    made: list[Any] = []

    def client(**configs: Any) -> Any:
        made.append(
            KafkaNetClient(
                socket_connection_setup_timeout_ms=choices.deadline_ms // 2,
                socket_connection_setup_timeout_max_ms=choices.deadline_ms,
                **configs,
            )
        )
        return made[-1]

    try:
        with as_unavailable(choices, "be reached"):
            return make(
                bootstrap_servers=list(choices.servers),
                client_id="freshrank",
                bootstrap_timeout_ms=choices.deadline_ms,
                metadata_max_age_ms=METADATA_AGE_MS,
                reconnect_backoff_max_ms=1000,
                kafka_client=client,
                **{"proxy_url": f"{DIRECT}://", **choices.security, **options},
            )
    except BaseException:
        for each in made:
            with suppress(Exception):
                each.close()
        raise


@contextmanager
def as_unavailable(choices: KafkaChoices, doing: str) -> Iterator[None]:
    """Turn what kafka-python raises into our errors: an outage, a setting to mend, or a message that is too large."""
    try:
        yield
    except errors.FencedInstanceIdError as error:
        raise SettingsInvalid(
            f"kafka_instance_id={choices.instance_id!r} is used by another process, which has taken over: give each"
            " process its own"
        ) from error
    except REFUSALS as error:
        raise SettingsInvalid(f"Kafka at {choices.where} refuses to {doing}: {_said(error)}") from error
    except TOO_LARGE as error:
        raise BadRequest(f"Kafka at {choices.where} could not {doing}: {_said(error)}") from error
    except errors.IllegalStateError:
        raise  # our mistake, no outage
    except errors.KafkaError as error:
        raise StageUnavailable(f"Kafka at {choices.where} could not {doing}: {_said(error)}") from error


class DirectSocket(KafkaNetSocket):  # type: ignore[misc]
    """A connection without a proxy. kafka-python 3.0.12 forgets to close the socket of one that fails, so each try at a
    broker that is away held a file descriptor until a collection of garbage came by."""

    SCHEMES = (DIRECT,)

    async def sock_connect(self, net: Any, sock: socket.socket, *args: Any, **named: Any) -> socket.socket:
        """KafkaNetSocket."""
        try:
            connected: socket.socket = await super().sock_connect(net, sock, *args, **named)
        except BaseException:  # also the end of a task that waits to be connected
            sock.close()
            raise
        return connected


class OwnershipMoved(Exception):
    """Raised by a rebalance listener so that `KafkaConsumer.poll` returns at once, before anything else moves."""


def quieten() -> None:
    """kafka-python's warnings and errors become lines of ours, each sentence once in 10 s; all else is dropped.

    They are details (`info`): what an outage means is said once by whoever meets it, on the command line in a sentence.
    """
    logger = logging.getLogger("kafka")
    if not any(isinstance(each, _ToStructlog) for each in logger.handlers):
        logger.addHandler(_ToStructlog())
    logger.setLevel(logging.WARNING)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    logger.propagate = False


class _ToStructlog(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: dict[tuple[str, str], float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """logging.Handler."""
        if record.exc_info and isinstance(record.exc_info[1], OwnershipMoved):
            return
        key = (record.name, str(record.msg))  # the sentence before its values: not more of them than in kafka-python
        now = time.monotonic()
        if now - self._said.get(key, -SAME_WARNING_S) < SAME_WARNING_S:
            return
        self._said[key] = now
        detail = str(record.exc_info[1]) if record.exc_info and record.exc_info[1] else None
        log.info("kafka_client", source=record.name, said=record.getMessage(), detail=detail)


def _refused(option: str, why: str) -> SettingsInvalid:
    return SettingsInvalid(f"kafka_security: {option} {why}")


def _truth(text: str) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in known:
        raise _refused("ssl_check_hostname", f"is {text!r}; it must be true or false")
    return known[text.lower()]


def _said(error: BaseException) -> str:
    name, text = type(error).__name__, str(error)
    return text if name in text else f"{name}: {text}".rstrip(": ")
