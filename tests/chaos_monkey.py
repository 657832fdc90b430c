"""What happens to consumer processes in a chaos run: kill -9 and restart, SIGSTOP beyond the session, partition growth.

Everything is planned before it begins, from a seed: the same seed and size, the same plan.
"""

from __future__ import annotations

import heapq
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from services.domain import Outgoing, StageUnavailable

ROOT = Path(__file__).resolve().parent.parent
CREW: Mapping[str, tuple[str, ...]] = {
    "features-1": ("features",),
    "features-2": ("features",),
    "keepers-1": ("trends", "archive", "catalogue"),
    "keepers-2": ("trends", "archive", "catalogue"),
}
"""Two processes in each of the four groups."""
TICK_S = 0.02
PUT_OFF_S = 0.5
END_S = 60.0
REFUSED_S = 60.0
"""Longest time in which nothing is taken: several pauses after each other, each found out by a publisher that waits."""
IMPORTING_S = 20.0
"""A process younger than this may not have come to its signal handlers yet."""


@dataclass(frozen=True, slots=True, order=True)
class Deed:
    """One thing that is done, `at_s` after the beginning: kill (restarted after `for_s`), pause (for `for_s`), grow."""

    at_s: float
    what: str
    who: str
    for_s: float

    def __str__(self) -> str:
        return f"{self.at_s:6.1f} s  {self.what} {self.who}" + (f" for {self.for_s:.1f} s" if self.for_s else "")


def plan(seed: int, span_s: float, rounds: int, session_s: float, grow: bool) -> list[Deed]:
    """In each round everybody is killed once and one of each pair is paused for longer than the session; partitions
    grow once, in the middle."""
    chance = random.Random(seed)
    deeds: list[Deed] = []
    for number in range(rounds):
        wanted = [("kill", who, chance.uniform(0.0, 2.0)) for who in CREW]
        wanted += [
            ("pause", f"{kind}-{chance.randint(1, 2)}", session_s * chance.uniform(1.3, 1.8))
            for kind in ("features", "keepers")
        ]
        chance.shuffle(wanted)
        room_s = span_s / rounds / len(wanted)
        for place, (what, who, for_s) in enumerate(wanted):
            at_s = room_s * (number * len(wanted) + place + chance.random())
            deeds.append(Deed(at_s, what, who, for_s))
    if grow:
        deeds.append(Deed(span_s * chance.uniform(0.4, 0.6), "grow", "partitions", 0.0))
    return sorted(deeds)


class Crew:
    """The consumer processes of an instance."""

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        own = {name: value for name, value in os.environ.items() if not name.startswith("FRESHRANK_")}
        self._environment = {**own, **environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._paused: set[str] = set()
        self._started: dict[str, float] = {}
        self.killed = 0

    def start(self, who: str) -> None:
        """Start a process (again)."""
        self._started[who] = time.monotonic()
        with (self._folder / f"{who}.log").open("ab") as log:
            self._processes[who] = subprocess.Popen(
                [sys.executable, "-m", "services.cli", "consume", *CREW[who]],
                env=self._environment, cwd=self._folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def kill(self, who: str) -> None:
        """kill -9, whatever it is doing."""
        process = self._processes[who]
        self._paused.discard(who)
        process.kill()
        self.killed += process.wait() == -signal.SIGKILL

    def pause(self, who: str) -> None:
        """It stands still, and knows nothing of it."""
        self._processes[who].send_signal(signal.SIGSTOP)
        self._paused.add(who)

    def resume(self, who: str) -> None:
        """It goes on as if nothing had been, unless it was killed meanwhile."""
        if who in self._paused:
            self._paused.discard(who)
            self._processes[who].send_signal(signal.SIGCONT)

    def look(self) -> None:
        """Nobody has ended by itself."""
        for who, process in self._processes.items():
            if process.poll() is not None:
                raise AssertionError(f"{who} ended with {process.returncode}:\n{self.log(who)}")

    def log(self, who: str) -> str:
        """The end of what a process has said."""
        return (self._folder / f"{who}.log").read_text(errors="replace")[-3000:]

    def end(self) -> None:
        """In good order: everybody writes what is held and says so with exit code 0.

        Who was started a moment ago is still importing: the others have done its work, and no handler is there to
        hear the signal.
        """
        for who in list(self._paused):
            self.resume(who)
        asked = time.monotonic()
        for process in self._processes.values():
            process.terminate()
        for who, process in self._processes.items():
            code = process.wait(END_S)
            young = asked - self._started[who] < IMPORTING_S
            assert code == 0 or (young and code == -signal.SIGTERM), f"{who} ended with {code}:\n{self.log(who)}"

    def wipe_out(self) -> None:
        """Leave no process behind, whatever happened."""
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()


def disturb(
    crew: Crew,
    deeds: Sequence[Deed],
    sent: Sequence[Outgoing],
    span_s: float,
    publish: Callable[[Sequence[Outgoing]], object],
    grow: Callable[[], None],
    refused_s: float = REFUSED_S,
) -> None:
    """Publish everything within about `span_s` while the deeds are done; at the end everybody runs again.

    A process that stands still in a transaction holds the lock of an embedded log for longer than a publisher waits: it
    hears StageUnavailable, which means that nothing was taken, and comes again as every client does. Between its
    tries the deeds go on, or nobody would ever wake the process that it waits for.

    Raises:
        StageUnavailable: nothing was taken for `refused_s`.
    """
    due: list[Deed] = sorted(deeds)
    away: set[str] = set()
    begun = taken = time.monotonic()
    done = 0
    while due or done < len(sent):
        passed = time.monotonic() - begun
        until = min(len(sent), int(len(sent) * passed / span_s) + 1)
        if until > done:
            try:
                publish(sent[done:until])
            except StageUnavailable:
                if time.monotonic() - taken > refused_s:
                    raise
            else:
                done, taken = until, time.monotonic()
            passed = time.monotonic() - begun  # a pause is counted from when it really begins
        while due and due[0].at_s <= passed:
            deed = heapq.heappop(due)
            if deed.what in ("kill", "pause") and deed.who in away:
                heapq.heappush(due, replace(deed, at_s=passed + PUT_OFF_S))
                continue
            match deed.what:
                case "kill":
                    crew.kill(deed.who)
                    away.add(deed.who)
                    heapq.heappush(due, Deed(passed + deed.for_s, "start", deed.who, 0.0))
                case "start":
                    away.discard(deed.who)
                    crew.start(deed.who)
                case "pause":
                    crew.pause(deed.who)
                    heapq.heappush(due, Deed(passed + deed.for_s, "resume", deed.who, 0.0))
                case "resume":
                    crew.resume(deed.who)
                case "grow":
                    grow()
        if not away:
            crew.look()
        time.sleep(TICK_S)
