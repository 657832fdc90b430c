"""A small news world: a title names a subject and a quality, and these alone decide what is clicked.

Every reader has two subjects they read. A list shows titles of which some are of these subjects; of those a reader
clicks what has a good quality word. Titles live for some lists only, so most that are judged were never learned from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.news import NewsLists

SUBJECTS = ("football", "opera", "budget", "weather", "robots", "gardens", "trains", "whales")
OTHERS = ("news", "report", "today", "city", "people", "morning", "story", "week", "look", "place")
HISTORY = 8
START_S = 1_700_000_000


@dataclass(frozen=True, slots=True)
class NewsWorld:
    """`titles` (row n + 1 is title n) with their `subjects`; lists to learn from, and later ones of unseen titles, with
    the reader of each; `events`: (reader, row, time in s) of what was read before all lists."""

    titles: tuple[str, ...]
    subjects: NDArray[np.int64]
    learned: NewsLists
    judged: NewsLists
    readers_learned: NDArray[np.int64]
    readers_judged: NDArray[np.int64]
    events: tuple[tuple[int, int, int], ...]


def news_world(seed: int = 0, readers: int = 60, lists: int = 600, shown: int = 6) -> NewsWorld:
    """The older four fifths of the titles stand in the lists to learn from, the others in those to be judged."""
    rng = np.random.default_rng(seed)
    count = 400
    subjects = rng.integers(0, len(SUBJECTS), count)
    titles = tuple(
        " ".join(rng.permutation([SUBJECTS[subject], *rng.choice(OTHERS, 3, replace=False)])) for subject in subjects
    )
    tastes = np.stack([rng.permutation(len(SUBJECTS))[:2] for _ in range(readers)])
    cut = count * 4 // 5
    read: list[list[int]] = [list(rng.choice(np.flatnonzero(np.isin(subjects[:cut], taste)), 4)) for taste in tastes]
    events = tuple(
        (reader, int(title) + 1, START_S - 1000 + place)
        for reader, of in enumerate(read)
        for place, title in enumerate(of)
    )
    parts = []
    asked_by: list[NDArray[np.int64]] = []
    for number, among in ((lists, np.arange(cut)), (lists // 3, np.arange(cut, count))):
        rows, clicked, histories, readers_of = [], [], [], []
        for _ in range(number):
            reader = int(rng.integers(readers))
            readers_of.append(reader)
            some = rng.choice(among, shown, replace=False)
            liked = np.isin(subjects[some], tastes[reader])
            if not liked.any() or liked.all():
                some[0] = rng.choice(among[np.isin(subjects[among], tastes[reader])])
                some[1:] = rng.choice(among[~np.isin(subjects[among], tastes[reader])], shown - 1, replace=False)
                liked = np.arange(shown) == 0
            one = int(rng.choice(np.flatnonzero(liked)))
            order = rng.permutation(shown)
            history = np.zeros(HISTORY, dtype=np.int32)
            newest = np.array(read[reader][-HISTORY:]) + 1
            history[HISTORY - len(newest) :] = newest
            histories.append(history)
            rows.append(some[order] + 1)
            clicked.append(order == one)
            others = liked & (np.arange(shown) != one)
            rows[-1], clicked[-1] = rows[-1][~others[order]], clicked[-1][~others[order]]
            read[reader].append(int(some[one]))
        parts.append((histories, rows, clicked))
        asked_by.append(np.array(readers_of, dtype=np.int64))
    made = []
    start = START_S
    for histories, rows, clicked in parts:
        offsets = np.concatenate([[0], np.cumsum([len(each) for each in rows])]).astype(np.int64)
        asked = start + 60 * np.arange(len(rows))
        start = int(asked[-1]) + 60
        made.append(
            NewsLists(
                np.stack(histories), np.concatenate(rows).astype(np.int32), offsets, np.concatenate(clicked), asked
            )
        )
    return NewsWorld(titles, subjects, made[0], made[1], asked_by[0], asked_by[1], events)
