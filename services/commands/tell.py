"""demo: the product shown on real data, start to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.commands.edge import Edge, Json, answer, bars, now, paper
from services.domain import FreshrankError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from services.demo.plots import Plot
    from services.demo.showing import Showing
    from services.demo.story import Figures

DEMO_HOME = Path(".freshrank-demo")
COMMAND = (sys.executable, "-m", "services.cli")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: freshrank demo --world --once")(demo)


def demo(
    context: typer.Context,
    world: Annotated[bool, typer.Option("--world", help="A generated world instead of real film ratings.")] = False,
    size: Annotated[float, typer.Option(min=0.05, max=50, help="Size of the generated world.")] = 0.3,
    seed: Annotated[int, typer.Option(help="Seed of the generated world.")] = 1,
    once: Annotated[bool, typer.Option("--once", help="End when the story is told.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Wanted port; the next free one is taken.")] = 8080,
    as_json: Json = False,
) -> None:
    """Show the product on real data.

    Events in, a release trained, a list, three clicks, another list; in a home of its own, wiped first.
    """
    from services.demo.stage import Stage
    from services.inuse import alone
    from services.supervisor import RunLock

    home = _home(context)
    with RunLock(home), alone(home):
        _wipe(home)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave through every `with`: no process is left behind
    stage = Stage(home, COMMAND, port)
    with stage:
        figures = _play(stage, world, size, seed, _showing(as_json))
        answer(as_json, {name: getattr(figures, name) for name in figures.__dataclass_fields__}, lambda: None)
        if not once:
            _keep_serving(stage)


def _home(context: typer.Context) -> Path:
    """The demo's own home and settings, for this process and all that it starts."""
    from services.settings import load_settings
    from services.telemetry import configure_logs

    given = context.obj.home if isinstance(context.obj, Edge) else None
    # Nothing but the training works while it trains, so it may have every core.
    threads = str(os.cpu_count() or 1)
    # Its log lies in its home, and is wiped with it: no film comes into a log that others read.
    fixed = {
        "HOME": str(given or DEMO_HOME),
        "BUS": "embedded",
        "EFFORT": "demo",
        "RETRAIN_EVERY_HOURS": "0",
        "TRAIN_THREADS": threads,
    }
    os.environ.update({f"FRESHRANK_{name}": value for name, value in fixed.items()})
    home = load_settings().home
    os.environ["FRESHRANK_HOME"] = str(home)
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    configure_logs("warning", "demo")
    return home


def _wipe(home: Path) -> None:
    from services.commands.keep import refuse_strangers, wipe

    refuse_strangers(home)
    wipe(home)


def _play(stage: object, world: bool, size: float, seed: int, show: Showing) -> Figures:
    from services import wiring
    from services.demo.plots import WorldPlot
    from services.demo.stage import Stage
    from services.demo.story import Props, tell
    from services.settings import load_settings

    assert isinstance(stage, Stage)
    with wiring.open_home(load_settings()) as opened:
        plot: Plot = WorldPlot(size, seed) if world else _films()
        return tell(plot, stage, Props(opened.sink, opened.view, partial(_vectors, opened.engine), now), show)


def _vectors(engine: Engine) -> int:
    """How many items have their text vector."""
    from sqlalchemy import func, select

    from services.tables import items_live

    with engine.connect() as connection:
        counted = select(func.count(items_live.c.item_id.distinct())).where(items_live.c.part.like("vector%"))
        return int(connection.execute(counted).scalar_one())


def _films() -> Plot:
    from services.demo.plots import FilmPlot, Poured

    def importer(folder: Path, ends_at: datetime) -> Poured:
        command = (*COMMAND, "import", "--recipe", "movietweetings", "--folder", str(folder))
        options = ("--shift-to", ends_at.isoformat(), "--no-wait", "--json", "--bars")
        told = subprocess.run([*command, *options], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
        if told.returncode:
            raise FreshrankError(f"the import ended with code {told.returncode}; its reason stands above")
        done = json.loads(told.stdout)
        return Poured(done["events"], done["items"], sum(done["rejected"].values()))

    return FilmPlot(importer)


def _showing(as_json: bool) -> Showing:
    from services.demo.showing import Showing

    return Showing(paper(stderr=as_json), bars)


def _keep_serving(stage: object) -> None:
    from services.demo.stage import Stage

    assert isinstance(stage, Stage)
    sys.stdout.write("\nServing until Ctrl-C.\n")
    sys.stdout.flush()
    try:
        while True:
            stage.check()
            time.sleep(0.5)
    except KeyboardInterrupt:
        sys.stdout.write("Stopping.\n")
