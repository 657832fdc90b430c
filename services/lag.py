"""How far each consumer group is behind, seen from outside: a group whose process is down has its lag shown, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.domain import SECOND_US, TOPIC_EVENTS, TOPIC_ITEMS, TOPIC_SLATES, TOPICS, Partition
from services.ports import LogView

GROUP_TOPICS = {
    "features": (TOPIC_EVENTS,),
    "trends": (TOPIC_EVENTS, TOPIC_SLATES),
    "archive": TOPICS,
    "catalogue": (TOPIC_ITEMS,),
}
"""What a group waits for that has never joined; the others say in the log what they read."""
MARKS_MAX = 512


def progress_of(view: LogView) -> dict[str, dict[Partition, tuple[int, int]]]:
    """(committed, end) of every partition that each group reads."""
    found: dict[str, dict[Partition, tuple[int, int]]] = {}
    ends = {topic: view.ends(topic) for topic in TOPICS}
    for group, usual in GROUP_TOPICS.items():
        found[group] = {}
        for topic in view.topics(group) or usual:
            committed = view.committed(group, topic)
            end_of = ends[topic] if topic in ends else view.ends(topic)
            found[group] |= {p: (min(committed.get(p, 0), end), end) for p, end in end_of.items()}
    return found


def lags_of(view: LogView) -> dict[str, int]:
    """Messages not yet taken in, by group."""
    return {group: sum(end - done for done, end in places.values()) for group, places in progress_of(view).items()}


@dataclass(slots=True)
class _Watched:
    """One partition of a group: (when, the end then) of each look whose messages are not all committed yet."""

    marks: list[tuple[int, int]] = field(default_factory=list)


class LagWatch:
    """How long the messages that a group has not committed have waited, at least. `look` now and then, from one thread.

    What stood in the log at an earlier look and is not committed yet has waited since that look.
    """

    def __init__(self) -> None:
        self._watched: dict[tuple[str, Partition], _Watched] = {}
        self._moved: dict[str, tuple[int, int]] = {}
        self._looked_us = 0

    def look(self, progress: Mapping[str, Mapping[Partition, tuple[int, int]]], now_us: int) -> None:
        """Take in what `progress_of` says now."""
        self._looked_us = now_us
        for group, places in progress.items():
            for partition, (done, end) in places.items():
                self._look_at(self._watched.setdefault((group, partition), _Watched()), done, end, now_us)
            done_sum = sum(done for done, _ in places.values())
            behind = any(done < end for done, end in places.values())
            if not behind or self._moved.get(group, (0, -1))[1] != done_sum:
                self._moved[group] = (now_us, done_sum)

    def waiting_s(self, now_us: int) -> dict[str, float]:
        """Of each group: how long its oldest message has waited, at least; 0 where nothing waits."""
        waits = dict.fromkeys(GROUP_TOPICS, 0.0)
        for (group, _), each in tuple(self._watched.items()):
            if each.marks:
                waits[group] = max(waits.get(group, 0.0), (now_us - each.marks[0][0]) / SECOND_US)
        return waits

    def stalled_s(self) -> dict[str, float]:
        """Of each group, at the last look: how long it has committed nothing although messages wait; 0 if it moved."""
        return {group: (self._looked_us - moved_us) / SECOND_US for group, (moved_us, _) in tuple(self._moved.items())}

    @staticmethod
    def _look_at(each: _Watched, done: int, end: int, now_us: int) -> None:
        marks = [mark for mark in each.marks if mark[1] > done]
        if end > done and (not marks or end > marks[-1][1]):
            marks.append((now_us, end))
        each.marks = marks[:1] + marks[1::2] if len(marks) > MARKS_MAX else marks
