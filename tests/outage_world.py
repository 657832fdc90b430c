"""A running instance under outages: its API in this process, its consumers in threads, a client that sends and asks."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
from fastapi.testclient import TestClient

from services import wire
from services.api.app import create_app
from services.domain import ItemChange, StageUnavailable, UserState, hash64
from services.processes import Instance, run_consumer
from services.settings import Settings
from services.wiring import Home, now, open_home

USERS = 5
PACE_S = 0.01
"""Between two clicks: servers, consumers and other tests have to do with the same cores."""


class Store:
    """The feature store of the home, away while it is told so; every read then takes its whole deadline."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.away = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def _ask(self) -> None:
        if self.away:
            time.sleep(0.2)
            raise StageUnavailable("the store did not answer within 200 ms")

    def read(self, user_id: str) -> UserState:
        self._ask()
        return self._store.read(user_id)

    def read_many(self, user_ids: Sequence[str]) -> tuple[UserState, ...]:
        self._ask()
        return self._store.read_many(user_ids)


class World:
    """An instance with its API and consumers, a client that asks and sends all the time, and what it was told."""

    def __init__(self, home: Home, client: TestClient, store: Store) -> None:
        self.home = home
        self.client = client
        self.store = store
        self.sent: list[str] = []
        self.told: Counter[tuple[str, int]] = Counter()
        self.degraded: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.slowest: defaultdict[str, float] = defaultdict(float)
        self.spooled = 0

    @property
    def slowest_s(self) -> float:
        return max(self.seconds)

    def percentile(self, percent: float) -> float:
        return float(np.percentile(self.seconds, percent))

    def click(self) -> None:
        """One event of one user; noted where it was accepted."""
        number = len(self.sent)
        body = {
            "event_id": f"e{number:05}", "user_id": f"user-{number % USERS}", "item_id": f"lamp-{number % 12}",
            "occurred_at": now().isoformat(),
        }  # fmt: skip
        answer = self._timed("events", lambda: self.client.post("/v1/events", json=body))
        if answer.status_code == 202:
            self.sent.append(body["event_id"])
            self.spooled += answer.json()["spooled"]
        else:
            assert answer.headers["retry-after"]

    def ask(self) -> None:
        """One list."""
        answer = self._timed("lists", lambda: self.client.get("/v1/users/user-1/recommendations?limit=5"))
        if answer.status_code == 200:
            assert answer.json()["items"]
            self.degraded.update(answer.json()["degraded"])

    def live(self, seconds: float) -> None:
        """Click and ask for so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.click()
            self.ask()
            time.sleep(PACE_S)

    def look(self) -> None:
        """What operators and pages ask for beside lists."""
        for path in ("/health/ready", "/metrics", "/v1/items/lamp-1"):
            self._timed(path, lambda path=path: self.client.get(path))

    def settled(self) -> None:
        """Everything has arrived exactly once: in the archive, and in the rows."""
        until = time.monotonic() + 60
        while (found := self._archived()) != self.sent or self._in_rows() != self.sent:
            assert time.monotonic() < until, (len(found), len(self._in_rows()), len(self.sent))
            time.sleep(0.2)

    def _archived(self) -> list[str]:
        at = now()
        found = self.home.archive.events(at - timedelta(days=1), at + timedelta(days=1))
        return sorted(each.event_id for each in found if each.event_id.startswith("e"))

    def _in_rows(self) -> list[str]:
        """The ids whose events are in the rows, as far as rows go back (64 events of a user)."""
        keys = {hash64(event_id): event_id for event_id in self.sent}
        rows = [self.home.features.read(f"user-{number}") for number in range(USERS)]
        in_rows = [keys[each.event_key] for row in rows for each in row.events]
        newest = {e for number in range(USERS) for e in self.sent[number::USERS][-64:]}
        return sorted([e for e in self.sent if e not in newest] + in_rows)

    def _timed(self, what: str, call: Callable[[], Any]) -> Any:
        started = time.monotonic()
        answer = call()
        self.seconds.append(time.monotonic() - started)
        self.slowest[what] = max(self.slowest[what], self.seconds[-1])
        self.told[what, answer.status_code] += 1
        return answer


@contextmanager
def running(settings: Settings) -> Iterator[World]:
    """The instance, with 40 items and a few clicks taken in."""
    stopping = threading.Event()
    with open_home(settings) as home:
        at = now()
        home.sink.publish(
            [wire.encode_item(ItemChange(f"lamp-{n}", "put", {"title": f"Lamp {n}"}, at, at)) for n in range(40)]
        )
        work = threading.Thread(
            target=run_consumer, args=(settings, ("features", "trends", "archive", "catalogue"), stopping.is_set)
        )
        store = Store(home.features)
        home.rows._stores[home.rows.live()] = store
        work.start()
        try:
            with TestClient(create_app(Instance(home))) as client:
                world = World(home, client, store)
                until = time.monotonic() + 60
                while len(client.get("/v1/users/user-1/recommendations?limit=5").json()["items"]) < 5:
                    assert time.monotonic() < until
                    time.sleep(0.1)
                world.live(0.5)
                yield world
        finally:
            stopping.set()
            work.join(30)
