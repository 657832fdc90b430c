"""The story of rows built anew, told over whatever store keeps the online rows: `ReplayStory` and its events."""

from __future__ import annotations

import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from services import replay
from services.domain import BadRequest, Event, KindRule, KindRules, UserState, from_us, to_us
from services.features.comparing import KINDS, LENGTH, MISSING, MISSING_LIVE, SINCE
from services.features.fold import fold, interaction
from services.processes import Instance, run_consumer
from services.settings import Settings
from services.wire import encode_event
from services.wiring import Home, open_home

# Noon, whenever the story is told: the archive is read by days, and a day at the edge would hold few events or none.
NOW = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0) - timedelta(days=1)
USERS = [f"u{n}" for n in range(12)]
KIND_VALUES = [("click", None), ("purchase", None), ("rating", 8.0), ("rating", 2.0), ("hide", None), ("finish", None)]


def events_of(count: int, seed: int, first: int = 0) -> list[Event]:
    """Events of the last five days, out of order, some kinds undeclared, every tenth one sent twice."""
    chance = random.Random(seed)
    made = []
    for number in range(first, first + count):
        at = NOW - timedelta(minutes=chance.randrange(5 * 24 * 60))
        kind, value = chance.choice(KIND_VALUES)
        made.append(Event(f"e{number}", chance.choice(USERS), f"i{chance.randrange(200)}", kind, at, NOW, value))
        if number % 10 == 0:
            made.append(made[-1])
    return made


def expected(
    events: Sequence[Event], rules: KindRules, events_max: int = 64, since: datetime | None = None
) -> dict[str, UserState]:
    """What each user's row holds: the fold of the set of their events."""
    rows = {}
    for user_id in USERS:
        mine = [interaction(each, rules) for each in events if each.user_id == user_id]
        wanted = [each for each in mine if each and each.occurred_us >= (to_us(since) if since else 0)]
        rows[user_id] = content(fold(UserState(user_id), wanted, events_max))
    return rows


def content(state: UserState) -> UserState:
    """A row without its times, which tell how often it was written."""
    return replace(state, row_time_us=0, previous_row_time_us=0)


def rows_of(home: Home, name: str) -> dict[str, UserState]:
    return {state.user_id: content(state) for state in home.rows.store(name).read_many(USERS)}


def publish(home: Home, events: Sequence[Event]) -> None:
    home.sink.publish([encode_event(each) for each in events])


def consumed(settings: Settings, *names: str) -> None:
    run_consumer(settings, names, lambda: False, until_caught_up=True)


def build(home: Home, name: str, since: datetime | None = None) -> Any:
    return replay.build(home, name, since, threading.Event())


def swapped(home: Home, name: str) -> bool:
    return replay.swap(home, name, threading.Event(), handover_s=0)


@contextmanager
def consuming(settings: Settings) -> Iterator[None]:
    """A process's features consumer, running meanwhile."""
    stopping, failures = threading.Event(), []

    def work() -> None:
        try:
            run_consumer(settings, ("features",), stopping.is_set)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(30)
        assert not failures, failures


def until(claim: Callable[[], bool], what: str, wait_s: float = 40) -> None:
    deadline = time.monotonic() + wait_s
    while not claim():
        assert time.monotonic() < deadline, f"not in {wait_s} s: {what}"
        time.sleep(0.05)


class Crash(Exception):
    """The process dies here."""


