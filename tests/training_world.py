"""Small logs with known answers for the training tests, and stages over them as serving builds them."""

from __future__ import annotations

import numpy as np

from models.release import ModelRelease
from services.candidates.filters import standard_filters
from services.candidates.sources import CovisitSource, FaissSource, NewSource, TrendingSource
from services.candidates.vectors import ItemVectors
from services.domain import DAY_US, SECOND_US, KindRule, KindRules
from services.items import CardPart, ItemChanged, ItemTable, VectorPart
from services.memory import MemorySlateLog
from services.ports import FeatureStore
from services.ranking.arrange import TopByScore
from services.ranking.erasure import ErasureProbe
from services.ranking.scorers import AttentionScorer
from services.recommend import Stages
from services.training.columns import EventColumns, columns_of_rows

RULES = KindRules({"click": KindRule("positive"), "hide": KindRule("negative"), "impression": KindRule("neutral")})
START_US = 1_700_006_400_000_000
MINUTE_US = 60 * SECOND_US
TEXT_WIDTH = 8


def columns(rows: list[tuple[str, str, str, int]]) -> EventColumns:
    """Events of `(user, item, kind, microseconds after START_US)`."""
    return columns_of_rows([(u, i, k, START_US + at, None) for u, i, k, at in rows], RULES)


def rounds(users: int = 90, items: int = 36, clicks: int = 10, seed: int = 3) -> EventColumns:
    """A world whose next click is known: items stand in a round, each user walks on from a place of their own, one item
    after the other, about a day apart, so every item is equally popular at any time."""
    rng = np.random.default_rng(seed)
    rows: list[tuple[str, str, str, int]] = []
    for user in range(users):
        place, at = int(rng.integers(items)), int(rng.integers(DAY_US))
        for step in range(clicks):
            rows.append((f"u{user}", f"i{(place + step) % items:02d}", "click", at + step * DAY_US))
    return columns(rows)


def unrelated(users: int = 60, items: int = 40, clicks: int = 12, seed: int = 4) -> EventColumns:
    """A world where the next click has nothing to do with the last one: every click is a new item by lot."""
    rng = np.random.default_rng(seed)
    rows: list[tuple[str, str, str, int]] = []
    for user in range(users):
        taken = rng.permutation(items)[:clicks].tolist()
        times = np.sort(rng.integers(0, 12 * DAY_US, clicks)).tolist()
        rows += [(f"u{user}", f"i{item:02d}", "click", at) for item, at in zip(taken, times, strict=True)]
    return columns(rows)


def item_table(events: EventColumns) -> ItemTable:
    """Cards and text vectors (noise, by item) of every item of a log."""
    rng = np.random.default_rng(5)
    table = ItemTable()
    for seq, item_id in enumerate(sorted(events.item_ids), start=1):
        vector = rng.normal(size=TEXT_WIDTH).astype("<f2")
        card = CardPart(item_id.upper(), ["odd" if seq % 2 else "even"], True, False, START_US - DAY_US, 0, START_US)
        table.apply([ItemChanged(item_id, card, seq), ItemChanged(item_id, VectorPart("noise", vector.tobytes()), seq)])
    return table


def stages_for(release: ModelRelease, items: ItemTable, features: FeatureStore) -> Stages:
    """What serving builds of a release."""
    vectors = ItemVectors(release, items, release.embedded_by)
    sources = (FaissSource(items, vectors), CovisitSource(items), TrendingSource(items), NewSource(items))
    return Stages(
        release.release_id, items.as_of, features, sources, standard_filters(items),
        AttentionScorer(release, items, vectors), TopByScore(items), MemorySlateLog(),
        probe=ErasureProbe(release, items, vectors, lambda: 0.0),
    )  # fmt: skip
