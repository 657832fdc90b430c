"""The files of `freshrank evaluate`: what they mean, and that a mistake is named by file, line and column."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.domain import BadRequest, KindRule, KindRules
from services.evaluation.files import (
    Data,
    Item,
    Target,
    read_data,
    read_items,
    read_targets,
)

RULES = KindRules({"click": KindRule("positive"), "rating": KindRule("positive", threshold=3.0)})
ITEMS = 'item_id,title,text,categories,published_at\nb,Bee,,x|y,1700000000\nz,"Zed, the last",words,,\n'


@pytest.fixture
def items(tmp_path: Path) -> Path:
    return written(tmp_path / "items.csv", ITEMS)


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def rows(data: Data) -> list[tuple[str, str, str, int, float]]:
    e = data.events
    columns = zip(e.user_codes, e.item_codes, e.kind_codes, e.occurred_us.tolist(), e.weight.tolist(), strict=True)
    return [(e.user_ids[u], e.item_ids[i], e.kinds[k], at // 1000, w) for u, i, k, at, w in columns]


def test_events_come_in_time_order_and_equal_times_in_the_order_of_the_file(tmp_path: Path, items: Path) -> None:
    text = (
        "timestamp,item_id,user_id,more\n1700000002,b,u2,?\n1700000001,a,u1,?\n1700000002,a,u2,?\n1700000001500,c,u1,\n"
    )
    data = read_data(written(tmp_path / "e.csv", text), items, None, RULES)
    assert rows(data) == [
        ("u1", "a", "click", 1_700_000_001_000, 1.0),
        ("u1", "c", "click", 1_700_000_001_500, 1.0),  # a timestamp in ms among those in s
        ("u2", "b", "click", 1_700_000_002_000, 1.0),
        ("u2", "a", "click", 1_700_000_002_000, 1.0),
    ]
    assert data.events.item_ids == ("a", "b", "c", "z")  # the catalogue: with events or without
    # What one user did at one time stands a microsecond apart: whoever is asked before the second knows the first.
    assert (data.events.occurred_us % 1000).tolist() == [0, 0, 0, 1]


def test_equal_times_of_different_users_stay_equal(tmp_path: Path, items: Path) -> None:
    text = "user_id,item_id,timestamp\nu1,b,1700000002\nu2,b,1700000002\nu1,z,1700000002\nu1,a,1700000002\n"
    data = read_data(written(tmp_path / "e.csv", text), items, None, RULES)
    found = [
        (user, item, int(at % 1000)) for (user, item, *_), at in zip(rows(data), data.events.occurred_us, strict=True)
    ]
    assert found == [("u1", "b", 0), ("u2", "b", 0), ("u1", "z", 1), ("u1", "a", 2)]


def test_kind_and_value_decide_whether_an_event_is_positive(tmp_path: Path, items: Path) -> None:
    head = "user_id,item_id,timestamp,kind,value\n"
    text = head + "u,a,1700000000,rating,4\nu,b,1700000001,rating,2.5\nu,c,1700000002,,2\nu,d,1700000003,look,\n"
    weights = [row[2:] for row in rows(read_data(written(tmp_path / "e.csv", text), items, None, RULES))]
    assert [(kind, weight) for kind, _, weight in weights] == [
        ("rating", 1.0), ("rating", -1.0), ("click", 1.0), ("look", 0.0),
    ]  # fmt: skip


def test_csv_gz_and_parquet_hold_the_same_events(tmp_path: Path, items: Path) -> None:
    text = "user_id,item_id,timestamp,kind,value\n007,a,1700000001,rating,5\n8,b,1700000000,click,\n"
    plain = written(tmp_path / "e.csv", text)
    (tmp_path / "e.csv.gz").write_bytes(gzip.compress(text.encode()))
    table = {
        "user_id": ["007", "8"], "item_id": ["a", "b"], "timestamp": np.array([1700000001, 1700000000]),
        "kind": ["rating", "click"], "value": [5.0, None],
    }  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "e.parquet")
    read = [rows(read_data(tmp_path / name, items, None, RULES)) for name in ("e.csv", "e.csv.gz", "e.parquet")]
    assert read[0] == read[1] == read[2]
    assert read[0][0] == ("8", "b", "click", 1_700_000_000_000, 1.0)
    assert plain.exists()


def test_items_and_targets_are_read_with_what_may_be_missing(tmp_path: Path, items: Path) -> None:
    assert read_items(items) == (
        Item("b", "Bee", "", ("x", "y"), 1_700_000_000_000_000), Item("z", "Zed, the last", "words", (), 0),
    )  # fmt: skip
    path = written(tmp_path / "t.csv", "user_id,item_id,timestamp\nu1,b,1700000000\nu2,n,\n")
    assert read_targets(path) == (Target("u1", "b", 1_700_000_000_000_000), Target("u2", "n", None))
    assert read_targets(written(path, "user_id,item_id\nu1,b\n")) == (Target("u1", "b", None),)


EVENTS = "user_id,item_id,timestamp,kind,value\nu,a,1700000000,click,1\nu,b,1700000001,click,1\n"
MISTAKES = {
    "no column timestamp": ("user_id,item_id,time\nu,a,1\n", "line 1: there is no column timestamp"),
    "empty file": ("", "is empty"),
    "no event": ("user_id,item_id,timestamp\n", "it holds no event"),
    "no event and no column": ("user_id,item_id\n", "line 1: there is no column timestamp; there are user_id, item_id"),
    "a column twice": ("user_id,item_id,timestamp,item_id\nu,a,1700000000,b\n", "two columns have one name"),
    "no user": (EVENTS + " ,b,1700000002,,\n", "line 4, column user_id: "),
    "control": (EVENTS + "u,b\x07,1700000002,,\n", "line 4, column item_id: "),
    "no time": (EVENTS + "u,b,,,\n", "line 4, column timestamp: is required"),
    "words": (EVENTS + "u,b,yesterday,,\n", "line 4, column timestamp: must be an epoch in s or ms, not 'yesterday'"),
    "nan": (EVENTS + "u,b,nan,,\n", "line 4, column timestamp: "),
    "far": (EVENTS + "u,b,1e17,,\n", "line 4, column timestamp: "),
    "value": (EVENTS + "u,b,1700000002,click,much\n", "line 4, column value: value must be a number"),
    "fields": (EVENTS + "u,b,1700000002\n", "line 4: 3 fields where 5 are named"),
    "quoted": (EVENTS + '"u\nv",b,x,,\n', "line 5, column user_id: "),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_events_is_named_by_its_place(name: str, tmp_path: Path, items: Path) -> None:
    text, said = MISTAKES[name]
    path = written(tmp_path / "e.csv", text)
    with pytest.raises(BadRequest) as error:
        read_data(path, items, None, RULES)
    assert str(error.value).startswith(str(path))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_named_by_their_line(tmp_path: Path, items: Path) -> None:
    path = tmp_path / "e.csv"
    path.write_bytes(EVENTS.encode() + b"u\xff,b,1700000002,,\n")
    with pytest.raises(BadRequest, match="line 4: not valid text"):
        read_data(path, items, None, RULES)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("item_id,title\na,A\nb,B\na,Again\n", "line 4, column item_id: 'a' stands in line 2 already"),
        ("item_id,name\na,A\n", "line 1: there is no column title"),
        ("item_id,title,published_at\na,A,soon\n", "line 2, column published_at: "),
        ("item_id,title\n,A\n", "line 2, column item_id: "),
        ("item_id,title\n", "holds no item"),
    ],
)
def test_a_mistake_in_the_items_is_named_by_its_place(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadRequest) as error:
        read_items(written(tmp_path / "i.csv", text))
    assert said in str(error.value)


def test_a_parquet_file_without_a_time_in_a_row_names_the_row(tmp_path: Path, items: Path) -> None:
    path = tmp_path / "e.parquet"
    pq.write_table(pa.table({"user_id": ["u", "v"], "item_id": ["a", "b"], "timestamp": [1700000000, None]}), path)
    with pytest.raises(BadRequest, match="line 2, column timestamp: is required"):
        read_data(path, items, None, RULES)


def test_columns_of_other_types_in_parquet_mean_the_same(tmp_path: Path, items: Path) -> None:
    texts = pa.array(["a", "b"]).dictionary_encode()
    times = pa.array([1_700_000_000_000_000_001, 1_700_000_001_000_000_000], pa.timestamp("ns", "UTC"))
    users = pa.array([7, 8])
    pq.write_table(pa.table({"user_id": users, "item_id": texts, "timestamp": times}), tmp_path / "e.parquet")
    assert rows(read_data(tmp_path / "e.parquet", items, None, RULES)) == [
        ("7", "a", "click", 1_700_000_000_000, 1.0), ("8", "b", "click", 1_700_000_001_000, 1.0),
    ]  # fmt: skip


def test_spaces_and_a_byte_order_mark_are_no_part_of_what_is_meant(tmp_path: Path, items: Path) -> None:
    path = tmp_path / "e.csv"
    path.write_bytes(b"\xef\xbb\xbfuser_id,item_id,timestamp,value\r\n u ,a, 1700000000 ,\r\n\r\nv,b,1.7e9, 3\r\n")
    assert [row[:2] for row in rows(read_data(path, items, None, RULES))] == [("u", "a"), ("v", "b")]


def test_a_broken_gz_is_said_in_a_sentence(tmp_path: Path, items: Path) -> None:
    path = tmp_path / "e.csv.gz"
    path.write_bytes(gzip.compress(EVENTS.encode() * 50)[:60])
    with pytest.raises(BadRequest, match=r"e\.csv\.gz"):
        read_data(path, items, None, RULES)


def test_a_file_that_is_not_there_and_one_of_another_kind_are_refused(tmp_path: Path, items: Path) -> None:
    with pytest.raises(BadRequest, match="there is no file"):
        read_data(tmp_path / "none.csv", items, None, RULES)
    with pytest.raises(BadRequest, match="reads csv"):
        read_data(written(tmp_path / "e.jsonl", "{}\n"), items, None, RULES)
