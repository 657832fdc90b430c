"""Where the stream is measured: the servers of `infra/stack`, and for every measurement a place of its own on them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import redis

ROOT = Path(__file__).resolve().parents[2]
STACK = ROOT / "infra" / "stack"
PARTITIONS = 8
"""Of each topic: what two processes can share, and small enough for one broker on two cores."""


@dataclass(frozen=True, slots=True)
class Servers:
    """A running stack: its folder and the settings that point at it."""

    folder: Path
    settings: dict[str, str]

    def kafka_bytes(self, prefix: str) -> int:
        """Bytes of the log of all topics that begin so; indexes, made large and mostly empty, are left out."""
        logs = self.folder.glob(f"kafka*/**/{prefix}*/*.log")
        return sum(path.stat().st_size for path in logs)

    def redis_bytes(self) -> int:
        """What Redis holds in memory for its keys."""
        with redis.Redis.from_url(self.settings["FRESHRANK_REDIS_URL"]) as client:
            return int(client.info("memory")["used_memory_dataset"])

    def redis_cpu_s(self) -> float:
        """Processor time that Redis has used so far."""
        with redis.Redis.from_url(self.settings["FRESHRANK_REDIS_URL"]) as client:
            used = client.info("cpu")
        return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


@dataclass(frozen=True, slots=True)
class Place:
    """One measurement's own topics, keys, database and home; the environment names them while it is entered."""

    servers: Servers
    name: str
    home: Path


@contextmanager
def servers(folder: Path, keep: bool) -> Iterator[Servers]:
    """Start all three (or use those that run there), and end them, their data too, unless they are to be kept."""
    _stack(folder, "up")
    try:
        yield Servers(folder, dict(line.split("=", 1) for line in _stack(folder, "env").splitlines()))
    finally:
        if not keep:
            _stack(folder, "down", "--wipe")


@contextmanager
def place(on: Servers, work: Path) -> Iterator[Place]:
    """An empty place on the servers; gone afterwards, so that one measurement does not slow the next."""
    name = f"bench-{uuid.uuid4().hex[:8]}"
    server = on.settings["FRESHRANK_DATABASE_URL"]
    database = name.replace("-", "_")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {database}")
    with redis.Redis.from_url(on.settings["FRESHRANK_REDIS_URL"]) as client:
        client.flushdb()
    variables = {
        **on.settings,
        "FRESHRANK_HOME": str(work / name),
        "FRESHRANK_DATABASE_URL": f"{server.rsplit('/', 1)[0]}/{database}",
        "FRESHRANK_KAFKA_PREFIX": f"{name}.",
        "FRESHRANK_REDIS_KEY_PREFIX": name,
        "FRESHRANK_BUS_PARTITIONS": str(PARTITIONS),
        "FRESHRANK_LOG_LEVEL": "warning",
        "FRESHRANK_EFFORT": "demo",
        "FRESHRANK_RETRAIN_EVERY_HOURS": "0",
    }
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
    try:
        yield Place(on, name, work / name)
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
        _forget(on, name, server, database)
        shutil.rmtree(work / name, ignore_errors=True)


def _forget(on: Servers, name: str, server: str, database: str) -> None:
    from kafka.admin import KafkaAdminClient

    admin = KafkaAdminClient(bootstrap_servers=on.settings["FRESHRANK_KAFKA_SERVERS"])
    admin.delete_topics([topic for topic in admin.list_topics() if str(topic).startswith(f"{name}.")])
    admin.close()
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {database} WITH (FORCE)")


def _stack(folder: Path, *arguments: str) -> str:
    command = [sys.executable, str(STACK), *arguments, "--folder", str(folder)]
    ended = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if ended.returncode:
        sys.exit(ended.returncode)  # it has said why
    return ended.stdout
