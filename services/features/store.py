"""Feast behind the ports: user rows online, their history offline, both read and written through Feast's own stores."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from feature_repo.stores.faults import StoreDown
from feature_repo.stores.folding import fold_old
from feature_repo.stores.parts_io import merge_due, merge_levels, sweep
from services.domain import StageUnavailable, UserState, from_us
from services.features.columns import (
    CREATED,
    EVENT_TIME,
    HISTORY_FEATURES,
    ITEM_COUNTS,
    ITEM_KEY,
    USER_KEY,
    OnlineCodec,
    item_counts,
    item_table,
    joined_rows,
    live_table,
    no_counts,
    times_of,
    user_rows,
    user_table,
)
from services.features.places import USERS
from services.ports import LIVE_ITEMS_KEPT
from services.signals import UserRows

HISTORY_ROWS_MAX = 100_000
SWEEP_EVERY_S = 60.0
log = structlog.get_logger()


class FeastFeatureStore:
    """FeatureStore over Feast: compare-and-set online, parquet parts offline, merged in the background."""

    def __init__(self, feast_store: Any, deadline_ms: int | None = None) -> None:
        from feature_repo.definitions import item_live, item_stats, user_behaviour
        from feature_repo.stores.parquet_offline import declared_schema, folder_of

        self._config = feast_store.config
        self._provider = feast_store.provider
        self._online = feast_store.provider.online_store
        self._codec = OnlineCodec()
        self._users, self._items, self._live = user_behaviour, item_stats, item_live
        self._folders = {
            view.name: (folder_of(self._config, view.batch_source), declared_schema(view))
            for view in (user_behaviour, item_stats, item_live)
        }
        self._merging: dict[str, threading.Thread] = {}
        self._swept_at: dict[str, float] = {}
        self._told_us = 0
        if deadline_ms is not None:
            self._config.online_store.read_wait_ms = deadline_ms

    def read(self, user_id: str) -> UserState:
        """FeatureStore."""
        return self.read_many((user_id,))[0]

    def read_many(self, user_ids: Sequence[str]) -> tuple[UserState, ...]:
        """FeatureStore."""
        keys = [self._codec.key(USER_KEY, user_id) for user_id in user_ids]
        try:
            rows = self._online.read_packed(self._config, self._users, keys)
        except StoreDown as error:
            raise StageUnavailable(str(error)) from error
        return tuple(
            self._codec.decode(user_id, row[1]) if row else UserState(user_id)
            for user_id, row in zip(user_ids, rows, strict=True)
        )

    def write(self, states: Sequence[UserState]) -> tuple[str, ...]:
        """FeatureStore."""
        if not states:
            return ()
        rows = [
            (self._codec.key(USER_KEY, state.user_id), packed, state.row_time_us)
            for state, packed in zip(states, self._codec.encode(states), strict=True)
        ]
        expected = [state.previous_row_time_us for state in states]
        try:
            refused = self._online.write_if_unchanged(self._config, self._users, rows, expected)
        except StoreDown as error:
            raise StageUnavailable(str(error)) from error
        return tuple(states[place].user_id for place in refused)

    def append_history(self, states: Sequence[UserState], created_at: datetime) -> None:
        """FeatureStore."""
        if states:
            self._append(self._users, user_table(states, created_at))

    def append_item_stats(
        self,
        item_ids: Sequence[str],
        counts: NDArray[np.float32],
        at_us: NDArray[np.int64] | int,
        created_at: datetime,
    ) -> None:
        """Append counts [n, COUNTS_WIDTH] held at `at_us` (one time, or [n]) to the history of `item_stats`, durable on
        return, and keep the newest of each item online, for people who look."""
        if not len(item_ids):
            return
        times = np.broadcast_to(np.asarray(at_us, dtype=np.int64), (len(item_ids),))
        self._append(self._items, item_table(item_ids, counts, times, created_at))
        newest = {item_ids[place]: place for place in np.argsort(times, kind="stable").tolist()}
        places = np.fromiter(newest.values(), dtype=np.int64)
        rows = [
            (self._codec.key(ITEM_KEY, item_id), values, from_us(at), created_at)
            for item_id, values, at in zip(
                newest, self._codec.encode_items(counts[places], times[places]), times[places].tolist(), strict=True
            )
        ]
        try:
            self._provider.online_write_batch(self._config, self._items, rows, None)
        except StoreDown as error:
            raise StageUnavailable(str(error)) from error

    def append_item_live(
        self,
        item_ids: Sequence[str],
        counts: NDArray[np.float32],
        at_us: NDArray[np.int64],
        written_us: int,
        created_at: datetime,
    ) -> None:
        """Append counts [n, COUNTS_WIDTH] held at `at_us` [n], all written for the servers at `written_us`, to the
        history of `item_live`, durable on return."""
        if len(item_ids):
            self._told_us = written_us
            self._append(self._live, live_table(item_ids, counts, at_us, written_us, created_at))

    def what_it_may_lose(self) -> tuple[str, ...]:
        """Why rows that were written may be gone later, a phrase each; empty where they may not."""
        try:
            phrases: tuple[str, ...] = self._online.what_it_may_lose(self._config)
        except StoreDown as error:
            raise StageUnavailable(str(error)) from error
        return phrases

    def user_ids(self) -> Iterator[str]:
        """Who has an online row; one may come twice."""
        try:
            yield from self._online.user_ids(self._config, self._users)
        except StoreDown as error:
            raise StageUnavailable(str(error)) from error

    def forget_users(self) -> None:
        """Delete the user rows of this namespace, online and in the history."""
        try:
            self._online.teardown(self._config, (self._users,), ())
            shutil.rmtree(self._folders[USERS][0], ignore_errors=True)
        except StoreDown as error:
            raise StageUnavailable(str(error)) from error

    def forget_online(self) -> None:
        """Delete every online row, of users and of items."""
        from feature_repo import definitions as d

        try:
            self._online.teardown(self._config, (d.user_behaviour, d.item_stats, d.item_live), ())
        except StoreDown as error:
            raise StageUnavailable(str(error)) from error

    def close(self, wait_s: float = 30.0) -> None:
        """Let merges that run finish, then close the connections."""
        for thread in self._merging.values():
            thread.join(wait_s)
        self._online.close()

    def _append(self, view: Any, table: Any) -> None:
        try:
            self._provider.offline_write_batch(self._config, view, table, None)
        except OSError as error:
            raise StageUnavailable(f"the history of {view.name} cannot be written: {error}") from error
        folder, _ = self._folders[view.name]
        running = self._merging.get(view.name)
        if not (running and running.is_alive()) and merge_due(folder):
            thread = threading.Thread(target=self._merge, args=(view.name,), name=f"merge-{view.name}", daemon=True)
            self._merging[view.name] = thread
            thread.start()

    def _merge(self, name: str) -> None:
        """Runs beside the appends. A failed merge changed nothing and is tried again after the next append."""
        folder, schema = self._folders[name]
        try:
            merges = merge_levels(folder, schema)
            folded = self._fold(folder, schema) if name == self._live.name else 0
            swept = self._sweep(name, folder)
            log.info("history merged", view=name, merges=merges, rows_folded=folded, files_swept=swept)
        except OSError as error:
            log.warning("history not merged", view=name, error=str(error))

    def _sweep(self, name: str, folder: Path) -> int:
        """Now and then: it looks at every file of the last minutes."""
        if time.monotonic() - self._swept_at.get(name, -SWEEP_EVERY_S) < SWEEP_EVERY_S:
            return 0
        self._swept_at[name] = time.monotonic()
        return sweep(folder)

    def _fold(self, folder: Path, schema: Any) -> int:
        """Of what servers were told longer ago than it is kept, each item's newest counts stay."""
        return fold_old(folder, schema, ITEM_KEY, (EVENT_TIME, CREATED), from_us(self._told_us) - LIVE_ITEMS_KEPT)


