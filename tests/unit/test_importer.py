"""The import: small files written out by hand, read into an in-memory log, and what comes out of the log compared."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services import wire
from services.archive.importer import Imported, import_sources
from services.archive.reading import DataFile
from services.archive.recipes import ImportSource, event_source, item_source, parse_mapping, recipe
from services.domain import BadRequest, Event, ItemChange, Outgoing
from services.memory import MemoryBus
from services.wire import decode_event, decode_item

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
HEADER = "user_id,item_id,kind,occurred_at,value\n"


class Imports:
    """Runs imports into one log and reads that log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bus = MemoryBus(4, lambda: NOW)
        self.published: list[Outgoing] = []

    def publish(self, messages: Sequence[Outgoing]) -> tuple[object, ...]:
        self.published += messages
        return self.bus.publish(messages)

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def run(self, *sources: ImportSource, shift_to: datetime | None = None) -> Imported:
        rejects = self.folder / "rejects.jsonl"
        return import_sources(
            sources,
            self,
            NOW,
            work=self.folder / "work",
            rejects_path=rejects,
            shift_to=shift_to,  # type: ignore[arg-type]
        )

    def events(self) -> list[Event]:
        return [decode_event(m.value, NOW) for m in self.published if m.topic == "freshrank.events"]

    def items(self) -> list[ItemChange]:
        return [decode_item(m.value, NOW) for m in self.published if m.topic == "freshrank.items"]

    def rejects(self) -> list[tuple[int, str]]:
        lines = (self.folder / "rejects.jsonl").read_text().splitlines()
        return [(entry["line"], entry["reason"]) for entry in map(json.loads, lines)]


@pytest.fixture
def imports(tmp_path: Path) -> Imports:
    return Imports(tmp_path)


def events_in(path: Path, mapping: Mapping[str, str] | None = None, **constants: str) -> ImportSource:
    return event_source(DataFile(path), mapping or {}, constants)


def test_events_come_out_in_time_order_whatever_the_order_of_the_file(imports: Imports) -> None:
    path = imports.file(
        "e.csv", HEADER + "ann,c,click,2013-01-03,\nbob,a,click,2013-01-01,\nann,b,rating,2013-01-02,7.5\n"
    )
    done = imports.run(events_in(path))
    assert [(e.user_id, e.item_id, e.kind, e.value) for e in imports.events()] == [
        ("bob", "a", "click", None),
        ("ann", "b", "rating", 7.5),
        ("ann", "c", "click", None),
    ]
    assert (done.events, done.items, done.rejected, done.rejects_path) == (3, 0, {}, None)
    assert (done.first, done.last) == (datetime(2013, 1, 1, tzinfo=UTC), datetime(2013, 1, 3, tzinfo=UTC))


def test_the_bytes_are_those_the_wire_writes_for_an_event(imports: Imports) -> None:
    path = imports.file("e.csv", "event_id,user_id,item_id,kind,occurred_at,value\ne1,ann,a,rating,1377993600,8\n")
    imports.run(events_in(path))
    event = Event("e1", "ann", "a", "rating", datetime(2013, 9, 1, tzinfo=UTC), NOW, 8.0)
    assert imports.published == [wire.encode_event(event)]


