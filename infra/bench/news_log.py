"""A generated news log of the shape of a real one: titles that live for a day or two, readers with a few topics, lists
of some dozen titles, a click or two in each, and in what is judged mostly titles that nobody has clicked before.

    python infra/bench/news_log.py FOLDER --users 5000 --titles 6500 --lists 15000

writes events.csv (clicks before the lists), items.csv, learn.csv (the lists of the first two thirds of the time) and
shown.csv (those of the last third). A click is decided by the title's words: its topic, by the reader's taste, and
whether it carries one of the words that make anybody look.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

TOPICS, WORDS_PER_TOPIC, COMMON = 40, 60, 800
TASTES = 3
DAY_S = 86_400
START_S = 1_700_006_400
HISTORY_DAYS, LIST_DAYS = 21.0, 6.0
SHOWN = 37
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "el", "is", "or", "um")]
HOOKS = ("revealed", "secret", "shock", "how", "why")


class World:
    """What there is: titles with topic, birth and appeal; readers with tastes."""

    def __init__(self, users: int, titles: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.words = [f"{a}{b}{c}" for a in SYLLABLES for b in SYLLABLES[::7] for c in SYLLABLES[::11]]
        self.rng.shuffle(self.words)
        self.topic = self.rng.integers(0, TOPICS, titles)
        self.born_s = np.sort(self.rng.uniform(-2 * DAY_S, (HISTORY_DAYS + LIST_DAYS) * DAY_S, titles))
        self.hook = self.rng.random(titles) < 0.15
        self.taste = self.rng.random((users, TOPICS)).argsort(axis=1) < TASTES

    def title(self, n: int) -> str:
        """Three words of its topic, four of all, perhaps one that makes people look."""
        topic = self.words[self.topic[n] * WORDS_PER_TOPIC : (self.topic[n] + 1) * WORDS_PER_TOPIC]
        common = self.words[TOPICS * WORDS_PER_TOPIC : TOPICS * WORDS_PER_TOPIC + COMMON]
        words = [*self.rng.choice(topic, 3, replace=False), *self.rng.choice(common, 4, replace=False)]
        words += [str(self.rng.choice(HOOKS))] if self.hook[n] else []
        self.rng.shuffle(words)
        return " ".join(words)

    def alive(self, at_s: float) -> tuple[int, int]:
        """The titles of the last two days: the first, and the first of tomorrow."""
        first, last = np.searchsorted(self.born_s, [at_s - 2 * DAY_S, at_s]).tolist()
        return first, max(last, first + 1)

    def appeal(self, user: int, titles: np.ndarray) -> np.ndarray:
        """The logit of a click."""
        logits: np.ndarray = 2.0 * self.taste[user, self.topic[titles]] + 1.2 * self.hook[titles]
        return logits

    def clicked(self, user: int, titles: np.ndarray, count: int) -> np.ndarray:
        """Which of some titles a reader clicks (places)."""
        noise = self.rng.gumbel(size=len(titles))
        return np.argsort(-(self.appeal(user, titles) + noise))[:count]


def history(world: World, per_user: int) -> Iterator[tuple[object, ...]]:
    """Clicks before the lists: each among twenty titles of that day."""
    for user in range(len(world.taste)):
        for at_s in np.sort(world.rng.uniform(0, HISTORY_DAYS * DAY_S, 1 + world.rng.poisson(per_user))):
            some = world.rng.integers(*world.alive(at_s), 20)
            yield f"u{user}", f"n{some[world.clicked(user, some, 1)[0]]}", START_S + int(at_s)


def lists(world: World, count: int) -> Iterator[tuple[int, str, int, str, int]]:
    """A line per shown title, list after list in the order of time."""
    times = np.sort(world.rng.uniform(HISTORY_DAYS * DAY_S, (HISTORY_DAYS + LIST_DAYS) * DAY_S, count))
    for n, at_s in enumerate(times):
        user = int(world.rng.integers(len(world.taste)))
        first, last = world.alive(at_s)
        size = min(2 + world.rng.poisson(SHOWN - 2), last - first)
        some = first + world.rng.choice(last - first, size, replace=False)
        hits = set(world.clicked(user, some, 1 + int(world.rng.random() < 0.3)).tolist())
        for place, title in enumerate(some.tolist()):
            yield n, f"u{user}", START_S + int(at_s), f"n{title}", int(place in hits)


def write(path: Path, header: str, rows: Iterable[tuple[object, ...]]) -> None:
    """One csv file."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header.split(",")])
        csv.writer(file).writerows(rows)


def main() -> None:
    """Write the four files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, usual in (("users", 5000), ("titles", 6500), ("lists", 15_000), ("history", 25), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    world = World(given.users, given.titles, given.seed)
    write(given.folder / "items.csv", "item_id,title", ((f"n{n}", world.title(n)) for n in range(given.titles)))
    write(given.folder / "events.csv", "user_id,item_id,timestamp", history(world, given.history))
    header = "impression_id,user_id,timestamp,item_id,clicked"
    rows = list(lists(world, given.lists))
    cut_s = START_S + int((HISTORY_DAYS + LIST_DAYS * 2 / 3) * DAY_S)
    write(given.folder / "learn.csv", header, (row for row in rows if row[2] < cut_s))
    write(given.folder / "shown.csv", header, (row for row in rows if row[2] >= cut_s))


if __name__ == "__main__":
    main()
