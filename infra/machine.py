"""What the stack needs of the machine: processes by number and birth, commands, ports that answer, locks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Failed(Exception):
    """A server did not do what it was told."""


def run(command: list[str], user: str | None = None) -> None:
    """A command that has to succeed. Raises Failed with what it said."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd="/", **as_user(user))
    if done.returncode != 0:
        raise Failed(f"{' '.join(command[:3])} ... failed:\n{(done.stdout + done.stderr).strip()[-2000:]}")


def as_user(user: str | None) -> dict[str, Any]:
    """The arguments that make a process run as another user, and with no group of ours."""
    return {"user": user, "group": user, "extra_groups": []} if user else {}


def which(program: str) -> str | None:
    """Where a program is, looking where root's programs are too."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def ask(port: int, request: bytes, answer_bytes: int) -> bytes:
    """What a server answers within a second; nothing when it does not."""
    answer = b""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        connection.sendall(request)
        while len(answer) < answer_bytes and (more := connection.recv(answer_bytes - len(answer))):
            answer += more
    return answer


def born(pid: int) -> str:
    """When a process was started, in ticks: with its number it names the process. Empty when it is gone or a zombie."""
    fields = process_fields(pid)
    return fields[19] if fields and fields[0] != "Z" else ""


def process_fields(pid: int) -> list[str]:
    """State, parent and so on of a process, from what stands behind its name; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def descendants(pid: int) -> list[int]:
    """What a process has started, and what that has started."""
    parents = {int(path.name): process_fields(int(path.name)) for path in Path("/proc").glob("[0-9]*")}
    found = [pid]
    for each in found:  # grows while it is read
        found += [child for child, fields in parents.items() if fields and int(fields[1]) == each]
    return found[1:]


def tail(path: Path, lines: int) -> str:
    """The last lines of a file."""
    if not path.exists():
        return "(nothing)"
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 500 * lines))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[None]:
    """One process at a time in here; a process that dies leaves no lock behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
