"""Parity: the features that served lists recorded, beside those that the point-in-time join gives for the same lists.

The join is the one that training makes: the user's row of exactly `user_row_time`, item counts as written by exactly
`items_as_of_us`, the same functions, the list's own `asked_at`. Every difference is named with its cause.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from services.domain import SECOND_US, Slate, from_us, to_us
from services.items import ItemTable
from services.ports import FeatureHistory
from services.signals import (
    CROSS_FEATURES,
    ITEM_FEATURES,
    RANKING_FEATURES,
    USER_FEATURES,
    HistoryBlock,
    ItemBlock,
    UserRows,
    ranking_features,
)
from services.telemetry import PARITY_LISTS, PARITY_SHARE

log = structlog.get_logger()
REPORT = "parity.json"
DRAFT = f".{REPORT}.draft"
RELATIVE, ABSOLUTE = 1e-6, 1e-7
"""How far two float32 may be apart: what the exponential of another machine's vector unit may differ by."""
NEWER_US = 60 * SECOND_US
"""How long after the time of a list newer counts are looked for, when those of its time do not agree."""
DIFFERENCES_MAX = 50

ROW_MISSING = "the user's row is not in the history"
ROW_TIME = "the history has an older row of the user only"
ROW_DIFFERS = "the user's row differs"
COUNTS_MISSING = "the item's counts are not in the history"
COUNTS_NEWER = "the server was taking in newer counts"
COUNTS_DIFFER = "the item's counts differ"
CARD_CHANGED = "an item's card changed since"
CARD_DIFFERS = "an item's card, or the order of the user's row, differs"
OTHER_FEATURES = "recorded by a version with other features"

_ROW_FEATURES = frozenset({*USER_FEATURES, "item_times_in_history", "item_hours_since_in_history"})
_CARD_FEATURES = frozenset({"item_age_days", "item_age_is_unknown", *CROSS_FEATURES}) - _ROW_FEATURES
_COUNT_PLACES = [
    RANKING_FEATURES.index(name) for name in ITEM_FEATURES if name not in _CARD_FEATURES and name not in _ROW_FEATURES
]


@dataclass(frozen=True, slots=True)
class Difference:
    """One feature of one pick that does not agree; without a feature: the whole list could not be joined."""

    request_id: str
    user_id: str
    item_id: str
    feature: str
    served: float
    joined: float
    cause: str


@dataclass(frozen=True, slots=True)
class Parity:
    """How many lists were compared, how many of them agree in every feature of every pick, and what the others have.

    `causes` counts lists (one may have several), `passed_over` lists that cannot be compared; of the differences the
    first DIFFERENCES_MAX are kept.
    """

    compared: int
    agreed: int
    picks: int
    causes: Mapping[str, int]
    passed_over: Mapping[str, int]
    differences: tuple[Difference, ...]

    @property
    def share(self) -> float | None:
        """The share that agrees; None when nothing could be compared."""
        return self.agreed / self.compared if self.compared else None


def compare(
    slates: Sequence[Slate], history: FeatureHistory, items: ItemTable, changed: Callable[[datetime], Collection[str]]
) -> Parity:
    """The recorded features of some lists beside the joined ones. `changed(since)`: items whose card changed since."""
    passed_over = Counter(why for slate in slates if (why := _passed_over(slate)))
    slates = [slate for slate in slates if not _passed_over(slate)]
    users = history.users_at(
        [slate.user_id or "" for slate in slates], np.array([s.user_row_time_us for s in slates], dtype=np.int64)
    )
    told = _Told(slates, history, 0)
    known = _Joined(items, users)
    found: dict[int, list[Difference]] = {}
    for place, slate in enumerate(slates):
        cause = _unjoined(slate, int(users.row_time_us[place]))
        differences = (
            [Difference(slate.request_id, slate.user_id or "", "", "", 0.0, 0.0, cause)]
            if cause
            else _differences(slate, recorded(slate), known.features(place, slate, told))
        )
        if differences:
            found[place] = differences
    if found:
        found = _explained(found, slates, history, known, told, changed)
    causes = Counter(cause for each in found.values() for cause in {difference.cause for difference in each})
    every = [difference for each in found.values() for difference in each]
    picks = sum(len(slate.items) for slate in slates)
    return Parity(
        len(slates), len(slates) - len(found), picks, dict(causes), dict(passed_over), tuple(every[:DIFFERENCES_MAX])
    )


