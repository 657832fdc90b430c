"""Metadata in PostgreSQL: the same program, no wait without a deadline, no password in what it says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from live_stack import Stack
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from services.cli import main
from services.domain import SettingsInvalid
from services.features.opening import import_feast, open_feast
from services.postgresql import Waits, engine_of, open_postgresql
from services.settings import Settings, load_settings, without_secrets
from services.tables import counters, next_number

PASSWORD = "freshrank"  # of the test servers
Freshrank = Callable[..., Any]


@pytest.fixture
def freshrank(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Freshrank:
    """The command, on a home whose metadata is in PostgreSQL: what it answers as JSON."""
    monkeypatch.chdir(tmp_path)
    settings = {"HOME": str(tmp_path / "home"), "DATABASE_URL": database_url, "TEXT_ENCODER": "hashing"}
    for name, value in settings.items():
        monkeypatch.setenv(f"FRESHRANK_{name}", value)

    def call(*arguments: str) -> Any:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main((*arguments, "--json"))
        printed = capsys.readouterr()
        assert not ended.value.code, printed.err
        assert f":{PASSWORD}@" not in printed.out + printed.err
        return json.loads(printed.out.strip().splitlines()[-1])

    return call


@pytest.fixture
def filled(freshrank: Freshrank, tmp_path: Path) -> Path:
    """A home where six clicks on three items are consumed by all four consumers."""
    clicks = tmp_path / "clicks.csv"
    rows = [f"u{n % 2},i{n % 3},2026-01-0{1 + n}" for n in range(6)]
    clicks.write_text("user_id,item_id,occurred_at\n" + "\n".join(rows) + "\nu1,,2026-01-01\n")
    items = tmp_path / "items.jsonl"
    items.write_text("".join(json.dumps({"item_id": f"i{n}", "title": f"Thing {n}"}) + "\n" for n in range(5)))
    freshrank("import", str(clicks), "--items", str(items), "--no-wait")
    freshrank("consume", "features", "trends", "archive", "catalogue", "--until-caught-up")
    return tmp_path / "home"


def test_the_whole_program_runs_on_it(freshrank: Freshrank, filled: Path) -> None:
    listed = freshrank("recommend", "u0")
    assert {each["title"] for each in listed["items"]} == {"Thing 3", "Thing 4"}  # u0 has taken items 0, 1 and 2
    assert not (filled / "meta.db").exists()
    assert not (filled / "registry.db").exists()
    assert freshrank("status")["lag"] == {"features": 0, "trends": 0, "archive": 0, "catalogue": 0}
    shown = freshrank("settings")["database_url"]["value"]
    assert ":***@" in shown


def test_a_backup_is_an_embedded_instance_of_its_own(
    freshrank: Freshrank, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    before = freshrank("recommend", "u1")["items"]
    assert freshrank("backup", str(copy))["backup"] == str(copy)
    freshrank("reset", "--yes")
    monkeypatch.setenv("FRESHRANK_HOME", str(copy))
    monkeypatch.setenv("FRESHRANK_DATABASE_URL", "")
    assert freshrank("recommend", "u1")["items"] == before


def test_a_reset_empties_the_database_but_for_what_is_not_ours(
    freshrank: Freshrank, filled: Path, database_url: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE theirs (n int)")
        freshrank("reset", "--yes")
        names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert sorted(name for (name,) in names) == ["freshrank_version", "theirs"]
    assert not (filled / "bus.db").exists()


def test_machines_that_start_together_share_one_registry(database_url: str, tmp_path: Path) -> None:
    """Two homes, one database: both open Feast at once, and both find the views."""
    found: list[Any] = []
    import_feast()

    def start(home: Path) -> None:
        engine = open_postgresql(database_url)
        try:
            store = open_feast(home, database=engine)
            found.append(sorted(view.name for view in store.list_feature_views()))
            store.provider.online_store.close()
        except Exception as error:
            found.append(error)
        finally:
            engine.dispose()

    threads = [threading.Thread(target=start, args=(tmp_path / name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [["item_live", "item_stats", "user_behaviour"]] * 2


# ---------------------------------------------------------------------------------------------- deadlines


def answers(engine: Engine) -> bool:
    with engine.connect() as connection:
        return connection.execute(text("SELECT 1")).scalar() == 1


def seconds_until_refused(work: Callable[[], object]) -> float:
    started = time.monotonic()
    with pytest.raises(SQLAlchemyError):
        work()
    return time.monotonic() - started


def test_a_connection_that_was_cut_is_replaced_unseen(database_url: str) -> None:
    engine = engine_of(database_url, Waits(pool_max=1))
    assert answers(engine)
    with psycopg.connect(database_url, autocommit=True) as other:
        other.execute(  # of this test's database: others have connections of that name, too
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'freshrank' AND datname = current_database()"
        )
    assert answers(engine)
    engine.dispose()


def test_waits_for_locks_statements_and_the_pool_end(database_url: str) -> None:
    engine = open_postgresql(database_url, Waits(connect_ms=1000, lock_ms=200, statement_ms=600, pool_max=2))
    with engine.begin() as holder:
        next_number(holder, "one line")

        def stand_behind() -> None:
            with engine.begin() as connection:
                next_number(connection, "one line")

        assert seconds_until_refused(stand_behind) < 2
        with engine.connect() as second:
            assert seconds_until_refused(lambda: second.execute(text("SELECT pg_sleep(5)"))) < 2
            second.rollback()
            assert seconds_until_refused(lambda: answers(engine)) < 3
    with engine.connect() as connection:
        assert connection.execute(select(counters.c.value).where(counters.c.name == "one line")).scalar() == 1
    engine.dispose()


@pytest.mark.slow
def test_a_server_that_hangs_or_goes_away_is_given_up_on_and_used_again_when_it_is_back(
    own_stack: Callable[..., Stack],
) -> None:
    own = own_stack("postgres")
    engine = open_postgresql(own.settings["FRESHRANK_DATABASE_URL"], Waits(connect_ms=1000, statement_ms=500))
    assert answers(engine)
    own.pause("postgres")
    assert seconds_until_refused(lambda: answers(engine)) < 6  # the pooled connection, then a new one
    own.start("postgres")
    assert answers(engine)
    own.kill("postgres")
    assert seconds_until_refused(lambda: answers(engine)) < 6
    own.start("postgres")
    assert answers(engine)
    engine.dispose()


# ------------------------------------------------------------------------------------------------ secrets


def test_no_password_is_in_what_is_said_of_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRESHRANK_DATABASE_URL", "mysql://me:hush@host/name")
    with pytest.raises(SettingsInvalid) as refused:
        load_settings()
    assert "me:***@host" in str(refused.value)
    assert (
        without_secrets("postgresql://me@host/name?password=hush&a=b") == "postgresql://me@host/name?password=***&a=b"
    )
    assert without_secrets("postgresql://me:hu@sh@host/name") == "postgresql://me:***@host/name"
    assert without_secrets(4) == 4


def test_what_fails_names_neither_the_password_nor_the_values(database_url: str) -> None:
    engine = open_postgresql(database_url)
    with engine.connect() as connection:
        connection.execute(text("SET statement_timeout = 1"))
        with pytest.raises(OperationalError) as wrong:
            connection.execute(text("SELECT pg_sleep(1), :user"), {"user": "somebody"})
    assert "somebody" not in str(wrong.value)
    assert f":{PASSWORD}@" not in repr(engine)
    engine.dispose()
    with pytest.raises(OperationalError) as refused:
        open_postgresql(database_url.replace(f":{PASSWORD}@", ":hush@"))
    assert "hush" not in str(refused.value)
    with pytest.raises(SettingsInvalid) as unreadable:
        open_postgresql("postgresql://me:hush@host:port/name")
    assert "hush" not in str(unreadable.value)
    assert Settings.model_fields["database_url"].default == ""
