"""The promises of a FeatureStore and of its FeatureHistory, held over the in-memory ones and over Feast on SQLite."""

from __future__ import annotations

import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feast_home import feast_at

from feature_repo.stores.parts_io import locked
from services.domain import Interaction, StageUnavailable, UserState
from services.features import opening
from services.features.fold import fold
from services.features.guarded import GuardedFeatures
from services.features.history import MemoryHistory
from services.features.opening import open_feast
from services.features.store import FeastFeatureStore, FeastHistory
from services.memory import MemoryFeatureStore
from services.signals import COUNTS_WIDTH

T0 = 1_700_000_000_000_000
NOW = datetime(2026, 11, 23, tzinfo=UTC)


def event(at_us: int, item_id: str = "i", kind: str = "click", value: float | None = None, weight: float = 1.0):
    return Interaction(T0 + at_us, at_us * 31 - 2**62, item_id, kind, value, weight)


FULL = fold(
    UserState("änne/ 1"),
    [event(t * 977, f"item {t % 80}", "rating", None if t % 3 else t / 4, -0.5 if t % 5 else 1.5) for t in range(90)]
    + [event(3, "spam", "hide", None, -1.0), event(4, "ads", "dislike", None, -1.0)],
)


@dataclass
class Stores:
    """A store with its history."""

    store: Any
    history: Any
    append_item_stats: Any
    append_item_live: Any