def test_a_basket_at_one_time_is_spread_by_a_microsecond_per_line_and_keeps_its_order(imports: Imports) -> None:
    minute = "2011-01-01 10:00"
    path = imports.file("e.csv", HEADER + "".join(f"ann,item-{n},purchase,{minute},\n" for n in (3, 1, 2)))
    imports.run(events_in(path))
    start = datetime(2011, 1, 1, 10, 0, tzinfo=UTC)
    assert [(e.item_id, (e.occurred_at - start) // timedelta(microseconds=1)) for e in imports.events()] == [
        ("item-3", 0),
        ("item-1", 1),
        ("item-2", 2),
    ]


def test_equal_lines_are_different_events_and_the_same_ones_when_imported_again(imports: Imports) -> None:
    path = imports.file("e.csv", HEADER + "ann,a,purchase,2011-01-01 10:00,1\n" * 3)
    imports.run(events_in(path))
    imports.run(events_in(path))
    ids = [e.event_id for e in imports.events()]
    assert len(set(ids)) == 3
    assert ids[:3] == ids[3:]


def test_ids_that_the_file_gives_are_kept_and_so_is_their_time(imports: Imports) -> None:
    path = imports.file("e.csv", "id,user,item,timestamp\ne1,ann,a,1377993600\ne2,ann,b,1377993600\n")
    imports.run(events_in(path))
    assert [(e.event_id, e.occurred_at.microsecond) for e in imports.events()] == [("e1", 0), ("e2", 0)]


def test_ids_do_not_depend_on_a_shift_of_time(imports: Imports) -> None:
    path = imports.file("e.csv", HEADER + "ann,a,click,2013-01-01,\nann,b,click,2013-01-02,\n")
    imports.run(events_in(path))
    imports.run(events_in(path), shift_to=NOW)
    plain, shifted = imports.events()[:2], imports.events()[2:]
    assert [e.event_id for e in plain] == [e.event_id for e in shifted]
    assert [e.occurred_at for e in shifted] == [NOW - timedelta(days=1), NOW]


def test_bad_rows_are_written_down_with_line_and_reason_and_the_rest_is_imported(imports: Imports) -> None:
    rows = [
        "ann,a,click,2013-01-01,",  # line 2
        "ann,b,click,yesterday,",
        "ann,c,click",
        "",
        ",d,click,2013-01-01,",
        "ann,e,click,2999-01-01,",
        "ann,f,rating,2013-01-01,much",
        "ann,g,click,2013-01-01,",  # line 9
    ]
    path = imports.file("e.csv", (HEADER + "\n".join(rows)).encode() + b"\nann,\xff\xfe,click,2013-01-01,\n")
    done = imports.run(events_in(path))
    assert [e.item_id for e in imports.events()] == ["a", "g"]
    assert imports.rejects() == [
        (3, "bad_time"),
        (4, "columns"),
        (6, "missing_user_id"),
        (7, "future"),
        (8, "bad_value"),
        (10, "bad_encoding"),
    ]
    assert done.rejected["columns"] == 1
    assert sum(done.rejected.values()) == 6


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_time_or_a_number_beyond_all_bounds_costs_its_row_only(imports: Imports, suffix: str) -> None:
    huge = "9" * 400
    rows = [
        ("a", "2013-01-01", "1"),
        ("b", "0001-01-01T00:00:00+23:00", "1"),
        ("c", "9999-12-31T23:59:59-23:00", "1"),
        ("d", huge, "1"),
        ("e", "2013-01-01", huge),
    ]
    lines = [f"ann,{item},click,{at},{value}" for item, at, value in rows]
    if suffix == "jsonl":
        number = '{{"user_id": "ann", "item_id": "{}", "occurred_at": {}, "value": {}}}'
        lines = [number.format(item, at if at == huge else f'"{at}"', value) for item, at, value in rows]
    path = imports.file(f"e.{suffix}", (HEADER if suffix == "csv" else "") + "\n".join(lines))
    done = imports.run(events_in(path))
    assert [e.item_id for e in imports.events()] == ["a"]
    assert done.rejected == {"bad_time": 3, "not_finite": 1}


def test_a_publication_that_a_shift_moves_out_of_the_calendar_is_a_bad_row(imports: Imports) -> None:
    films = imports.file("i.jsonl", '{"item_id": "a", "published_at": "0001-01-02"}\n{"item_id": "b"}\n')
    events = imports.file("e.csv", HEADER + "ann,b,click,2026-11-01,\n")
    imports.run(item_source(DataFile(films), {}), events_in(events), shift_to=datetime(2020, 1, 1, tzinfo=UTC))
    assert [change.item_id for change in imports.items()] == ["b"]
    assert imports.rejects() == [(1, "bad_time")]


def test_a_quoted_line_break_keeps_the_line_numbers_right(imports: Imports) -> None:
    path = imports.file("e.csv", HEADER + '"ann\nlee",a,click,2013-01-01,\nann,b,click,never,\n')
    imports.run(events_in(path))
    assert imports.events() == []
    assert imports.rejects() == [(3, "control_in_user_id"), (4, "bad_time")]


def test_columns_are_mapped_by_hand_constants_and_properties_included(imports: Imports) -> None:
    path = imports.file("e.csv", "who;what;when;land\nann;a;2013-01-01;DE\n")
    mapping = parse_mapping(("user_id=who", "item_id=what", "occurred_at=when", "properties.country=land"))
    imports.run(events_in(path, mapping, kind="like"))
    (event,) = imports.events()
    assert (event.user_id, event.item_id, event.kind, dict(event.properties)) == ("ann", "a", "like", {"country": "DE"})


ROWS = [{"user": 1, "item": "a", "timestamp": 1377993600, "rating": 7}, {"user": 2, "item": "b", "timestamp": 1}]


def jsonl(folder: Path) -> Path:
    path = folder / "e.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n[1]\n{oops\n")
    return path


