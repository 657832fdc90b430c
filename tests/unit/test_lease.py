"""The lease: one holder at a time, taken over only when it was not renewed. Two holders, a set clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, select

from services.domain import BadRequest, StageUnavailable
from services.tables import leases
from services.training.lease import Lease

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.at = NOON

    def __call__(self) -> datetime:
        return self.at


def test_a_second_holder_is_refused_with_the_name_of_the_first(engine: Engine) -> None:
    clock = Clock()
    Lease(engine, "retrain", "one", clock).acquire()
    with pytest.raises(BadRequest, match="retrain is running already, by one"):
        Lease(engine, "retrain", "two", clock).acquire()
    Lease(engine, "something else", "two", clock).acquire()


def test_a_lease_given_back_is_free(engine: Engine) -> None:
    clock = Clock()
    with Lease(engine, "retrain", "one", clock).held():
        pass
    with Lease(engine, "retrain", "two", clock).held() as check:
        check()
        with pytest.raises(BadRequest, match="two"):
            Lease(engine, "retrain", "three", clock).acquire()


def test_a_lease_that_was_not_renewed_can_be_taken_and_its_old_holder_cannot_give_it_back(engine: Engine) -> None:
    clock = Clock()
    one, two = Lease(engine, "retrain", "one", clock), Lease(engine, "retrain", "two", clock)
    one.acquire()
    clock.at = NOON + timedelta(seconds=61)
    two.acquire()
    one.release()
    with engine.connect() as connection:
        assert [row.holder for row in connection.execute(select(leases))] == ["two"]


def test_the_holder_renews_while_it_works_and_hears_when_it_lost_the_lease(engine: Engine) -> None:
    clock = Clock()
    one = Lease(engine, "retrain", "one", clock, timedelta(milliseconds=60))
    with one.held() as check:
        clock.at = NOON + timedelta(seconds=1)  # as if the process had been asleep: the lease has run out
        Lease(engine, "retrain", "two", clock, timedelta(hours=1)).acquire()
        with pytest.raises(StageUnavailable, match="was lost"):
            _until_it_raises(check)


def test_a_lease_lost_and_free_again_is_not_taken_back_by_renewing(engine: Engine) -> None:
    """Another run came and went meanwhile: what this one knows is old."""
    clock = Clock()
    one, two = Lease(engine, "retrain", "one", clock), Lease(engine, "retrain", "two", clock)
    one.acquire()
    clock.at = NOON + timedelta(seconds=61)
    with two.held():
        pass
    with pytest.raises(StageUnavailable, match="was lost"):
        one.renew()
    with engine.begin() as connection, pytest.raises(StageUnavailable, match="was lost"):
        one.confirm(connection)


def test_a_lease_that_ran_out_and_that_nobody_took_can_still_be_renewed(engine: Engine) -> None:
    clock = Clock()
    one = Lease(engine, "retrain", "one", clock)
    one.acquire()
    clock.at = NOON + timedelta(seconds=61)
    one.renew()
    with pytest.raises(BadRequest, match="by one"):
        Lease(engine, "retrain", "two", clock).acquire()


def test_a_long_piece_of_work_keeps_its_lease(engine: Engine) -> None:
    """Real time: the work lasts five times the lease."""
    one = Lease(engine, "retrain", "one", lambda: datetime.now(UTC), timedelta(milliseconds=300))
    with one.held() as check:
        for _ in range(30):
            time.sleep(0.05)
            with pytest.raises(BadRequest, match="by one"):
                Lease(engine, "retrain", "two", lambda: datetime.now(UTC)).acquire()
        check()


def _until_it_raises(check: Callable[[], None]) -> None:
    for _ in range(500):
        check()
        time.sleep(0.005)
