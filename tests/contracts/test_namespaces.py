"""Which user rows are live, over SQLite and PostgreSQL: one at a time, switched at once, also under several writers."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine

from services.domain import BadRequest, KindRule, KindRules, Partition
from services.features.namespaces import DEFAULT, Definition, Namespace, Namespaces, checked_name, group_of
from services.postgresql import open_postgresql
from services.sqlite import open_database

NOW = datetime(2026, 11, 23, tzinfo=UTC)
FIRST = Definition(KindRules({"click": KindRule("positive")}))
SECOND = Definition(KindRules({"click": KindRule("positive", 2.0, 3.5), "hide": KindRule("negative")}), 10, 17)
OFFSETS = {Partition("freshrank.events", 0): 12, Partition("freshrank.events", 1): 0}


class NamespacesContract(ABC):
    @pytest.fixture
    @abstractmethod
    def engine(self) -> Iterator[Engine]: ...

    @pytest.fixture
    def rows(self, engine: Engine) -> Namespaces:
        return Namespaces(engine, lambda: NOW)

    def test_before_the_first_replay_the_rows_there_are_are_live(self, rows: Namespaces) -> None:
        assert rows.live() == Namespace()
        assert [each.name for each in rows.all()] == [DEFAULT]
        assert rows.previous() is None
        assert rows.get("v2") is None

    def test_what_was_added_is_found_as_it_was_said(self, rows: Namespaces) -> None:
        added = rows.add(Namespace("v2", SECOND, "archive", OFFSETS, archived_us=5))
        assert rows.get("v2") == added
        assert (added.live, added.definition, added.offsets) == (False, SECOND, OFFSETS)
        rows.archived("v2", 99)
        rows.caught_up("v2")
        found = rows.get("v2")
        assert found is not None
        assert (found.archived_us, found.caught_up_us > 0) == (99, True)
        assert rows.live().name == DEFAULT

    def test_one_is_live_and_there_is_a_way_back(self, rows: Namespaces) -> None:
        rows.add(Namespace("v2", SECOND))
        rows.switch("v2")
        previous = rows.previous()
        assert previous is not None
        assert (rows.live().name, previous.name) == ("v2", DEFAULT)
        assert [each.live for each in rows.all()] == [True, False]
        rows.remove("v2")  # live: stays
        assert rows.live().name == "v2"
        rows.switch(DEFAULT)
        rows.remove("v2")
        assert [each.name for each in rows.all()] == [DEFAULT]

    def test_a_name_that_nobody_has_does_not_become_live(self, rows: Namespaces) -> None:
        with pytest.raises(BadRequest, match="no rows named v9"):
            rows.switch("v9")
        assert rows.live().name == DEFAULT

    def test_the_first_rows_follow_the_settings_until_there_are_others(self, rows: Namespaces) -> None:
        assert rows.record_default(FIRST)
        assert rows.record_default(SECOND)
        assert rows.live().definition == SECOND
        rows.add(Namespace("v2", FIRST))
        assert not rows.record_default(FIRST)
        assert rows.live().definition == SECOND

    def test_rows_that_were_dropped_do_not_come_back_by_themselves(self, rows: Namespaces) -> None:
        rows.add(Namespace("v2", SECOND))
        rows.switch("v2")
        rows.remove(DEFAULT)
        assert not rows.record_default(FIRST)
        rows.add(Namespace("v3", FIRST))
        assert [each.name for each in rows.all()] == ["v2", "v3"]

    def test_many_at_once_leave_one_live(self, engine: Engine) -> None:
        names = [f"v{n}" for n in range(6)]
        start, failures = threading.Barrier(len(names)), []

        def work(name: str) -> None:
            try:
                mine = Namespaces(engine, lambda: NOW)
                start.wait(20)
                mine.record_default(FIRST)
                mine.add(Namespace(name, SECOND))
                mine.switch(name)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        found = Namespaces(engine, lambda: NOW).all()
        assert not failures
        assert {each.name for each in found} == {*names, DEFAULT}
        assert [each.live for each in found] == [True] + [False] * 6


class TestSqlite(NamespacesContract):
    @pytest.fixture
    def engine(self, tmp_path: Path) -> Iterator[Engine]:
        engine = open_database(tmp_path / "meta.db")
        yield engine
        engine.dispose()


class TestPostgresql(NamespacesContract):
    @pytest.fixture
    def engine(self, database_url: str) -> Iterator[Engine]:
        engine = open_postgresql(database_url)
        yield engine
        engine.dispose()


@pytest.mark.parametrize("name", ["", "V2", "a b", "a" * 33, "../x", "-a", "a.b"])
def test_a_name_is_short_and_plain(name: str) -> None:
    with pytest.raises(BadRequest, match="cannot be a name"):
        checked_name(name)


def test_each_name_has_a_group_and_the_first_rows_the_old_one() -> None:
    assert (group_of(DEFAULT), group_of("v2")) == ("features", "features.v2")
