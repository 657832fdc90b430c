"""Training examples: nothing from the future, the right labels, candidates from where serving draws them."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from numpy.typing import NDArray
from training_world import RULES, START_US, columns, item_table, unrelated

from models.batches import Prefixes
from services.domain import DAY_US, HOUR_US
from services.ports import FeatureHistory
from services.sharing import SHARE_MIN
from services.signals import MODEL_FEATURES, RANKING_FEATURES, UserRows, item_features, ranking_features
from services.training.columns import EventColumns, columns_of_rows
from services.training.cutoff import covisits
from services.training.examples import (
    Candidates,
    Corpus,
    RequestRows,
    Requests,
    corpus_of,
    held_out_after,
    ranking_examples,
    requests_between,
    rows_of_requests,
)
from services.training.history import EventsHistory
from services.training.negatives import Pools, Trends, draw_candidates

LENGTH = 8


class LeakyHistory:
    """A history that knows one microsecond too much: the event itself."""

    def __init__(self, honest: FeatureHistory) -> None:
        self._honest = honest

    def users_at(self, user_ids: list[str], times_us: NDArray[np.int64]) -> UserRows:
        return self._honest.users_at(user_ids, times_us + 1)

    def items_at(
        self, item_ids: list[str], times_us: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return self._honest.items_at(item_ids, times_us)


def made(
    events: EventColumns, history: FeatureHistory, ahead_share: float = 0.0
) -> tuple[Corpus, Requests, RequestRows]:
    corpus = corpus_of(events, item_table(events))
    requests = requests_between(corpus, START_US + 3 * DAY_US, 2**62, 10_000, 1, ahead_share)
    return corpus, requests, rows_of_requests(corpus, history, requests, LENGTH)


def flat(prefixes: Prefixes, rows: int) -> NDArray[np.float32]:
    """A tower without an opinion."""
    return np.zeros((len(prefixes), rows), dtype=np.float32)


def last_item_auc(requests: Requests, known: RequestRows, items: int) -> float:
    """How well "is it the item that the row names last?" tells the taken item from all others: 0.5 is chance."""
    last = known.prefixes.rows[:, -1].astype(np.int64)
    some = last > 0
    hit = (last == requests.target_rows)[some].mean()
    false = (1.0 - hit) / (items - 1)
    return float(0.5 + (hit - false) / 2)


def test_a_model_that_knows_only_the_last_item_is_at_chance_on_next_item_labels() -> None:
    events = unrelated()
    honest = EventsHistory(events)
    for ahead_share in (0.0, 0.5):
        corpus, requests, known = made(events, honest, ahead_share)
        items = len(corpus.vocabulary) - 1
        assert len(requests) > 300
        assert last_item_auc(requests, known, items) == pytest.approx(0.5, abs=0.03)
    _, requests, known = made(events, LeakyHistory(honest))
    assert last_item_auc(requests, known, items) == 1.0  # the same test sees a leak of one microsecond


def test_a_list_is_asked_for_before_its_event_and_after_what_the_user_did_before() -> None:
    events = unrelated()
    for ahead_share in (0.0, 1.0):
        corpus, requests, known = made(events, EventsHistory(events), ahead_share)
        early = 0
        for n, user in enumerate(requests.user_codes.tolist()):
            own = events.occurred_us[events.user_codes == user]
            asked = int(requests.asked_us[n])
            later = own[own > asked]
            taken_at = events.occurred_us[
                (events.user_codes == user) & (corpus.rows[events.item_codes] == requests.target_rows[n])
            ]
            assert later[0] == taken_at[0]
            early += int(taken_at[0] - asked > 1)
            assert int(known.users.row_time_us[n]) <= asked
        assert np.all(np.diff(requests.asked_us) >= 0)
        assert early == 0 if ahead_share == 0.0 else early > len(requests) * 0.9


def test_a_prefix_is_what_stood_in_the_row_before_the_event_oldest_first() -> None:
    events = columns(
        [
            ("ann", "a", "click", 0),
            ("ann", "b", "hide", 10),
            ("ann", "c", "click", 4 * DAY_US),
            ("bob", "a", "click", 5 * DAY_US),
        ]
    )
    corpus, requests, known = made(events, EventsHistory(events))
    names = ["", *corpus.vocabulary.item_ids]
    told = {
        corpus.events.user_ids[u]: [names[row] for row in known.prefixes.rows[n]]
        for n, u in enumerate(requests.user_codes)
    }
    assert told == {"ann": [""] * 6 + ["a", "b"], "bob": [""] * 8}
    actions = known.prefixes.actions[requests.user_codes.tolist().index(0)]
    assert actions[-2:].tolist() == [corpus.vocabulary.action("click", 1.0), corpus.vocabulary.action("hide", -1.0)]


def test_a_request_is_a_first_positive_event_and_repetitions_are_none() -> None:
    events = columns(
        [("ann", "a", "click", 0), ("ann", "a", "click", 4 * DAY_US), ("ann", "b", "hide", 4 * DAY_US + 1),
         ("ann", "b", "click", 4 * DAY_US + 2)]
    )  # fmt: skip
    corpus, requests, _ = made(events, EventsHistory(events))
    assert corpus.vocabulary.ids(requests.target_rows) == ("b",)


def test_features_are_those_that_serving_would_have_worked_out_at_that_time() -> None:
    events = unrelated()
    history, items = EventsHistory(events), item_table(events)
    corpus, requests, known = made(events, history)
    requests, known = requests.take(np.arange(5)), made(events, history)[2]
    known = RequestRows(known.prefixes.take(np.arange(5)), history.users_at(
        [events.user_ids[u] for u in requests.user_codes], requests.asked_us
    ))  # fmt: skip
    candidates = np.array([[3, 0, 7]] * 5)
    none = np.zeros((5, 3), np.float32)
    examples = ranking_examples(corpus, items, history, requests, known, Candidates(candidates, none, none))
    assert examples.features.shape == (5, 3, len(MODEL_FEATURES))
    assert not examples.features[:, 1].any()  # padding
    for n in range(5):
        before = events.before(int(requests.asked_us[n]) + 1)
        now_us = int(requests.asked_us[n])
        live = item_table(events)
        ids = list(corpus.vocabulary.ids(np.array([3, 7])))
        counts, stamps = EventsHistory(before).items_at(ids, np.array([now_us] * 2))
        block = live.block(ids)
        block.counts[:], block.counts_at_us[:] = counts, stamps
        expected = item_features(block, now_us)
        width = expected.shape[1]
        start = RANKING_FEATURES.index("item_clicks_1h")
        np.testing.assert_allclose(examples.features[n, [0, 2], start : start + width], expected, rtol=1e-5)
    assert ranking_features is not None


def test_candidates_hold_the_target_once_and_nothing_that_the_user_had_taken_before() -> None:
    events = unrelated()
    corpus, requests, known = made(events, EventsHistory(events))
    candidates, reached = draw_candidates(
        corpus, item_table(events), requests, known, lambda p: flat(p, len(corpus.vocabulary)), Pools(tower=5), 1
    )
    rows = candidates.rows
    assert (rows[:, 0] == requests.target_rows).all()
    assert candidates.score.shape == candidates.together.shape == rows.shape
    assert 0.0 < (reached > 0).mean() < 1.0
    for n in range(len(requests)):
        drawn = rows[n][rows[n] > 0].tolist()
        assert len(set(drawn)) == len(drawn)
        before = (events.user_codes == requests.user_codes[n]) & (events.occurred_us < requests.asked_us[n])
        assert not set(corpus.rows[events.item_codes[before]].tolist()) & set(drawn)


def test_candidates_follow_the_seed() -> None:
    events = unrelated()
    corpus, requests, known = made(events, EventsHistory(events))
    drawn = [
        draw_candidates(
            corpus, item_table(events), requests, known, lambda p: flat(p, len(corpus.vocabulary)), Pools(), seed
        )[0].rows
        for seed in (1, 1, 2)
    ]
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).any()


def test_processes_that_share_the_requests_draw_what_one_alone_draws() -> None:
    events = unrelated()
    corpus, requests, known = made(events, EventsHistory(events))
    assert len(requests) >= 3 * SHARE_MIN
    alone, together = (
        draw_candidates(
            corpus, item_table(events), requests, known, lambda p: flat(p, len(corpus.vocabulary)),
            Pools(tower=5, batch=8), 1, processes,
        )
        for processes in (1, 3)
    )  # fmt: skip
    np.testing.assert_equal(astuple(together[0]), astuple(alone[0]))
    np.testing.assert_equal(together[1], alone[1])
    assert (alone[0].together > 0).any()


def test_trends_know_nothing_of_the_running_hour() -> None:
    hour = HOUR_US - START_US % HOUR_US
    events = columns([("ann", "old", "click", 0), ("bob", "new", "click", hour + 5)])
    corpus = corpus_of(events, item_table(events))
    trends = Trends(corpus, 10)
    names = ["", *corpus.vocabulary.item_ids]
    assert [names[row] for row in trends.at(START_US + hour + 10)] == ["old"]
    assert [names[row] for row in trends.at(START_US + hour + HOUR_US)] == ["new", "old"]


def test_covisits_go_both_ways_and_only_as_far_as_the_last_five() -> None:
    events = columns([("ann", f"i{n}", "click", n) for n in range(8)] + [("ann", "i9", "hide", 9)])
    together = covisits(events, START_US + 10)
    assert set(together["i0"].item_ids) == {"i1", "i2", "i3", "i4", "i5"}
    assert set(together["i7"].item_ids) == {"i2", "i3", "i4", "i5", "i6"}
    assert "i9" not in together


def test_the_held_out_events_are_each_user_s_first_after_the_time_with_what_stood_before() -> None:
    events = columns(
        [
            ("bob", "c", "click", 1),
            ("ann", "a", "click", 0),
            ("ann", "c", "click", 4 * DAY_US),
            ("ann", "a", "click", 5 * DAY_US),
        ]
    )
    corpus = corpus_of(events, item_table(events))
    held = held_out_after(corpus, START_US + 3 * DAY_US, LENGTH, 100, 1)
    assert held is not None
    assert corpus.vocabulary.ids(held.target_rows.astype(np.int64)) == ("c",)
    assert [row for row in held.prefixes.rows[0].tolist() if row] == [corpus.vocabulary.row("a")]
    assert held_out_after(corpus, START_US + 9 * DAY_US, LENGTH, 100, 1) is None


def test_neutral_events_teach_nothing_and_their_items_have_no_row() -> None:
    events = columns_of_rows(
        [("ann", "a", "click", START_US, None), ("ann", "b", "impression", START_US + 1, None)], RULES
    )
    corpus = corpus_of(events, item_table(events))
    assert corpus.vocabulary.item_ids == ("a",)
    assert corpus.vocabulary.kinds == ("click",)
    assert corpus.sequences.rows.tolist() == [1]
    assert corpus.sequences.users == 1
