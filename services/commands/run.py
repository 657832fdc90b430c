"""run, consume, serve: the processes of an instance."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from services.commands.edge import Json, answer, bars, settings_of

if TYPE_CHECKING:
    from services.settings import Settings
    from services.supervisor import Service

CONSUMERS = ("features", "trends", "archive", "catalogue")
FRUGAL = (
    ("OMP_NUM_THREADS", "1"),
    ("OMP_WAIT_POLICY", "PASSIVE"),
    ("TOKENIZERS_PARALLELISM", "false"),
    ("MALLOC_ARENA_MAX", "2"),
)
"""Several processes share the machine. More threads in each would mostly wait for each other; who asks for them all the
same (a backlog of texts) has them sleep while they wait (texts a second on two cores, one of them busy: 74 with one
thread, 60 with two that wait awake, 71 with two that sleep; both idle: 74 and 125). An arena per thread keeps memory
that is free (trends, archive and catalogue after an import: 1,296 MB with glibc's eight arenas per core, 934 MB with
two)."""

LOOK_S = 0.1
JsonLine = Annotated[bool, typer.Option("--json", help="Print one line of JSON (url, pid, home) once it answers.")]
AllowVolatile = Annotated[
    bool, typer.Option("--allow-volatile", help="Start also on a Redis that may lose rows (redis_allow_volatile).")
]
WatchParent = Annotated[bool, typer.Option("--watch-parent", hidden=True)]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: freshrank run --port 8080")(run)
    app.command(epilog="Example: freshrank consume trends archive")(consume)
    app.command(epilog="Example: freshrank serve --port 9000")(serve)


def run(
    context: typer.Context,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Wanted port of the API (default: the setting api_port).")
    ] = None,
    logs: Annotated[Path | None, typer.Option(help="Folder for one log file per process (default: stderr).")] = None,
    allow_volatile: AllowVolatile = False,
    as_json: JsonLine = False,
    watch_parent: WatchParent = False,
) -> None:
    """Run everything until Ctrl-C.

    API, consumers and scheduler as three processes, restarted when they die, drained on SIGTERM.
    """
    from services.supervisor import RunLock, Supervisor, end_with_parent
    from services.telemetry import fresh_metrics

    _allow_volatile(allow_volatile)
    settings = settings_of(context, "run", None)
    with RunLock(settings.home):
        wanted = settings.api_port if port is None else port
        started = services(
            wanted, logs, fresh_metrics(settings.home), quiet=as_json, environment=lasting_names(settings)
        )
        supervisor = Supervisor(started, settings.api_drain_s)
        supervisor.stop_on_signals()
        if as_json:
            _announce_when_served(settings.home / "api.json", supervisor.stopping)
        if watch_parent:
            end_with_parent(supervisor.stopping.set)
        supervisor.run()


def _announce_when_served(address: Path, stopping: threading.Event) -> None:
    """Print the line of `--json` once the API has left its new address in the home."""
    before = address.read_bytes() if address.exists() else b""

    def watch() -> None:
        while not stopping.wait(LOOK_S):
            if address.exists() and (found := address.read_bytes()) != before:
                _say_line(str(json.loads(found)["url"]), address.parent)
                return

    threading.Thread(target=watch, name="announce", daemon=True).start()


def lasting_names(settings: Settings) -> tuple[tuple[str, str], ...]:
    """What makes consumers that are restarted after a crash the same members of their groups on Kafka, which have
    their partitions back at once: a name that this instance alone has. One that is set stays."""
    if settings.bus != "kafka" or settings.kafka_instance_id:
        return ()
    place = hashlib.blake2b(f"{socket.gethostname()}\x1f{settings.home}".encode(), digest_size=8).hexdigest()
    return (("FRESHRANK_KAFKA_INSTANCE_ID", f"run-{place}"),)


def services(
    port: int,
    logs: Path | None,
    metrics: Path,
    *,
    quiet: bool = False,
    environment: tuple[tuple[str, str], ...] = (),
) -> tuple[Service, ...]:
    """The three processes of `run`, the one that takes requests first; their metrics lie in one folder.

    A quiet API does not say where it answers: `run` does.
    """
    from services.supervisor import Service
    from services.telemetry import METRICS_FOLDER

    environment = (*FRUGAL, *environment, (METRICS_FOLDER, str(metrics)))

    def service(name: str, *arguments: str) -> Service:
        command = (sys.executable, "-m", "services.cli", *arguments, "--watch-parent")
        return Service(name, command, logs / f"{name}.log" if logs else None, environment)

    return (
        service("api", "serve", "--port", str(port), *(("--quiet",) if quiet else ())),
        service("features", "consume", "features"),
        service("keepers", "consume", "trends", "archive", "catalogue", "--schedule"),
    )


def consume(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(help=f"Consumers to run: {', '.join(CONSUMERS)}.", metavar="NAME...")],
    until_caught_up: Annotated[bool, typer.Option("--until-caught-up", help="End when nothing is left to do.")] = False,
    schedule: Annotated[bool, typer.Option("--schedule", help="Run the scheduler of retraining, too.")] = False,
    allow_volatile: AllowVolatile = False,
    metrics_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Serve /metrics of this process on this port; 0: not.")
    ] = 0,
    as_json: Json = False,
    watch_parent: WatchParent = False,
) -> None:
    """Run consumers in this process."""
    from services import processes
    from services.domain import BadRequest
    from services.supervisor import end_with_parent
    from services.telemetry import serve_metrics

    unknown = sorted(set(names) - set(CONSUMERS))
    if unknown:
        raise BadRequest(f"there is no consumer {unknown[0]!r}; there are {', '.join(CONSUMERS)}")
    _allow_volatile(allow_volatile)
    settings = settings_of(context, "+".join(names), "warning" if until_caught_up else None)
    stopping = stop_on_signals()
    if metrics_port:
        serve_metrics(settings.api_host, metrics_port)
    if watch_parent:
        end_with_parent(stopping.set)
    scheduler = _scheduler(settings, stopping) if schedule else nullcontext()
    with scheduler, bars(until_caught_up and not as_json) as progress:
        processes.run_consumer(settings, tuple(dict.fromkeys(names)), stopping.is_set, until_caught_up, progress)
    if until_caught_up:
        answer(as_json, {"consumers": names, "lag": 0}, lambda: None)


@contextmanager
def _scheduler(settings: Settings, stopping: threading.Event) -> Iterator[None]:
    from services import learning

    thread = threading.Thread(target=learning.run_scheduler, args=(settings, stopping.is_set), name="scheduler")
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def serve(
    context: typer.Context,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Wanted port; the next free one is taken, and said.")
    ] = None,
    allow_volatile: AllowVolatile = False,
    as_json: JsonLine = False,
    quiet: Annotated[bool, typer.Option("--quiet", hidden=True)] = False,
    watch_parent: WatchParent = False,
) -> None:
    """Serve the API."""
    from services import processes, wiring
    from services.api.app import create_app
    from services.api.server import bind, port_of
    from services.api.server import serve as serve_app
    from services.domain import SettingsInvalid, StageUnavailable
    from services.supervisor import end_with_parent

    _allow_volatile(allow_volatile)
    settings = settings_of(context, "api", None)
    wanted = settings.api_port if port is None else port
    if watch_parent:
        end_with_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    with wiring.open_home(settings) as home, bind(settings.api_host, wanted) as bound:
        with suppress(StageUnavailable):  # away just now: it answers without user rows until the store is back
            home.refuse_volatile()
        ready = partial(_tell_address, settings, wanted, port_of(bound), as_json, quiet)
        try:
            serve_app(create_app(processes.Instance(home)), bound, settings.api_drain_s, ready)
        except SettingsInvalid as error:  # a store may be away just now: worth another start
            raise StageUnavailable(str(error)) from error
        finally:
            _forget_address(settings.home / "api.json")


def _allow_volatile(on: bool) -> None:
    """The option as the setting, for this process and those it starts."""
    if on:
        os.environ["FRESHRANK_REDIS_ALLOW_VOLATILE"] = "true"


def _tell_address(settings: Settings, wanted: int, port: int, as_json: bool, quiet: bool) -> None:
    """Say where the API answers, and leave it in the home for `status`."""
    host = f"[{settings.api_host}]" if ":" in settings.api_host else settings.api_host
    url = f"http://{host}:{port}"
    fresh = settings.home / f"api.{os.getpid()}"
    fresh.write_text(json.dumps({"url": url, "pid": os.getpid()}))
    fresh.replace(settings.home / "api.json")
    if quiet:
        return
    if as_json:
        _say_line(url, settings.home)
        return
    taken = f" (port {wanted} was taken)" if wanted not in (0, port) else ""
    sys.stdout.write(f"freshrank serves on {url}{taken}; try {url}/docs\n")
    sys.stdout.flush()


def _say_line(url: str, home: Path) -> None:
    """The one line of `--json`: where the API answers, and the process to stop."""
    sys.stdout.write(json.dumps({"url": url, "pid": os.getpid(), "home": str(home)}) + "\n")
    sys.stdout.flush()


def _forget_address(address: Path) -> None:
    if address.exists() and json.loads(address.read_text())["pid"] == os.getpid():
        address.unlink()


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stopping = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return stopping
