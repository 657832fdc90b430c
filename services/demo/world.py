"""A generated world with a known answer: users whose tastes drift, sessions, items with text born during the run.

Everything follows from (size, seed, ends_at): equal arguments, equal world, on every machine. U users, I items, N
events, T topics. The true chance of every next click is known (`World.chances`), so a test can ask how close a model
comes to the best that anybody could do.

How a click comes about: a user has a main and a second topic, which change now and then. With FOLLOW a click goes on
to the next part of the series clicked last (an order that only a model of sequences can learn); otherwise a topic is
drawn (main, second, or any) and then an item of it by its appeal, lifted while it is young. Nobody clicks a thing
twice.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from services.demo.words import SERIES_NOUNS, TOPICS, sentence, title
from services.domain import HOUR_US, SECOND_US, Event, ItemChange, from_us, to_us

KINDS = ("click", "like", "hide")
LIKE_SHARE, HIDE_SHARE = 0.10, 0.03
MAIN, SECOND = 0.72, 0.18
"""Shares of a free click's topic; the rest is any topic."""
FOLLOW = 0.35
BORN_BEFORE = 0.6
"""Share of the items that exist when the world starts; the others are born evenly until it ends."""
YOUNG_LIFT, YOUNG_HALF_LIFE_US = 4.0, 36 * HOUR_US
SERIES_LENGTH = 5
BUCKET_US = 6 * HOUR_US
"""Appeal is worked out once per bucket, as of its start: an item is clickable from the first bucket after its birth."""
CLICKS_IN_SESSION = (2, 8)
PAUSE_S = (15, 150)
TRIES_MAX = 40


@dataclass(frozen=True, slots=True)
class WorldSize:
    """How large a world is. `dial(0.3)` is the demo, `dial(0.1)` fits a unit test."""

    users: int
    items: int
    events_per_user: float
    days: float

    @classmethod
    def dial(cls, size: float) -> WorldSize:
        """Users grow with the dial, items with its root."""
        return cls(max(20, round(1500 * size)), max(60, round(480 * size**0.5)), 24.0, 14.0)


@dataclass(frozen=True, slots=True)
class WorldItem:
    """One item: `topic` is its number in TOPICS; `next_item` goes on with its series (-1: the last part)."""

    item_id: str
    title: str
    text: str
    topic: int
    series: int
    born_us: int
    appeal: float
    next_item: int


@dataclass(frozen=True, slots=True)
class Taste:
    """What a user wants from `since_us` on, as topic numbers."""

    since_us: int
    main: int
    second: int


@dataclass(frozen=True, slots=True)
class World:
    """The world and all that happened in it; events in the order of their time.

    `user_numbers` int32 [N], `item_numbers` int32 [N], `kind_codes` int8 [N] into KINDS, `occurred_us` int64 [N].
    """

    size: WorldSize
    seed: int
    starts_us: int
    ends_us: int
    items: tuple[WorldItem, ...]
    tastes: tuple[tuple[Taste, ...], ...]
    user_numbers: NDArray[np.int32]
    item_numbers: NDArray[np.int32]
    kind_codes: NDArray[np.int8]
    occurred_us: NDArray[np.int64]

    def events(self) -> Iterator[Event]:
        """Every event, in the order of time."""
        accepted_at = from_us(self.ends_us)
        columns = (self.user_numbers, self.item_numbers, self.kind_codes, self.occurred_us)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for number, (user, item, kind, us) in enumerate(rows):
            yield Event(
                f"w{self.seed}-{number}", user_id(user), self.items[item].item_id, KINDS[kind], from_us(us), accepted_at
            )

    def item_changes(self) -> Iterator[ItemChange]:
        """The catalogue entry of every item, in the order of birth."""
        for item in sorted(self.items, key=lambda each: (each.born_us, each.item_id)):
            yield item_change(item, from_us(item.born_us))

    def taste(self, user: int, at_us: int) -> Taste:
        """What the user truly wants at a time."""
        tastes = self.tastes[user]
        return tastes[max(bisect([each.since_us for each in tastes], at_us) - 1, 0)]

    def seen(self, user: int, at_us: int) -> tuple[int, ...]:
        """Item numbers that the user clicked, liked or hid before `at_us`, oldest first."""
        return tuple(self.item_numbers[(self.user_numbers == user) & (self.occurred_us < at_us)].tolist())

    def chances(self, user: int, at_us: int) -> NDArray[np.float64]:
        """The true chance of each item to be the next click within a session, float64 [I]; the known answer."""
        seen = self.seen(user, at_us)
        taste = self.taste(user, at_us)
        free = np.zeros(len(self.items))
        shelves = Shelves(self.items)
        for topic in range(len(TOPICS)):
            share = topic_share(topic, taste)
            numbers, weights = shelves.shelf(topic, at_us)
            if numbers:
                free[list(numbers)] = share * np.asarray(weights) / sum(weights)
        free /= free.sum() or 1.0
        following = shelves.following(seen[-1] if seen else -1, at_us)
        if following >= 0:
            free *= 1 - FOLLOW
            free[following] += FOLLOW
        free[list(seen)] = 0.0
        return free / (free.sum() or 1.0)


