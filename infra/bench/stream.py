"""`make bench-stream`: Kafka, Redis, PostgreSQL and freshrank on this one machine, every figure in one run.

Prints a table and writes build/bench-stream.json. The long run is made only with --soak. Never part of a test.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import stream_consuming
import stream_serving
from figures import Figure
from rich.console import Console
from run import BUILD, FILMS, write
from stream_place import Servers, servers

WORK = BUILD / "bench-stream"
STACK = BUILD / "bench-stack"
SOAK_MIN = 30.0
Measure = Callable[[Servers, Path], Iterator[Figure]]


def main() -> None:
    """Measure, print, write."""
    args = _arguments()
    found: dict[str, Figure] = {}
    failed: list[str] = []
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    try:
        with servers(STACK, args.keep_stack) as running:
            for name, measured in groups(args).items():
                if args.only and name not in args.only:
                    continue
                Console(stderr=True).print(f"measuring: {name}")
                try:
                    for each in measured(running, WORK):
                        found[each.name] = each
                        Console(stderr=True).print("  ", *each.row())
                except Exception:  # the other figures are still wanted
                    failed.append(name)
                    Console(stderr=True).print_exception(max_frames=4)
    finally:
        if found:  # what was measured before something failed
            write(found, BUILD / "bench-stream.json")
        shutil.rmtree(WORK, ignore_errors=True)
    if failed:
        sys.exit(f"not measured to the end: {', '.join(failed)}")


def groups(args: argparse.Namespace) -> dict[str, Measure]:
    """What is measured, in this order."""
    chosen: dict[str, Measure] = {
        "features": partial(stream_consuming.features, events=args.events),
        "trends": partial(stream_consuming.trends, events=args.events),
        "archive": partial(stream_consuming.archive, events=args.events),
        "api": partial(stream_serving.api, seconds=args.seconds),
        "clicks": partial(stream_serving.clicks, count=args.clicks, films=FILMS, trained=not args.untrained),
        "recovery": stream_serving.recovery,
    }
    if args.soak:
        chosen["soak"] = partial(stream_serving.soak, minutes=args.soak)
    return chosen


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    names = ("features", "trends", "archive", "api", "clicks", "recovery", "soak")
    parser.add_argument("--only", nargs="*", choices=names, help="only these groups of figures")
    parser.add_argument("--events", type=int, default=300_000, help="events of each consumer's figure")
    parser.add_argument("--seconds", type=float, default=15.0, help="length of the API's figure")
    parser.add_argument("--clicks", type=int, default=200, help="clicks at each background rate")
    parser.add_argument("--untrained", action="store_true", help="clicks without a release: quick, and not the figure")
    parser.add_argument("--soak", type=float, nargs="?", const=SOAK_MIN, default=0.0, metavar="MINUTES",
                        help=f"the long run, too ({SOAK_MIN:g} minutes unless said)")  # fmt: skip
    parser.add_argument("--keep-stack", action="store_true", help="leave the servers running")
    args = parser.parse_args()
    if args.only and "soak" in args.only and not args.soak:
        args.soak = SOAK_MIN
    return args


if __name__ == "__main__":
    main()