def gzipped(folder: Path) -> Path:
    path = folder / "e.jsonl.gz"
    path.write_bytes(gzip.compress(jsonl(folder).read_bytes()))
    return path


def zstandard(folder: Path) -> Path:
    path = folder / "e.jsonl.zst"
    with pa.CompressedOutputStream(str(path), "zstd") as out:
        out.write(jsonl(folder).read_bytes())
    return path


def parquet(folder: Path) -> Path:
    path = folder / "e.parquet"
    moment = datetime(2013, 9, 1, tzinfo=UTC)
    rows = [{**ROWS[0], "timestamp": moment}, {**ROWS[1], "timestamp": datetime(1970, 1, 1, tzinfo=UTC)}]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("written", [jsonl, gzipped, zstandard, parquet])
def test_other_formats_say_the_same(imports: Imports, written: Callable[[Path], Path]) -> None:
    imports.run(events_in(written(imports.folder)))
    read = [(e.user_id, e.item_id, e.value, e.occurred_at) for e in imports.events()]
    assert read == [("1", "a", 7.0, datetime(2013, 9, 1, tzinfo=UTC))]
    bad = [(2, "too_old")] if written is parquet else [(2, "too_old"), (3, "not_an_object"), (4, "not_json")]
    assert imports.rejects() == bad


def test_items_are_put_with_their_types(imports: Imports) -> None:
    path = imports.file(
        "i.csv", "id,name,genres,available,published_at\nx,Film,Crime|Drama,false,2020-01-01\ny,Other,,,\n,No,,,\n"
    )
    done = imports.run(item_source(DataFile(path), {}))
    assert [(c.item_id, c.operation, dict(c.fields)) for c in imports.items()] == [
        (
            "x",
            "put",
            {
                "title": "Film",
                "categories": ("Crime", "Drama"),
                "available": False,
                "published_at": datetime(2020, 1, 1, tzinfo=UTC),
            },
        ),
        ("y", "put", {"title": "Other"}),
    ]
    assert (done.items, imports.rejects()) == (2, [(4, "empty_item_id")])


def test_an_item_is_never_published_after_its_first_event_and_is_shifted_with_it(imports: Imports) -> None:
    films = imports.file("i.csv", "id,name,published_at\nx,Film,2014-01-01\ny,Old,2010-01-01\n")
    clicks = imports.file("e.csv", HEADER + "ann,x,click,2013-06-01,\n")
    imports.run(item_source(DataFile(films), {}), events_in(clicks), shift_to=datetime(2023, 6, 1, tzinfo=UTC))
    assert [c.fields["published_at"] for c in imports.items()] == [
        datetime(2023, 6, 1, tzinfo=UTC),
        datetime(2019, 12, 31, tzinfo=UTC) + timedelta(days=1),  # 3652 days later, as the event
    ]


def test_films_by_recipe(imports: Imports) -> None:
    imports.file("ratings.dat", "1::0000002::7::1365029107\n2::0000002::3::1365029100\n")
    imports.file("movies.dat", "0000002::À Film (1915)::Crime|Drama\n")
    done = imports.run(*recipe("movietweetings", imports.folder))
    assert [(e.user_id, e.item_id, e.kind, e.value) for e in imports.events()] == [
        ("2", "0000002", "rating", 3.0),
        ("1", "0000002", "rating", 7.0),
    ]
    (film,) = imports.items()
    assert film.fields == {
        "title": "À Film (1915)",
        "categories": ("Crime", "Drama"),
        "published_at": datetime(1915, 1, 1, tzinfo=UTC),
    }
    assert (done.events, done.items) == (2, 1)