def recorded(slate: Slate) -> NDArray[np.float32]:
    """The features that a slate recorded of its picks. float32 [picks, F]"""
    return np.frombuffer(slate.features, dtype="<f4").reshape(len(slate.items), -1)


def keep(parity: Parity, folder: Path, at: datetime) -> None:
    """Write a report down, for `tell` and for people."""
    draft = folder / DRAFT
    draft.write_text(json.dumps({"at": at.isoformat(), "share": parity.share, **asdict(parity)}, indent=1) + "\n")
    draft.rename(folder / REPORT)


def tell(folder: Path) -> None:
    """Show the report that was kept last in the metrics; nothing where there is none that can be read."""
    try:
        report = json.loads((folder / REPORT).read_text())
        compared, share = report["compared"], report["share"]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:  # the next check writes it anew
        log.warning("parity_report_unreadable", error=str(error))
        return
    PARITY_LISTS.set(compared)
    if share is not None:
        PARITY_SHARE.set(share)


class _Told:
    """What servers had been told of the picks of some slates, `later_us` after the time each slate names."""

    def __init__(self, slates: Sequence[Slate], history: FeatureHistory, later_us: int) -> None:
        self._ends = np.cumsum([0, *(len(slate.items) for slate in slates)])
        item_ids = [pick.item_id for slate in slates for pick in slate.items]
        times = np.repeat([slate.items_as_of_us + later_us for slate in slates], np.diff(self._ends)).astype(np.int64)
        self._counts, self._stamps, self._written = history.live_items_at(item_ids, times)

    def of(self, place: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        """Counts, stamps and times of writing of the picks of one slate."""
        some = slice(self._ends[place], self._ends[place + 1])
        return self._counts[some], self._stamps[some], self._written[some]


class _Joined:
    """The features of slates from their rows and what servers had been told."""

    def __init__(self, items: ItemTable, users: UserRows) -> None:
        self._items = items
        self._users = users
        self._in_rows = items.block(users.item_ids)

    def features(self, place: int, slate: Slate, told: _Told) -> NDArray[np.float32]:
        """float32 [picks, F]"""
        users, counts = self._users, told.of(place)
        some = slice(int(users.offsets[place]), int(users.offsets[place + 1]))
        codes = users.item_codes[some]
        row = HistoryBlock(
            self._in_rows.item_hash[codes], users.occurred_us[some], users.weight[some],
            self._in_rows.categories[codes],
        )  # fmt: skip
        block = self._items.block([pick.item_id for pick in slate.items])
        block = ItemBlock(block.item_hash, counts[0], counts[1], block.published_us, block.categories)
        return ranking_features(row, block, to_us(slate.asked_at))

    def row_items(self, place: int) -> set[str]:
        """The items that the row of a slate names."""
        users = self._users
        codes = users.item_codes[int(users.offsets[place]) : int(users.offsets[place + 1])]
        return {users.item_ids[code] for code in np.unique(codes).tolist()}


def _passed_over(slate: Slate) -> str:
    """Why a slate cannot be compared; empty where it can."""
    return "" if slate.features else "no features recorded"


def _unjoined(slate: Slate, row_time_us: int) -> str:
    """Why nothing of a slate can be compared with what was joined; empty where it can."""
    if len(slate.features) != 4 * len(RANKING_FEATURES) * len(slate.items):
        return OTHER_FEATURES
    if row_time_us == slate.user_row_time_us:
        return ""
    return ROW_TIME if row_time_us else ROW_MISSING


def _differences(slate: Slate, served: NDArray[np.float32], joined: NDArray[np.float32]) -> list[Difference]:
    """What is not equal, with the cause as far as the feature's name tells it."""
    apart = np.argwhere(~np.isclose(served, joined, rtol=RELATIVE, atol=ABSOLUTE))
    return [
        Difference(
            slate.request_id, slate.user_id or "", slate.items[pick].item_id, RANKING_FEATURES[column],
            float(served[pick, column]), float(joined[pick, column]), _cause(RANKING_FEATURES[column]),
        )
        for pick, column in apart.tolist()
    ]  # fmt: skip


def _cause(feature: str) -> str:
    if feature in _ROW_FEATURES:
        return ROW_DIFFERS
    return CARD_DIFFERS if feature in _CARD_FEATURES else COUNTS_DIFFER


def _explained(
    found: Mapping[int, list[Difference]],
    slates: Sequence[Slate],
    history: FeatureHistory,
    known: _Joined,
    told: _Told,
    changed: Callable[[datetime], Collection[str]],
) -> dict[int, list[Difference]]:
    """The differences with their causes looked into."""
    some = [slates[place] for place in found]
    cards = frozenset(changed(from_us(min(to_us(slate.asked_at) for slate in some) - NEWER_US)))
    explained: dict[int, list[Difference]] = {}
    for (place, differences), newer in zip(found.items(), _newer(some, history), strict=True):
        item_ids = [pick.item_id for pick in slates[place].items]
        looked = _Looked(
            any(each.cause == ROW_DIFFERS for each in differences),
            bool(cards & known.row_items(place)),
            cards,
            newer,
            frozenset(i for i, at in zip(item_ids, told.of(place)[2].tolist(), strict=True) if at),
        )
        explained[place] = [replace(each, cause=looked.cause(each)) for each in differences]
    return explained


@dataclass(frozen=True, slots=True)
class _Looked:
    """What was found out about a list that differs: whether its row differs, whether cards of the row's items changed;
    items whose card changed, picks whose newer counts agree, picks that the history has counts of."""

    row_differs: bool
    row_cards_changed: bool
    changed: frozenset[str]
    newer: frozenset[str]
    counted: frozenset[str]

    def cause(self, each: Difference) -> str:
        """The cause of one difference."""
        if each.cause == COUNTS_DIFFER:
            if each.item_id in self.newer:
                return COUNTS_NEWER
            return COUNTS_DIFFER if each.item_id in self.counted else COUNTS_MISSING
        if each.cause == CARD_DIFFERS:
            if self.row_differs and each.feature in CROSS_FEATURES:
                return ROW_DIFFERS  # the interest in categories is the row's
            return CARD_CHANGED if self.row_cards_changed or each.item_id in self.changed else CARD_DIFFERS
        return each.cause


def _newer(slates: Sequence[Slate], history: FeatureHistory) -> list[frozenset[str]]:
    """For each slate the picks whose recorded count features agree with counts written a little later."""
    later = _Told(slates, history, NEWER_US)
    found = []
    for place, slate in enumerate(slates):
        if len(slate.features) != 4 * len(RANKING_FEATURES) * len(slate.items):
            found.append(frozenset[str]())
            continue
        counts, stamps, _ = later.of(place)
        blank = np.zeros(len(slate.items), dtype=np.int64)
        block = ItemBlock(blank, counts, stamps, blank, np.zeros((len(blank), 1), dtype=np.int32))
        nobody = HistoryBlock(blank[:0], blank[:0], np.zeros(0, dtype=np.float32), np.zeros((0, 1), dtype=np.int32))
        joined = ranking_features(nobody, block, to_us(slate.asked_at))[:, _COUNT_PLACES]
        apart = np.argwhere(~np.isclose(recorded(slate)[:, _COUNT_PLACES], joined, rtol=RELATIVE, atol=ABSOLUTE))
        differ = set(apart[:, 0].tolist())
        found.append(frozenset(pick.item_id for place, pick in enumerate(slate.items) if place not in differ))
    return found
