"""Migrations: the tables are what the revisions make, both ways, once, and whoever is too old is told so."""

from __future__ import annotations

import io
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, event, insert, inspect, select, text

from services.archive.rejected import SqlQuarantine
from services.domain import BadRequest, Coordinate, SettingsInvalid
from services.migrations import revisions
from services.postgresql import open_postgresql
from services.quarantine import Rejected
from services.sqlite import open_database, sqlite_engine
from services.tables import erasures, metadata, rejected

kept = {
    "log_id": "log", "topic": "t", "partition": 1, "offset": 7, "reason": "not_json", "detail": "why", "value": b"{!",
    "accepted_us": 5, "size": 2,
}  # fmt: skip
"""An entry of the quarantine, kept whole."""


def reopened(engine: Engine, migrate: bool = True) -> Engine:
    """The same database, opened once more."""
    if engine.dialect.name == "sqlite":
        return open_database(Path(str(engine.url.database)), migrate=migrate)
    return open_postgresql(engine.url.render_as_string(hide_password=False), migrate=migrate)


def tables(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names()) - {revisions.VERSION_TABLE}


def test_the_program_knows_every_revision_in_its_order(engine: Engine) -> None:
    with engine.connect() as connection:
        script = ScriptDirectory.from_config(revisions.config(connection))
    assert tuple(each.revision for each in script.walk_revisions())[::-1] == revisions.REVISIONS


def stepped(engine: Engine) -> Engine:
    """The same database, emptied and brought up by one revision after the other."""
    revisions.take_down(engine, revisions.BASE)
    with engine.begin() as connection:
        revisions.step_up(connection)
    return engine


def differences(engine: Engine) -> list[Any]:
    """Between a database and the tables of the program, as Alembic sees them."""
    options = {"version_table": revisions.VERSION_TABLE, "compare_server_default": engine.dialect.name != "sqlite"}
    with engine.connect() as connection:
        found: list[Any] = compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
    return found


def test_between_the_revisions_and_the_tables_there_is_no_difference(engine: Engine) -> None:
    assert differences(stepped(engine)) == []


def test_an_empty_database_is_made_as_the_revisions_make_it(engine: Engine) -> None:
    def described() -> dict[str, object]:
        seen = inspect(engine)
        with engine.connect() as connection:
            return {
                name: (
                    [{**column, "type": str(column["type"])} for column in seen.get_columns(name)],
                    seen.get_pk_constraint(name), seen.get_indexes(name), seen.get_unique_constraints(name),
                    connection.execute(text(f"SELECT * FROM {name}")).all(),
                )
                for name in seen.get_table_names()
            }  # fmt: skip

    made = described()
    assert made.keys() == {*metadata.tables, revisions.VERSION_TABLE}
    stepped(engine)
    assert described() == made


def test_sqlite_tables_are_the_same_in_all_that_sqlite_knows_of_them(tmp_path: Path) -> None:
    def schema(engine: Engine) -> dict[str, object]:
        opened = sqlite3.connect(str(engine.url.database))
        found = opened.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        return {
            name: (opened.execute(f"PRAGMA table_info({name})").fetchall(), "WITHOUT ROWID" in sql)
            if kind == "table"
            else sql
            for kind, name, sql in found
        }

    made = open_database(tmp_path / "made.db")
    before = schema(made)
    assert len(before) > len(metadata.tables)
    assert schema(stepped(made)) == before
    made.dispose()


@pytest.mark.parametrize("revision", revisions.REVISIONS[:-1])
def test_every_step_goes_down_and_up_again_with_what_is_in_the_tables(engine: Engine, revision: str) -> None:
    with engine.begin() as connection:
        connection.execute(insert(rejected), [kept])
    revisions.take_down(engine, revision)
    revisions.bring_up(engine)
    assert differences(engine) == []
    with engine.connect() as connection:
        (row,) = connection.execute(select(rejected.c["value", "reason", "size", "offset"])).all()
    assert tuple(row) == (b"{!", "not_json", 2, 7)


def test_a_full_quarantine_has_room_again_after_a_way_down_and_up(engine: Engine) -> None:
    """What its entries count against the bound is not known below; it must not count twice, or for ever."""
    entries = [
        Rejected(Coordinate("log", "t", 0, n), "not_json", "why", b"x" * 197, datetime.now(UTC), None, 197)
        for n in range(30)
    ]  # 300 + 197 + 3 bytes each
    quarantine = SqlQuarantine(engine, bytes_max=10_000)
    quarantine.add(entries[:20])
    revisions.take_down(engine, "0001")
    revisions.bring_up(engine)
    quarantine.add(entries[20:])  # 5,000 bytes over the bound: emptied to nine tenths
    assert [entry.rejected.coordinate.offset for entry in quarantine.list(100)] == list(range(12, 30))


def test_down_to_the_base_and_up_again(engine: Engine) -> None:
    assert revisions.standing(engine) == revisions.Standing(revisions.HEAD, ())
    revisions.take_down(engine, revisions.BASE)
    assert tables(engine) == set()
    assert revisions.standing(engine).missing == revisions.REVISIONS
    with pytest.raises(BadRequest, match="before that there is nothing"):
        revisions.before(engine)
    assert revisions.bring_up(engine) == revisions.REVISIONS
    assert tables(engine) == set(metadata.tables)
    with pytest.raises(BadRequest, match="before that there is base, 0001"):
        revisions.before(engine, "1999")


