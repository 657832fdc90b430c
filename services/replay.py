"""Features built anew from everything that was accepted, beside the live ones, and made live by one statement.

Rows of a namespace are what its group's place in the log says (decision 20), so there is nothing to hand over: whoever
consumes for that group carries on where the one before committed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

import structlog

from services.domain import DAY_US, TOPIC_EVENTS, BadRequest, Batch, Event, Partition, StageUnavailable, from_us, to_us
from services.features.comparing import Comparison, Side, compare
from services.features.consumer import FeaturesConsumer
from services.features.namespaces import DEFAULT, IN_PLACE, Namespace, checked_name, group_of
from services.patience import Patience
from services.ports import Consumer, EventSource
from services.processes import AWAY, Progress, consume_as, unwatched
from services.wiring import Home

log = structlog.get_logger()

LOG, ARCHIVE = "log", "archive"
LOOK_S = 0.1
LEVEL_S = 2.0
"""Rows have caught up when they hold all that was in the log this long ago at most."""
ANCHOR_S = 60.0
HANDOVER_S = 15.0
SETTLE_S = 2.0


@dataclass(frozen=True, slots=True)
class Standing:
    """A namespace as it stands: what it is, and how many events its group has not taken in."""

    namespace: Namespace
    lag: int
    follows_settings: bool


def build(
    home: Home, name: str, since: datetime | None, stopping: threading.Event, progress: Progress = unwatched
) -> Namespace:
    """Build the rows `name`, or go on building them, until they have caught up with the log (or `stopping`).

    1. remember what is to be built and where its group begins, 2. anchor the group there, so that nothing is forgotten
    that it needs, 3. fold the archive up to there, day by day, 4. consume the log. Any step may be repeated.
    """
    rows = _begun(home, name, since)
    _anchor(home, rows, stopping)
    part = home.features_consumer(_target(home, rows))
    if rows.source == ARCHIVE:
        _fold_archive(home, rows, part, stopping, progress)
    _consumed(home, rows, part, stopping, _Level(home, rows, progress))
    if stopping.is_set():
        return rows
    home.rows.namespaces.caught_up(rows.name)
    if rows.name == IN_PLACE:
        _forget(home, rows)
    return rows


def follow(home: Home, rows: Namespace, stopping: threading.Event) -> None:
    """Keep rows that are built level with the log, until running consumers have come over to them."""
    part = _Watched(home.features_consumer(rows))
    _consumed(home, rows, part, stopping, lambda: part.lost and home.rows.namespaces.live().name == rows.name)


def swap(
    home: Home, name: str, stopping: threading.Event, progress: Progress = unwatched, handover_s: float = HANDOVER_S
) -> bool:
    """Make the rows `name` live. They are fed until they are level with the log, through the switch, and on until a
    running consumer has taken over; whether one has."""
    rows = home.rows.namespaces.get(name)
    if rows is None:
        raise BadRequest(f"there are no rows named {name}; `freshrank replay list` names them")
    if rows.live:
        raise BadRequest(f"{name} is live already")
    if home.rows.namespaces.get(IN_PLACE) is not None:
        raise BadRequest("the live rows are being built anew; let `freshrank replay --into live` finish first")
    if rows.name != DEFAULT and not rows.caught_up_us:
        raise BadRequest(f"{name} is not built yet; `freshrank replay --into {name}` goes on with it")
    _refuse_gap(home, rows)
    part = _Watched(home.features_consumer(rows))
    level, switched_at = _Level(home, rows, progress), 0.0

    def done() -> bool:
        nonlocal switched_at
        if switched_at:
            return part.lost or time.monotonic() - switched_at > handover_s
        if level():
            home.rows.namespaces.switch(name)
            home.rows.look()
            part.lost, switched_at = False, time.monotonic()
            log.info("rows_swapped", live=name)
        return False

    _consumed(home, rows, part, stopping, done)
    if not switched_at:
        raise BadRequest(f"stopped before {name} was level with the log; nothing was swapped")
    return part.lost


def compare_rows(home: Home, name: str, users_max: int) -> Comparison:
    """The rows `name` beside the live ones."""
    live, rows = home.rows.namespaces.live(), home.rows.namespaces.get(name)
    if rows is None or rows.live:
        raise BadRequest(f"{name} is {'live' if rows else 'no name of rows'}; `freshrank replay list` names the others")
    return compare(_side(home, live), _side(home, rows), users_max, lambda: time.sleep(SETTLE_S))


def drop(home: Home, name: str) -> None:
    """Forget rows that are not live: online, in the history, and their group's place in the log."""
    rows = home.rows.namespaces.get(name)
    if rows is None:
        raise BadRequest(f"there are no rows named {name}; `freshrank replay list` names them")
    if rows.live:
        raise BadRequest(f"{name} is live; swap to others first")
    if rows.name != IN_PLACE:
        home.rows.forget(name)
    _forget(home, rows)


