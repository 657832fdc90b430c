"""The chaos runs wake whom they paused, even where a paused process keeps the publisher out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest
from chaos_monkey import Crew, Deed, disturb

from services.domain import TOPIC_EVENTS, Outgoing, StageUnavailable

MESSAGES = [Outgoing(TOPIC_EVENTS, "u1", str(number).encode()) for number in range(10)]


class SleepingCrew:
    """Stands in for the processes: whoever is paused holds the lock of the log."""

    def __init__(self) -> None:
        self.paused: set[str] = set()
        self.looks = 0

    def pause(self, who: str) -> None:
        self.paused.add(who)

    def resume(self, who: str) -> None:
        self.paused.discard(who)

    def look(self) -> None:
        self.looks += 1


def test_a_publisher_that_is_kept_out_by_a_paused_process_gets_everything_in_once_it_is_woken() -> None:
    crew = SleepingCrew()
    taken: list[Outgoing] = []
    refused = 0

    def publish(some: Sequence[Outgoing]) -> None:
        nonlocal refused
        if crew.paused:
            refused += 1
            raise StageUnavailable("the lock is held")
        taken.extend(some)

    pause = Deed(0.05, "pause", "features-1", 0.2)
    disturb(cast(Crew, crew), [pause], MESSAGES, 0.3, publish, grow=lambda: None)

    assert refused > 0
    assert taken == MESSAGES
    assert not crew.paused


def test_a_log_that_takes_nothing_any_more_ends_the_run() -> None:
    def publish(some: Sequence[Outgoing]) -> None:
        raise StageUnavailable("the disk is full")

    with pytest.raises(StageUnavailable, match="the disk is full"):
        disturb(cast(Crew, SleepingCrew()), [], MESSAGES, 0.1, publish, grow=lambda: None, refused_s=0.1)
