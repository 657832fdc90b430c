"""Work shared out among copies of this process: a copy knows what this one knows, does its share, hands it back."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TypeVar

T = TypeVar("T")
SHARE_MIN = 50
"""Questions that make a copy of the process worth it."""


def shares_of(questions: int, processes: int) -> int:
    """Among how many of `processes` so many questions are worth sharing out, at least one."""
    return max(1, min(processes, questions // SHARE_MIN))


def shared(shares: int, work: Callable[[int], T]) -> list[T]:
    """`work(n)` (never None) of each share, in order: the first in this process, the others in forked copies, which
    must not touch its threads. Raises RuntimeError where a copy failed."""
    copies = [_copy(work, share) for share in range(1, shares)]
    found = [work(0)]
    for process, result in copies:
        try:
            done, answer = result.recv()
        except EOFError:
            done, answer = None, "it ended without a word"
        process.join()
        if done is None:
            raise RuntimeError(f"a copy of this process failed: {answer}")
        found.append(done)
    return found


def _copy(
    work: Callable[[int], T], share: int
) -> tuple[multiprocessing.process.BaseProcess, Connection[object, tuple[T | None, str]]]:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_hand_back, args=(work, share, there), daemon=True)
    process.start()
    there.close()
    return process, here


def _hand_back(work: Callable[[int], T], share: int, to: Connection[tuple[T | None, str], object]) -> None:
    try:
        to.send((work(share), ""))
    except Exception as error:  # told to the one who waits, whatever it is
        to.send((None, f"{type(error).__name__}: {error}"))
