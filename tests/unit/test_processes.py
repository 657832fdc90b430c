"""What runs in a process: consumers to the end of the log, and how an instance says that it is not well."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from services import wire
from services.domain import Event, ItemChange, Outgoing, Query
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
        assert home.quarantine.count() == {"not_json": 1}
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
