"""The supervisor over real (small) processes: restarts with backoff, drain, the lock of a home and its loss."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from services.commands.run import lasting_names, services
from services.domain import BadRequest, SettingsInvalid
from services.settings import Settings
from services.supervisor import RunLock, Service, Supervisor, holder_of

POLITE = "import signal,sys,time\nsignal.signal(signal.SIGTERM, lambda *_: (print('drained', flush=True), sys.exit(0)))"
RUN_FOREVER = POLITE + "\nprint('up', flush=True)\nwhile True: time.sleep(0.05)"
RUN_DEAF = (
    "import signal,time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\n"
    "while True: time.sleep(0.05)"
)


def service(name: str, program: str, folder: Path) -> Service:
    return Service(name, (sys.executable, "-c", program), folder / f"{name}.log")


def wait_for(fact: Callable[[], bool], wait_s: float = 10.0) -> None:
    until = time.monotonic() + wait_s
    while not fact():
        assert time.monotonic() < until, "did not come true in time"
        time.sleep(0.02)


def read(folder: Path, name: str) -> str:
    path = folder / f"{name}.log"
    return path.read_text() if path.exists() else ""


def started(supervisor: Supervisor) -> threading.Thread:
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    return thread


def test_a_process_that_dies_is_started_again_and_the_others_stay_up(tmp_path: Path) -> None:
    supervisor = Supervisor(
        (service("steady", RUN_FOREVER, tmp_path), service("dies", "print('up', flush=True)", tmp_path)), drain_s=5
    )
    thread = started(supervisor)
    wait_for(lambda: read(tmp_path, "dies").count("up") >= 2)
    wait_for(lambda: "up" in read(tmp_path, "steady"))
    supervisor.stopping.set()
    thread.join(10)
    assert read(tmp_path, "steady") == "up\ndrained\n"


def test_a_process_deaf_to_sigterm_is_killed_after_the_drain_time(tmp_path: Path) -> None:
    supervisor = Supervisor((service("deaf", RUN_DEAF, tmp_path),), drain_s=0.3)
    thread = started(supervisor)
    wait_for(lambda: "up" in read(tmp_path, "deaf"))
    supervisor.stopping.set()
    thread.join(10)
    assert not thread.is_alive()


def test_a_process_that_cannot_start_as_it_is_set_ends_the_run_instead_of_looping(tmp_path: Path) -> None:
    polite, unset = service("polite", RUN_FOREVER, tmp_path), service("unset", "import sys; sys.exit(2)", tmp_path)
    with pytest.raises(SettingsInvalid, match="unset cannot start"):
        Supervisor((polite, unset), drain_s=5).run()


def test_a_second_run_on_the_same_home_is_refused_with_the_id_of_the_first(tmp_path: Path) -> None:
    assert holder_of(tmp_path) is None
    with RunLock(tmp_path):
        assert holder_of(tmp_path) == os.getpid()
        with pytest.raises(BadRequest, match=f"in use by process {os.getpid()}"), RunLock(tmp_path):
            pass
    assert holder_of(tmp_path) is None
    with RunLock(tmp_path):
        assert holder_of(tmp_path) == os.getpid()


def test_a_lock_left_behind_by_a_killed_process_is_no_lock(tmp_path: Path) -> None:
    program = (
        "import sys,time\nfrom pathlib import Path\nfrom services.supervisor import RunLock\n"
        "with RunLock(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    assert holder_of(tmp_path) == holder.pid
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert (tmp_path / "run.lock").read_text() == f"{holder.pid}\n"
    assert holder_of(tmp_path) is None
    with RunLock(tmp_path):
        assert holder_of(tmp_path) == os.getpid()


def test_restarted_consumers_of_a_run_are_the_same_members_of_their_groups_on_kafka(tmp_path: Path) -> None:
    def name(home: str, **chosen: str) -> str | None:
        given = dict(lasting_names(Settings(home=tmp_path / home, bus="kafka", **chosen)))
        started = services(0, None, tmp_path, environment=tuple(given.items()))
        names = {dict(each.environment).get("FRESHRANK_KAFKA_INSTANCE_ID") for each in started}
        assert len(names) == 1
        return names.pop()

    assert name("a") == name("a"), "the same home on the same host, again"
    assert name("a") != name("b"), "two instances on one host would throw each other out"
    assert name("a", kafka_instance_id="mine") is None, "a name that is set reaches the processes as it is"
    assert lasting_names(Settings(home=tmp_path)) == (), "the embedded log knows its members otherwise"


def test_a_process_that_cannot_be_started_again_is_tried_later_and_the_others_stay_up(tmp_path: Path) -> None:
    folder = tmp_path / "of-dies"
    dies = Service("dies", (sys.executable, "-c", "print('up', flush=True)"), folder / "dies.log")
    supervisor = Supervisor((service("steady", RUN_FOREVER, tmp_path), dies), drain_s=5)
    thread = started(supervisor)
    wait_for(lambda: "up" in read(folder, "dies"))
    (folder / "dies.log").rename(folder / "first.log")
    (folder / "dies.log").mkdir()  # its output cannot be opened
    time.sleep(1.2)
    assert thread.is_alive()
    (folder / "dies.log").rmdir()
    wait_for(lambda: "up" in read(folder, "dies"), wait_s=20)
    assert read(tmp_path, "steady") == "up\n"
    supervisor.stopping.set()
    thread.join(10)
