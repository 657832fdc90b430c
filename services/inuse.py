"""Who uses a home: every process of an instance, at once; whoever deletes it, alone.

The lock is the folder's own (flock), so it ends with its process and leaves no file behind."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.domain import BadRequest


@contextmanager
def used(home: Path) -> Iterator[None]:
    """While a process uses a home. Raises BadRequest while somebody deletes it."""
    with _locked(home, fcntl.LOCK_SH, f"{home} is being deleted; try again when that is done"):
        yield


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """While a home is deleted. Raises BadRequest while another process uses it."""
    with _locked(home, fcntl.LOCK_EX, f"{home} is in use by another process of freshrank; stop it first"):
        yield


@contextmanager
def _locked(home: Path, how: int, refusal: str) -> Iterator[None]:
    descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadRequest(refusal) from None
        yield
    finally:
        os.close(descriptor)
