"""The three servers of a stack: what each needs, how it is started, and how one knows that it answers."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

from machine import Failed, as_user, ask, born, descendants, only_one, process_fields, run, tail, which

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "freshrank"
"""Survives `down --wipe`: the jars of Kafka, and which ports the stacks of this user hold."""
KAFKA_VERSION = "4.1.0"
JAVA_MIN = 17
READY_S = 90.0
STOP_S = 30.0
USER = PASSWORD = DATABASE = "freshrank"

# What the servers are told, here and in compose.yaml (a test compares them).
KAFKA_SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "auto.create.topics.enable": "false",  # topics are made by freshrank, with its own settings
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "10",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "10",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "broker.session.timeout.ms": "3000",  # a killed broker comes back after this time
    "broker.heartbeat.interval.ms": "1000",
}
KAFKA_HEAP = "-Xmx512m"
BRIEF = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
"""Of a JVM that lives briefly: its quick compiler alone. A broker answers after 4.2 s of processor time, not 7.5."""
LIVES_BRIEFLY = os.environ.get("STACK_BRIEF") == "1"
"""The stack is made for a run of tests and wiped after it: nothing has to outlive the machine."""
REDIS_SETTINGS = {
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
    "databases": "512",
}
POSTGRES_SETTINGS = {"max_connections": "200", "shared_buffers": "64MB"}
LOG4J = """\
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %p %c{1} %m%n
rootLogger.level = warn
rootLogger.appenderRef.console.ref = console
logger.server.name = kafka.server
logger.server.level = info
logger.groups.name = org.apache.kafka.coordinator.group
logger.groups.level = info
"""


class Server:
    """One server of a stack: its files, its port, its process."""

    name: str
    packages: tuple[str, ...]

    def __init__(self, stack: Path) -> None:
        self.folder = stack / self.name
        self.log = stack / f"{self.name}.log"
        self._file = self.folder / "server.json"
        self.state: dict[str, Any] = json.loads(self._file.read_text()) if self._file.exists() else {}
        self.port: int = self.state.get("port", 0)

    def missing(self) -> tuple[str, ...]:
        """The Debian packages that it lacks on this machine."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Whatever has to be in its folder before it starts; harmless when it is there."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """What starts it in the foreground."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether it serves requests."""
        raise NotImplementedError

    def settings(self) -> dict[str, str]:
        """The settings of freshrank that lead here."""
        raise NotImplementedError

    user: str | None = None
    stop_signal = signal.SIGTERM
    ports = 1

    def keep(self, **changes: object) -> None:
        """Write down where it is."""
        self.state.update(changes, port=self.port)
        self.folder.mkdir(parents=True, exist_ok=True)
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps(self.state))
        fresh.replace(self._file)

    @property
    def pid(self) -> int:
        """Its process, 0 when there is none; a process that merely has the same number is not it."""
        pid = self.state.get("pid") or 0
        return pid if pid and born(pid) == self.state.get("born") else 0

    @property
    def paused(self) -> bool:
        """Whether it was stopped by SIGSTOP."""
        return bool(self.pid) and process_fields(self.pid)[:1] == ["T"]

    def start(self) -> None:
        """Start the process; `wait` says when it answers."""
        self.prepare()
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True,
                **as_user(self.user),
            )  # fmt: skip
        self.keep(pid=process.pid, born=born(process.pid), held=True)

    def settle(self) -> None:
        """What is to be done once it answers."""

    def wait(self) -> None:
        """Until it answers, and is settled. Raises Failed with the end of its log when it dies or takes too long."""
        deadline = time.monotonic() + READY_S
        while not self.answers():
            if not self.pid or time.monotonic() > deadline:
                why = "did not answer in time" if self.pid else "ended by itself"
                raise Failed(f"{self.name} {why}; {self.log} ends with:\n{tail(self.log, 15)}")
            time.sleep(0.05)
        self.settle()

    def signal(self, number: int) -> None:
        """A signal to its process and all that came from it."""
        for pid in (self.pid, *descendants(self.pid)) if self.pid else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self) -> None:
        """End its process, gently at first."""
        if self.paused:
            self.signal(signal.SIGCONT)
        if pid := self.pid:
            os.kill(pid, self.stop_signal)
        deadline = time.monotonic() + STOP_S
        while self.pid and time.monotonic() < deadline:
            time.sleep(0.02)
        self.signal(signal.SIGKILL)


class Kafka(Server):
    """One broker that is its own controller (KRaft)."""

    name = "kafka"
    ports = 2

    def missing(self) -> tuple[str, ...]:
        return ("openjdk-17-jre-headless",) * (not java_runs()) + ("maven",) * (
            not jars().exists() and not which("mvn")
        )

    def prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        where = {
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self.port + 1}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "controller.quorum.voters": f"1@127.0.0.1:{self.port + 1}",
            "log.dirs": str(self.folder / "data"),
        }
        self._conf.write_text("".join(f"{key}={value}\n" for key, value in {**KAFKA_SETTINGS, **where}.items()))
        (self.folder / "log4j2.properties").write_text(LOG4J)
        if not (self.folder / "data" / "meta.properties").exists():
            cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")
            java = self._java("-Xmx128m", *BRIEF)
            run([*java, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(self._conf)])

    def command(self) -> list[str]:
        wanted = os.environ.get("KAFKA_JVM_PERFORMANCE_OPTS", "").split()  # by the name that Kafka's own scripts read
        wanted = wanted or (list(BRIEF) if LIVES_BRIEFLY else [])
        return [*self._java(KAFKA_HEAP, *wanted), "kafka.Kafka", str(self._conf)]

    def answers(self) -> bool:
        request = struct.pack(">hhih", 18, 0, 1, -1)  # ApiVersions v0, correlation 1, no client id
        reply = ask(self.port, struct.pack(">i", len(request)) + request, 8)
        return len(reply) == 8 and reply[4:] == struct.pack(">i", 1)

    def settings(self) -> dict[str, str]:
        return {"bus": "kafka", "kafka_servers": f"127.0.0.1:{self.port}"}

    @property
    def _conf(self) -> Path:
        return self.folder / "server.properties"

    def _java(self, *flags: str) -> list[str]:
        log4j = f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}"
        return ["java", *flags, log4j, "-cp", f"{jars()}/*"]


