"""User rows in Redis: outages, restarts and losses of the server, rival writers, a Cluster, and refusals at start."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pytest
import redis
from feast_home import feast_at
from live_stack import Stack, missing

from services.commands.keep import reset
from services.domain import (
    Event,
    Interaction,
    KindRule,
    KindRules,
    SettingsInvalid,
    StageUnavailable,
    UserState,
    hash64,
)
from services.features.consumer import FeaturesConsumer
from services.features.fold import fold
from services.features.opening import apply_repo
from services.features.places import feast_environment, redis_online
from services.features.store import FeastFeatureStore
from services.memory import MemoryBus
from services.settings import Settings
from services.telemetry import ROWS_LOST
from services.wire import encode_event
from services.wiring import Home, open_home

T0 = 1_790_000_000_000_000
NOW = datetime(2026, 11, 23, tzinfo=UTC)
RULES = KindRules({"click": KindRule("positive")})


def event(at_us: int, item_id: str = "i") -> Interaction:
    return Interaction(T0 + at_us, hash64(f"e{at_us}"), item_id, "click", None, 1.0)


def row(user_id: str, *times_us: int) -> UserState:
    return fold(UserState(user_id), [event(at_us) for at_us in times_us])


def click(user_id: str, number: int) -> Event:
    at = NOW - timedelta(minutes=90) + timedelta(seconds=number)
    return Event(f"e-{user_id}-{number}", user_id, f"i{number}", "click", at, NOW)


@contextmanager
def store_at(tmp_path: Path, url: str, read_wait_ms: int = 1000) -> Iterator[FeastFeatureStore]:
    store = FeastFeatureStore(feast_at(tmp_path / "home", url, read_wait_ms))
    try:
        yield store
    finally:
        store.close()


# ------------------------------------------------------------------------------------------------- outages


@pytest.mark.slow
def test_a_server_that_goes_away_is_named_in_time_and_comes_back_with_its_rows(
    own_stack: Callable[..., Stack], tmp_path: Path
) -> None:
    stack = own_stack("redis")
    with store_at(tmp_path, stack.settings["FRESHRANK_REDIS_URL"], read_wait_ms=200) as store:
        first, second = row("anna", 1), fold(row("anna", 1), [event(2)])
        assert store.write([first]) == ()

        stack.pause("redis")  # hangs: nothing is refused, nothing is answered
        began = time.monotonic()
        with pytest.raises(StageUnavailable, match="cannot be read"):
            store.read("anna")
        assert time.monotonic() - began < 3
        stack.start("redis")
        assert store.read("anna") == first

        stack.kill("redis")
        began = time.monotonic()
        for call in (lambda: store.read("anna"), lambda: store.write([second]), store.what_it_may_lose):
            with pytest.raises(StageUnavailable, match="Redis cannot be"):
                call()
        assert time.monotonic() - began < 4
        stack.start("redis")
        assert store.read("anna") == first  # a killed server has what it acknowledged
        assert store.write([second]) == ()  # its scripts are gone with it: nothing asks for them
        assert store.read("anna") == second


@pytest.mark.slow
def test_a_consumer_goes_on_after_an_outage_with_every_event_in_its_row(
    own_stack: Callable[..., Stack], tmp_path: Path
) -> None:
    stack = own_stack("redis")
    bus = MemoryBus(1, lambda: NOW)
    source = bus.source("features", ("freshrank.events",))
    source.poll(1, 0)
    with store_at(tmp_path, stack.settings["FRESHRANK_REDIS_URL"]) as store:
        consumer = FeaturesConsumer(store, RULES, lambda: NOW)

        def consume_new(number: int) -> None:
            bus.publish([encode_event(click("anna", number))])
            batch = source.poll(10, 0)
            until = time.monotonic() + 20
            while time.monotonic() < until:
                try:
                    source.commit(consumer.apply(batch))
                    return
                except StageUnavailable:
                    stack.start("redis")
            raise AssertionError("the store did not come back")

        consume_new(1)
        stack.stop("redis")
        consume_new(2)
        stack.kill("redis")
        consume_new(3)
        assert [each.item_id for each in store.read("anna").events] == ["i3", "i2", "i1"]
    source.close()


def test_rows_that_the_server_has_lost_are_said_when_they_are_written_next(redis_url: str, tmp_path: Path) -> None:
    bus = MemoryBus(1, lambda: NOW)
    source = bus.source("features", ("freshrank.events",))
    source.poll(1, 0)
    with store_at(tmp_path, redis_url) as store, redis.Redis.from_url(redis_url) as server:
        consumer = FeaturesConsumer(store, RULES, lambda: NOW)
        for number, users in ((1, ("anna", "bert")), (2, ("anna",))):
            bus.publish([encode_event(click(user, number)) for user in users])
            consumer.apply(source.poll(10, 0))
        before = ROWS_LOST._value.get()
        server.flushdb()
        bus.publish([encode_event(click(user, 3)) for user in ("anna", "carl")])
        consumer.apply(source.poll(10, 0))
        assert ROWS_LOST._value.get() - before == 1  # anna's; carl had none
        assert [each.item_id for each in store.read("anna").events] == ["i3"]
    source.close()


# ------------------------------------------------------------------------------------------------- writers


def test_of_many_writers_at_once_each_adds_its_events(redis_url: str, tmp_path: Path) -> None:
    users, writers, rounds = 40, 3, 8
    failures: list[BaseException] = []

    def add(number: int) -> None:
        try:
            with store_at(tmp_path, redis_url) as store:
                start.wait(60)
                for turn in range(rounds):
                    mine = {f"u{u}": event(1 + turn * 1000 + number * 100 + u) for u in range(users)}
                    while mine:
                        rows = [fold(state, [mine[state.user_id]]) for state in store.read_many(tuple(mine))]
                        mine = {user_id: mine[user_id] for user_id in store.write(rows)}
        except BaseException as error:
            failures.append(error)
            raise

    feast_at(tmp_path / "home", redis_url)  # the registry is there before the race
    start = threading.Barrier(writers)
    threads = [threading.Thread(target=add, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert not failures
    with store_at(tmp_path, redis_url) as store:
        for place, state in enumerate(store.read_many([f"u{u}" for u in range(users)])):
            expected = {T0 + 1 + t * 1000 + n * 100 + place for t in range(rounds) for n in range(writers)}
            assert {each.occurred_us for each in state.events} == expected


def test_a_batch_larger_than_a_pipeline_is_written_and_read_whole(redis_url: str, tmp_path: Path) -> None:
    with store_at(tmp_path, redis_url) as store:
        store._config.online_store.batch_rows_max = 7
        rows = [row(f"u{n}", n + 1) for n in range(50)]
        assert store.write(rows) == ()
        assert store.write([rows[0], row("new", 1), rows[49]]) == ("u0", "u49")
        assert store.read_many([f"u{n}" for n in range(50)]) == tuple(rows)


def test_feasts_own_write_never_replaces_a_newer_row(redis_url: str, tmp_path: Path) -> None:
    with store_at(tmp_path, redis_url) as store:
        for at_us, count in ((T0, 1.0), (T0 + 3, 3.0), (T0 + 2, 2.0), (T0 + 3, 4.0)):
            counts = np.full((1, 9), count, np.float32)
            store.append_item_stats(["x"], counts, np.array([at_us]), NOW)
    feast_store = feast_at(tmp_path / "home", redis_url)
    answer = feast_store.get_online_features(["item_stats:clicks_7d"], [{"item_id": "x"}]).to_dict()
    assert answer["clicks_7d"] == [4.0]
    feast_store.provider.online_store.close()


# ------------------------------------------------------------------------------------------------ at start


def home_settings(tmp_path: Path, url: str, **more: Any) -> Settings:
    return Settings(home=tmp_path / "home", online_store="redis", redis_url=url, **more)


def test_a_server_that_may_lose_rows_is_refused_unless_that_is_allowed(tmp_path: Path) -> None:
    with server(tmp_path / "volatile", "--maxmemory-policy", "allkeys-lru") as port:
        url = f"redis://:secret@127.0.0.1:{port}/0"
        with open_home(home_settings(tmp_path, url)) as home, pytest.raises(SettingsInvalid) as refusal:
            home.consumer("features")
        said = str(refusal.value)
        assert "appendonly is off" in said
        assert "maxmemory-policy is allkeys-lru" in said
        assert "--allow-volatile" in said
        assert "secret" not in said
        with open_home(home_settings(tmp_path, url, redis_allow_volatile=True)) as home:
            home.consumer("features")


def test_a_server_that_keeps_rows_is_taken(redis_url: str, tmp_path: Path) -> None:
    with open_home(home_settings(tmp_path, redis_url)) as home:
        home.refuse_volatile()


def test_the_command_says_in_one_sentence_why_it_does_not_start(tmp_path: Path) -> None:
    with server(tmp_path / "volatile") as port:
        environment = os.environ | {
            "FRESHRANK_HOME": str(tmp_path / "home"),
            "FRESHRANK_ONLINE_STORE": "redis",
            "FRESHRANK_REDIS_URL": f"redis://:secret@127.0.0.1:{port}/0",
        }
        command = [sys.executable, "-m", "services.cli", "consume", "features", "--until-caught-up"]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=100)
        assert ended.returncode == 2
        assert "appendonly is off" in ended.stderr
        assert "secret" not in ended.stderr + ended.stdout
        allowed = subprocess.run([*command, "--allow-volatile"], env=environment, capture_output=True, check=False)
        assert allowed.returncode == 0


def test_feasts_command_line_works_on_rows_in_redis(redis_url: str, tmp_path: Path) -> None:
    environment = feast_environment(tmp_path, redis_online(redis_url, "freshrank"))
    repo = Path(__file__).parents[2] / "feature_repo"
    feast = (sys.executable, "-m", "services.features.command")
    done = subprocess.run([*feast, "apply"], cwd=repo, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    opened = feast_at(tmp_path, redis_url)
    assert apply_repo(opened) is False
    store = FeastFeatureStore(opened)
    store.write([row("anna", 5)])
    command = [*feast, "get-online-features", "-f", "user_behaviour:row_time_us", "-e", "user_id=anna"]
    shown = subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True, check=False)
    assert str(T0 + 5) in shown.stdout, shown.stderr[-2000:]
    store.close()


def test_reset_forgets_the_rows_of_this_instance_and_of_no_other(redis_url: str, tmp_path: Path) -> None:
    mine, other = (home_settings(tmp_path / name, redis_url, redis_key_prefix=name) for name in ("mine", "other"))
    for settings in (mine, other):
        with open_home(settings) as home:
            home.features.write([row("anna", 1)])
    environment = os.environ | {
        "FRESHRANK_HOME": str(mine.home), "FRESHRANK_ONLINE_STORE": "redis", "FRESHRANK_REDIS_URL": redis_url,
        "FRESHRANK_REDIS_KEY_PREFIX": "mine",
    }  # fmt: skip
    command = [sys.executable, "-m", "services.cli", reset.__name__, "--yes", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=100)
    assert json.loads(done.stdout) == {"deleted": str(mine.home)}
    assert Home(mine).features.read("anna").is_stranger
    assert Home(other).features.read("anna") == row("anna", 1)


# ----------------------------------------------------------------------------------------------- a Cluster


def test_rows_live_on_every_node_of_a_cluster(tmp_path: Path) -> None:
    with cluster(tmp_path / "nodes", 3) as ports, store_at(tmp_path, f"redis+cluster://127.0.0.1:{ports[0]}") as store:
        rows = [row(f"user {n}", n + 1) for n in range(60)]
        assert store.write(rows) == ()
        assert store.write([rows[3], row("user 60", 1)]) == ("user 3",)
        assert store.read_many([*(f"user {n}" for n in range(60)), "nobody"]) == (*rows, UserState("nobody"))
        assert store.read("user 7") == rows[7]
        held = [redis.Redis(port=port).dbsize() for port in ports]
        assert sum(held) == 61
        assert min(held) > 5  # of 61 keys over three nodes
        assert store.what_it_may_lose() == ("appendonly is off, so a restart loses rows (set appendonly yes)",)
        store.forget_online()
        assert [redis.Redis(port=port).dbsize() for port in ports] == [0, 0, 0]


@contextmanager
def cluster(folder: Path, nodes: int) -> Iterator[list[int]]:
    """A Redis Cluster without replicas."""
    from contextlib import ExitStack

    with ExitStack() as opened:
        ports = [opened.enter_context(server(folder / str(n), "--cluster-enabled", "yes")) for n in range(nodes)]
        clients = [opened.enter_context(redis.Redis(port=port)) for port in ports]
        for place, client in enumerate(clients):
            first, last = (16384 * place // nodes, 16384 * (place + 1) // nodes - 1)
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            bus = int(clients[0].config_get("cluster-port")["cluster-port"])
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", ports[0], bus)
        until = time.monotonic() + 30
        while not all(client.cluster("info")["cluster_state"] == "ok" for client in clients):
            assert time.monotonic() < until, "the cluster did not form"
            time.sleep(0.05)
        yield ports


@contextmanager
def server(folder: Path, *options: str) -> Iterator[int]:
    """A Redis of this test alone, with these options; its port."""
    binary = which("redis-server")
    if binary is None:
        missing("redis-server")
    folder.mkdir(parents=True)
    port, bus = _free_ports(2)
    secret = () if "--cluster-enabled" in options else ("--requirepass", "secret")
    given = ("--port", str(port), "--cluster-port", str(bus), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder))
    process = subprocess.Popen([str(binary), *given, *secret, *options], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 20
        while True:
            try:
                redis.Redis(port=port, password="secret" if secret else None).ping()
                break
            except redis.ConnectionError:
                assert time.monotonic() < until, "redis-server did not start"
                time.sleep(0.02)
        yield port
    finally:
        process.kill()
        process.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