class FeatureStoreContract(ABC):
    @pytest.fixture
    @abstractmethod
    def stores(self, tmp_path: Path) -> Any: ...

    def test_a_stranger_is_an_empty_row(self, stores: Stores) -> None:
        assert stores.store.read("nobody") == UserState("nobody")
        assert stores.store.read("nobody").is_stranger

    def test_what_is_written_is_read_whole(self, stores: Stores) -> None:
        assert (len(FULL.events), len(FULL.hidden), len(FULL.seen)) == (64, 2, 16)  # liked: items 0, 5, ..., 75
        assert stores.store.write([FULL]) == ()
        assert stores.store.read(FULL.user_id) == FULL

    def test_many_are_answered_in_the_order_asked(self, stores: Stores) -> None:
        bert = fold(UserState("bert"), [event(1)])
        stores.store.write([FULL, bert])
        assert stores.store.read_many(["bert", "x", FULL.user_id, "bert"]) == (bert, UserState("x"), FULL, bert)
        assert stores.store.read_many([]) == ()
        assert stores.store.write([]) == ()

    def test_a_row_is_written_only_over_the_one_it_follows(self, stores: Stores) -> None:
        first = fold(UserState("anna"), [event(1, "a")])
        second = fold(first, [event(2, "b")])
        rival = fold(first, [event(3, "c")])
        assert stores.store.write([first]) == ()
        assert stores.store.write([first]) == ("anna",)  # a stranger's first row, twice
        assert stores.store.write([second, fold(UserState("bert"), [event(1)])]) == ()
        assert stores.store.write([rival, fold(UserState("carl"), [event(1)])]) == ("anna",)
        assert stores.store.read("anna") == second
        assert not stores.store.read("carl").is_stranger

    def test_a_row_that_follows_one_that_is_gone_is_refused(self, stores: Stores) -> None:
        assert stores.store.write([replace(FULL, previous_row_time_us=T0)]) == (FULL.user_id,)
        assert stores.store.read(FULL.user_id).is_stranger

    def test_history_is_what_was_known_at_the_time(self, stores: Stores) -> None:
        first = fold(UserState("anna"), [event(10, "a")])
        second = fold(first, [event(20, "b", "rating", 3.0, -1.0)])
        stores.store.append_history([first, second, FULL], NOW)
        times = np.array([T0 + 9, T0 + 10, T0 + 19, T0 + 20, T0 + 10**9, T0 + 10])
        rows = stores.history.users_at(["anna"] * 5 + ["nobody"], times)
        assert np.diff(rows.offsets).tolist() == [0, 1, 1, 2, 2, 0]
        assert rows.row_time_us.tolist() == [0, T0 + 10, T0 + 10, T0 + 20, T0 + 20, 0]
        assert [rows.item_ids[code] for code in rows.item_codes] == ["a", "a", "b", "a", "b", "a"]
        assert [rows.kinds[code] for code in rows.kind_codes] == ["click", "click"] + ["rating", "click"] * 2
        assert rows.occurred_us.tolist() == [T0 + 10, T0 + 10, T0 + 20, T0 + 10, T0 + 20, T0 + 10]
        assert rows.weight.tolist() == [1, 1, -1, 1, -1, 1]

    def test_the_history_may_be_empty(self, stores: Stores) -> None:
        rows = stores.history.users_at(["anna"], np.array([T0]))
        assert (rows.offsets.tolist(), rows.row_time_us.tolist(), rows.item_ids) == ([0, 0], [0], ())
        assert stores.history.users_at([], np.zeros(0, dtype=np.int64)).offsets.tolist() == [0]
        counts, stamps = stores.history.items_at(["x"], np.array([T0]))
        assert (counts.tolist(), stamps.tolist()) == ([[0.0] * COUNTS_WIDTH], [0])
        assert stores.history.items_at([], np.zeros(0, dtype=np.int64))[0].shape == (0, COUNTS_WIDTH)

    def test_a_row_appended_again_answers_with_the_newest_made(self, stores: Stores) -> None:
        row = fold(UserState("anna"), [event(10, "a")])
        corrected = replace(row, events=fold(UserState("anna"), [event(10, "b")]).events)
        stores.store.append_history([corrected], NOW + timedelta(seconds=1))
        stores.store.append_history([row], NOW)
        rows = stores.history.users_at(["anna"], np.array([T0 + 10]))
        assert rows.item_ids == ("b",)

    def test_item_counts_are_those_stamped_at_or_before_the_time(self, stores: Stores) -> None:
        counts = np.arange(3 * COUNTS_WIDTH, dtype=np.float32).reshape(3, COUNTS_WIDTH)
        stores.append_item_stats(["x", "y", "x"], counts, np.array([T0, T0, T0 + 50]), NOW)
        stores.append_item_stats(["z"], counts[:1], T0 + 70, NOW)
        stores.append_item_stats([], counts[:0], T0, NOW)
        found, stamps = stores.history.items_at(
            ["x", "x", "x", "y", "z", "x"], np.array([T0 - 1, T0, T0 + 50, T0 + 9, T0 + 70, T0])
        )
        assert stamps.tolist() == [0, T0, T0 + 50, T0, T0 + 70, T0]
        assert found[:, 0].tolist() == [0, 0, 18, 9, 0, 0]
        assert found[2].tolist() == counts[2].tolist()

    def test_what_servers_were_told_is_the_newest_writing_at_or_before_the_time(self, stores: Stores) -> None:
        counts = np.arange(3 * COUNTS_WIDTH, dtype=np.float32).reshape(3, COUNTS_WIDTH) / 7
        stores.append_item_live(["x", "y"], counts[:2], np.array([T0 - 5, T0 - 6]), T0, NOW)
        stores.append_item_live(["x"], counts[2:], np.array([T0 - 4]), T0 + 10, NOW + timedelta(seconds=1))
        stores.append_item_live([], counts[:0], np.zeros(0, dtype=np.int64), T0 + 11, NOW)
        asked = ["x", "x", "y", "x", "z", "x"]
        found, stamps, written = stores.history.live_items_at(
            asked, np.array([T0 - 1, T0, T0 + 10, T0 + 10, T0 + 10, T0 + 9])
        )
        assert written.tolist() == [0, T0, T0, T0 + 10, 0, T0]
        assert stamps.tolist() == [0, T0 - 5, T0 - 6, T0 - 4, 0, T0 - 5]
        nothing = np.zeros(COUNTS_WIDTH, dtype=np.float32)
        assert (found == np.stack([nothing, counts[0], counts[1], counts[2], nothing, counts[0]])).all()
        assert stores.history.live_items_at([], np.zeros(0, dtype=np.int64))[0].shape == (0, COUNTS_WIDTH)


class TestMemory(FeatureStoreContract):
    @pytest.fixture
    def stores(self, tmp_path: Path) -> Stores:
        store = MemoryFeatureStore()
        history = MemoryHistory(lambda: store.history)
        return Stores(store, history, history.append_item_stats, history.append_item_live)


class TestGuarded(TestMemory):
    """Behind a circuit breaker."""

    @pytest.fixture
    def stores(self, tmp_path: Path) -> Stores:
        store = MemoryFeatureStore()
        history = MemoryHistory(lambda: store.history)
        return Stores(GuardedFeatures(store), history, history.append_item_stats, history.append_item_live)


