"""The containers and the stack without containers are the same: settings of servers, addresses, and freshrank's own."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import servers
import yaml
from typer.main import get_command

from services.cli import app
from services.settings import load_settings

INFRA = Path(__file__).resolve().parents[2] / "infra"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text())
    return loaded


@pytest.fixture
def stack(tmp_path: Path) -> dict[str, servers.Server]:
    """The servers of a stack on the ports that they have when nothing is in the way."""
    ports = {"kafka": 29092, "redis": 26379, "postgres": 25432}
    made = {name: make(tmp_path) for name, make in servers.SERVERS.items()}
    for name, server in made.items():
        server.port = ports[name]
    return made


def test_freshrank_finds_the_servers_by_the_same_settings(
    compose: dict[str, Any], stack: dict[str, servers.Server]
) -> None:
    told = {f"FRESHRANK_{k.upper()}": v for server in stack.values() for k, v in server.settings().items()}
    for name in ("api", "features", "keepers", "retrain"):
        assert compose["services"][name]["environment"] == told


def test_the_settings_are_settings_and_accepted(compose: dict[str, Any]) -> None:
    told = {name.removeprefix("FRESHRANK_").lower(): value for name, value in compose["x-settings"].items()}
    settings = load_settings(**told)
    assert (settings.bus, settings.online_store) == ("kafka", "redis")


def test_the_broker_is_told_the_same(compose: dict[str, Any]) -> None:
    told = compose["services"]["kafka"]["environment"]
    ours = {"KAFKA_" + key.upper().replace(".", "_"): value for key, value in servers.KAFKA_SETTINGS.items()}
    assert ours.items() <= told.items()
    assert told["KAFKA_HEAP_OPTS"] == servers.KAFKA_HEAP
    assert compose["services"]["kafka"]["image"] == f"apache/kafka:{servers.KAFKA_VERSION}"


def test_redis_is_told_the_same(compose: dict[str, Any]) -> None:
    words = compose["services"]["redis"]["command"][1:]
    assert {words[n][2:]: words[n + 1] for n in range(0, len(words), 2)} == servers.REDIS_SETTINGS


def test_postgresql_is_told_the_same(compose: dict[str, Any]) -> None:
    service = compose["services"]["postgres"]
    told = dict(word[2:].split("=") for word in service["command"][1:])
    assert told == servers.POSTGRES_SETTINGS
    assert set(service["environment"].values()) >= {servers.USER, servers.PASSWORD, servers.DATABASE}


def test_every_server_is_published_on_loopback_where_the_settings_look_for_it(compose: dict[str, Any]) -> None:
    published = [port for name in servers.SERVERS for port in compose["services"][name]["ports"]]
    assert all(port.startswith("127.0.0.1:") for port in published)
    wanted = re.findall(r"127\.0\.0\.1:(\d+)", " ".join(compose["x-settings"].values()))
    assert [port.split(":")[1] for port in published] == wanted


def test_the_commands_of_the_services_exist(compose: dict[str, Any]) -> None:
    root = get_command(app)
    for name in ("api", "features", "keepers", "retrain"):
        words = compose["services"][name]["command"]
        root.commands[words[0]].make_context(words[0], list(words[1:]))  # type: ignore[attr-defined]


def test_the_dockerfile_copies_what_the_package_needs() -> None:
    text = (INFRA / "Dockerfile").read_text()
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", text, flags=re.M) for word in line.split()}
    assert copied >= {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "services", "models", "feature_repo"}
    assert all((INFRA.parent / word).exists() for word in copied)


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="no docker-compose here")
def test_compose_reads_the_file() -> None:
    read = subprocess.run(
        ["docker-compose", "-f", str(INFRA / "compose.yaml"), "config", "--quiet"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert read.returncode == 0, read.stderr
