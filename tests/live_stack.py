"""Live servers for tests: Kafka, Redis and PostgreSQL of `infra/stack`, one stack for all workers of a run.

A test that asks for `kafka_servers`, `redis_url` or `database_url` gets a server, with a place of its own on it. The
first one starts the stack (build/test-stack), the end of the run ends it (KEEP_STACK=1 lets it run on). Where the
servers cannot be had such tests are skipped and the summary names their suites; with FRESHRANK_REQUIRE_LIVE=1 that is
a failure.

Tests that take a server away ask for `own_stack`: the stack of all is never stopped under somebody's feet.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "test-stack"
USED = ROOT / "build" / "test-stack.used"
"""Locked (shared) by every process that uses the stack: the last one may end it."""
CANNOT_BE_HAD = 3
MISSING = "live servers cannot be had: "
FIXTURES = {"kafka_servers", "redis_url", "database_url", "live_stack", "own_stack"}
START_S = 300
"""The jars and packages are fetched in this time, too, the first time."""

_users: list[contextlib.ExitStack] = []


class Stack:
    """The servers of one folder, through `infra/stack`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def up(self, *names: str) -> None:
        """Start these servers (all where none is named) and wait until they answer."""
        done = self._call("up", *(("--only", ",".join(names)) if names else ()))
        if done.returncode == CANNOT_BE_HAD:
            missing(done.stderr.strip())
        assert done.returncode == 0, done.stderr

    def stop(self, name: str) -> None:
        """Take a server away in good order; `start` brings it back on the same port."""
        self._must("stop", name)

    def kill(self, name: str) -> None:
        """Take a server away by SIGKILL."""
        self._must("kill", name)

    def pause(self, name: str) -> None:
        """Let a server hang: connections stay, answers do not come. `start` ends it."""
        self._must("pause", name)

    def start(self, name: str) -> None:
        """Bring a server back and wait until it answers."""
        self._must("start", name)

    def down(self) -> None:
        """End all servers and forget their data."""
        self._must("down", "--wipe")

    @property
    def settings(self) -> dict[str, str]:
        """What `infra/stack env` says: FRESHRANK_... settings."""
        return dict(line.split("=", 1) for line in self._must("env").splitlines())

    def _must(self, *args: str) -> str:
        done = self._call(*args)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _call(self, *args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "infra" / "stack"), *args, "--folder", str(self.folder)]
        environment = {**os.environ, "STACK_BRIEF": "1"}
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=START_S, env=environment)


def missing(why: str) -> None:
    """End the test here: a failure where live suites are required, skipped and said elsewhere."""
    if os.environ.get("FRESHRANK_REQUIRE_LIVE") == "1":
        pytest.fail(MISSING + why, pytrace=False)
    pytest.skip(MISSING + why)


@pytest.fixture(scope="session")
def live_stack() -> Stack:
    """The stack that all tests of a run share: nobody stops its servers."""
    if not _users:
        use = contextlib.ExitStack()
        USED.parent.mkdir(exist_ok=True)
        fcntl.flock(use.enter_context(USED.open("a")), fcntl.LOCK_SH)
        _users.append(use)
    return Stack(FOLDER)


def _setting(stack: Stack, server: str, name: str) -> str:
    stack.up(server)
    return stack.settings[name]


@pytest.fixture(scope="session")
def kafka_servers(live_stack: Stack) -> str:
    """host:port of the broker. Topics there are everybody's: a test names its own, by `topic_prefix`."""
    return _setting(live_stack, "kafka", "FRESHRANK_KAFKA_SERVERS")


@pytest.fixture
def topic_prefix() -> str:
    """The beginning of the topics and groups of this test alone."""
    return f"t{uuid.uuid4().hex[:10]}."


@pytest.fixture(scope="session")
def _redis_server(live_stack: Stack) -> str:
    return _setting(live_stack, "redis", "FRESHRANK_REDIS_URL")


@pytest.fixture
def redis_url(_redis_server: str) -> Iterator[str]:
    """An empty logical database of this test alone."""
    import redis

    base = _redis_server.rsplit("/", 1)[0]
    with redis.Redis.from_url(f"{base}/0") as counter:
        number = 1 + int(counter.incr("tests")) % 511
    url = f"{base}/{number}"
    with redis.Redis.from_url(url) as own:
        own.flushdb()
        yield url
        own.flushdb()


@pytest.fixture(scope="session")
def _postgres_server(live_stack: Stack) -> str:
    return _setting(live_stack, "postgres", "FRESHRANK_DATABASE_URL")


@pytest.fixture
def database_url(_postgres_server: str) -> Iterator[str]:
    """An empty PostgreSQL database of this test alone."""
    import psycopg

    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(_postgres_server, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        yield f"{_postgres_server.rsplit('/', 1)[0]}/{name}"
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def server_settings(kafka_servers: str, topic_prefix: str, redis_url: str, database_url: str) -> dict[str, str]:
    """The settings of an instance on all three servers that nobody else can see."""
    return {
        "bus": "kafka",
        "kafka_servers": kafka_servers,
        "kafka_prefix": topic_prefix,
        "online_store": "redis",
        "redis_url": redis_url,
        "database_url": database_url,
    }


def _own(_live_stack: Stack) -> Iterator[Callable[..., Stack]]:
    stacks: list[Stack] = []

    def make(*names: str) -> Stack:
        stack = Stack(FOLDER.with_name(f"test-stack-{uuid.uuid4().hex[:8]}"))
        stacks.append(stack)
        stack.up(*names)
        return stack

    yield make
    for stack in stacks:
        stack.down()
        (stack.folder / "lock").unlink()
        (stack.folder / "env").unlink()
        stack.folder.rmdir()


@pytest.fixture
def own_stack(live_stack: Stack) -> Iterator[Callable[..., Stack]]:
    """`own_stack("redis", "kafka")`: servers of this test alone, which it may stop, kill and pause."""
    yield from _own(live_stack)


@pytest.fixture(scope="module")
def module_stack(live_stack: Stack) -> Iterator[Callable[..., Stack]]:
    """The same for the tests of a module, each of which leaves them running for the next."""
    yield from _own(live_stack)


# ------------------------------------------------------------------------------------------------- hooks


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What asks for a server is `live`."""
    for item in items:
        if FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.live)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the suites that did not run for want of servers."""
    skipped: dict[str, set[str]] = {}
    for each in terminalreporter.stats.get("skipped", ()):
        _, found, why = str(each.longrepr).partition(MISSING)
        if found:
            skipped.setdefault(why.rstrip("')"), set()).add(each.nodeid.split("::")[0])
    if skipped:
        terminalreporter.section("live suites that did not run", red=True)
    for why, suites in skipped.items():
        terminalreporter.line(why)
        terminalreporter.line("  " + "\n  ".join(sorted(suites)))


def pytest_unconfigure(config: pytest.Config) -> None:
    """The end of a run ends the stack that it or a run before it started, unless somebody still uses it."""
    while _users:
        _users.pop().close()
    if hasattr(config, "workerinput") or os.environ.get("KEEP_STACK") or not (FOLDER / "env").exists():
        return
    deadline = time.monotonic() + 10
    with USED.open("a") as used:
        while time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
                Stack(FOLDER).down()
                return
            time.sleep(0.1)
