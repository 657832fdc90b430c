"""The servers of `infra/stack` as the suites get them: they answer, each test has its place, outages end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
import redis
from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic
from live_stack import ROOT, Stack


def stack(folder: Path, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "infra" / "stack"), *args, "--folder", str(folder)],
        check=False, capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip


def test_what_is_published_is_read_back_from_the_broker(kafka_servers: str, topic_prefix: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=kafka_servers)
    topic = topic_prefix + "letters"
    admin.create_topics([NewTopic(name=topic, num_partitions=2, replication_factor=1)])
    producer = KafkaProducer(bootstrap_servers=kafka_servers, acks="all")
    producer.send(topic, b"hello").get(timeout=10)
    producer.close()
    consumer = KafkaConsumer(
        topic, bootstrap_servers=kafka_servers, auto_offset_reset="earliest", consumer_timeout_ms=9000
    )
    assert next(consumer).value == b"hello"
    consumer.close()
    admin.delete_topics([topic])
    admin.close()


@pytest.mark.parametrize("turn", [1, 2])
def test_a_redis_database_is_empty_for_every_test_and_keeps_what_is_written(redis_url: str, turn: int) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("turn", turn)
        assert client.config_get("appendonly")["appendonly"] == "yes"


@pytest.mark.parametrize("turn", [1, 2])
def test_a_database_is_empty_for_every_test(database_url: str, turn: int) -> None:
    with psycopg.connect(database_url) as connection:
        tables = connection.execute("select count(*) from pg_tables where schemaname = 'public'").fetchone()
        assert tables == (0,)
        connection.execute(f"create table turn_{turn} (n int)")


@pytest.mark.slow
def test_servers_of_ones_own_go_away_and_come_back_with_what_they_knew(own_stack: Callable[..., Stack]) -> None:
    own = own_stack("redis", "postgres")
    client = redis.Redis.from_url(own.settings["FRESHRANK_REDIS_URL"], socket_timeout=0.3)
    database = own.settings["FRESHRANK_DATABASE_URL"]
    client.set("kept", "yes")
    with psycopg.connect(database) as connection:
        connection.execute("create table kept (n int)")
    own.kill("redis")
    own.kill("postgres")
    with pytest.raises(redis.ConnectionError):
        client.get("kept")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(database)
    own.start("redis")
    own.start("postgres")
    assert client.get("kept") == b"yes"
    with psycopg.connect(database) as connection:
        assert connection.execute("select count(*) from kept").fetchone() == (0,)
    own.pause("redis")
    with pytest.raises(redis.TimeoutError):
        client.get("kept")
    own.start("redis")
    assert client.get("kept") == b"yes"


def test_up_twice_is_up_once_and_down_ends_only_its_own(tmp_path: Path, redis_url: str) -> None:
    assert stack(tmp_path, "up", "--only", "redis").returncode == 0
    first = stack(tmp_path, "status", "--only", "redis").stdout
    assert stack(tmp_path, "up", "--only", "redis").returncode == 0
    assert stack(tmp_path, "status", "--only", "redis").stdout == first
    settings = stack(tmp_path, "env").stdout
    assert "FRESHRANK_ONLINE_STORE=redis" in settings
    assert "FRESHRANK_KAFKA_SERVERS" not in settings
    assert stack(tmp_path, "down", "--wipe").returncode == 0
    assert stack(tmp_path, "status", "--only", "redis").returncode == 1
    assert stack(tmp_path, "env").returncode == 1
    with redis.Redis.from_url(redis_url) as another:
        assert another.ping()


def test_a_taken_port_is_left_alone(tmp_path: Path, redis_url: str) -> None:
    taken = redis_url.split(":")[2].split("/", maxsplit=1)[0]
    refused = stack(tmp_path, "up", "--only", "redis", "--port", f"redis={taken}")
    assert refused.returncode == 1
    assert "is taken" in refused.stderr


def test_what_is_missing_is_named_with_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(sys.executable)
    started = time.monotonic()
    nothing = stack(tmp_path, "up", "--only", "redis", "--no-install", PATH=str(tmp_path / "bin"))
    assert nothing.returncode == 3
    assert "sudo apt-get install redis-server" in nothing.stderr
    assert time.monotonic() - started < 10