def test_purchases_by_recipe_leave_out_cancellations_returns_and_strangers(imports: Imports) -> None:
    header = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
    rows = (
        "536365,85123A,LIGHT HOLDER,6,2010-12-01 08:26:00,2.55,17850.0,United Kingdom\n"
        "536366,85123A,LIGHT HOLDER 2,10,2010-12-01 08:27:00,2.55,17851.0,United Kingdom\n"
        "C536379,85123A,LIGHT HOLDER,-1,2010-12-01 09:41:00,2.55,17850.0,United Kingdom\n"
        "536370,71053,LANTERN,1,2010-12-01 08:26:00,2.55,,United Kingdom\n"
    )
    imports.file("online-retail.csv.gz", gzip.compress((header + rows).encode()))
    done = imports.run(*recipe("online-retail", imports.folder))
    assert [(e.user_id, e.item_id, e.kind, e.value, e.session_id) for e in imports.events()] == [
        ("17850", "85123A", "purchase", 6.0, "536365"),
        ("17851", "85123A", "purchase", 10.0, "536366"),
    ]
    assert [(c.item_id, dict(c.fields)) for c in imports.items()] == [("85123A", {"title": "LIGHT HOLDER"})]
    assert (done.skipped, done.rejected) == (2, {})


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "e.csv",
            "who,what,when\nann,a,2013-01-01\n",
            "no column stands for user_id, item_id, occurred_at; it has who, what, when; "
            "name them with --map user_id=COLUMN --map item_id=COLUMN --map occurred_at=COLUMN$",
        ),
        ("e.csv", "user_id,what,timestamp\n", "; it has user_id, what, timestamp; name it with --map item_id=COLUMN$"),
        ("e.parquet", "no parquet at all", r"e\.parquet cannot be read"),
        ("e.csv.gz", b"\x1f\x8b\x08\x00damaged", r"e\.csv\.gz cannot be read"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_before_anything_is_published(
    imports: Imports, name: str, content: str | bytes, said: str
) -> None:
    good = imports.file("good.csv", HEADER + "ann,a,click,2013-01-01,\n")
    with pytest.raises(BadRequest, match=said):
        imports.run(events_in(good), events_in(imports.file(name, content)))
    assert imports.published == []


def test_mistakes_of_the_caller_get_one_sentence(imports: Imports) -> None:
    with pytest.raises(BadRequest, match="there is no file"):
        imports.run(events_in(imports.folder / "absent.csv"))
    with pytest.raises(BadRequest, match="'colour' is no field of ours"):
        events_in(imports.folder / "e.csv", {"colour": "c"})
    with pytest.raises(BadRequest, match="must look like ours=theirs"):
        parse_mapping(("user_id",))
    with pytest.raises(BadRequest, match=r"no recipe 'film'; known: movietweetings, online-retail"):
        recipe("film", imports.folder)
    with pytest.raises(BadRequest, match=r"holds no ratings\.dat"):
        recipe("movietweetings", imports.folder)


def test_times_are_moved_neither_into_the_future_nor_out_of_what_is_read(imports: Imports) -> None:
    path = imports.file("e.csv", HEADER + "ann,a,click,2013-01-01,\nann,b,click,2013-01-02,\n")
    with pytest.raises(BadRequest, match="that is in the future"):
        imports.run(events_in(path), shift_to=NOW + timedelta(minutes=5, microseconds=1))
    for early in (datetime(1995, 1, 1, 12, tzinfo=UTC), datetime(1, 1, 1, tzinfo=UTC)):
        with pytest.raises(BadRequest, match="the first event would happen before 1995-01-01"):
            imports.run(events_in(path), shift_to=early)
    assert imports.published == []
    assert imports.run(events_in(path), shift_to=NOW).last == NOW


def test_an_empty_csv_is_said_to_be_empty(imports: Imports) -> None:
    for name, content in (("e.csv", ""), ("e.csv.gz", gzip.compress(b""))):
        with pytest.raises(BadRequest, match=r"e\.csv.* is empty$"):
            imports.run(events_in(imports.file(name, content)))
    with pytest.raises(BadRequest, match=r"e\.csv has no header: its line 1 is blank"):
        imports.run(events_in(imports.file("e.csv", "\n" + HEADER)))


def test_a_header_alone_imports_nothing(imports: Imports) -> None:
    done = imports.run(events_in(imports.file("e.csv", HEADER)), shift_to=NOW)
    assert (done.events, done.first, done.last) == (0, None, None)
