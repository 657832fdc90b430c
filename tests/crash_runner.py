"""A process for each consumer that dies by SIGKILL at every step between poll and commit, one life after another.

    python tests/crash_runner.py FOLDER NAME...     the settings by environment; the log holds the messages already

A first life writes down every step that it goes through: calls on the ports and the consumer, commits of SQL, renames
and syncs of files, each before and after (the end of a call and the beginning of the next one are one step). Then comes
a life for each of them, which ends there. The last life finishes.
Production code knows nothing of this: the steps are watched from outside. FOLDER/NAME.told.json is a list of lives:
step, how it ended.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import duckdb  # noqa: F401  # here, once, rather than in each life
from chaos_world import GROUPS

from services.archive.consumer import ArchiveConsumer
from services.consume import consume
from services.features.opening import import_feast
from services.patience import Patience, PatientConsumer, PatientSource
from services.processes import AWAY
from services.settings import load_settings
from services.wiring import Home, open_home

RECORDS_MAX = {"features": 150, "trends": 150, "archive": 150, "catalogue": 8}
"""Small batches, so that each life finds something to do."""
LOOKED_AT = {"features": 3, "trends": 3, "archive": 10, "catalogue": 3}
"""Batches that the first life takes to know all steps: of 100 messages one is broken; 1,500 surely have one."""
LIFE_S = 60.0
NOT_REACHED, UNEXPECTED = 3, 4


class Steps:
    """Where the process is; `kill_at` is where it ends. Steps count once the first messages have come."""

    def __init__(self, group: str, kill_at: str = "") -> None:
        self.group = group
        self.topics = GROUPS[group]
        self.kill_at = kill_at
        self.seen: list[str] = []
        self.last = ""
        self.armed = False
        self.commits = 0
        self._thread = threading.get_ident()

    def __call__(self, step: str) -> None:
        if not self.armed or threading.get_ident() != self._thread:
            return
        no_news = self.last.endswith(" after") and step.endswith(" before")  # nothing outside has changed between
        self.last = step
        if no_news:
            return
        if step not in self.seen:
            self.seen.append(step)
        if step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, with a step before and one after."""

        def stepping(*args: Any, **kwargs: Any) -> Any:
            self(f"{name} before")
            result = call(*args, **kwargs)
            self(f"{name} after")
            return result

        return stepping


def watched(target: Any, name: str, steps: Steps, calls: tuple[str, ...]) -> None:
    """Make the calls of a port steps, on the one object that everybody here gets."""
    for call in calls:
        setattr(target, call, steps.around(f"{name}.{call}", getattr(target, call)))


class WatchedSource:
    """An EventSource whose commits are steps; its first messages arm them."""

    def __init__(self, source: Any, steps: Steps) -> None:
        self._source = source
        self._steps = steps
        self.seek = source.seek
        self.lag = source.lag

    def poll(self, records_max: int, wait_s: float) -> Any:
        batch = self._source.poll(records_max, wait_s)
        self._steps.armed |= bool(batch.messages)
        self._steps("poll after")
        return batch

    def commit(self, offsets: Any) -> None:
        if offsets:
            self._steps("commit before")
        self._source.commit(offsets)
        if offsets:
            self._steps("commit after")
            self._steps.commits += 1


def watch(home: Home, name: str, steps: Steps) -> Any:
    """The consumer, with steps in all that it writes to."""
    engine = home.engine
    engine.dialect.do_commit = steps.around("sql commit", engine.dialect.do_commit)  # type: ignore[method-assign]
    for call in ("rename", "replace", "fsync"):
        setattr(os, call, steps.around(f"os.{call}", getattr(os, call)))
    store_calls = ("read_many", "append_history", "write", "append_item_stats", "append_item_live")
    watched(home.features, "store", steps, store_calls)
    watched(home.archive, "archive", steps, ("append",))
    watched(home.quarantine, "quarantine", steps, ("add",))
    watched(home.catalogue, "catalogue", steps, ("apply",))
    if name == "archive":  # as `home.consumer` does it, but writing often
        return ArchiveConsumer(home.archive, home.quarantine, rows_max=RECORDS_MAX[name])
    return home.consumer(name)


def live(name: str, steps: Steps, ends_when: Callable[[Home, Steps], bool]) -> bool:
    """One life: consume until `ends_when` (or until it is killed); whether it came to that end."""
    deadline = time.monotonic() + LIFE_S
    reached = False

    def stopped() -> bool:
        nonlocal reached
        reached = reached or ends_when(home, steps)
        return reached or time.monotonic() > deadline

    with open_home(load_settings()) as home:
        part = watch(home, name, steps)
        source = home.bus.source(name, part.topics)
        patience = Patience(name, AWAY, threading.Event())
        consume(
            PatientSource(WatchedSource(source, steps), patience),  # type: ignore[arg-type]
            PatientConsumer(part, patience), stopped, records_max=RECORDS_MAX[name], wait_s=0.05,
        )  # fmt: skip
        source.close()
    return reached


def caught_up(home: Home, steps: Steps) -> bool:
    """Nothing is left to commit."""
    group, topics = steps.group, steps.topics
    return all(home.view.committed(group, t).get(p, 0) >= end for t in topics for p, end in home.view.ends(t).items())


def child(work: Callable[[], int]) -> int:
    """The id of a forked process that does this work."""
    pid = os.fork()
    if pid == 0:
        code = UNEXPECTED
        try:
            code = work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    """What a process ended with: an exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def lives(name: str, folder: Path) -> int:
    """All lives of one consumer."""
    notes = folder / f"{name}.json"

    def first() -> int:
        steps = Steps(name)
        came = live(name, steps, lambda _home, steps: steps.commits >= LOOKED_AT[name])
        notes.write_text(json.dumps(steps.seen))
        return 0 if came else NOT_REACHED

    def killed_at(step: str) -> Callable[[], int]:
        def life() -> int:
            live(name, Steps(name, step), caught_up)
            return NOT_REACHED

        return life

    def last() -> int:
        return 0 if live(name, Steps(name), caught_up) else NOT_REACHED

    told = [{"step": "first life", "code": ended(child(first))}]
    for step in json.loads(notes.read_text()) if notes.exists() else []:
        told.append({"step": step, "code": ended(child(killed_at(step)))})
    told.append({"step": "last life", "code": ended(child(last))})
    (folder / f"{name}.told.json").write_text(json.dumps(told))
    return 0


def main(folder: Path, names: Sequence[str]) -> int:
    """All lives of these consumers, which run beside each other, as they do in an instance."""
    import_feast()  # here, once, rather than in each life
    if load_settings().bus == "kafka":
        importlib.import_module("services.bus.kafka")
    return max([ended(pid) for pid in [child(partial(lives, name, folder)) for name in names]], key=abs)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
