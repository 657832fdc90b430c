"""Publishing in one transaction: when it fails, whatever the reason, nobody of the batch is told accepted.

The fault is in a connection around the real one: it fails, or waits, at a statement the test names.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from services.bus import files
from services.bus.embedded import EmbeddedBus, EmbeddedSink
from services.domain import Coordinate, Outgoing, StageUnavailable

EVENTS = "freshrank.events"
FAULTS = (
    RuntimeError("a bug"),
    MemoryError("no memory"),
    KeyboardInterrupt(),
    sqlite3.OperationalError("disk"),
)


class Faulty:
    """A connection that calls `at(statement)` before each statement."""

    def __init__(self, real: sqlite3.Connection) -> None:
        self.real = real
        self.at: Callable[[str], None] = lambda _statement: None

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        self.at(statement)
        return self.real.execute(statement, *values)

    def executemany(self, statement: str, rows: Any) -> sqlite3.Cursor:
        self.at(statement)
        return self.real.executemany(statement, rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[EmbeddedBus]:
    bus = EmbeddedBus(tmp_path / "bus.db", 4, 5000, 24, now=lambda: datetime(2026, 3, 1, tzinfo=UTC)).open()
    yield bus
    bus.close()


@pytest.fixture
def faulty(bus: EmbeddedBus) -> Iterator[Faulty]:
    connection = files.connect(bus.path, 5000)
    yield Faulty(connection)
    connection.close()


def sink_over(bus: EmbeddedBus, faulty: Faulty) -> EmbeddedSink:
    return EmbeddedSink(bus, faulty, bus.view().log_id("freshrank.events"))  # type: ignore[arg-type]


def raising(statement: str, error: BaseException) -> Callable[[str], None]:
    def at(running: str) -> None:
        if running.startswith(statement):
            raise error

    return at


def published(bus: EmbeddedBus) -> int:
    return sum(bus.view().ends(EVENTS).values())


@pytest.mark.parametrize("statement", ["INSERT INTO messages", "UPDATE places", "COMMIT"])
@pytest.mark.parametrize("error", FAULTS, ids=lambda each: type(each).__name__)
def test_a_fault_is_raised_nothing_is_published_and_the_next_publish_works(
    bus: EmbeddedBus, faulty: Faulty, statement: str, error: BaseException
) -> None:
    sink = sink_over(bus, faulty)
    faulty.at = raising(statement, error)
    expected = StageUnavailable if isinstance(error, sqlite3.Error) else type(error)
    with pytest.raises(expected):
        sink.publish([Outgoing(EVENTS, "u1", b"lost")])
    assert published(bus) == 0
    faulty.at = lambda _statement: None
    assert [c.offset for c in sink.publish([Outgoing(EVENTS, "u1", b"kept")])] == [0]
    assert published(bus) == 1


@pytest.mark.parametrize("error", FAULTS, ids=lambda each: type(each).__name__)
def test_everybody_who_shared_the_transaction_hears_the_error_and_only_they(
    bus: EmbeddedBus, faulty: Faulty, error: BaseException
) -> None:
    """The first writes alone and is held there until the others wait; they share the second transaction: it fails."""
    sink = sink_over(bus, faulty)
    begun, go_on, inserts = threading.Event(), threading.Event(), []
    told: dict[int, tuple[Coordinate, ...] | BaseException] = {}

    def at(statement: str) -> None:
        if statement.startswith("INSERT INTO messages"):
            inserts.append(statement)
            if len(inserts) == 1:
                begun.set()
                assert go_on.wait(10)
            if len(inserts) == 2:
                raise error

    def publish(number: int) -> None:
        try:
            told[number] = sink.publish([Outgoing(EVENTS, f"u{number}", b"x")])
        except BaseException as heard:
            told[number] = heard

    faulty.at = at
    threads = [threading.Thread(target=publish, args=(number,)) for number in range(4)]
    threads[0].start()
    assert begun.wait(10)
    for thread in threads[1:]:
        thread.start()
    while len(sink._waiting) < 3:
        threading.Event().wait(0.001)
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert len(inserts) == 2
    assert isinstance(told[0], tuple)
    assert [isinstance(told[number], BaseException) for number in (1, 2, 3)] == [True] * 3
    assert published(bus) == 1
