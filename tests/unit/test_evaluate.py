"""The judge: places in a list, metrics per part, rows frozen at the cut, faults found. Expected values by hand."""

from __future__ import annotations

import numpy as np
import pytest
from training_world import START_US, columns, item_table

from models.metrics import MISSING
from services.domain import (
    DAY_US,
    HOUR_US,
    BadRequest,
    Candidate,
    Pick,
    Query,
    Reason,
    Scored,
    Seen,
    StageUnavailable,
    UserState,
    hash64,
)
from services.item_parts import CardPart, ItemChanged
from services.items import ItemTable
from services.memory import MemorySlateLog
from services.ports import FeatureStore
from services.recommend import Stages
from services.signals import Scores
from services.training.cutoff import FrozenRows, ItemsAtCut, rows_at
from services.training.evaluate import knn_places, metrics_of, pipeline_places, popularity_places
from services.training.gate import slice_after
from services.training.history import EventsHistory

CUT = START_US + 2 * DAY_US
EVENTS = columns(
    [("ann", "a", "click", 0), ("bob", "a", "click", 1), ("bob", "b", "click", 2), ("ann", "d", "hide", 3),
     ("eve", "b", "click", 4), ("ann", "b", "click", 2 * DAY_US), ("bob", "c", "click", 2 * DAY_US + 1),
     ("zoe", "a", "click", 2 * DAY_US + 2)]
)  # fmt: skip
BEFORE = EVENTS.before(CUT)
JUDGED = slice_after(EVENTS, CUT, 100, 1)


class Fixed:
    """A source, a scorer and an arranger of one fixed list, without what the row has seen."""

    name = "fixed"
    limit = 10

    def __init__(self, item_ids: tuple[str, ...]) -> None:
        self.item_ids = item_ids

    def candidates(self, query: Query, user: UserState) -> tuple[Candidate, ...]:
        seen = {key for _, key in user.seen}
        shown = [i for i in self.item_ids if hash64(i) not in seen]
        return tuple(Candidate(i, self.name, 1.0, rank) for rank, i in enumerate(shown))

    def score(self, query: Query, user: UserState, candidates: tuple[Candidate, ...]) -> Scores:
        return Scores([-float(c.rank) for c in candidates])

    def arrange(self, query: Query, user: UserState, scored: tuple[Scored, ...]) -> tuple[Pick, ...]:
        reason = Reason("for_you", (), "")
        return tuple(Pick(s.candidate.item_id, n, s.score, self.name, reason) for n, s in enumerate(scored))


def stages(features: FeatureStore, *item_ids: str) -> Stages:
    fixed = Fixed(item_ids)
    return Stages("r1", 0, features, (fixed,), (), fixed, fixed.arrange, MemorySlateLog())


def by_user(places: np.ndarray) -> dict[str, int]:
    return {EVENTS.user_ids[u]: int(p) for u, p in zip(JUDGED.user_codes, places, strict=True)}


def test_the_places_are_those_in_each_user_s_own_list_with_rows_frozen_at_the_cut() -> None:
    features = rows_at(EventsHistory(BEFORE), BEFORE, JUDGED.user_codes, CUT)
    places = pipeline_places(stages(features, "a", "b"), JUDGED, EVENTS, lambda *_: None)
    # ann has seen a, so her target b is first; bob's c is in no list; zoe is a stranger and gets a first.
    assert by_user(places) == {"ann": 0, "bob": MISSING, "zoe": 0}


def test_metrics_by_part_of_the_slice() -> None:
    places = np.array([{"ann": 0, "bob": 3, "zoe": MISSING}[EVENTS.user_ids[u]] for u in JUDGED.user_codes])
    found = {(m.part, m.name): (m.value, m.users) for m in metrics_of("x", places, JUDGED, BEFORE)}
    assert found["all", "hr@10"] == (pytest.approx(2 / 3), 3)
    assert found["known users", "ndcg@10"] == (pytest.approx((1 + 1 / np.log2(5)) / 2), 2)
    assert found["new users", "mrr"] == (0.0, 1)
    assert found["cold items", "mrr"] == (pytest.approx(1 / 4), 1)  # bob's c had no event before the cut


