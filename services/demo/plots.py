"""The two plots of the demo: real film ratings, and a generated world. Each pours its events and says whom to ask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Protocol

from services.demo.films import CLICKS, DATA, Cast, choose, read_films, read_ratings
from services.demo.words import TOPICS
from services.demo.world import World, WorldSize, make_world, newborn, user_id
from services.domain import ItemChange, Outgoing
from services.ports import EventSink
from services.wire import encode_event, encode_item

Progress = Callable[[int, int, str], None]
Bars = Callable[[], AbstractContextManager[Progress]]
BATCH = 2000
HISTORY = (20, 50)


@dataclass(frozen=True, slots=True)
class Poured:
    """What went into the log."""

    events: int
    items: int
    rejected: int


class Plot(Protocol):
    """One story's data."""

    name: str
    about: str

    def pour(self, sink: EventSink, ends_at: datetime, bars: Bars) -> Poured:
        """Publish items and events, in the order of time, the newest one just before `ends_at`."""

    def cast(self) -> Cast:
        """Who is asked, and the clicks of another taste. Called after `pour`."""

    def newborn(self, at: datetime) -> ItemChange | None:
        """An item of the other taste that no release has seen; None where the data has none to give."""


class FilmImporter(Protocol):
    """`freshrank import` with its film recipe, in a process of its own whose memory is given back at its end."""

    def __call__(self, folder: Path, ends_at: datetime) -> Poured:
        """Import the folder, its times shifted so that they end at `ends_at`."""


class FilmPlot:
    """100,000 real ratings of films."""

    name = "films"
    about = "100,000 real film ratings (MovieTweetings, 2013), their times shifted so that they end now"

    def __init__(self, importer: FilmImporter) -> None:
        self._importer = importer

    def pour(self, sink: EventSink, ends_at: datetime, bars: Bars) -> Poured:  # noqa: ARG002
        """Plot: by the importer's own recipe."""
        return self._importer(DATA, ends_at)

    def cast(self) -> Cast:
        """Plot."""
        return choose(read_ratings(), read_films())

    def newborn(self, at: datetime) -> ItemChange | None:  # noqa: ARG002
        """Plot: real data makes nothing up."""
        return None


class WorldPlot:
    """A generated world: its users' tastes drift, its items are born while it runs."""

    name = "world"

    def __init__(self, size: float, seed: int) -> None:
        self._size = WorldSize.dial(size)
        self._seed = seed
        self._world: World | None = None
        self.about = f"a generated world of {self._size.users:,} users and {self._size.items:,} items"

    def pour(self, sink: EventSink, ends_at: datetime, bars: Bars) -> Poured:
        """Plot."""
        world = self._world = make_world(self._size, self._seed, ends_at)
        changes, total = (encode_item(each) for each in world.item_changes()), len(world.occurred_us)
        with bars() as progress:
            items = _publish(sink, changes, len(world.items), "items", progress)
            events = _publish(sink, (encode_event(each) for each in world.events()), total, "events", progress)
        return Poured(events, items, 0)

    def cast(self) -> Cast:
        """Plot: a user with a fair history whose taste is clear, and well-liked items of a topic they never wanted."""
        assert self._world is not None, "pour comes first"
        return choose_in(self._world)

    def newborn(self, at: datetime) -> ItemChange | None:
        """Plot: an item of the topic that was just clicked."""
        topic = next(n for n, each in enumerate(TOPICS) if each.name == self.cast().other)
        return newborn(topic, 1, at, self._seed)


def choose_in(world: World) -> Cast:
    """The user whose newest clicks agree most with one topic, and the most clicked items of a topic they lack."""
    topics_of: dict[int, list[int]] = {}
    for user, item in zip(world.user_numbers.tolist(), world.item_numbers.tolist(), strict=True):
        topics_of.setdefault(user, []).append(world.items[item].topic)
    least = min(HISTORY[0], max(map(len, topics_of.values())))
    fair = {user: its for user, its in topics_of.items() if least <= len(its) <= HISTORY[1]} or topics_of
    user = max(sorted(fair), key=lambda each: _clarity(fair[each]))
    (taste, _), counts = Counter(fair[user][-10:]).most_common(1)[0], Counter(fair[user])
    other = min(range(len(TOPICS)), key=lambda topic: (counts[topic], topic))
    seen = set(world.seen(user, world.ends_us))
    clicked = Counter(world.item_numbers.tolist())
    known = sorted(
        (n for n, each in enumerate(world.items) if each.topic == other and n not in seen),
        key=lambda n: (-clicked[n], n),
    )
    chosen = tuple((world.items[n].item_id, world.items[n].title) for n in known[:CLICKS])
    return Cast(user_id(user), TOPICS[taste].name, TOPICS[other].name, chosen)


def _clarity(topics: list[int]) -> float:
    newest = topics[-10:]
    return max(Counter(newest).values()) / len(newest)


def _publish(sink: EventSink, messages: Iterator[Outgoing], total: int, text: str, progress: Progress) -> int:
    done = 0
    for batch in _batches(messages):
        sink.publish(batch)
        done += len(batch)
        progress(done, total, f"publish {text}")
    return done


def _batches(messages: Iterable[Outgoing]) -> Iterator[list[Outgoing]]:
    iterator = iter(messages)
    while batch := list(islice(iterator, BATCH)):
        yield batch