class Shelves:
    """What can be clicked at a time, by topic, with its appeal then."""

    def __init__(self, items: tuple[WorldItem, ...]) -> None:
        self.items = items
        self._by_topic = [[n for n, each in enumerate(items) if each.topic == t] for t in range(len(TOPICS))]
        self._kept: dict[tuple[int, int], tuple[tuple[int, ...], tuple[float, ...]]] = {}
        self._summed: dict[tuple[int, int], tuple[float, ...]] = {}

    def shelf(self, topic: int, at_us: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """The item numbers of a topic that exist at a time, and their weights."""
        key = (topic, at_us // BUCKET_US)
        if key not in self._kept:
            start_us = key[1] * BUCKET_US
            numbers = tuple(n for n in self._by_topic[topic] if self.items[n].born_us <= start_us)
            self._kept[key] = (numbers, tuple(_weight(self.items[n], start_us) for n in numbers))
        return self._kept[key]

    def draw(self, topic: int, at_us: int, chance: random.Random) -> int:
        """An item of a topic by weight; -1 when the topic has none yet."""
        numbers, weights = self.shelf(topic, at_us)
        if not numbers:
            return -1
        key = (topic, at_us // BUCKET_US)
        summed = self._summed.setdefault(key, tuple(accumulate(weights)))
        return numbers[min(bisect(summed, chance.random() * summed[-1]), len(numbers) - 1)]

    def following(self, item: int, at_us: int) -> int:
        """The next part of an item's series if it exists at a time, else -1."""
        after = self.items[item].next_item if item >= 0 else -1
        return after if after >= 0 and self.items[after].born_us <= at_us // BUCKET_US * BUCKET_US else -1


def make_world(size: WorldSize, seed: int, ends_at: datetime) -> World:
    """A world of the given size that ends at the given time."""
    chance = random.Random(seed)
    ends_us = to_us(ends_at)
    starts_us = to_us(ends_at - timedelta(days=size.days))
    items = make_items(size.items, starts_us, ends_us, chance)
    shelves = Shelves(items)
    tastes = tuple(_drifting(starts_us, ends_us, chance) for _ in range(size.users))
    rows: list[tuple[int, int, int, int]] = []
    for user in range(size.users):
        rows += _life(user, tastes[user], shelves, size, starts_us, ends_us, chance)
    rows.sort()
    columns = np.array(rows, dtype=np.int64).reshape(-1, 4)
    return World(
        size,
        seed,
        starts_us,
        ends_us,
        items,
        tastes,
        user_numbers=columns[:, 1].astype(np.int32),
        item_numbers=columns[:, 2].astype(np.int32),
        kind_codes=columns[:, 3].astype(np.int8),
        occurred_us=columns[:, 0].copy(),
    )


def make_items(count: int, starts_us: int, ends_us: int, chance: random.Random) -> tuple[WorldItem, ...]:
    """Items in series of SERIES_LENGTH parts, born one after another, each about one topic."""
    births = sorted(
        starts_us if place < count * BORN_BEFORE else chance.randrange(starts_us, ends_us) for place in range(count)
    )
    series_count = max(len(TOPICS), count // SERIES_LENGTH)
    parts = [list(range(series, count, series_count)) for series in range(series_count)]
    place_of = {number: (series, part) for series, numbers in enumerate(parts) for part, number in enumerate(numbers)}
    items = []
    for number in range(count):
        series, part = place_of[number]
        topic = series % len(TOPICS)
        noun = SERIES_NOUNS[(series // len(TOPICS)) % len(SERIES_NOUNS)]
        after = parts[series][part + 1] if part + 1 < len(parts[series]) else -1
        items.append(
            WorldItem(
                item_id=f"item-{number}",
                title=title(topic, noun, part, chance),
                text=sentence(topic, chance),
                topic=topic,
                series=series,
                born_us=births[number],
                appeal=chance.paretovariate(1.6),
                next_item=after,
            )
        )
    return tuple(items)


def newborn(topic: int, number: int, born_at: datetime, seed: int) -> ItemChange:
    """An item that nothing was ever trained on, for the live part of a run."""
    chance = random.Random(f"{seed}-{topic}-{number}")
    noun = SERIES_NOUNS[number % len(SERIES_NOUNS)]
    item = WorldItem(
        f"newborn-{number}", title(topic, noun, 0, chance), sentence(topic, chance), topic, -1, to_us(born_at), 1.0, -1
    )
    return item_change(item, born_at)


def item_change(item: WorldItem, at: datetime) -> ItemChange:
    """The catalogue entry of an item as its owner would send it."""
    fields = {
        "title": item.title,
        "text": item.text,
        "categories": (TOPICS[item.topic].name,),
        "published_at": from_us(item.born_us),
    }
    return ItemChange(item.item_id, "put", fields, at, at)


def user_id(number: int) -> str:
    """The id of a user by number."""
    return f"user-{number}"


def topic_share(topic: int, taste: Taste) -> float:
    """The share of a user's free clicks that goes to a topic."""
    rest = (1 - MAIN - SECOND) / len(TOPICS)
    return rest + MAIN * (topic == taste.main) + SECOND * (topic == taste.second)


def _weight(item: WorldItem, at_us: int) -> float:
    return item.appeal * float(1 + YOUNG_LIFT * 2.0 ** (-(at_us - item.born_us) / YOUNG_HALF_LIFE_US))


def _drifting(starts_us: int, ends_us: int, chance: random.Random) -> tuple[Taste, ...]:
    """A user's tastes: about two changes in a world's time; the second topic often becomes the main one."""
    main, second = chance.sample(range(len(TOPICS)), 2)
    tastes = [Taste(starts_us, main, second)]
    at_us = starts_us
    while True:
        at_us += int(chance.expovariate(1.0) * (ends_us - starts_us) / 2)
        if at_us >= ends_us:
            return tuple(tastes)
        main = second if chance.random() < 0.6 else chance.choice([t for t in range(len(TOPICS)) if t != main])
        second = chance.choice([t for t in range(len(TOPICS)) if t != main])
        tastes.append(Taste(at_us, main, second))


def _life(
    user: int, tastes: tuple[Taste, ...], shelves: Shelves, size: WorldSize, starts_us: int, ends_us: int,
    chance: random.Random,
) -> list[tuple[int, int, int, int]]:  # fmt: skip
    """All of one user's events as (occurred_us, user, item, kind)."""
    per_session = sum(CLICKS_IN_SESSION) / 2
    sessions = max(1, round(size.events_per_user / per_session * chance.lognormvariate(-0.18, 0.6)))
    sinces = [each.since_us for each in tastes]
    seen: set[int] = set()
    last = -1
    rows: list[tuple[int, int, int, int]] = []
    ended_us = starts_us
    for start_us in sorted(chance.randrange(starts_us, ends_us) for _ in range(sessions)):
        at_us = max(start_us, ended_us)
        for _ in range(chance.randint(*CLICKS_IN_SESSION)):
            at_us += chance.randint(*PAUSE_S) * SECOND_US
            if at_us >= ends_us:
                return rows
            taste = tastes[bisect(sinces, at_us) - 1]
            item, kind = _click(taste, last, seen, shelves, at_us, chance)
            if item < 0:
                continue
            seen.add(item)
            last = item
            rows.append((at_us, user, item, kind))
        ended_us = at_us
    return rows


def _click(
    taste: Taste, last: int, seen: set[int], shelves: Shelves, at_us: int, chance: random.Random
) -> tuple[int, int]:
    """The next item and what is done with it; (-1, 0) when nothing unseen was found."""
    if chance.random() < HIDE_SHARE:
        topic, kind = chance.randrange(len(TOPICS)), 2
        if topic in (taste.main, taste.second):
            kind = 0
    else:
        topic, kind = -1, int(chance.random() < LIKE_SHARE)
    for _ in range(TRIES_MAX):
        item = _next(topic, taste, last, shelves, at_us, chance)
        if item >= 0 and item not in seen:
            return item, kind
    return -1, 0


def _next(topic: int, taste: Taste, last: int, shelves: Shelves, at_us: int, chance: random.Random) -> int:
    if topic >= 0:
        return shelves.draw(topic, at_us, chance)
    following = shelves.following(last, at_us)
    if following >= 0 and chance.random() < FOLLOW:
        return following
    drawn = chance.random()
    free = taste.second if drawn < MAIN + SECOND else chance.randrange(len(TOPICS))
    return shelves.draw(taste.main if drawn < MAIN else free, at_us, chance)