@pytest.mark.parametrize("like", revisions.REVISIONS)
def test_a_database_from_before_revisions_is_taken_over_with_all_that_is_in_it(engine: Engine, like: str) -> None:
    if like != revisions.HEAD:
        revisions.take_down(engine, like)
    with engine.begin() as connection:
        connection.execute(insert(erasures), [{"user_id": "u1", "erased_us": 5}])
        connection.execute(text(f"DROP TABLE {revisions.VERSION_TABLE}"))
        connection.execute(text("DROP TABLE jobs"))  # the scheduler's, which made it itself
    again = reopened(engine)
    assert revisions.standing(again).revision == revisions.HEAD
    assert tables(again) == set(metadata.tables)
    with again.connect() as connection:
        assert connection.execute(select(erasures.c.user_id, erasures.c.erased_us)).all() == [("u1", 5)]
    assert differences(again) == []
    again.dispose()


def test_a_database_of_a_newer_program_is_refused_in_one_sentence_and_left_alone(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {revisions.VERSION_TABLE} SET version_num = '9999'"))
    for attempt in (lambda: reopened(engine), lambda: revisions.take_down(engine, revisions.BASE)):
        with pytest.raises(SettingsInvalid, match="made by a newer freshrank \\(revision 9999") as refused:
            attempt()
        assert str(refused.value).endswith(f"`freshrank migrate down --to {revisions.HEAD}`")
        assert "\n" not in str(refused.value)
    assert tables(engine) == set(metadata.tables)


def test_an_older_database_is_left_to_the_command_where_starts_may_not_migrate(engine: Engine) -> None:
    revisions.take_down(engine, revisions.BASE)
    with pytest.raises(SettingsInvalid, match=r"is at revision base, .* run `freshrank migrate up`"):
        reopened(engine, migrate=False)
    assert tables(engine) == set()
    revisions.bring_up(engine)
    reopened(engine, migrate=False).dispose()


def test_those_who_start_together_do_not_get_in_each_others_way(engine: Engine) -> None:
    revisions.take_down(engine, revisions.BASE)
    done: list[Any] = []
    barrier = threading.Barrier(6)

    def start() -> None:
        barrier.wait()
        try:
            again = reopened(engine)
            done.append(revisions.standing(again).revision)
            again.dispose()
        except Exception as error:
            done.append(error)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [revisions.HEAD] * 6


def test_half_a_revision_is_none(engine: Engine) -> None:
    revisions.take_down(engine, revisions.BASE)

    def fail(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith("CREATE INDEX"):
            raise OSError("the disk is full")

    event.listen(engine, "before_cursor_execute", fail)
    with pytest.raises(OSError, match="disk is full"):
        revisions.bring_up(engine)
    event.remove(engine, "before_cursor_execute", fail)
    assert tables(engine) == set()
    revisions.bring_up(engine)
    assert tables(engine) == set(metadata.tables)


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.live)])
def test_alembic_is_imported_only_where_an_older_database_is_opened(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / "m"
    if database == "sqlite":
        opening = f"from services.sqlite import open_database as o; o(__import__('pathlib').Path({str(path)!r}))"
    else:
        url = request.getfixturevalue("database_url")
        opening = f"from services.postgresql import open_postgresql as o; o({url!r})"
    program = f"import sys; {opening}; print('alembic' in sys.modules)"

    def imported() -> str:
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    assert imported() == "False\n", "a new one"
    engine = open_database(path) if database == "sqlite" else open_postgresql(url)
    revisions.take_down(engine, revisions.REVISIONS[-2])
    engine.dispose()
    assert [imported(), imported()] == ["True\n", "False\n"]


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`freshrank migrate` on the home tmp_path / "home": what it prints, or its exit code and sentence."""
    from services.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    monkeypatch.setenv("FRESHRANK_HOME", str(tmp_path / "home"))

    def call(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(("migrate", *arguments))
        printed = capsys.readouterr()
        return printed.out if not ended.value.code else f"{ended.value.code} {printed.err}"

    return call


def test_the_command_goes_both_ways(told: Callable[..., str], tmp_path: Path) -> None:
    assert told().startswith("2 freshrank: there is no instance at")
    path = tmp_path / "home" / "meta.db"
    open_database(path).dispose()
    head, last = revisions.HEAD, revisions.REVISIONS[-2]
    assert told() == f"{path} is at {head}.\n"
    assert told("down") == "2 freshrank: nothing was changed\n"
    assert told("down", "--yes") == f"{path} went from {head} to {last}; it lacks {head}.\n"
    assert told("down", "--yes", "--to", "base").startswith(f"{path} went from {last} to base; it lacks 0001,")
    assert told("down", "--yes").startswith("2 freshrank: the database is at base; before that there is nothing")
    assert told("up") == f"{path} went from base to {head}.\n"
    assert f'"revision": "{head}", "missing": []' in told("status", "--json")
    engine = sqlite_engine(path)
    assert tables(engine) == set(metadata.tables)
    engine.dispose()
