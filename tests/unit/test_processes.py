"""What runs in a process: consumers to the end of the log, and how an instance says that it is not well."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from serving_world import HandRelease

from services import processes, wire
from services.candidates.vectors import ItemVectors
from services.catalogue.live import write_parts
from services.domain import Event, ItemChange, Outgoing, Query, ReleaseInfo, SettingsInvalid, StageUnavailable
from services.item_parts import VectorPart
from services.memory import MemorySlateLog
from services.processes import HELD_BACK, Instance, recommend_once, run_consumer
from services.settings import Settings
from services.tables import counters, upsert
from services.wiring import Home, build_stages, now, open_home


def newest(instance: Instance) -> ItemVectors:
    """The vectors of the release that was built last."""
    return list(instance._vectors.values())[-1]


def settings_at(home: Path) -> Settings:
    return Settings(home=home, text_encoder="hashing")


def test_all_four_consumers_take_in_everything_once_a_broken_message_too(tmp_path: Path) -> None:
    settings, at = settings_at(tmp_path), now()
    with open_home(settings) as home:
        home.sink.publish([wire.encode_item(ItemChange("lamp", "put", {"title": "Desk lamp"}, at, at))])
        click = wire.encode_event(Event("e1", "ann", "lamp", "click", at, at))
        home.sink.publish([click, click, Outgoing("freshrank.events", "ann", b"{")])
    run_consumer(settings, ("features", "trends", "archive", "catalogue"), lambda: False, until_caught_up=True)
    with open_home(settings) as home:
        assert [each.item_id for each in home.features.read("ann").events] == ["lamp"]
        assert [e.event_id for e in home.archive.events(at - timedelta(days=1), now())] == ["e1"]
        assert home.quarantine.count() == {"truncated": 1}
        items = home.items()
        assert (items.title("lamp"), items.vector("lamp") is not None) == ("Desk lamp", True)
        assert items.block(["lamp"]).counts[0, 4] == 1.0
    slate = recommend_once(settings, Query("r", "bob", 5, now(), record=False))
    assert [pick.item_id for pick in slate.items] == ["lamp"]


def test_a_log_that_may_not_forget_turns_health_red(tmp_path: Path) -> None:
    with open_home(settings_at(tmp_path)) as home:
        instance = Instance(home, MemorySlateLog())
        instance.start()
        assert instance.parts()["log"].state == "green"
        with home.engine.begin() as connection:
            upsert(connection, counters, [{"name": HELD_BACK, "value": 3}])
        assert instance.parts()["log"].state == "red"
        instance.stop()


def test_an_interruption_ends_the_consumers_before_anything_is_closed(tmp_path: Path) -> None:
    settings = settings_at(tmp_path)
    before = {thread.ident for thread in threading.enumerate()}

    def interrupted() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_consumer(settings, ("archive", "catalogue"), interrupted)
    assert {thread.ident for thread in threading.enumerate() if thread.is_alive()} <= before


def test_a_device_that_this_machine_lacks_is_a_bad_setting(tmp_path: Path) -> None:
    for device in ("banana", "cuda:99"):
        with open_home(Settings(home=tmp_path, device=device)) as home, pytest.raises(SettingsInvalid, match=device):
            Instance(home, MemorySlateLog()).start()


def test_a_text_encoder_that_cannot_be_had_is_a_bad_setting(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, text_encoder=str(tmp_path / "nowhere"))
    with pytest.raises(SettingsInvalid, match="text_encoder"):
        run_consumer(settings, ("catalogue",), lambda: False)


@dataclass(frozen=True)
class NamedRelease(HandRelease):
    release_id: str = "new"
    embedded_by: str = "hand"


def test_a_text_vector_that_comes_while_a_release_is_swapped_in_is_in_its_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes after the new release has looked at the items and before it hears of new ones."""
    with open_home(settings_at(tmp_path)) as home:
        instance = Instance(home, MemorySlateLog())

        def arrives(item_id: str) -> None:
            vector = VectorPart("hand", np.array([1, 0, 0], dtype="<f2").tobytes())
            with home.engine.begin() as connection:
                write_parts(connection, [(item_id, vector)])
            home.feed.poll(instance.items)
            instance._refresh()

        def build_slowly(*given):
            stages, vectors = build_stages(*given)
            arrives("between")
            return stages, vectors

        monkeypatch.setattr(processes, "load_release", lambda info, device: NamedRelease())
        monkeypatch.setattr(processes, "build_stages", build_slowly)
        arrives("before")
        instance._build(ReleaseInfo("new", "", now(), now()), instance.items)
        arrives("after")
        assert set(newest(instance).cold_ids) == {"before", "between", "after"}


def test_a_release_that_is_refused_again_and_again_does_not_cost_the_one_that_answers_its_new_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_home(settings_at(tmp_path)) as home:
        instance = Instance(home, MemorySlateLog())
        monkeypatch.setattr(processes, "load_release", lambda info, device: NamedRelease())
        monkeypatch.setattr(type(instance._serving), "release_id", property(lambda _: "answers"))
        for name in ("answers", "unfit", "unfit", "better"):
            instance._build(ReleaseInfo(name, "", now(), now()), instance.items)
        assert list(instance._vectors) == ["answers", "better"]


def test_an_order_to_stop_ends_consumers_whose_store_was_away_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def away(_home: Home, name: str) -> None:
        asked.append(name)
        raise StageUnavailable("the store is away")

    monkeypatch.setattr(Home, "consumer", away)
    ordered = threading.Event()
    work = (settings_at(tmp_path), ("archive",), ordered.is_set)
    thread = threading.Thread(target=run_consumer, args=work, daemon=True)
    thread.start()
    give_up = time.monotonic() + 30
    while len(asked) < 2:
        assert time.monotonic() < give_up, "it does not try again"
        time.sleep(0.01)
    ordered.set()
    thread.join(8)
    assert not thread.is_alive()
    assert set(asked) == {"archive"}
