"""The promise of exactly-once effect, tested by breaking things: two processes per consumer group on one stream are
killed, paused beyond their session and dealt new partitions; afterwards every store holds what one undisturbed process
makes of it.

The seed and the plan are printed; CHAOS_SEED chooses another one. `make chaos` runs the full size.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from chaos_monkey import CREW, Crew, Deed, disturb, plan
from chaos_world import (
    GROUPS,
    begins_now,
    events_of,
    offline_answer,
    read_all,
    single_process_answer,
    stored_answer,
    stream,
)
from kafka import KafkaAdminClient
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from services.domain import TOPIC_EVENTS, TOPICS, Coordinate, Outgoing, Partition, StageUnavailable
from services.settings import load_settings
from services.wiring import Home, open_home

SEED = int(os.environ.get("CHAOS_SEED", "1"))
SESSION_S = 5.0
KAFKA_SESSION_S = 6.0
PARTITIONS_GROWN = 7
SETTLE_S = 240.0
"""Longest wait for the beginning; for the end, beyond twice the time that was disturbed."""
SMALL = pytest.param((20_000, 18.0, 1), id="20k", marks=pytest.mark.timeout(900))
FULL = pytest.param((200_000, 300.0, 8), id="200k", marks=[pytest.mark.nightly, pytest.mark.timeout(2400)])
Size = tuple[int, float, int]


def behind(home: Home) -> dict[tuple[str, Partition], int]:
    """What each group has not committed yet; everything while the log does not say."""
    try:
        return {
            (group, partition): end - home.view.committed(group, topic).get(partition, 0)
            for group, topics in GROUPS.items()
            for topic in topics
            for partition, end in home.view.ends(topic).items()
            if home.view.committed(group, topic).get(partition, 0) < end
        }
    except StageUnavailable:  # a group nobody has joined yet, on a broker that has had none before
        return {(group, Partition("", -1)): 0 for group in GROUPS}


def settle(crew: Crew, home: Home, longest_s: float) -> None:
    """Until every group has committed all there is; everybody has to stay alive."""
    deadline = time.monotonic() + longest_s
    while left := behind(home):
        crew.look()
        said = "\n".join(f"== {who}\n{crew.log(who)[-1500:]}" for who in CREW)
        assert time.monotonic() < deadline, f"after {longest_s} s there is left {left}\n{said}"
        time.sleep(0.1)


@pytest.fixture
def crew_of(tmp_path: Path) -> Iterator[Callable[[Mapping[str, str]], Crew]]:
    crews: list[Crew] = []

    def make(environment: Mapping[str, str]) -> Crew:
        crews.append(Crew(environment, tmp_path))
        return crews[-1]

    yield make
    for crew in crews:
        crew.wipe_out()


def run(home: Home, crew: Crew, deeds: list[Deed], size: Size, folder: Path, grow: Callable[[], None]) -> None:
    """The whole story: disturb, settle, end, compare.

    When partitions grow a user's events stand in two of them, whose order among each other nobody knows: what was seen
    together just then depends on it, and which of a user's events are above the day's bound (so there is none then);
    rows and counts do not.
    """
    count, span_s, _ = size
    sent = stream(SEED, count, begins_now())
    print(f"seed {SEED}, {len(sent)} messages in {span_s:.0f} s", *deeds, sep="\n")
    placed: dict[Coordinate, Outgoing] = {}

    def publish(some: Sequence[Outgoing]) -> None:
        coordinates = home.sink.publish(some)
        placed.update(zip(coordinates, some, strict=True))

    patiently = Retrying(
        retry=retry_if_exception_type(StageUnavailable), stop=stop_after_delay(30), wait=wait_fixed(0.2), reraise=True
    )  # four processes open the log and the broker makes its first topics just then
    started = time.monotonic()
    for who in CREW:
        crew.start(who)
    calm = len(sent) // 50
    patiently(publish, sent[:calm])
    settle(crew, home, SETTLE_S)  # a process that does not run yet is not disturbed by anything
    began = time.monotonic()
    disturb(crew, deeds, sent[calm:], span_s, publish, grow)
    disturbed_s = time.monotonic() - began
    settle(crew, home, 2 * span_s + SETTLE_S)
    settled_s = time.monotonic() - began - disturbed_s
    crew.end()
    ends = {p: end for topic in TOPICS for p, end in home.view.ends(topic).items()}
    print(f"up in {began - started:.1f} s, disturbed for {disturbed_s:.1f} s, caught up in {settled_s:.1f} s more")
    assert crew.killed == sum(deed.what == "kill" for deed in deeds)
    messages = read_all(home, ends)
    assert {m.coordinate: m.value for m in messages} == {c: o.value for c, o in placed.items()}
    expected = single_process_answer(messages, folder, home.settings.bounds())
    assert len(expected.events) > 0.9 * count
    grown = any(deed.what == "grow" for deed in deeds)
    assert expected.differences(stored_answer(home), covisits=not grown) == []
    assert offline_answer(home, sorted(expected.rows)) == events_of(expected.rows), "a gap in the offline history"


@pytest.mark.slow
@pytest.mark.parametrize("size", [SMALL, FULL])
def test_on_the_embedded_log_and_stores(size: Size, tmp_path: Path, crew_of: Callable[..., Crew]) -> None:
    settings = {
        "home": str(tmp_path / "home"),
        "bus_session_s": str(SESSION_S),
        "text_encoder": "hashing",
        "log_level": "warning",
    }
    crew = crew_of({f"FRESHRANK_{name.upper()}": value for name, value in settings.items()})
    deeds = plan(SEED, size[1], size[2], SESSION_S, grow=False)
    with open_home(load_settings(**settings)) as home:
        run(home, crew, deeds, size, tmp_path, grow=lambda: None)


@pytest.mark.slow
@pytest.mark.parametrize("size", [SMALL, FULL])
def test_on_kafka_redis_and_postgresql(
    size: Size, tmp_path: Path, crew_of: Callable[..., Crew], server_settings: Mapping[str, str]
) -> None:
    settings = {
        **server_settings,
        "home": str(tmp_path / "home"),
        "kafka_session_timeout_ms": str(int(KAFKA_SESSION_S * 1000)),
        "user_events_per_day_max": "0",
        "text_encoder": "hashing",
        "log_level": "warning",
    }
    crew = crew_of({f"FRESHRANK_{name.upper()}": value for name, value in settings.items()})
    deeds = plan(SEED, size[1], size[2], KAFKA_SESSION_S, grow=True)
    events_topic = settings["kafka_prefix"] + TOPIC_EVENTS

    def grow() -> None:
        admin = KafkaAdminClient(bootstrap_servers=settings["kafka_servers"])
        admin.create_partitions({events_topic: PARTITIONS_GROWN})
        admin.close()

    with open_home(load_settings(**settings)) as home:
        run(home, crew, deeds, size, tmp_path, grow)
        assert len(home.view.ends(TOPIC_EVENTS)) == PARTITIONS_GROWN
