"""The point-in-time join against a brute-force answer, over parts of every level; the online store's guard; the Feast
repository as such; and that columns, definitions and signals agree."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from feast_home import feast_at

from feature_repo.definitions import COUNTS, item_stats, user_behaviour
from feature_repo.stores.parquet_offline import declared_schema, folder_of
from feature_repo.stores.parts_io import append_part, live_parts, merge_levels
from feature_repo.stores.rows import text_key, unpack_values
from services.domain import Interaction, UserState, from_us, hash64
from services.features.columns import (
    HISTORY_FEATURES,
    ITEM_COUNTS,
    OnlineCodec,
    derived,
    flatten,
    item_table,
    user_table,
)
from services.features.fold import fold, fold_each
from services.features.opening import apply_repo
from services.features.places import feast_environment
from services.features.store import FeastFeatureStore, FeastHistory
from services.signals import COUNTERS, COUNTS_WIDTH, USER_FEATURES, HistoryBlock, user_features

NOW = datetime(2026, 11, 23, tzinfo=UTC)
T0 = 1_700_000_000_000_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Any]:
    opened = feast_at(tmp_path / "home")
    yield opened
    opened.provider.online_store.close()


def counts_of(number: float) -> np.ndarray:
    return np.full((1, COUNTS_WIDTH), number, dtype=np.float32)


def test_a_join_over_merged_and_fresh_parts_equals_brute_force(store: Any) -> None:
    chance = random.Random(5)
    rows = [  # few times and keys, so that many rows share both and only `created` tells them apart
        (f"i{chance.randrange(6)}", T0 + chance.randrange(20), NOW + timedelta(microseconds=n), float(n + 1))
        for n in range(220)
    ]
    chance.shuffle(rows)
    folder, schema = folder_of(store.config, item_stats.batch_source), declared_schema(item_stats)
    for first in range(0, 220, 20):
        piece = rows[first : first + 20]
        table = pa.concat_tables([item_table([i], counts_of(n), np.array([at]), made) for i, at, made, n in piece])
        append_part(folder, table, schema, fsync=False)
        merge_levels(folder, schema, width=4, fsync=False)
    assert len(live_parts(folder)) == 5  # 11 appends: two merged of four, three fresh
    asked = [(f"i{chance.randrange(8)}", T0 + chance.randrange(-3, 25)) for _ in range(150)]
    asked += asked[:30]  # equal entity rows must all come back
    found, stamps = FeastHistory(store, rows_max=64).items_at([i for i, _ in asked], np.array([at for _, at in asked]))
    for place, (item_id, at_us) in enumerate(asked):
        known = [row for row in rows if row[0] == item_id and row[1] <= at_us]
        newest = max(known, key=lambda row: (row[1], row[2]), default=(item_id, 0, NOW, 0.0))
        assert (int(stamps[place]), float(found[place, 0])) == (newest[1], newest[3])
    assert np.count_nonzero(stamps == 0) > 10
    assert np.count_nonzero(stamps) > 100


def test_one_request_may_join_both_views_and_keep_its_own_columns(store: Any) -> None:
    features = FeastFeatureStore(store)
    rows = fold_each(UserState("anna"), [Interaction(T0 + n, n, f"i{n}", "click", None, 1.0) for n in (1, 2)]).rows
    features.append_history(rows, NOW)
    features.append_item_stats(["x"], counts_of(7), T0, NOW)
    entities = pd.DataFrame(
        {
            "label": [3, 1, 2],
            "user_id": ["anna", "anna", "nobody"],
            "item_id": ["x", "q", "x"],
            "event_timestamp": [from_us(T0 + 1), from_us(T0 + 5), from_us(T0 - 1)],
        }
    )
    joined = store.get_historical_features(entities, store.get_feature_service("ranking_v1"), True).to_df()
    assert joined["label"].tolist() == [3, 1, 2]
    assert [None if x is None else list(x) for x in joined["user_behaviour__recent_items"]] == [
        ["i1"],
        ["i2", "i1"],
        None,
    ]
    assert joined["item_stats__clicks_24h"].fillna(-1).tolist() == [7.0, -1.0, -1.0]


def test_several_threads_may_ask_at_once(store: Any) -> None:
    features = FeastFeatureStore(store)
    for number in range(5):
        features.append_item_stats([f"i{number}"], counts_of(number + 1), T0, NOW)
    history, answers = FeastHistory(store), [0.0] * 4

    def ask(place: int) -> None:
        answers[place] = float(history.items_at([f"i{place}"] * 50, np.full(50, T0))[0].sum())

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [50.0 * COUNTS_WIDTH * (place + 1) for place in range(4)]


def test_appends_are_merged_beside_the_writer(store: Any, tmp_path: Path) -> None:
    features = FeastFeatureStore(store)
    for number in range(66):
        features.append_item_stats(["x"], counts_of(number), T0 + number, NOW)
    features.close()
    assert len(live_parts(tmp_path / "home" / "offline" / "item_stats")) == 3
    found, _ = FeastHistory(store).items_at(["x"] * 66, T0 + np.arange(66))
    assert found[:, 0].tolist() == list(range(66))


def test_a_materialisation_reads_the_newest_of_each_key(store: Any) -> None:
    features = FeastFeatureStore(store)
    features.append_item_stats(
        ["x", "x", "y"], np.concatenate([counts_of(n) for n in (1, 2, 3)]), T0 + np.arange(3), NOW
    )
    arguments = (store.config, item_stats.batch_source, ["item_id"], ["clicks_7d"], "event_timestamp", "created")
    offline = store.provider.offline_store
    span = (from_us(T0), from_us(T0 + 10))
    newest = offline.pull_latest_from_table_or_query(*arguments, *span).to_arrow()
    assert sorted(zip(*(newest[name].to_pylist() for name in ("item_id", "clicks_7d")), strict=True)) == [
        ("x", 2),
        ("y", 3),
    ]
    assert offline.pull_all_from_table_or_query(*arguments, from_us(T0), from_us(T0 + 2)).to_arrow().num_rows == 2


def test_feasts_own_write_never_replaces_a_newer_row(store: Any) -> None:
    codec = OnlineCodec()
    key = codec.key("item_id", "x")

    def write(at_us: int, count: float) -> None:
        values = codec.encode_items(counts_of(count), np.array([at_us]))[0]
        store.provider.online_write_batch(store.config, item_stats, [(key, values, from_us(at_us), NOW)], None)

    for at_us, count in ((T0, 1.0), (T0 + 3, 3.0), (T0 + 2, 2.0), (T0 + 3, 4.0)):
        write(at_us, count)
    ((at, values),) = store.provider.online_read(store.config, item_stats, [key])
    assert (at, values["clicks_1h"].float_val) == (from_us(T0 + 3), 4.0)


@pytest.mark.parametrize("user_id", ["a", "", "Ünïcode/ 1", "x" * 256])
def test_a_key_of_one_text_is_feasts(user_id: str) -> None:
    from feast.infra.key_encoding_utils import serialize_entity_key

    assert text_key("user_id", user_id) == serialize_entity_key(OnlineCodec().key("user_id", user_id), 3)


def test_a_row_stored_before_rows_were_packed_is_read() -> None:
    from feast.protos.feast.types.Value_pb2 import Map

    state = fold(UserState("a"), [Interaction(T0 + n, n, f"i{n}", "click", None, 1.0) for n in range(3)])
    codec = OnlineCodec()
    (row,) = codec.encode([state])
    before = Map(val=unpack_values(row, user_behaviour)).SerializeToString()
    assert codec.decode("a", before) == codec.decode("a", row) == state


def test_a_full_row_is_small() -> None:
    chance = random.Random(3)
    kinds = (("click", 1.0), ("view", 0.5), ("purchase", 3.0))
    events, at_us = [], T0
    for number in range(64):  # an hour apart or so, every item another one: the costly case
        at_us += int(chance.expovariate(1 / 3.6e9))
        kind, weight = chance.choice(kinds)
        events.append(Interaction(at_us, hash64(f"e{number}"), f"item-{number * 997}", kind, None, weight))
    state = fold(UserState("a"), events)
    assert len(state.seen) == 64
    assert len(OnlineCodec().encode([state])[0]) < 2500
    few = fold(UserState("b"), [each._replace(item_id=f"item-{place % 16}") for place, each in enumerate(events)])
    assert len(OnlineCodec().encode([few])[0]) < 1600


def test_the_registry_is_written_once(store: Any) -> None:
    assert apply_repo(store) is False


def test_the_columns_are_those_that_are_declared() -> None:
    state = fold(UserState("a"), [Interaction(T0, 1, "i", "click", None, 1.0)])
    assert set(user_table([state], NOW).column_names) == set(declared_schema(user_behaviour).names)
    assert set(item_table(["x"], counts_of(1), np.array([T0]), NOW).column_names) == set(
        declared_schema(item_stats).names
    )
    (row,) = OnlineCodec().encode([state])
    values = unpack_values(row, user_behaviour)
    assert set(values) == {field.name for field in user_behaviour.features}
    (counts,) = OnlineCodec().encode_items(counts_of(1), np.array([T0]))
    assert set(counts) == {field.name for field in item_stats.features}
    assert set(HISTORY_FEATURES) <= set(values)
    assert (
        ITEM_COUNTS == COUNTS == tuple(f"{counter}_{window}" for counter in COUNTERS for window in ("1h", "24h", "7d"))
    )


def test_rows_make_the_same_table_whether_they_share_events_or_not() -> None:
    stream = [Interaction(T0 + n, n, f"i{n}", "click", 4.0, 1.0) for n in range(5)]
    of_one = fold_each(UserState("a"), stream).rows
    of_many = [fold(UserState(f"u{n}"), stream[: n + 1]) for n in range(5)]
    for rows in (of_one, of_many):
        assert user_table(rows, NOW).equals(pa.concat_tables([user_table([row], NOW) for row in rows]).combine_chunks())


def test_the_scalars_for_people_are_the_signals_at_the_row_time() -> None:
    chance = random.Random(2)
    stream = [
        Interaction(T0 + chance.randrange(10 * 86_400_000_000), n, "i", "rating", None, chance.choice((1.0, -1.0)))
        for n in range(90)
    ]
    rows = [UserState("a"), *fold_each(UserState("a"), stream).rows]
    flat = flatten(rows)
    columns = derived(flat, flat.times(), flat.weights(), np.array([row.row_time_us for row in rows]))
    for place, row in enumerate(rows[1:], start=1):
        events = row.events
        block = HistoryBlock(
            np.zeros(len(events), dtype=np.int64),
            np.array([each.occurred_us for each in events]),
            np.array([each.weight for each in events], dtype=np.float32),
            np.zeros((len(events), 1), dtype=np.int32),
        )
        expected = dict(zip(USER_FEATURES, user_features(block, row.row_time_us).tolist(), strict=True))
        for name, column in columns.items():
            assert column[place] == pytest.approx(expected[name], abs=1e-6), (name, place)
    assert {name: float(column[0]) for name, column in columns.items()} == dict.fromkeys(columns, 0.0)


def test_importing_feast_leaves_the_process_as_it_was() -> None:
    script = (
        "import os, sys, warnings, typeguard\n"
        "from services.features.opening import import_feast\n"
        "before = typeguard.typechecked, list(warnings.filters), dict(os.environ)\n"
        "import_feast()\n"
        "assert typeguard.typechecked is before[0]; assert list(warnings.filters) == before[1]\n"
        "assert dict(os.environ) == before[2], 'feast set something for everybody'\n"
        "assert 'torch' not in sys.modules, 'feast pulled torch in'\n"
        "import importlib.util; assert importlib.util.find_spec('torch')\n"
        "assert 'gunicorn' not in sys.modules, 'feast pulled the server in that it could be'\n"
        "assert callable(sys.modules['feast.feature_server'].start_server) and 'gunicorn' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_folder_is_a_feast_repository(tmp_path: Path) -> None:
    feast = Path(sys.executable).with_name("feast")
    repo = Path(__file__).parents[2] / "feature_repo"
    result = subprocess.run(
        [str(feast), "apply"], cwd=repo, env=feast_environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "online.db").exists()
    assert apply_repo(feast_at(tmp_path)) is False  # the command registers exactly what the code does
    assert "FRESHRANK_HOME" not in os.environ or os.environ["FRESHRANK_HOME"] != str(tmp_path)
