"""run, consume, serve: the processes of an instance."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from services.commands.edge import Json, answer, bars, settings_of

if TYPE_CHECKING:
    from services.supervisor import Service

CONSUMERS = ("features", "trends", "archive", "catalogue")
WatchParent = Annotated[bool, typer.Option("--watch-parent", hidden=True)]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: freshrank run --port 8080")(run)
    app.command(epilog="Example: freshrank consume trends archive")(consume)
    app.command(epilog="Example: freshrank serve --port 9000")(serve)


def run(
    context: typer.Context,
    port: Annotated[int | None, typer.Option(help="Wanted port of the API (default: the setting api_port).")] = None,
    logs: Annotated[Path | None, typer.Option(help="Folder for one log file per process (default: stderr).")] = None,
    watch_parent: WatchParent = False,
) -> None:
    """Run everything until Ctrl-C.

    API, consumers and scheduler as three processes, restarted when they die, drained on SIGTERM.
    """
    from services.supervisor import RunLock, Supervisor, end_with_parent

    settings = settings_of(context, "run", None)
    with RunLock(settings.home):
        supervisor = Supervisor(services(settings.api_port if port is None else port, logs), settings.api_drain_s)
        supervisor.stop_on_signals()
        if watch_parent:
            end_with_parent(supervisor.stopping.set)
        supervisor.run()


def services(port: int, logs: Path | None) -> tuple[Service, ...]:
    """The three processes of `run`, the one that takes requests first."""
    from services.supervisor import Service

    def service(name: str, *arguments: str) -> Service:
        command = (sys.executable, "-m", "services.cli", *arguments, "--watch-parent")
        return Service(name, command, logs / f"{name}.log" if logs else None)

    return (
        service("api", "serve", "--port", str(port)),
        service("features", "consume", "features"),
        service("keepers", "consume", "trends", "archive", "catalogue", "--schedule"),
    )


def consume(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(help=f"Consumers to run: {', '.join(CONSUMERS)}.", metavar="NAME...")],
    until_caught_up: Annotated[bool, typer.Option("--until-caught-up", help="End when nothing is left to do.")] = False,
    schedule: Annotated[bool, typer.Option("--schedule", help="Run the scheduler of retraining, too.")] = False,
    as_json: Json = False,
    watch_parent: WatchParent = False,
) -> None:
    """Run consumers in this process."""
    from services import wiring
    from services.domain import BadRequest
    from services.supervisor import end_with_parent

    unknown = sorted(set(names) - set(CONSUMERS))
    if unknown:
        raise BadRequest(f"there is no consumer {unknown[0]!r}; there are {', '.join(CONSUMERS)}")
    settings = settings_of(context, "+".join(names), None)
    stopping = stop_on_signals()
    if watch_parent:
        end_with_parent(stopping.set)
    scheduler = threading.Thread(target=wiring.run_scheduler, args=(settings, stopping.is_set), name="scheduler")
    if schedule:
        scheduler.start()
    try:
        with bars(until_caught_up and not as_json) as progress:
            wiring.run_consumer(settings, tuple(dict.fromkeys(names)), stopping.is_set, until_caught_up, progress)
    finally:
        stopping.set()
        if schedule:
            scheduler.join()
    if until_caught_up:
        answer(as_json, {"consumers": names, "lag": 0}, lambda: None)


def serve(
    context: typer.Context,
    port: Annotated[int | None, typer.Option(help="Wanted port; the next free one is taken, and said.")] = None,
    watch_parent: WatchParent = False,
) -> None:
    """Serve the API."""
    from services import wiring
    from services.supervisor import end_with_parent

    settings = settings_of(context, "api", None)
    wanted = settings.api_port if port is None else port
    address = settings.home / "api.json"

    def ready(url: str) -> None:
        settings.home.mkdir(parents=True, exist_ok=True)
        fresh = address.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps({"url": url, "pid": os.getpid()}))
        fresh.replace(address)
        taken = "" if not wanted or url.endswith(f":{wanted}") else f" (port {wanted} was taken)"
        sys.stdout.write(f"freshrank serves on {url}{taken}; the pages of the API are at {url}/docs\n")
        sys.stdout.flush()

    if watch_parent:
        end_with_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        wiring.serve(settings, wanted, ready)
    finally:
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
