"""What `freshrank import` refuses (code 2), what it can make nothing of (code 1), and what it takes all the same (0).
Each file is written out by hand and given to the entry point, in a home of its own."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.cli import main

Importing = Callable[..., tuple[int, str, str]]
NO_TIME = "no column stands for occurred_at; it has user_id, item_id, date; name it with --map occurred_at=COLUMN"
ROWS = ({"user_id": "ann", "item_id": "a", "date": "2026-01-01"}, {"user_id": "bob", "item_id": "b", "date": ""})


@pytest.fixture
def importing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Importing:
    """The command: its code, what it printed, and the one line it complained with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FRESHRANK_CONFIG", raising=False)
    monkeypatch.setenv("FRESHRANK_HOME", str(tmp_path / "home"))

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(("import", *arguments, "--no-wait", "--json"))
        printed = capsys.readouterr()
        assert printed.err.count("\n") == (1 if ended.value.code else 0), printed.err
        return int(ended.value.code or 0), printed.out, printed.err.removeprefix("freshrank: ").rstrip("\n")

    return call


def csv_file(path: Path) -> None:
    path.write_text("user_id,item_id,date\n" + "".join(",".join(row.values()) + "\n" for row in ROWS))


def jsonl_file(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def parquet_file(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(list(ROWS)), path)


WRITTEN = {"e.csv": csv_file, "e.jsonl": jsonl_file, "e.parquet": parquet_file}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_without_a_time_is_refused_and_one_whose_time_is_empty_costs_its_row_only(
    tmp_path: Path, importing: Importing, name: str
) -> None:
    WRITTEN[name](tmp_path / name)
    assert importing(name) == (2, "", f"{name}: {NO_TIME}")
    code, out, _ = importing(name, "--map", "occurred_at=date")
    done = json.loads(out)
    assert (code, done["events"], done["rejected"], done["unread"]) == (0, 1, {"missing_time": 1}, [])
    rejected = json.loads(Path(done["rejects_path"]).read_text())
    assert (rejected["line"], rejected["reason"]) == (3 if name == "e.csv" else 2, "missing_time")


def test_one_time_for_all_rows_is_a_time(tmp_path: Path, importing: Importing) -> None:
    csv_file(tmp_path / "e.csv")
    code, out, _ = importing("e.csv", "--set", "occurred_at=2026-01-01")
    assert (code, json.loads(out)["events"]) == (0, 2)


def test_a_column_of_jsonl_may_begin_in_a_later_row(tmp_path: Path, importing: Importing) -> None:
    first, second = {"user_id": "ann", "item_id": "a"}, {"user_id": "bob", "item_id": "b", "timestamp": "2026-01-01"}
    (tmp_path / "e.jsonl").write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n")
    code, out, _ = importing("e.jsonl")
    assert (code, json.loads(out)["events"], json.loads(out)["rejected"]) == (0, 1, {"missing_time": 1})


FOO_BAR = "no column stands for user_id, item_id, occurred_at; it has foo, bar; name them with --map user_id=COLUMN"
GOOD = b"user_id,item_id,occurred_at\n"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("e.csv", b"foo,bar\n", f"e.csv: {FOO_BAR}"),
        ("e.csv", b"foo,bar\n1,2\n", f"e.csv: {FOO_BAR}"),
        ("e.csv", b"foo,bar", f"e.csv: {FOO_BAR}"),
        ("e.csv.gz", GOOD, "e.csv.gz cannot be read: its name says gzip, its content does not"),
        ("e.jsonl.zst", b"{}\n", "e.jsonl.zst cannot be read: its name says zstd, its content does not"),
        ("e.csv.gz", b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 20, "e.csv.gz cannot be read: Error -3"),
        ("e.csv", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), r"e.csv: no column stands for user_id, item_id, "),
        ("e.csv", b"\x00\x01" * 100_000, "e.csv has no header: its line 1 has 100,000 characters or more"),
        ("e.csv", b"user_id,item_id,user_id\n", "e.csv names a column twice: user_id"),
        ("e.csv", b"timestamp,user_id,item_id,timestamp\n1,ann,a,2\n", "e.csv names a column twice: timestamp"),
    ],
    ids=(
        "a header alone", "a header with a row", "a header without its line end", "no gzip", "no zstd",
        "a damaged gzip", "a picture", "no line ends", "a user twice", "a time twice",
    ),
)  # fmt: skip
def test_a_file_that_makes_no_sense_is_refused_with_or_without_rows(
    tmp_path: Path, importing: Importing, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    code, out, complaint = importing(name)
    assert (code, out, complaint[: len(said)]) == (2, "", said)
    assert complaint.isprintable()


def test_an_empty_parquet_with_other_columns_is_refused(tmp_path: Path, importing: Importing) -> None:
    pq.write_table(pa.table({"foo": pa.array([], pa.string()), "bar": pa.array([], pa.string())}), tmp_path / "e.pq")
    assert importing("e.pq")[2].startswith(f"e.pq: {FOO_BAR}")


@pytest.mark.parametrize(
    ("name", "content", "reasons"),
    [
        ("e.csv", GOOD + b"ann,a,yesterday\nann,a\n", {"bad_time": 1, "columns": 1}),
        ("e.jsonl", bytes(range(10, 60)), {"not_json": 1}),
        ("e.csv.gz", gzip.compress(GOOD + b",a,2026-01-01\n"), {"missing_user_id": 1}),
    ],
    ids=("csv", "jsonl", "gzip"),
)
def test_a_file_of_which_no_row_could_be_read_ends_with_code_1_and_the_others_are_in(
    tmp_path: Path, importing: Importing, name: str, content: bytes, reasons: dict[str, int]
) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "good.csv").write_bytes(GOOD + b"ann,a,2026-01-01\nbob,b,\n")
    code, out, complaint = importing(name, "good.csv")
    assert (code, complaint) == (1, f"not one row of {name} could be read")
    done = json.loads(out)
    assert (done["events"], done["unread"]) == (1, [name])
    assert done["rejected"] == reasons | {"missing_time": 1}


def test_items_of_which_no_row_could_be_read_end_with_code_1(tmp_path: Path, importing: Importing) -> None:
    (tmp_path / "i.csv").write_text("item_id,title\n,Lamp\n")
    code, out, complaint = importing("--items", "i.csv")
    assert (code, complaint) == (1, "not one row of i.csv could be read")
    assert json.loads(out)["items"] == 0


@pytest.mark.parametrize("rows", [b"", b"\n\n"], ids=("nothing", "blank lines"))
def test_a_file_with_the_right_columns_and_no_row_is_none_to_complain_of(
    tmp_path: Path, importing: Importing, rows: bytes
) -> None:
    (tmp_path / "e.csv").write_bytes(GOOD.rstrip() + b",,\n" + rows)
    code, out, _ = importing("e.csv")
    assert (code, json.loads(out)["events"], json.loads(out)["unread"]) == (0, 0, [])