class Redis(Server):
    """One server that writes every change to its append-only file."""

    name = "redis"

    def missing(self) -> tuple[str, ...]:
        return () if which("redis-server") else ("redis-server",)

    def prepare(self) -> None:
        (self.folder / "data").mkdir(parents=True, exist_ok=True)

    def command(self) -> list[str]:
        where = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self.folder / "data")}
        flags = ((f"--{key}", value) for key, value in {**REDIS_SETTINGS, **where}.items())
        return ["redis-server", *(word for flag in flags for word in flag)]

    def answers(self) -> bool:
        return ask(self.port, b"PING\r\n", 7) == b"+PONG\r\n"

    def settings(self) -> dict[str, str]:
        return {"online_store": "redis", "redis_url": f"redis://127.0.0.1:{self.port}/0"}


class Postgres(Server):
    """One server with one user and one database; as root it runs as the user that Debian's package makes."""

    name = "postgres"
    stop_signal = signal.SIGINT  # fast: ends the connections and shuts down

    @property
    def user(self) -> str | None:  # type: ignore[override]
        return "postgres" if os.geteuid() == 0 else None

    def missing(self) -> tuple[str, ...]:
        return () if postgres_programs() else ("postgresql",)

    def prepare(self) -> None:
        data = self._data
        if (data / "PG_VERSION").exists():
            left = data / "postmaster.pid"
            if left.exists() and not born(int(left.read_text().split()[0])):
                left.unlink()  # PostgreSQL takes a killed process that nobody has reaped yet for a running one
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        data.mkdir(parents=True, exist_ok=True)
        password = data.parent / f".{data.name}.password"
        password.write_text(PASSWORD)
        if self.user:
            shutil.chown(data, self.user, self.user)
            shutil.chown(password, self.user, self.user)
        run(
            [self._program("initdb"), "-D", str(data), "-U", USER, f"--pwfile={password}", "-A", "scram-sha-256",
             "-E", "UTF8", "--locale=C", *(("--no-sync",) if LIVES_BRIEFLY else ())],
            user=self.user,
        )  # fmt: skip
        password.unlink()

    def command(self) -> list[str]:
        where = {"port": str(self.port), "listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
        lasting = {"fsync": "off"} if LIVES_BRIEFLY else {}  # each database that is dropped waits for all to be synced
        flags = (f"--{key}={value}" for key, value in {**POSTGRES_SETTINGS, **where, **lasting}.items())
        return [self._program("postgres"), "-D", str(self._data), *flags]

    def answers(self) -> bool:
        return subprocess.run([*self._client("pg_isready"), "-q"], check=False).returncode == 0

    def settle(self) -> None:
        done = subprocess.run(
            [*self._client("createdb"), "-U", USER, DATABASE], check=False, capture_output=True, text=True,
            env={**os.environ, "PGPASSWORD": PASSWORD},
        )  # fmt: skip
        if done.returncode != 0 and "already exists" not in done.stderr:
            raise Failed(f"no database could be made: {done.stderr.strip()}")

    def settings(self) -> dict[str, str]:
        return {"database_url": f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{DATABASE}"}

    def _program(self, name: str) -> str:
        return f"{postgres_programs()}/{name}"

    def _client(self, name: str) -> list[str]:
        return [self._program(name), "-h", "127.0.0.1", "-p", str(self.port)]

    @property
    def _data(self) -> Path:
        """In the stack's folder, or, where the server's user cannot get there, in a folder named after it."""
        if "data" not in self.state:
            self.folder.mkdir(parents=True, exist_ok=True)
            reachable = subprocess.run(["test", "-x", str(self.folder)], check=False, cwd="/", **as_user(self.user))
            digest = hashlib.sha256(str(self.folder).encode()).hexdigest()[:12]
            data = self.folder / "data" if reachable.returncode == 0 else Path(f"/var/tmp/freshrank-postgres-{digest}")
            self.keep(data=str(data))
        return Path(self.state["data"])


SERVERS: dict[str, type[Server]] = {each.name: each for each in (Kafka, Redis, Postgres)}


# ------------------------------------------------------------------------------------------------- parts


def java_runs() -> bool:
    """Whether there is a Java that runs the broker."""
    if not which("java"):
        return False
    says = subprocess.run(["java", "-version"], check=False, capture_output=True, text=True).stderr
    version = re.search(r'version "(\d+)', says)
    return version is not None and int(version.group(1)) >= JAVA_MIN


def jars() -> Path:
    """Where the jars of this version are kept."""
    return CACHE / f"kafka-{KAFKA_VERSION}"


def fetch_jars() -> None:
    """The broker's jars through Maven, once for all stacks of this user."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with only_one(CACHE / "jars.lock"):
        if jars().exists():
            return
        fresh = jars().with_suffix(".new")
        shutil.rmtree(fresh, ignore_errors=True)
        pom = Path(__file__).resolve().with_name("kafka.xml")
        run(["mvn", "-q", "-B", "-C", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={fresh}"])
        fresh.replace(jars())


def postgres_programs() -> Path | None:
    """Where the newest PostgreSQL of this machine keeps its programs: Debian does not put them on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    on_path = which("postgres")
    return found[-1].parent if found else Path(on_path).resolve().parent if on_path else None
