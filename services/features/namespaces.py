"""Which user rows are live: every set of rows has a name, a definition and a consumer group of its own.

Rows of a namespace are what its group's committed offsets say, whoever consumed. So making another one live is one
statement: no event can be lost between two groups that both keep their place in the log.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from sqlalchemy import Connection, Engine, case, delete, exists, insert, literal, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from services.domain import HISTORY_MAX, BadRequest, KindRule, KindRules, Partition, to_us
from services.ports import LogView
from services.tables import namespaces, next_number

DEFAULT = "default"
IN_PLACE = "live"
"""Not a name of rows but of the work on the live ones: `replay --into live`."""
GROUP = "features"
LOCK = "namespaces"
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


@dataclass(frozen=True, slots=True)
class Definition:
    """What makes rows of events: the kinds, how many events a row holds, and since when events count."""

    rules: KindRules
    events_max: int = HISTORY_MAX
    since_us: int = 0

    def as_json(self) -> str:
        """As it is stored."""
        kinds = {name: [rule.sign, rule.weight, rule.threshold] for name, rule in sorted(self.rules.by_kind.items())}
        return json.dumps({"kinds": kinds, "events_max": self.events_max, "since_us": self.since_us})

    @staticmethod
    def from_json(text: str) -> Definition:
        """As it was stored."""
        stored = json.loads(text)
        rules = KindRules({name: KindRule(*rule) for name, rule in stored["kinds"].items()})
        return Definition(rules, stored["events_max"], stored["since_us"])


@dataclass(frozen=True, slots=True)
class Namespace:
    """One set of user rows. `definition` None: not known. `offsets`: where its group began to read the log,
    after the archive up to there where `source` is the archive; `archived_us` is how far that has been read."""

    name: str = DEFAULT
    definition: Definition | None = None
    source: str = ""
    offsets: Mapping[Partition, int] = field(default_factory=dict)
    archived_us: int = 0
    created_us: int = 0
    caught_up_us: int = 0
    live: bool = True
    live_us: int = 0


def group_of(name: str) -> str:
    """The consumer group that keeps the place of these rows in the log."""
    return GROUP if name == DEFAULT else f"{GROUP}.{name}"


def checked_name(name: str) -> str:
    """The name, where it may be one. BadRequest otherwise."""
    if not NAME.fullmatch(name):
        raise BadRequest(f"{name!r} cannot be a name: up to 32 small letters, digits, - and _, as in v2")
    return name


class Namespaces:
    """The table of namespaces."""

    def __init__(self, engine: Engine, now: Callable[[], datetime]) -> None:
        self._engine = engine
        self._now = now

    def live(self) -> Namespace:
        """The rows that are served now."""
        with self._engine.connect() as connection:
            row = connection.execute(select(namespaces).where(namespaces.c.live)).first()
        return _namespace(row) if row else Namespace()

    def get(self, name: str) -> Namespace | None:
        """The namespace of this name."""
        with self._engine.connect() as connection:
            row = connection.execute(select(namespaces).where(namespaces.c.name == name)).first()
        return _namespace(row) if row else Namespace() if name == DEFAULT and self.live().name == DEFAULT else None

    def all(self) -> tuple[Namespace, ...]:
        """Every one, the live one first, then the newest."""
        with self._engine.connect() as connection:
            rows = connection.execute(select(namespaces)).all()
        found = [_namespace(row) for row in rows] or [Namespace()]
        return tuple(sorted(found, key=lambda each: (not each.live, -each.created_us)))

    def record_default(self, definition: Definition) -> bool:
        """Remember what the first rows are made by, while there are no others; from then on it stays. Whether it was
        remembered."""
        others = namespaces.alias()
        alone = ~exists(select(others.c.name).where(others.c.name != DEFAULT))
        with self._engine.begin() as connection:
            _remember_default(connection)
            recorded = connection.execute(
                update(namespaces).where(namespaces.c.name == DEFAULT, alone).values(definition=definition.as_json())
            )
        return recorded.rowcount > 0

    def previous(self) -> Namespace | None:
        """The rows that were live before the live ones."""
        past = [each for each in self.all() if not each.live and each.live_us]
        return max(past, key=lambda each: each.live_us, default=None)

    def add(self, new: Namespace) -> Namespace:
        """Remember one that is to be built."""
        added = replace(new, created_us=to_us(self._now()), live=False)
        with self._engine.begin() as connection:
            next_number(connection, LOCK)
            _remember_default(connection)
            connection.execute(insert(namespaces).values(**_columns(added)))
        return added

    def archived(self, name: str, until_us: int) -> None:
        """The archive is read and folded up to here."""
        self._set(name, archived_us=until_us)

    def caught_up(self, name: str) -> None:
        """Everything is in the rows that was in the log a moment ago."""
        self._set(name, caught_up_us=to_us(self._now()))

    def switch(self, name: str) -> None:
        """Make these rows the live ones, at once, for everybody who looks."""
        chosen = namespaces.c.name == name
        now_us = to_us(self._now())
        with self._engine.begin() as connection:
            next_number(connection, LOCK)  # what another one adds meanwhile would stay live beside this one
            _remember_default(connection)
            if connection.execute(select(namespaces.c.name).where(chosen)).first() is None:
                raise BadRequest(f"there are no rows named {name}; `freshrank replay list` names them")
            connection.execute(
                update(namespaces).values(live=chosen, live_us=case((chosen, now_us), else_=namespaces.c.live_us))
            )

    def remove(self, name: str) -> None:
        """Forget one that is not live."""
        with self._engine.begin() as connection:
            connection.execute(delete(namespaces).where(namespaces.c.name == name, namespaces.c.live.is_(False)))

    def _set(self, name: str, **columns: int) -> None:
        with self._engine.begin() as connection:
            connection.execute(update(namespaces).where(namespaces.c.name == name).values(**columns))


class LiveView:
    """LogView that takes `features` for the group of the live rows."""

    def __init__(self, view: LogView, live: Callable[[], str]) -> None:
        self._view = view
        self._live = live

    def ends(self, topic: str) -> Mapping[Partition, int]:
        """LogView."""
        return self._view.ends(topic)

    def begins(self, topic: str) -> Mapping[Partition, int]:
        """LogView."""
        return self._view.begins(topic)

    def committed(self, group: str, topic: str) -> Mapping[Partition, int]:
        """LogView."""
        return self._view.committed(self._of(group), topic)

    def topics(self, group: str) -> tuple[str, ...]:
        """LogView."""
        return self._view.topics(self._of(group))

    def log_id(self, topic: str) -> str:
        """LogView."""
        return self._view.log_id(topic)

    def _of(self, group: str) -> str:
        return group_of(self._live()) if group == GROUP else group


def _remember_default(connection: Connection) -> None:
    """The rows of before the first replay get an entry, so that there is a way back to them. Of two that do so at once
    one finds it done."""
    columns = _columns(replace(Namespace(), live_us=1))
    nobody = ~exists(select(namespaces.c.name))
    row = select(*(literal(value, namespaces.c[name].type) for name, value in columns.items())).where(nobody)
    make = sqlite_insert if connection.dialect.name == "sqlite" else postgresql_insert
    connection.execute(make(namespaces).from_select(list(columns), row).on_conflict_do_nothing())


def _columns(each: Namespace) -> dict[str, object]:
    places = [[p.topic, p.number, offset] for p, offset in sorted(each.offsets.items())]
    return {
        "name": each.name, "definition": each.definition.as_json() if each.definition else "", "source": each.source,
        "offsets": json.dumps(places), "archived_us": each.archived_us, "created_us": each.created_us,
        "caught_up_us": each.caught_up_us, "live": each.live, "live_us": each.live_us,
    }  # fmt: skip


def _namespace(row: object) -> Namespace:
    columns = dict(row._mapping)  # type: ignore[attr-defined]
    definition = columns.pop("definition")
    places = json.loads(columns.pop("offsets"))
    return Namespace(
        **columns,
        definition=Definition.from_json(definition) if definition else None,
        offsets={Partition(topic, number): offset for topic, number, offset in places},
    )