class ReplayStory(ABC):
    @abstractmethod
    def settings(self, tmp_path: Path, **more: Any) -> Settings:
        """An instance on a home of this test."""

    @abstractmethod
    def lose_rows(self, settings: Settings) -> None:
        """The online store comes back empty."""

    def test_rows_built_from_the_log_are_the_live_ones_field_by_field(self, tmp_path: Path) -> None:
        settings = self.settings(tmp_path)
        with open_home(settings) as home:
            events = events_of(900, seed=1)
            publish(home, events)
            consumed(settings, "features")
            assert build(home, "v2").source == replay.LOG
            assert rows_of(home, "v2") == rows_of(home, "default") == expected(events, settings.kind_rules())
            found = replay.compare_rows(home, "v2", 1000)
            assert (found.rows, found.equal, dict(found.causes)) == (len(USERS), len(USERS), {})

    def test_what_the_log_has_forgotten_comes_from_the_archive_and_the_rest_from_the_log(self, tmp_path: Path) -> None:
        settings = self.settings(tmp_path, bus_partitions=2)
        old, new = events_of(600, seed=2), events_of(150, seed=3, first=600)
        with open_home(settings) as home:
            publish(home, old)
            consumed(settings, "features", "archive", "trends")
            assert not home.bus.trim(NOW + timedelta(days=30))
            assert all(home.view.begins("freshrank.events").values())
            publish(home, new)  # not archived yet
            rows = build(home, "v2")
            assert rows.source == replay.ARCHIVE
            assert rows_of(home, "v2") == expected([*old, *new], settings.kind_rules())
            consumed(settings, "features")
            assert replay.compare_rows(home, "v2", 1000).equal == len(USERS)

    def test_what_is_neither_in_the_log_nor_in_the_archive_is_said(self, tmp_path: Path) -> None:
        settings = self.settings(tmp_path)
        with open_home(settings) as home:
            publish(home, events_of(100, seed=4))
            consumed(settings, "features")
            home.bus.trim(NOW + timedelta(days=30))
            with pytest.raises(BadRequest, match="what lies between is gone"):
                build(home, "v2")
            assert home.rows.namespaces.get("v2") is None

    @pytest.mark.parametrize("call", [1, 5])
    def test_a_replay_that_crashed_goes_on_where_it_was(self, tmp_path: Path, call: int) -> None:
        settings = self.settings(tmp_path, features_batch_max=60)
        old, new = events_of(400, seed=5), events_of(150, seed=6, first=400)
        with open_home(settings) as home:
            publish(home, old)
            consumed(settings, "features", "archive", "trends")
            home.bus.trim(NOW + timedelta(days=30))
            publish(home, new)
            store = home.rows.store("v2")
            writes = iter(range(1, 1000))
            write = store.write

            def failing(states: Sequence[UserState]) -> tuple[str, ...]:
                if next(writes) == call:
                    raise Crash
                return write(states)

            store.write = failing  # type: ignore[method-assign]
            with pytest.raises(Crash):
                build(home, "v2")
        with open_home(settings) as home:
            begun = home.rows.namespaces.get("v2")
            assert begun is not None
            assert (begun.caught_up_us, begun.archived_us > 0) == (0, call == 5)  # whole days are not read again
            with pytest.raises(BadRequest, match="not built yet"):
                swapped(home, "v2")
            build(home, "v2")
            assert rows_of(home, "v2") == expected([*old, *new], settings.kind_rules())

    def test_a_swap_under_traffic_loses_no_event_and_running_processes_come_over(self, tmp_path: Path) -> None:
        settings = self.settings(tmp_path, bus_partitions=3)
        sent: list[Event] = []
        stopping = threading.Event()
        with open_home(settings) as home, open_home(settings) as serving:
            publish(home, events_of(200, seed=7))
            sent += events_of(200, seed=7)

            def traffic() -> None:
                number = 1000
                while not stopping.is_set():
                    fresh = events_of(4, seed=number, first=number)
                    publish(home, fresh)
                    sent.extend(fresh)
                    number += 4
                    time.sleep(0.01)

            sender = threading.Thread(target=traffic)
            server = Instance(serving)
            with consuming(settings):
                sender.start()
                server.start()
                try:
                    build(home, "v2")
                    assert server._home.rows.live() == "default"
                    assert replay.swap(home, "v2", threading.Event(), handover_s=30), "nobody took over"
                    until(lambda: server._home.rows.live() == "v2", "the server has come over")
                    at_swap = len(sent)
                    until(lambda: len(sent) > at_swap + 40, "traffic goes on")
                finally:
                    stopping.set()
                    sender.join()
                until(lambda: not sum(replay._lags(home, home.rows.namespaces.live()).values()), "all is taken in")
            wanted = expected(sent, settings.kind_rules())
            assert {user: content(server.features.read(user)) for user in USERS} == wanted
            assert rows_of(home, "v2") == wanted
            assert home.view.committed("features", "freshrank.events") == home.view.ends("freshrank.events")
            server.stop()

    def test_there_is_a_way_back_which_first_takes_in_what_came_meanwhile(self, tmp_path: Path) -> None:
        settings = self.settings(tmp_path)
        events, later = events_of(200, seed=8), events_of(100, seed=9, first=200)
        with open_home(settings) as home:
            publish(home, events)
            consumed(settings, "features")
            build(home, "v2")
            swapped(home, "v2")
            publish(home, later)
            consumed(settings, "features")
            assert rows_of(home, "v2") == expected([*events, *later], settings.kind_rules())
            assert rows_of(home, "default") == expected(events, settings.kind_rules())
            previous = home.rows.namespaces.previous()
            assert previous is not None
            swapped(home, previous.name)
            assert home.rows.namespaces.live().name == "default"
            assert rows_of(home, "default") == expected([*events, *later], settings.kind_rules())
            replay.drop(home, "v2")
            assert [each.name for each in home.rows.namespaces.all()] == ["default"]
            assert all(state.is_stranger for state in home.rows.store("v2").read_many(USERS))
            assert not list((settings.home / "offline").glob("*@v2"))
            assert home.bus.view().topics("features.v2") == ()
            with pytest.raises(BadRequest, match="is live"):
                replay.drop(home, "default")

    def test_a_changed_definition_comes_in_with_new_rows_and_goes_on_after_the_swap(self, tmp_path: Path) -> None:
        before = self.settings(tmp_path)
        after = self.settings(tmp_path, kinds={"finish": KindRule("positive", 4.0)}, history_events_max=10)
        events, later = events_of(900, seed=10), events_of(200, seed=11, first=900)
        with open_home(before) as home:
            publish(home, events)
            consumed(before, "features")
        with open_home(after) as home:
            build(home, "v2")
            assert rows_of(home, "v2") == expected(events, after.kind_rules(), 10)
            found = replay.compare_rows(home, "v2", 1000)
            assert found.equal == 0
            assert set(found.causes) == {KINDS, LENGTH}
            assert found.unexplained == 0
            swapped(home, "v2")
        with open_home(before) as home:  # a process that was started with the old settings
            publish(home, later)
            consumed(before, "features")
            assert rows_of(home, "v2") == expected([*events, *later], after.kind_rules(), 10)
            live, old = replay.standings(home)
            assert (live.namespace.name, live.follows_settings, live.lag) == ("v2", False, 0)
            assert (old.namespace.name, old.follows_settings, old.lag > 0) == ("default", True, True)

    def test_rows_since_a_day_hold_nothing_from_before(self, tmp_path: Path) -> None:
        settings = self.settings(tmp_path)
        since = NOW - timedelta(days=2, hours=5)
        events = events_of(700, seed=12)
        with open_home(settings) as home:
            publish(home, events)
            consumed(settings, "features")
            build(home, "v2", since)
            assert rows_of(home, "v2") == expected(events, settings.kind_rules(), since=since)
            found = replay.compare_rows(home, "v2", 1000)
            assert set(found.causes) == {SINCE}
            assert found.equal < len(USERS)
            with pytest.raises(BadRequest, match="another --from"):
                build(home, "v2", since + timedelta(hours=1))

    def test_lost_live_rows_are_built_anew_in_place_beside_a_running_consumer(self, tmp_path: Path) -> None:
        settings = self.settings(tmp_path)
        events, later = events_of(400, seed=13), events_of(60, seed=14, first=400)
        with open_home(settings) as home:
            publish(home, events)
            consumed(settings, "features")
        self.lose_rows(settings)
        with open_home(settings) as home, consuming(settings):
            publish(home, later)
            until(lambda: not sum(replay._lags(home, home.rows.namespaces.live()).values()), "all is taken in")
            assert rows_of(home, "default") == expected(later, settings.kind_rules())
            build(home, "live")
            assert rows_of(home, "default") == expected([*events, *later], settings.kind_rules())
            assert [each.name for each in home.rows.namespaces.all()] == ["default"]
            assert home.bus.view().topics("features.live") == ()

    def test_what_one_side_lacks_without_a_reason_is_named(self, tmp_path: Path) -> None:
        settings = self.settings(tmp_path)
        events = events_of(200, seed=15)
        with open_home(settings) as home:
            publish(home, events)
            consumed(settings, "features")
            build(home, "v2")
            store, rules = home.rows.store("v2"), settings.kind_rules()
            extra = Event("extra", "u3", "i-extra", "click", NOW - timedelta(seconds=1), NOW)
            mine = interaction(extra, rules)
            assert mine
            store.write([fold(store.read("u3"), [mine])])
            live = home.rows.store("default")
            theirs = interaction(Event("theirs", "u5", "i-extra", "click", NOW - timedelta(seconds=1), NOW), rules)
            assert theirs
            live.write([fold(live.read("u5"), [theirs])])
            live.write([fold(UserState("u99"), [theirs])])
            found = replay.compare_rows(home, "v2", 1000)
            causes = dict(found.examples)
            assert (found.rows, found.equal) == (len(USERS) + 1, len(USERS) - 2)
            assert MISSING_LIVE in causes["u3"]
            assert MISSING in causes["u5"]
            assert MISSING in causes["u99"]
            assert found.unexplained > 0

    def test_a_way_back_over_a_gap_in_the_log_is_refused(self, tmp_path: Path) -> None:
        settings = self.settings(tmp_path)
        with open_home(settings) as home:
            publish(home, events_of(100, seed=16))
            consumed(settings, "features", "archive", "trends")
            build(home, "v2")
            swapped(home, "v2")
            publish(home, events_of(100, seed=17, first=100))
            consumed(settings, "features", "archive", "trends")
            assert sum(home.bus.trim(from_us(to_us(NOW)) + timedelta(days=30)).values())  # held for the way back
            home.bus.forget("features")  # as Kafka would, whose retention waits for nobody
            home.bus.trim(NOW + timedelta(days=30))
            with pytest.raises(BadRequest, match="the log has forgotten"):
                swapped(home, "default")
            assert home.rows.namespaces.live().name == "v2"