def standings(home: Home) -> tuple[Standing, ...]:
    """Every namespace, the live one first."""
    return tuple(
        Standing(
            each, sum(_lags(home, each).values()), replace(home.rows.made_by(each), since_us=0) == home.rows.wanted
        )
        for each in home.rows.namespaces.all()
    )


# ------------------------------------------------------------------------------------------- the steps


def _begun(home: Home, name: str, since: datetime | None) -> Namespace:
    """The namespace as it was begun before, or a new one: its definition is the settings as they are now."""
    known = home.rows.namespaces.get(checked_name(name))
    since_us = to_us(since) if since else 0
    if known is not None:
        made_by = home.rows.made_by(known)
        wanted = replace(home.rows.wanted, since_us=since_us)
        if known.live or (known.name == DEFAULT):
            raise BadRequest(f"{name} is live or was; build into another name, or into `live` to build them anew")
        if name == IN_PLACE:
            wanted = replace(made_by, since_us=since_us)
        if made_by != wanted:
            raise BadRequest(f"{name} was begun with another --from or other kinds; `freshrank replay drop {name}`")
        return known
    definition = replace(home.rows.wanted, since_us=since_us)
    if name == IN_PLACE:
        definition = replace(home.rows.made_by(home.rows.namespaces.live()), since_us=since_us)
    source, offsets = _where_from(home, since)
    return home.rows.namespaces.add(Namespace(name, definition, source, offsets, archived_us=since_us))


def _where_from(home: Home, since: datetime | None) -> tuple[str, Mapping[Partition, int]]:
    """The log alone where nothing was ever forgotten of it and the archive knows no log before it; else the archive,
    and then the log from what is archived on. The group's place is read before the archive is."""
    begins = home.view.begins(TOPIC_EVENTS)
    archived = home.view.committed("archive", TOPIC_EVENTS)
    others = home.archive.log_ids(since) - {home.view.log_id(TOPIC_EVENTS)}
    if not any(begins.values()) and not others:
        return LOG, dict.fromkeys(begins, 0)
    gaps = [p for p, begin in begins.items() if archived.get(p, 0) < begin]
    if gaps:
        raise BadRequest(
            f"partition {gaps[0].number} of the log begins at {begins[gaps[0]]}, but is archived only up to "
            f"{archived.get(gaps[0], 0)}: what lies between is gone, so features cannot be built completely"
        )
    return ARCHIVE, dict(archived)


def _anchor(home: Home, rows: Namespace, stopping: threading.Event) -> None:
    """Make the group known at its place in the log: retention waits for it from here on."""
    if not any(_short(home, rows).values()) and home.bus.view().topics(group_of(rows.name)):
        return
    source = home.bus.source(group_of(rows.name), (TOPIC_EVENTS,))
    until = time.monotonic() + ANCHOR_S
    try:
        owned: set[Partition] = set()
        while not stopping.is_set():
            batch = source.poll(0, LOOK_S)
            owned |= set(batch.gained)
            if owned >= set(rows.offsets):
                source.commit(rows.offsets)
                if not any(_short(home, rows).values()):
                    return
            if time.monotonic() > until:
                raise StageUnavailable(f"the group {group_of(rows.name)} did not get the whole log in {ANCHOR_S:g} s")
    finally:
        source.close()


def _fold_archive(
    home: Home, rows: Namespace, part: FeaturesConsumer, stopping: threading.Event, progress: Progress
) -> None:
    """Day by day, so that a replay that was broken off goes on with the day it was at."""
    bounds = home.archive.bounds()
    if bounds is None:
        return
    assert rows.definition is not None
    patience = _patience(rows, stopping)
    reached = home.rows.namespaces.get(rows.name)
    assert reached is not None
    first = max(to_us(bounds[0]), reached.archived_us, rows.definition.since_us)
    last = to_us(bounds[1])
    days = (last - first) // DAY_US + 1
    for number, (since_us, until_us) in enumerate(_days(first, last)):
        for events in _pieces(home.archive.events(from_us(since_us), from_us(until_us)), home):
            if stopping.is_set():
                return
            patience.call(partial(part.take, events))
        home.rows.namespaces.archived(rows.name, until_us)
        progress(number + 1, days, "days of the archive")


