"""`make bench`: every figure in one run, as a table and as build/bench.json. Never part of a test."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import agreeing
import consuming
import history
import serving
import training
from figures import Figure, figure
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
WORK = BUILD / "bench"
FILMS = ROOT / "services" / "demo" / "data"
HELPS = 7


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=sorted(GROUPS), help="only these groups of figures")
    chosen = parser.parse_args().only or list(GROUPS)
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    found: dict[str, Figure] = {}
    for name, measured in GROUPS.items():
        if name in chosen:
            Console(stderr=True).print(f"measuring: {name}")
            for each in measured():
                found[each.name] = each
                Console(stderr=True).print("  ", *each.row())
    write(found)
    shutil.rmtree(WORK, ignore_errors=True)


def write(found: dict[str, Figure], path: Path = BUILD / "bench.json") -> None:
    """The table, and the file; figures of groups not measured now stay as they were in the file."""
    before = {each["name"]: each for each in json.loads(path.read_text())} if path.exists() else {}
    merged = before | {name: each.fields() for name, each in found.items()}
    path.write_text(json.dumps(list(merged.values()), indent=1) + "\n")
    table = Table("name", "value", "unit", "aim", "met")
    for each in found.values():
        table.add_row(*each.row())
    Console().print(table)
    Console().print(f"written to {path}")


def help_time() -> Iterator[Figure]:
    """`freshrank --help`, median of HELPS."""
    times = []
    for _ in range(HELPS):
        started = time.perf_counter()
        subprocess.run([str(Path(sys.executable).with_name("freshrank")), "--help"], check=True, capture_output=True)
        times.append((time.perf_counter() - started) * 1000)
    yield figure("help_ms", sorted(times)[HELPS // 2])


def alone() -> Iterator[Figure]:
    """The importer and the features consumer, each alone."""
    home = WORK / "alone"
    yield consuming.import_films(home, FILMS)
    yield consuming.features_alone("features_events_per_s", home)
    distinct = WORK / "distinct"
    consuming.fill_distinct(distinct)
    yield consuming.features_alone("features_events_per_s_distinct", distinct)


def together() -> Iterator[Figure]:
    """A whole instance."""
    home = WORK / "together"
    consuming.import_films(home, FILMS)
    yield from serving.instance(home)


def join() -> Iterator[Figure]:
    """The point-in-time join."""
    yield history.point_in_time(WORK / "history")


def demo() -> Iterator[Figure]:
    """`freshrank demo --once`, from the command to its end."""
    started = time.perf_counter()
    subprocess.run([*consuming.CLI, "demo", "--once"], check=True, capture_output=True, cwd=WORK)
    yield figure("demo_s", time.perf_counter() - started)


def agree() -> Iterator[Figure]:
    """What served lists were made of, joined again."""
    yield from agreeing.parity(WORK / "parity")


GROUPS: dict[str, Callable[[], Iterator[Figure]]] = {
    "help": help_time,
    "alone": alone,
    "together": together,
    "history": join,
    "demo": demo,
    "parity": agree,
    "training": training.training,
}

if __name__ == "__main__":
    main()
