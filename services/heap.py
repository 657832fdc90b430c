"""Memory that was freed goes back to the system: the C library keeps what a burst of work needed otherwise."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    return trim


def give_back() -> bool:
    """Return free memory to the system; whether there was any. A few milliseconds for a heap of hundreds of MB."""
    trim = _malloc_trim()
    return trim is not None and trim(0) == 1