def test_the_baselines_leave_out_what_was_taken_and_knn_says_nothing_about_strangers() -> None:
    # Of the 7 days before the cut: a 2, b 2 clicks. ann has a: b first; zoe: a first; bob has both: d, then c.
    assert by_user(popularity_places(JUDGED, BEFORE)) == {"ann": 0, "bob": 1, "zoe": 0}
    assert by_user(knn_places(JUDGED, BEFORE)) == {"ann": 0, "bob": MISSING, "zoe": MISSING}


def test_a_frozen_row_holds_events_seen_and_hidden_before_the_cut_and_refuses_to_be_written_to() -> None:
    features = rows_at(EventsHistory(EVENTS), BEFORE, np.array([EVENTS.user_ids.index("ann")]), CUT)
    row = features.read("ann")
    assert [(e.item_id, e.kind) for e in row.events] == [("d", "hide"), ("a", "click")]
    assert row.seen == Seen.of([(START_US // HOUR_US, hash64("a"))])
    assert row.hidden == ((START_US + 3, "d"),)
    assert features.read("nobody").is_stranger
    with pytest.raises(BadRequest):
        features.write([row])


def test_the_item_table_at_the_cut_has_the_counts_and_covisits_of_then() -> None:
    later = columns(
        [
            ("ann", "a", "click", 0),
            ("ann", "b", "click", 60),
            ("bob", "a", "click", 3 * DAY_US),
            ("bob", "c", "click", 3 * DAY_US),
        ]
    )
    before = later.before(CUT)
    table = ItemsAtCut(lambda: item_table(later), EventsHistory(later))(before, CUT)
    block = table.block(["a", "b", "c"])
    assert (block.counts[:, 5] > 0.5).tolist() == [True, True, False]
    assert block.counts[0, 5] < 1.0
    assert [item_id for item_id, _ in table.covisits("a")] == ["b"]
    assert table.title("c") == "C"


def test_what_was_born_after_the_cut_is_not_among_the_new_items_at_the_cut() -> None:
    born = {"old": CUT - 9 * DAY_US, "met": CUT + DAY_US, "later": CUT + 1, "dated": CUT + DAY_US}

    def live() -> ItemTable:
        table = ItemTable()
        cards = {i: CardPart(i, [], True, False, CUT - DAY_US if i == "dated" else 0, 0, us) for i, us in born.items()}
        table.apply(ItemChanged(item_id, card, seq) for seq, (item_id, card) in enumerate(cards.items(), start=1))
        return table

    before = columns([("ann", "met", "click", 5)]).before(CUT)  # imported with a card of today, but met long before
    table = ItemsAtCut(live, EventsHistory(before))(before, CUT)
    assert table.newest(CUT, 9) == (
        ("dated", float(CUT - DAY_US)), ("met", float(START_US + 5)), ("old", float(CUT - 9 * DAY_US)),
    )  # fmt: skip
    assert table.servable(["later"], CUT).tolist() == [True]  # its text may still lead to it


class Broken(FrozenRows):
    def read(self, user_id: str) -> UserState:
        raise StageUnavailable("down")


def test_faults_name_what_is_wrong() -> None:
    from model_world import tiny_release

    from services.training.evaluate import faults_of

    release = tiny_release()
    assert faults_of(release, stages(FrozenRows({}), "a", "b", "c"), JUDGED, EVENTS) == ()
    empty = faults_of(release, stages(FrozenRows({})), JUDGED, EVENTS)
    assert len(empty) == 4
    assert "no sound list" in empty[0]
    assert any("degraded: features" in fault for fault in faults_of(release, stages(Broken({}), "a"), JUDGED, EVENTS))
    release.networks.tower.start.data[0] = float("nan")
    assert "not finite" in faults_of(release, stages(FrozenRows({}), "a"), JUDGED, EVENTS)[0]