class FeastContract(FeatureStoreContract):
    """What Feast's store promises wherever it keeps its online rows."""

    @abstractmethod
    def opened(self, tmp_path: Path) -> Any:
        """Feast on the home of this test, once more."""

    @pytest.fixture
    def stores(self, tmp_path: Path) -> Iterator[Stores]:
        feast_store = self.opened(tmp_path)
        store = FeastFeatureStore(feast_store)
        history = FeastHistory(feast_store, rows_max=4)
        yield Stores(store, history, store.append_item_stats, store.append_item_live)
        store.close()

    def test_rows_outlive_the_process_that_wrote_them(self, stores: Stores, tmp_path: Path) -> None:
        stores.store.write([FULL])
        stores.store.append_history([FULL], NOW)
        stores.store.close()
        again = self.opened(tmp_path)
        assert FeastFeatureStore(again).read(FULL.user_id) == FULL
        rows = FeastHistory(again).users_at([FULL.user_id], np.array([FULL.row_time_us]))
        assert rows.row_time_us.tolist() == [FULL.row_time_us]
        again.provider.online_store.close()

    def test_a_history_folder_that_cannot_be_written_is_unavailable(self, stores: Stores, tmp_path: Path) -> None:
        (tmp_path / "home" / "offline").write_text("in the way")
        with pytest.raises(StageUnavailable, match="history of user_behaviour"):
            stores.store.append_history([FULL], NOW)

    def test_feast_itself_reads_what_was_written(self, stores: Stores, tmp_path: Path) -> None:
        stores.store.write([fold(UserState("anna"), [event(1, "a"), event(2, "b")])])
        stores.append_item_stats(["x"], np.full((1, COUNTS_WIDTH), 2, np.float32), T0, NOW)
        stores.append_item_stats(["x"], np.full((1, COUNTS_WIDTH), 1, np.float32), T0 - 5, NOW)  # older: passed over
        feast_store = self.opened(tmp_path)
        answer = feast_store.get_online_features(
            feast_store.get_feature_service("retrieval_v1"), [{"user_id": "anna"}]
        ).to_dict()
        assert answer["recent_items"] == [["b", "a"]]
        answer = feast_store.get_online_features(["item_stats:clicks_7d"], [{"item_id": "x"}, {"item_id": "q"}])
        assert answer.to_dict()["clicks_7d"] == [2.0, None]
        feast_store.provider.online_store.close()

    def test_writers_that_race_for_one_row_lose_no_event(self, stores: Stores, tmp_path: Path) -> None:
        rival = FeastFeatureStore(self.opened(tmp_path))
        start = threading.Barrier(2)
        refusals: list[str] = []

        def add_events(store: FeastFeatureStore, first: int) -> None:
            start.wait(10)
            for at_us in range(first, first + 30):
                before = store.read("anna")
                time.sleep(0.001)  # long enough for the other to come between
                while refused := store.write([fold(before, [event(at_us)])]):
                    refusals.extend(refused)
                    before = store.read("anna")

        threads = [threading.Thread(target=add_events, args=racer) for racer in ((stores.store, 0), (rival, 100))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        state = stores.store.read("anna")
        rival.close()
        assert sorted(each.occurred_us - T0 for each in state.events) == [*range(30), *range(100, 130)]
        assert refusals


class TestFeastOnSqlite(FeastContract):
    def opened(self, tmp_path: Path) -> Any:
        return feast_at(tmp_path / "home")

    def test_a_locked_store_is_unavailable_in_time_and_half_written_never(self, stores: Stores, tmp_path: Path) -> None:
        store = FeastFeatureStore(feast_at(tmp_path / "home"))
        store._config.online_store.write_wait_ms = 30
        rival = sqlite3.connect(tmp_path / "home" / "online.db", isolation_level=None)
        rival.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StageUnavailable, match="locked"):
            store.write([FULL])
        assert store.read(FULL.user_id).is_stranger  # a writer does not block a reader
        rival.execute("ROLLBACK")
        assert store.write([FULL]) == ()
        rival.close()
        store.close()


class TestFeastOnRedis(FeastContract):
    @pytest.fixture(autouse=True)
    def _server(self, redis_url: str) -> None:
        self.redis_url = redis_url

    def opened(self, tmp_path: Path) -> Any:
        return feast_at(tmp_path / "home", self.redis_url)


def test_a_process_that_stands_still_while_it_registers_holds_the_others_up_for_a_while_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "REGISTRY_LOCK_S", 0.05)
    with locked(tmp_path / ".registry.lock"), pytest.raises(TimeoutError, match="held by another process"):
        open_feast(tmp_path)
