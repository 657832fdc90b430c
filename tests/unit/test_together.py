"""Co-visits in training: those that the trends consumer keeps, and of a request what serving would say of its user."""

from __future__ import annotations

import numpy as np
import pytest
from training_world import START_US, columns, item_table, unrelated

from services.bounds import UNBOUNDED
from services.domain import DAY_US, Interaction, UserState
from services.item_parts import CovisitsPart, ItemChanged
from services.items import ItemTable
from services.training import cutoff
from services.training.cutoff import covisits, together_pairs
from services.training.examples import corpus_of
from services.training.history import EventsHistory
from services.training.together import Together, strength_of
from services.trends import covisits as live


def test_the_constants_are_those_of_the_trends_consumer() -> None:
    kept = (cutoff.COVISIT_LAGS, cutoff.COVISIT_HALF_LIFE_US, cutoff.COVISIT_GAP_HALF_LIFE_US, cutoff.COVISIT_SHRINK)
    assert kept == (live.RECENT_MAX, live.HALF_LIFE_US, live.GAP_HALF_LIFE_US, live.SHRINK)


def test_a_pair_s_cosine_is_its_weight_over_what_both_have_with_anything() -> None:
    # ann takes a and b a week apart, bob b and c at once; all is asked at the time of the last click.
    events = columns([("ann", "a", "click", 0), ("ann", "b", "click", 7 * DAY_US), ("bob", "b", "click", 7 * DAY_US),
                      ("bob", "c", "click", 7 * DAY_US)])  # fmt: skip
    rows, columns_, cosines = together_pairs(events, START_US + 7 * DAY_US)
    found = {(events.item_ids[r], events.item_ids[c]): w for r, c, w in zip(rows, columns_, cosines, strict=True)}
    assert found["a", "b"] == found["b", "a"] == pytest.approx(0.5 / np.sqrt((0.5 + 10) * (1.5 + 10)))
    assert found["b", "c"] == pytest.approx(1.0 / np.sqrt((1.5 + 10) * (1.0 + 10)))
    assert set(found) == {("a", "b"), ("b", "a"), ("b", "c"), ("c", "b")}


def test_what_training_knows_is_what_the_trends_consumer_would_have_told() -> None:
    events = unrelated()
    users, pairs = live.Users(), live.Pairs()
    for user, item, at in zip(events.user_codes, events.item_codes, events.occurred_us.tolist(), strict=True):
        item_id = events.item_ids[item]
        pairs.add(item_id, at, users.met(events.user_ids[user], item_id, at))
    totals = {item_id: sum(weights.values()) for item_id, weights in pairs.weights.items()}
    now_us = START_US + 20 * DAY_US
    told = covisits(events, now_us, UNBOUNDED)  # every event a whole vote, as above
    assert told.keys() == totals.keys()
    for item_id, weights in pairs.weights.items():
        row = live.similar(totals[item_id], live.merged(None, weights, 1000), totals, now_us, 1000)
        expected = dict(zip(row.item_ids, row.weights, strict=True))
        assert dict(zip(told[item_id].item_ids, told[item_id].weights, strict=True)) == pytest.approx(expected)


def test_a_request_knows_how_strongly_serving_would_lead_to_its_candidates() -> None:
    events = unrelated()
    corpus = corpus_of(events, item_table(events))
    now_us = START_US + 9 * DAY_US
    before = events.before(now_us)
    items = ItemTable()
    items.apply(ItemChanged(item_id, part, 1) for item_id, part in covisits(before, now_us).items())
    history = EventsHistory(events)
    users = history.users_at(list(events.user_ids), np.full(len(events.user_ids), now_us - 1))
    together = Together(corpus)
    starts = together.starts(users)
    everything = np.arange(1, len(corpus.vocabulary))
    for number, user_id in enumerate(events.user_ids):
        first, last = users.offsets[number : number + 2]
        row = tuple(
            Interaction(int(users.occurred_us[n]), n, users.item_ids[users.item_codes[n]], "click", None, 1.0)
            for n in range(first, last)
        )
        served = items.together(UserState(user_id, row))
        strength = strength_of(everything, *together.of(starts[number], now_us))
        trained = dict(zip(corpus.vocabulary.ids(everything), strength.tolist(), strict=True))
        assert {i: s for i, s in trained.items() if s} == pytest.approx({i: lead.total for i, lead in served.items()})


def test_of_two_ways_to_an_item_the_stronger_gives_the_reason_and_both_count() -> None:
    items = ItemTable()
    items.apply(
        [ItemChanged("a", CovisitsPart(["x", "y"], [0.2, 0.1]), 1), ItemChanged("b", CovisitsPart(["x"], [0.9]), 1)]
    )
    row = (Interaction(2, 2, "a", "click", None, 1.0), Interaction(1, 1, "b", "click", None, 1.0),
           Interaction(0, 0, "c", "hide", None, -1.0))  # fmt: skip
    found = {item_id: (lead.total, lead.origin) for item_id, lead in items.together(UserState("u", row)).items()}
    assert found == {"x": (pytest.approx(0.2 + 0.9 / 2), "b"), "y": (0.1, "a")}


def test_nobody_s_history_leads_nowhere() -> None:
    assert strength_of(np.array([0, 3]), np.zeros(0, dtype=np.int64), np.zeros(0)).tolist() == [0.0, 0.0]