class _Level:
    """Asked again and again: whether the rows hold all that was in the log a moment ago. Under traffic the log never
    stands still, so what counts is how old the end is that they have reached."""

    def __init__(self, home: Home, rows: Namespace, progress: Progress) -> None:
        self._home = home
        self._rows = rows
        self._progress = progress
        self._seen_at, self._wanted = time.monotonic(), home.view.ends(TOPIC_EVENTS)
        self._looked_at = 0.0

    def __call__(self) -> bool:
        moment = time.monotonic()
        if moment - self._looked_at < LOOK_S:
            return False
        self._looked_at = moment
        done = _committed(self._home, self._rows)
        self._progress(sum(done.values()), sum(self._wanted.values()), "events of the log")
        if any(done.get(partition, 0) < end for partition, end in self._wanted.items()):
            return False
        if moment - self._seen_at <= LEVEL_S or self._rows.name == IN_PLACE:
            return True
        self._seen_at, self._wanted = moment, self._home.view.ends(TOPIC_EVENTS)
        return False


def _consumed(home: Home, rows: Namespace, part: Consumer, stopping: threading.Event, done: Callable[[], bool]) -> None:
    """Consume for the group of these rows until it is done."""
    consume_as(home, part, group_of(rows.name), _patience(rows, stopping), lambda: stopping.is_set() or _quietly(done))


class _Watched:
    """A consumer that notices when partitions are taken from it: another member has come."""

    def __init__(self, part: Consumer) -> None:
        self.name, self.topics = part.name, part.topics
        self._part = part
        self.lost = False

    def start(self, source: EventSource, gained: tuple[Partition, ...]) -> None:
        """Consumer."""
        self._part.start(source, gained)

    def apply(self, batch: Batch) -> Mapping[Partition, int]:
        """Consumer."""
        return self._part.apply(batch)

    def stop(self, lost: tuple[Partition, ...]) -> Mapping[Partition, int]:
        """Consumer."""
        self.lost |= bool(lost)
        return self._part.stop(lost)


def _quietly(done: Callable[[], bool]) -> bool:
    """The answer; not yet, where the log or the database could not be asked."""
    try:
        return done()
    except AWAY as error:
        log.warning("look_failed", error=str(error))
        return False


# ---------------------------------------------------------------------------------------------- inside


def _refuse_gap(home: Home, rows: Namespace) -> None:
    done = _committed(home, rows)
    missed = {
        p: begin - done.get(p, 0) for p, begin in home.view.begins(TOPIC_EVENTS).items() if begin > done.get(p, 0)
    }
    if missed:
        raise BadRequest(
            f"the log has forgotten {sum(missed.values())} messages that {rows.name} has not taken in; build rows anew "
            "(`freshrank replay --into NAME`)"
        )


def _target(home: Home, rows: Namespace) -> Namespace:
    """The rows that are written: the live ones where they are built in place."""
    if rows.name != IN_PLACE:
        return rows
    return replace(home.rows.namespaces.live(), definition=rows.definition)


def _short(home: Home, rows: Namespace) -> dict[Partition, int]:
    """How far the group is before the place where it begins."""
    done = _committed(home, rows)
    return {p: max(offset - done.get(p, 0), 0) for p, offset in rows.offsets.items()}


def _lags(home: Home, rows: Namespace) -> dict[Partition, int]:
    done = _committed(home, rows)
    return {p: end - done.get(p, 0) for p, end in home.view.ends(TOPIC_EVENTS).items()}


def _committed(home: Home, rows: Namespace) -> Mapping[Partition, int]:
    return home.bus.view().committed(group_of(rows.name), TOPIC_EVENTS)


def _patience(rows: Namespace, stopping: threading.Event) -> Patience:
    return Patience(f"replay of {rows.name}", AWAY, stopping)


def _side(home: Home, rows: Namespace) -> Side:
    store = home.rows.store(rows.name)
    return Side(store.user_ids, store, home.rows.made_by(rows))


def _forget(home: Home, rows: Namespace) -> None:
    home.rows.namespaces.remove(rows.name)
    home.bus.forget(group_of(rows.name))


def _days(first_us: int, last_us: int) -> Iterator[tuple[int, int]]:
    """Spans from the first moment to the last, cut at midnight UTC."""
    since_us = first_us
    while since_us <= last_us:
        until_us = (since_us // DAY_US + 1) * DAY_US
        yield since_us, until_us
        since_us = until_us


def _pieces(events: Iterator[Event], home: Home) -> Iterator[list[Event]]:
    piece: list[Event] = []
    for event in events:
        piece.append(event)
        if len(piece) == home.settings.features_batch_max:
            yield piece
            piece = []
    if piece:
        yield piece
