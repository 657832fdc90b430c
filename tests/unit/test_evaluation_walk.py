"""Tower and pipeline on a stream: the walk knows what serving would have known, no more, and its batched answers are
those of `recommend`, one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from evaluation_world import RULES
from training_world import rounds

from models.config import ModelConfig
from models.metrics import MISSING
from models.release import ModelRelease
from services.domain import DAY_US, HOUR_US, Query, UserState, from_us
from services.evaluation.asking import Asking
from services.evaluation.files import Item
from services.evaluation.knowledge import FLUSH_EVENTS, Items, Rows, interaction_at
from services.evaluation.ranking import Ranked
from services.evaluation.run import Means
from services.evaluation.stream import FEATURES, Features, Stream, segments, stream_of
from services.evaluation.trained import embedded, fitted_release
from services.evaluation.walk import Walk
from services.features.fold import fold
from services.item_parts import VectorPart
from services.learning import unrecorded
from services.recommend import recommend
from services.training.columns import EventColumns, columns_of_rows
from services.training.cutoff import FrozenRows
from services.training.history import EventsHistory

CONFIG = replace(
    ModelConfig(effort="demo"), width=16, text_width=8, history=12, epochs_max=2, batch_targets=256,
    reranker_hidden=(16,), reranker_epochs_max=1, learning_rate=1e-2, warmup_steps=2,
)  # fmt: skip
MEANS = Means(unrecorded, "demo", "hashing", "cpu", 1, 64, CONFIG)
EVENTS = rounds(users=24, items=20, clicks=12)
ITEMS = tuple(Item(i, f"The title of {i}", "", (i[-1],), 0) for i in sorted(EVENTS.item_ids)[:-2])
"""Two items are in no file: they are unknown until somebody takes them."""
START = 140
CUT = str(START / len(EVENTS))
DEPTH = 8
Vectors = dict[str, VectorPart]


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return embedded(ITEMS, MEANS, lambda *_: None)


@pytest.fixture(scope="module")
def release(vectors: Vectors) -> ModelRelease:
    stream = stream_of(EVENTS, CUT, "drop", "live")
    items = Items(stream.events, ITEMS, vectors)
    train = stream.cases.train
    return fitted_release(train, EventsHistory(train), items.table, stream.cut_us, MEANS, 1, lambda *_: None)


def walked(stream: Stream, vectors: Vectors, release: ModelRelease, processes: int = 1) -> dict[str, Ranked]:
    walk = Walk(stream, ITEMS, vectors, lambda *_: release, unrecorded, lambda *_: None, processes)
    return dict(walk.ranked(segments(stream, "never"), ("tower", "pipeline"), DEPTH, ""))


def one_by_one(stream: Stream, vectors: Vectors, release: ModelRelease, case: int) -> dict[str, float]:
    """What an instance would answer that had consumed exactly what the case may know: scores by item, in order."""
    rows, items = Rows(stream.events), Items(stream.events, ITEMS, vectors)
    for known in [stream.start, *np.searchsorted(stream.events.occurred_us, stream.known_us[: case + 1]).tolist()]:
        rows.advance(known)
        items.advance(known, 1 if stream.is_live and known > stream.start else FLUSH_EVENTS)
    row = rows.of(int(stream.cases.users[case]))
    query = query_of(stream, case)
    slate = recommend(query, unrecorded(release, items.table, FrozenRows({"somebody": row})))
    return {pick.item_id: pick.score for pick in slate.items}


def query_of(stream: Stream, case: int) -> Query:
    asked_at = from_us(int(stream.cases.until_us[case]))
    return Query("q", "somebody", DEPTH, asked_at, seen=stream.cases.seen, record=False)


@pytest.mark.parametrize("features", FEATURES)
def test_batched_answers_are_those_of_recommend_one_by_one(
    features: Features, vectors: Vectors, release: ModelRelease
) -> None:
    stream = stream_of(EVENTS, CUT, "drop", features)
    ranked = walked(stream, vectors, release)["pipeline"]
    e = stream.events
    for case in range(0, len(stream.cases), 15):
        alone = one_by_one(stream, vectors, release, case)
        listed = [e.item_ids[code] for code in ranked.lists[case].tolist() if code >= 0]
        assert set(listed) == set(alone)
        # Forwards of one and of many differ in the last bits: what is level may change places.
        assert [alone[item_id] for item_id in listed] == pytest.approx(list(alone.values()), abs=1e-5)
        target = e.item_ids[stream.cases.targets[case]]
        assert int(ranked.places[case]) == (listed.index(target) if target in listed else MISSING)


def test_many_questions_at_once_get_the_scores_they_get_alone(vectors: Vectors, release: ModelRelease) -> None:
    stream = stream_of(EVENTS, CUT, "drop", "frozen")
    rows, items = Rows(stream.events), Items(stream.events, ITEMS, vectors)
    rows.advance(stream.start)
    items.advance(stream.start)
    asking = Asking(release, items.table, unrecorded)
    states = [UserState("stranger"), *(rows.of(user) for user in range(8))]
    questions = [(replace(query_of(stream, n), user_id=f"{n}"), state) for n, state in enumerate(states)]
    user_vectors = asking.user_vectors(questions)
    begun = [asking.begin(query, row, vector) for (query, row), vector in zip(questions, user_vectors, strict=True)]
    for (query, row), picks in zip(questions, asking.finish(begun), strict=True):
        stages = unrecorded(release, items.table, FrozenRows({str(query.user_id): row}))
        alone = {pick.item_id: pick.score for pick in recommend(query, stages).items}
        assert {pick.item_id: pick.score for pick in picks} == pytest.approx(alone, abs=1e-5)
        assert len(picks) > 0


def test_two_processes_make_the_lists_that_one_makes(vectors: Vectors, release: ModelRelease) -> None:
    stream = stream_of(EVENTS, CUT, "drop", "live")
    alone, shared_out = walked(stream, vectors, release), walked(stream, vectors, release, processes=2)
    for model in ("tower", "pipeline"):
        # Other questions stand beside each in its forwards: what is level in the last bits may change places.
        assert (alone[model].lists == shared_out[model].lists).mean() > 0.98
        assert (alone[model].places == shared_out[model].places).mean() > 0.98


def test_live_rows_are_the_fold_of_everything_before_the_event() -> None:
    hides = [("u1", "i03", "hide", 10), ("u1", "i04", "impression", 20)]
    rows = [
        (EVENTS.user_ids[u], EVENTS.item_ids[i], "click", int(at), None)
        for u, i, at in zip(EVENTS.user_codes, EVENTS.item_codes, EVENTS.occurred_us, strict=True)
    ]
    first_us = int(EVENTS.occurred_us[0])
    mixed = columns_of_rows([*rows, *((u, i, k, first_us + at, None) for u, i, k, at in hides)], RULES)
    stream = stream_of(mixed, CUT, "keep", "live")
    e, live = stream.events, Rows(stream.events)
    for place in range(stream.start, len(e), 7):
        live.advance(place)
        for user, user_id in enumerate(e.user_ids):
            own = [n for n in range(place) if e.user_codes[n] == user and e.weight[n] != 0]
            expected = fold(UserState(user_id), [interaction_at(e, n) for n in own])
            assert replace(live.of(user), previous_row_time_us=0) == replace(expected, previous_row_time_us=0)


def turned(events: EventColumns, place: int) -> EventColumns:
    """The same events, but from a place on everybody takes another item."""
    codes = events.item_codes.copy()
    codes[place:] = (codes[place:] + 7) % len(events.item_ids)
    return replace(events, item_codes=codes)


@pytest.mark.parametrize("features", FEATURES)
def test_no_list_depends_on_its_own_event_or_a_later_one(
    features: Features, vectors: Vectors, release: ModelRelease
) -> None:
    case = 0 if features == "frozen" else 30
    before = walked(stream_of(EVENTS, CUT, "keep", features), vectors, release)
    after = walked(stream_of(turned(EVENTS, START + case), CUT, "keep", features), vectors, release)
    same = len(EVENTS) - START if features == "frozen" else case + 1
    for model in ("tower", "pipeline"):
        assert before[model].lists[:same].tolist() == after[model].lists[:same].tolist()
        assert (before[model].lists.tolist() != after[model].lists.tolist()) == (features != "frozen")


def test_items_are_born_with_their_first_event_and_counted_from_it_on(vectors: Vectors) -> None:
    at = 5 * DAY_US
    rows = [("u1", "i00", at), ("u2", "i00", at + HOUR_US), ("u2", "i19", at + HOUR_US + 1)]
    events = columns_of_rows([(user, item, "click", when, None) for user, item, when in rows], RULES)
    items = Items(events, ITEMS, vectors)
    now_us = at + 2 * HOUR_US
    assert items.table.newest(now_us, 5) == ()
    assert "i19" not in items.table
    items.advance(2)
    assert items.table.newest(now_us, 5) == (("i00", float(at)),)
    # The clicks of 24 h, as of the newest event: one just now, one an hour old.
    counts = items.table.block(["i00"])
    assert counts.counts_at_us.tolist() == [at + HOUR_US]
    assert counts.counts[0, 4] == pytest.approx(1 + 0.5 ** (1 / 24))
    items.advance(3)
    assert "i19" in items.table
    assert [item_id for item_id, _ in items.table.covisits("i19")] == ["i00"]
    assert items.table.newest(now_us, 5) == (("i00", float(at)),)  # it has no card
