"""Parity on a running instance: lists are asked for and clicked while events of others pour in, then joined again."""

from __future__ import annotations

import json
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
from consuming import CLI, environment
from figures import Figure, figure

from services import wire
from services.demo.stage import Stage
from services.demo.world import WorldSize, make_world
from services.settings import load_settings
from services.wiring import open_home

SIZE = WorldSize(users=600, items=1500, events_per_user=30.0, days=30.0)
SECONDS = 90.0
EVENTS_AT_ONCE, PAUSE_S = 40, 0.2
SETTLED_S = 12.0
"""Longer than a flush of trends and a part of the archive take."""


def parity(home: Path) -> Iterator[Figure]:
    """A world is consumed and trained on; then SECONDS of lists, their clicks, and 200 events/s of other users."""
    world = make_world(SIZE, seed=5, ends_at=datetime.now(UTC) - timedelta(minutes=1))
    with open_home(load_settings(home=home, slate_features_share=1.0)) as opened:
        opened.sink.publish([wire.encode_item(change) for change in world.item_changes()])
        opened.sink.publish([wire.encode_event(event) for event in world.events()])
    wanted = environment(home) | {"FRESHRANK_SLATE_FEATURES_SHARE": "1", "FRESHRANK_EFFORT": "demo"}
    os.environ.update({name: value for name, value in wanted.items() if name.startswith("FRESHRANK_")})
    try:
        with Stage(home, CLI, 0) as stage:
            client = stage.client()
            stage.wait_for(lambda: _lag(home) == 0, "the world consumed", 300)
            release_id = stage.retrain()["release_id"]
            stage.wait_for(lambda: stage.recommendations("u0", 1)["release_id"] == release_id, "the release", 60)
            since = datetime.now(UTC)
            _live(client, [item.item_id for item in world.items])
            time.sleep(SETTLED_S)
            stage.wait_for(lambda: _lag(home) == 0, "everything consumed", 120)
            command = [*CLI, "parity", "--sample", "100000", "--since", since.isoformat(), "--json"]
            told = subprocess.run(command, check=True, capture_output=True, text=True, env=dict(os.environ)).stdout
    finally:
        for name in ("FRESHRANK_HOME", "FRESHRANK_SLATE_FEATURES_SHARE", "FRESHRANK_EFFORT"):
            os.environ.pop(name, None)
    report = json.loads(told.strip().splitlines()[-1])
    for cause, lists in report["causes"].items():
        print(f"  {lists} lists: {cause}")
    yield figure("parity_lists", report["compared"])
    yield figure("parity_share", report["share"])


def _live(client: httpx.Client, items: list[str]) -> None:
    stopping = threading.Event()

    def pour() -> None:
        chance = random.Random(7)
        with httpx.Client(base_url=client.base_url, timeout=10.0) as own:
            while not stopping.wait(PAUSE_S):
                events = [
                    {"user_id": f"u{chance.randrange(SIZE.users)}", "item_id": chance.choice(items), "kind": "click"}
                    for _ in range(EVENTS_AT_ONCE)
                ]
                own.post("/v1/events", json={"events": events}).raise_for_status()

    thread = threading.Thread(target=pour)
    thread.start()
    chance = random.Random(8)
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        user = f"u{chance.randrange(SIZE.users)}"
        answer = client.get(f"/v1/users/{user}/recommendations", params={"limit": 20}).raise_for_status().json()
        if answer["items"]:
            pick = answer["items"][int(len(answer["items"]) * chance.random() ** 3)]["item_id"]
            click = {"user_id": user, "item_id": pick, "kind": "click", "request_id": answer["request_id"]}
            client.post("/v1/events", json=click).raise_for_status()
    stopping.set()
    thread.join()


def _lag(home: Path) -> int:
    """Messages that some consumer has not committed."""
    command = [*CLI, "status", "--json"]
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=environment(home)).stdout
    return sum(int(each) for each in json.loads(told.strip().splitlines()[-1])["lag"].values())
