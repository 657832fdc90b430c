"""What consumers do with a full Kafka topic: one process, two processes, and the bytes that are left behind.

Run as a program it is one of these processes: it joins its group, waits until all have their partitions, and works.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from figures import Figure, figure
from stream_place import Place, Servers, place

from services.domain import HOUR_US, TOPIC_EVENTS, Batch, Event, Partition, UserState, hash64
from services.ports import EventSource, FeatureStore

EVENTS_PER_USER = 10
ITEMS = 10_000
CHUNK = 2000
JOIN_S_MAX = 60.0
STEADY_S = 2.0
FULL_USERS = 2000
FULL_EVENTS = 64
STEP_S = 0.02
"""Event time between two events: a busy shop's 50 a second, so that a run spans some hours."""
Stamps = tuple[float, float]


# ---------------------------------------------------------------------------------------------- the figures


def features(servers: Servers, work: Path, events: int) -> Iterator[Figure]:
    """Features alone: a rate, the same with two processes, and what Redis and the history hold afterwards."""
    with place(servers, work) as here:
        before = servers.redis_bytes()
        fill(events)
        cpu_s = servers.redis_cpu_s()
        one = rate(here, "features", events, 1)
        yield from one.figures("features")
        yield figure("redis_cpu_us_per_event", (servers.redis_cpu_s() - cpu_s) / events * 1e6)
        users = -(-events // EVENTS_PER_USER)
        yield figure("redis_bytes_per_user", (servers.redis_bytes() - before) / users)
        yield figure("kafka_bytes_per_event", servers.kafka_bytes(here.name) / events)
        yield figure("history_bytes_per_event", folder_bytes(here.home / "offline") / events)
    with place(servers, work) as here:
        fill(events)
        yield figure("scale_two_processes", rate(here, "features", events, 2).per_s / one.per_s)
    with place(servers, work):
        before = servers.redis_bytes()
        fill_rows()
        yield figure("redis_bytes_per_full_user", (servers.redis_bytes() - before) / FULL_USERS)


def trends(servers: Servers, work: Path, events: int) -> Iterator[Figure]:
    """Trends alone, and as two processes, which write to one database in turn."""
    with place(servers, work) as here:
        fill(events)
        one = rate(here, "trends", events, 1)
        yield from one.figures("trends")
    with place(servers, work) as here:
        fill(events)
        yield figure("scale_two_trends", rate(here, "trends", events, 2).per_s / one.per_s)


def archive(servers: Servers, work: Path, events: int) -> Iterator[Figure]:
    """The archive alone, and its bytes."""
    with place(servers, work) as here:
        fill(events)
        yield from rate(here, "archive", events, 1).figures("archive")
        yield figure("archive_bytes_per_event", folder_bytes(here.home / "archive") / events)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def fill(events: int) -> None:
    """Publish that many clicks and purchases: everyone has EVENTS_PER_USER, and low item numbers are asked for most."""
    from services import wire
    from services.settings import load_settings
    from services.wiring import open_home

    now = datetime.now(UTC)
    users = -(-events // EVENTS_PER_USER)
    with open_home(load_settings()) as home:
        for start in range(0, events, CHUNK):
            chunk = (event(n, users, now - timedelta(seconds=(events - n) * STEP_S)) for n in
                     range(start, min(start + CHUNK, events)))  # fmt: skip
            home.sink.publish([wire.encode_event(each) for each in chunk])
        home.sink.flush()


def event(number: int, users: int, at: datetime) -> Event:
    """The event of this number: users in no order, few items asked for often, an id as clients make it."""
    place_of = (number * 7919) % 10_007 / 10_007
    item = int(ITEMS * place_of**3)
    kind = "purchase" if number % 20 == 0 else "click"
    return Event(hashlib.md5(b"%d" % number).hexdigest(), f"u{number * 48_271 % users}", f"i{item}", kind, at, at)


def fill_rows() -> None:
    """Write FULL_USERS rows that are full: as large as a row gets."""
    from services.domain import Interaction
    from services.features.fold import fold
    from services.settings import load_settings
    from services.wiring import open_home

    with open_home(load_settings()) as home:
        store: FeatureStore = home.features
        at_us = int(time.time() * 1e6)
        for start in range(0, FULL_USERS, CHUNK // 4):
            rows = []
            for user in range(start, min(start + CHUNK // 4, FULL_USERS)):
                them = [
                    Interaction(
                        at_us - n * HOUR_US - user * 1_000_003 % HOUR_US,
                        hash64(f"{user} {n}"),
                        f"i{(user + 17 * n) % ITEMS}",
                        "click",
                        None,
                        1.0,
                    )
                    for n in range(FULL_EVENTS)
                ]
                rows.append(fold(UserState(f"full-{user}"), them))
            refused = store.write(rows)
            assert not refused, refused


# ------------------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast a group was: events a second, and events a second of processor time of its processes, which other work
    on the machine changes little."""

    per_s: float
    per_processor_s: float

    def figures(self, name: str) -> Iterator[Figure]:
        """Both, for one consumer."""
        yield figure(f"kafka_{name}_events_per_s", self.per_s)
        yield figure(f"kafka_{name}_events_per_processor_s", self.per_processor_s)


def rate(here: Place, name: str, events: int, processes: int) -> Rate:
    """That many processes of one group, from the order to begin until the last has committed."""
    signs = here.home / "signs"
    signs.mkdir(parents=True)
    command = [sys.executable, str(Path(__file__).resolve()), name, str(signs), str(processes)]
    started = [subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, text=True) for n in range(processes)]
    try:
        told = [process.communicate()[0] for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.wait()
    assert all(process.returncode == 0 for process in started), "a consumer process failed; its reason stands above"
    ended = [json.loads(each.strip().splitlines()[-1]) for each in told]
    assert sum(each["events"] for each in ended) == events, ended
    seconds = max(each["end"] for each in ended) - min(each["start"] for each in ended)
    return Rate(events / seconds, events / sum(each["processor_s"] for each in ended))


class Counted:
    """A source that knows when all that stood in its partitions has been given out and committed."""

    def __init__(self, source: EventSource, totals: Mapping[Partition, int]) -> None:
        self._source = source
        self._totals = totals
        self._next = dict.fromkeys(totals, 0)
        self.committed = dict.fromkeys(totals, 0)

    def poll(self, records_max: int, wait_s: float) -> Batch:
        """EventSource; a change of owners would make the figure worthless."""
        batch = self._source.poll(records_max, wait_s)
        assert not batch.lost + batch.gained, f"partitions changed hands: {batch.gained} {batch.lost}"
        self._next.update({p: o for p, o in batch.next_offsets().items() if p in self._next})
        return batch

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """EventSource."""
        self._source.commit(offsets)
        self.committed.update({p: o for p, o in offsets.items() if p in self.committed})

    def seek(self, offsets: Mapping[Partition, int]) -> None:
        """EventSource."""
        self._source.seek(offsets)

    def lag(self) -> Mapping[Partition, int]:
        """EventSource."""
        return self._source.lag()

    def given_out(self) -> bool:
        """Whether nothing is left to poll; what is buffered then is written and committed by the end of `consume`."""
        return all(self._next[p] >= total for p, total in self._totals.items())


def consume_here(name: str, signs: Path, processes: int, number: int) -> dict[str, float]:
    """Join, wait for the others, consume this process's share."""
    from services import heap
    from services.consume import consume
    from services.settings import load_settings
    from services.telemetry import configure_logs
    from services.wiring import open_home

    configure_logs("warning", "bench")
    settings = load_settings()
    with open_home(settings) as home:
        part = home.consumer(name)
        source = home.bus.source(name, part.topics)
        ends = {p: end for topic in part.topics for p, end in home.view.ends(topic).items()}
        owned = _joined(source, ends, signs, processes, number)
        totals = {p: end for p, end in ends.items() if p in owned and end}
        counted = Counted(source, totals)
        with heap.settled():  # as `run_consumer` does
            started, used = time.monotonic(), time.process_time()
            part.start(counted, tuple(owned))
            source.seek(dict.fromkeys(owned, 0))
            consume(counted, part, counted.given_out, records_max=settings.features_batch_max, wait_s=0.05)
            ended, used = time.monotonic(), time.process_time() - used
        assert counted.committed == totals, (counted.committed, totals)
        _stay(source, signs, processes, number)
        events = sum(end for p, end in totals.items() if p.topic == TOPIC_EVENTS)
        return {"start": started, "end": ended, "events": events, "processor_s": used}


def _joined(
    source: EventSource, ends: Mapping[Partition, int], signs: Path, processes: int, number: int
) -> set[Partition]:
    """The partitions of this process once all partitions have an owner and none has moved for STEADY_S."""
    owned: set[Partition] = set()
    until = time.monotonic() + JOIN_S_MAX
    steady = time.monotonic()
    while time.monotonic() < until:
        batch = source.poll(1, 0.1)
        if batch.gained or batch.lost:
            owned = (owned | set(batch.gained)) - set(batch.lost)
            source.seek({p: ends[p] for p in batch.gained})  # nothing is read before all are there
            steady = time.monotonic()
        _leave(signs / f"joined-{number}", str(len(owned)))
        told = _left(signs, "joined")
        if len(told) < processes or sum(map(int, told)) < len(ends):
            steady = time.monotonic()
        if time.monotonic() - steady > STEADY_S:
            return owned
    raise TimeoutError(f"{len(owned)} partitions after {JOIN_S_MAX:.0f} s")


def _stay(source: EventSource, signs: Path, processes: int, number: int) -> None:
    """Stay a member until all are done: who leaves hands partitions to those that are still measured."""
    _leave(signs / f"done-{number}", "")
    while len(_left(signs, "done")) < processes:
        source.poll(1, 0.1)


def _leave(sign: Path, text: str) -> None:
    half = sign.with_name(f".{sign.name}")
    half.write_text(text)
    half.replace(sign)


def _left(signs: Path, kind: str) -> list[str]:
    return [sign.read_text() for sign in signs.glob(f"{kind}-*")]


if __name__ == "__main__":
    result = consume_here(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    sys.stdout.write(json.dumps(result) + "\n")