class FeastHistory:
    """FeatureHistory through `get_historical_features`, in pieces of HISTORY_ROWS_MAX entity rows."""

    def __init__(self, feast_store: Any, rows_max: int = HISTORY_ROWS_MAX) -> None:
        self._store = feast_store
        self._rows_max = rows_max

    def users_at(self, user_ids: Sequence[str], times_us: NDArray[np.int64]) -> UserRows:
        """FeatureHistory."""
        features = [f"user_behaviour:{name}" for name in HISTORY_FEATURES]
        return joined_rows([user_rows(table) for table in self._joined(USER_KEY, user_ids, times_us, features)])

    def items_at(
        self, item_ids: Sequence[str], times_us: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """FeatureHistory."""
        features = [f"item_stats:{name}" for name in (*ITEM_COUNTS, "as_of_us")]
        pieces = [item_counts(table) for table in self._joined(ITEM_KEY, item_ids, times_us, features)]
        counts = [piece[0] for piece in pieces] or [np.zeros((0, len(ITEM_COUNTS)), dtype=np.float32)]
        stamps = [piece[1] for piece in pieces] or [np.zeros(0, dtype=np.int64)]
        return np.concatenate(counts), np.concatenate(stamps)

    def live_items_at(
        self, item_ids: Sequence[str], times_us: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        """FeatureHistory."""
        features = [f"item_live:{name}" for name in (*ITEM_COUNTS, "as_of_us", "written_us")]
        counts, stamps, written = no_counts()
        for table in self._joined(ITEM_KEY, item_ids, times_us, features):
            some_counts, some_stamps = item_counts(table)
            counts, stamps = np.concatenate([counts, some_counts]), np.concatenate([stamps, some_stamps])
            written = np.concatenate([written, times_of(table, "written_us")])
        return counts, stamps, written

    def _joined(self, key: str, ids: Sequence[str], times_us: NDArray[np.int64], features: list[str]) -> list[Any]:
        import pandas as pd

        tables = []
        for first in range(0, len(ids), self._rows_max):
            times = np.asarray(times_us[first : first + self._rows_max]).astype("datetime64[us]")
            wanted = pd.DataFrame(
                {key: ids[first : first + self._rows_max], "event_timestamp": pd.Series(times).dt.tz_localize("UTC")}
            )
            tables.append(self._store.get_historical_features(wanted, features).to_arrow())
        return tables
