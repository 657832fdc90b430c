"""Memory of a process that runs for long: what was freed goes back to the system, what stays is not searched again."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

NEW_OBJECTS = 20_000
"""A batch makes tens of thousands of records that end with it: looking for cycles every 700 of them cost a tenth of the
features consumer's time."""


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    return trim


def give_back() -> bool:
    """Return free memory to the system; whether there was any. A few milliseconds for a heap of hundreds of MB."""
    trim = _malloc_trim()
    return trim is not None and trim(0) == 1


@contextmanager
def settled() -> Iterator[None]:
    """What is there now (modules, models, tables) is left out of collections, which come less often."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
