"""What processes tell one another through the database: together, over machines, after a death, during an outage."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine, create_engine

from services import wire
from services.domain import Coordinate, Event, ItemChange, PartHealth, to_us
from services.freshness import Ages, Objective
from services.memory import MemorySlateLog
from services.processes import Instance, run_consumer
from services.reports import Reporter, Serving, nothing_served, told
from services.settings import Settings
from services.sqlite import open_database
from services.tables import process_reports, upsert
from services.wiring import now, open_home

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
OBJECTIVE = Objective()


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return open_database(tmp_path / "meta.db")


def until(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 10
    while not true():
        assert time.monotonic() < give_up, "it did not come"
        time.sleep(0.01)


def reporter(engine: Engine, role: str, ages: Ages, serving: Callable[[], Serving] = nothing_served) -> Reporter:
    return Reporter(lambda: engine, ages, role, lambda: NOW, 0.01, serving)


def measured(*ages_ms: int) -> Ages:
    ages = Ages(OBJECTIVE)
    accepted_us = to_us(NOW) - np.array(ages_ms, dtype=np.int64) * 1000
    ages.observe("row", accepted_us, np.ones(len(ages_ms), dtype=bool), to_us(NOW))
    return ages


def test_figures_are_over_all_processes_also_those_that_have_ended(engine: Engine) -> None:
    with reporter(engine, "features", measured(10, 20, 30)):
        until(lambda: [each.role for each in told(engine, OBJECTIVE, NOW).alive()] == ["features"])
    with reporter(engine, "api", measured(4000)):
        until(lambda: [each.role for each in told(engine, OBJECTIVE, NOW).alive()] == ["api"])
        found = told(engine, OBJECTIVE, NOW)
    (live,) = found.figures[:1]
    assert (live.part, live.events, live.within_share, live.max_ms) == ("row", 4, 0.75, 4000.0)
    assert {each.role for each in found.reports} == {"features", "api"}
    process = found.alive()[0].process
    assert process["resident_bytes"] > 10e6
    assert process["open_files"] >= 3


def test_a_process_that_tells_nothing_any_more_is_gone_and_later_forgotten(engine: Engine) -> None:
    running = reporter(engine, "features", measured(10))
    running._tell(ended=False)
    assert len(told(engine, OBJECTIVE, NOW + timedelta(seconds=14)).alive()) == 1
    assert told(engine, OBJECTIVE, NOW + timedelta(seconds=16)).alive() == ()
    assert len(told(engine, OBJECTIVE, NOW + timedelta(seconds=16)).reports) == 1
    later = Reporter(lambda: engine, Ages(), "api", lambda: NOW + timedelta(hours=2), 1.0)
    later._tell(ended=False)
    with engine.connect() as connection:
        assert connection.execute(process_reports.select()).all()[0].at_us == to_us(NOW + timedelta(hours=2))
        assert len(connection.execute(process_reports.select()).all()) == 1


def test_a_report_of_another_version_is_passed_over(engine: Engine) -> None:
    with engine.begin() as connection:
        upsert(connection, process_reports, [{"process_id": "x", "at_us": to_us(NOW), "report": b"\x01"}])
    with reporter(engine, "features", measured(10)):
        until(lambda: len(told(engine, OBJECTIVE, NOW).reports) == 1)


def test_a_database_that_is_away_ends_nothing_and_is_told_when_it_is_back(tmp_path: Path) -> None:
    away = create_engine(f"sqlite:///{tmp_path / 'nowhere' / 'meta.db'}")
    back = open_database(tmp_path / "meta.db")
    engines = [away]
    running = Reporter(lambda: engines[-1], measured(10), "features", lambda: NOW, 0.01).start()
    until(lambda: running._failed)
    engines.append(back)
    until(lambda: len(told(back, OBJECTIVE, NOW).alive()) == 1)
    running.stop()
    assert told(back, OBJECTIVE, NOW).alive() == ()


def test_an_order_to_stop_does_not_wait_for_a_database_that_hangs() -> None:
    released = threading.Event()

    def hangs() -> Engine:
        released.wait()
        raise OSError("away")

    running = Reporter(hangs, Ages(), "features", lambda: NOW, 0.01).start()
    started = time.monotonic()
    running.stop()
    assert time.monotonic() - started < 4
    released.set()
    running._thread.join()


# ------------------------------------------------------------------------------------ in a whole instance


def publish_click(home_path: Path, at: datetime, *ids: str) -> None:
    with open_home(Settings(home=home_path)) as home:
        home.sink.publish([wire.encode_event(Event(each, each, "lamp", "click", at, at)) for each in ids])


def test_status_tells_of_another_process_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two live clicks and one of last year, taken in by a consumer that has ended; the trends have nobody."""
    from services.cli import main

    publish_click(tmp_path, now(), "a", "b")
    publish_click(tmp_path, now() - timedelta(days=365), "c")
    run_consumer(Settings(home=tmp_path), ("features",), lambda: False, until_caught_up=True)
    monkeypatch.setenv("FRESHRANK_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "120")
    capsys.readouterr()
    for arguments in (["status", "--json"], ["status"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert not ended.value.code
    fields, text = capsys.readouterr().out.split("\n", 1)
    found = json.loads(fields)
    counts = {(f["part"], f["origin"]): f["messages"] for f in found["freshness"]["figures"] if f["messages"]}
    assert counts == {("row", "live"): 2, ("row", "history"): 1}
    consumers = {each["consumer"]: each for each in found["consumers"]}
    assert (consumers["features"]["lag"], consumers["trends"]["lag"]) == (0, 3)
    assert sum(consumers["trends"]["partitions"].values()) == 3
    assert consumers["trends"]["processes"] == []
    assert {"late", "duplicate", "clamped", "rejected"} <= found["counted"].keys()
    assert "user rows" in text
    assert "user rows, old" in text


def test_readiness_turns_yellow_with_figures_stays_200_and_turns_green_again(tmp_path: Path) -> None:
    """Two clicks that took 5 s against an objective of 1 s; then a thousand that took 10 ms."""
    from fastapi.testclient import TestClient

    from services.api.app import create_app

    settings = Settings(home=tmp_path, text_encoder="hashing", report_every_ms=100)
    with open_home(settings) as home, TestClient(create_app(Instance(home))) as client:

        def health() -> PartHealth:
            answer = client.get("/health/ready")
            assert (answer.status_code, answer.json()["ready"]) == (200, True)
            return PartHealth(**answer.json()["parts"]["freshness"])

        def took(seconds: float, count: int) -> None:
            at_us = to_us(now())
            accepted_us = np.full(count, at_us - int(seconds * 1e6))
            home.ages.observe("row", accepted_us, np.ones(count, dtype=bool), at_us)

        assert health() == PartHealth("green", "no live events over the last 300 s")
        took(5.0, 2)
        until(lambda: health().state == "yellow")
        assert health().detail.startswith("0.00% of 2 live events were in their user's row within 1000 ms")
        took(0.01, 1000)
        until(lambda: health().state == "green")
        assert "99.80% of 1,002 live events" in health().detail


def test_events_that_nobody_takes_in_turn_readiness_yellow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.freshness.STALLED_S", 0.3)
    settings = Settings(home=tmp_path, text_encoder="hashing", report_every_ms=100)
    publish_click(tmp_path, now(), "a")
    with open_home(settings) as home:
        instance = Instance(home)
        instance.start()
        until(lambda: instance.parts()["freshness"].state == "yellow")
        assert "taken nothing in" in instance.parts()["freshness"].detail
        until(lambda: home.told().stalled_s()["features"] > 0)  # a report is older than what the instance sees itself
        assert instance.waiting_s()["features"] > 0
        instance.stop()


def test_an_item_is_as_old_as_its_acceptance_when_the_serving_process_shows_it(tmp_path: Path) -> None:
    """The serving process's clock stands at noon; the card was accepted 700 ms before, another one a day before."""
    settings = Settings(home=tmp_path, text_encoder="hashing", items_poll_ms=10)
    with open_home(settings) as home:
        instance = Instance(home, MemorySlateLog())
        instance._serving._now = lambda: NOW
        instance.start()
        lamp = ItemChange("lamp", "put", {"title": "Lamp"}, NOW, NOW - timedelta(milliseconds=700))
        sofa = ItemChange("sofa", "put", {"title": "Sofa"}, NOW - timedelta(days=9), NOW - timedelta(days=1))
        for offset, change in enumerate((replace(lamp, updated_at=lamp.accepted_at), sofa)):
            home.catalogue.apply([(Coordinate("log", "freshrank.items", 0, offset), change)])
        home.text_vectors.drain()

        def shown() -> dict[tuple[str, str], tuple[int, int]]:
            return {(w.part, w.origin): (_events(w), w.slots[0].most_us) for w in home.ages.windows()}

        day_us = 86_400_000_000
        wanted = {
            ("card", "live"): (1, 700_000), ("card", "history"): (1, day_us), ("vector", "live"): (2, day_us),
        }  # fmt: skip
        until(lambda: shown() == wanted)
        assert instance.ages_s()["changed"] < 10
        instance.stop()


def _events(window: object) -> int:
    return sum(sum(slot.counts.values()) for slot in window.slots)  # type: ignore[attr-defined]
