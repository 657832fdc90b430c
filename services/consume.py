"""The first of the three functions: events into features."""

from __future__ import annotations

from collections.abc import Callable

from services.ports import Consumer, EventSource


def consume(
    source: EventSource,
    part: Consumer,
    stopped: Callable[[], bool],
    *,
    records_max: int = 2000,
    wait_s: float = 0.2,
) -> None:
    """Poll, apply, commit. Commit comes last: a crash repeats work, never loses it.

    1. poll, 2. flush lost partitions, load gained ones, 3. apply: decode, fold, write offline, then online,
    4. commit what apply says is durable. Every gap between two steps has a crash test.
    """
    while not stopped():
        batch = source.poll(records_max, wait_s)
        if batch.lost:
            source.commit(part.stop(batch.lost))
        if batch.gained:
            part.start(source, batch.gained)
        source.commit(part.apply(batch))
    source.commit(part.stop(()))
