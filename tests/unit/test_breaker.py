"""A breaker opens after failures in a row, lets one through now and then, and closes when that one is answered."""

from __future__ import annotations

import threading
import time

import pytest

from services.breaker import Bounded, Breaker
from services.domain import StageUnavailable, UserState
from services.features.guarded import GuardedFeatures
from services.memory import MemoryFeatureStore


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_it_opens_after_failures_in_a_row_and_lets_one_through_after_each_pause() -> None:
    clock = Clock()
    breaker = Breaker(failures_max=3, pause_s=1.0, monotonic=clock)
    for _ in range(2):
        assert breaker.allows()
        breaker.failed()
    breaker.worked()
    for _ in range(3):
        assert breaker.allows()
        breaker.failed()
    assert [breaker.allows() for _ in range(5)] == [False] * 5
    clock.now += 1.0
    assert [breaker.allows() for _ in range(5)] == [True, False, False, False, False]
    breaker.failed()
    clock.now += 0.9
    assert not breaker.allows()
    clock.now += 0.1
    assert breaker.allows()
    breaker.worked()
    assert [breaker.allows() for _ in range(5)] == [True] * 5


class Slow(MemoryFeatureStore):
    """A store that answers nothing and takes its time for it, until it is back."""

    away = True
    asked = 0

    def read(self, user_id: str) -> UserState:
        self.asked += 1
        if self.away:
            time.sleep(0.05)
            raise StageUnavailable("no answer within 50 ms")
        return super().read(user_id)


def test_a_store_that_is_away_costs_a_few_answers_its_deadline_and_the_others_nothing() -> None:
    store, clock = Slow(), Clock()
    guarded = GuardedFeatures(store, Breaker(3, 0.5, clock))
    started = time.monotonic()
    for _ in range(100):
        with pytest.raises(StageUnavailable):
            guarded.read("ann")
    assert store.asked == 3
    assert time.monotonic() - started < 0.05 * 20  # a hundred deadlines would be 5 s
    store.away = False
    with pytest.raises(StageUnavailable):
        guarded.read("ann")
    clock.now += 0.5
    assert guarded.read("ann") == UserState("ann")
    assert guarded.read_many(["ann", "bob"]) == (UserState("ann"), UserState("bob"))


def test_a_call_ends_at_its_deadline_and_nobody_is_sent_after_those_that_hang() -> None:
    within, hangs = Bounded("the store", 0.1, threads=2), threading.Event()
    asked: list[int] = []

    def ask(number: int) -> int:
        asked.append(number)
        hangs.wait(10)
        return number

    for number in range(4):
        started = time.monotonic()
        with pytest.raises(StageUnavailable, match="the store"):
            within(lambda number=number: ask(number))
        assert 0.09 < time.monotonic() - started < 3.0
    assert asked == [0, 1]
    hangs.set()
    until = time.monotonic() + 5
    while True:  # the threads come back
        try:
            assert within(lambda: ask(9)) == 9
            break
        except StageUnavailable:
            assert time.monotonic() < until
    within.close()


def test_what_a_call_raises_is_raised() -> None:
    within = Bounded("the store", 5.0)
    with pytest.raises(ZeroDivisionError):
        within(lambda: 1 // 0)
    assert within(lambda: 7) == 7
    within.close()
