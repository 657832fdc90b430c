"""What runs in a process: consumers to the end of the log, and how an instance says that it is not well."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import pytest

from services import wire
from services.domain import Event, ItemChange, Outgoing, Query, SettingsInvalid
from services.memory import MemorySlateLog
from services.processes import HELD_BACK, Instance, recommend_once, run_consumer
from services.settings import Settings
from services.tables import counters, upsert
from services.wiring import now, open_home


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
