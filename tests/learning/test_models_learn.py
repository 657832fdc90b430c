"""Do the models learn? On a checkerboard whose answer is known: before fitting they are at chance, afterwards the
withheld item comes first, and destroying the history destroys the gain."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from model_world import ITEMS, TEXTS, TINY, VOCABULARY, checkerboard, examples_of, without_newest
from numpy.typing import NDArray

from models.batches import HeldOut, RankingExamples, Sequences
from models.fit import FittedTower, continue_tower, fit_reranker, fit_tower
from models.metrics import hit_ratio, places


@pytest.fixture(scope="module")
def fitted() -> FittedTower:
    """Stopped by the event before the withheld one, of all users: the newest twentieth would be a handful of them."""
    known, _ = without_newest(checkerboard())
    older, newest = without_newest(known)
    prefixes = older.prefixes_at(np.arange(older.users), np.full(older.users, 2_000_000_000), TINY.history)
    held_out = HeldOut(prefixes, newest.astype(np.int32))
    return fit_tower(older, VOCABULARY, TEXTS, TINY, validation=held_out, device="cpu")


def _places(tower: FittedTower, shown: Sequences, had: Sequences, wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of the withheld item among all that the user has not had, by the history `shown`."""
    users = np.arange(shown.users)
    prefixes = shown.prefixes_at(users, np.full(shown.users, 2_000_000_000), TINY.history)
    scores = tower.user_vectors(prefixes) @ tower.item_vectors().T
    scores[:, 0] = -9
    scores[had.owners(), had.rows] = -9
    return places(scores.astype(np.float32), wanted)


def _joined(one: RankingExamples, two: RankingExamples) -> RankingExamples:
    return RankingExamples(*(np.concatenate([getattr(each, f.name) for each in (one, two)]) for f in fields(one)))


def test_untrained_is_at_chance_and_trained_puts_the_withheld_item_among_its_colour(fitted: FittedTower) -> None:
    known, wanted = without_newest(checkerboard())
    # 17 items were not had, 5 of them of the own colour: 5 / 17 = .29 by chance, 1 for who knows the colours.
    untrained = fit_tower(known, VOCABULARY, TEXTS, replace(TINY, learning_rate=0.0, epochs_max=1), device="cpu")
    assert hit_ratio(_places(untrained, known, known, wanted), 5) < 0.5
    assert hit_ratio(_places(fitted, known, known, wanted), 5) > 0.95


def test_another_s_history_destroys_the_gain(fitted: FittedTower) -> None:
    known, wanted = without_newest(checkerboard())
    swapped = replace(known, rows=((known.rows - 1) ^ 1).astype(np.int32) + 1)
    assert hit_ratio(_places(fitted, swapped, known, wanted), 5) < 0.1


def test_the_one_item_that_always_follows_comes_first() -> None:
    users = 60
    first = np.arange(users) % ITEMS
    rows = np.stack([first + 1, (first + 1) % ITEMS + 1, (first + 2) % ITEMS + 1], axis=1)
    chain = Sequences.of_events(
        np.repeat(np.arange(users), 3), rows.ravel(), np.ones(users * 3, np.int64), np.ones(users * 3, np.bool_),
        np.tile(np.array([10, 20, 30]), users) + 1_700_000_000,
    )  # fmt: skip
    config = replace(TINY, epochs_max=30, patience=30, dropout=0.0, id_dropout=0.0)
    known, wanted = without_newest(chain)
    users_all = np.arange(users)
    tower = fit_tower(chain, VOCABULARY, TEXTS, config, device="cpu")
    prefixes = known.prefixes_at(users_all, np.full(users, 1_700_000_030), TINY.history)
    scores = tower.user_vectors(prefixes) @ tower.item_vectors().T
    assert hit_ratio(places(scores.astype(np.float32), wanted), 1) > 0.95


def test_seeded_runs_are_equal_and_seeds_differ() -> None:
    known = checkerboard()
    config = replace(TINY, epochs_max=2)
    runs = [fit_tower(known, VOCABULARY, TEXTS, replace(config, seed=s), device="cpu") for s in (1, 1, 2)]
    assert np.array_equal(runs[0].vectors, runs[1].vectors)
    assert not np.array_equal(runs[0].vectors, runs[2].vectors)
    rerankers = [fit_reranker(runs[0], examples_of(runs[0], known), config) for _ in range(2)]
    one, two = (each.network.state_dict() for each in rerankers)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_fitting_leaves_the_caller_s_chance_alone() -> None:
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    fit_tower(checkerboard(), VOCABULARY, TEXTS, replace(TINY, epochs_max=1), device="cpu")
    assert torch.equal(before, torch.rand(1))


def test_continuing_leaves_the_old_tower_as_it_was(fitted: FittedTower) -> None:
    before = fitted.vectors.copy()
    more = continue_tower(fitted, checkerboard(), epochs=1)
    assert np.array_equal(fitted.vectors, before)
    assert not np.array_equal(more.vectors, before)
    assert more.epochs == fitted.epochs + 1


def test_the_reranker_learns_from_the_history_alone(fitted: FittedTower) -> None:
    examples = examples_of(fitted, checkerboard())
    reranker = fit_reranker(fitted, examples, TINY)
    # One of six, scores of chance: NDCG@10 is (1 + .63 + .5 + .43 + .39 + .36) / 6 = .55.
    assert reranker.retrieval_ndcg < 0.75
    assert reranker.held_out_ndcg > 0.95


def test_the_reranker_overfits_one_batch(fitted: FittedTower) -> None:
    one = examples_of(fitted, checkerboard(), seed=3).take(np.arange(16))
    batch = replace(one, labels=np.roll(one.labels, 3, axis=1))
    config = replace(TINY, reranker_epochs_max=60, reranker_patience=60, reranker_dropout=0.0, reranker_hidden=(64,))
    # The same batch again, a year later: its newest tenth is held out, and was fitted in the first one.
    year_s = 365 * 86_400
    later = replace(batch, now_s=batch.now_s + year_s, history_times_s=batch.history_times_s + year_s)
    found = fit_reranker(fitted, _joined(batch, later), config)
    assert found.held_out_ndcg > 0.95


def test_progress_only_rises_and_ends_at_the_total() -> None:
    told: list[tuple[int, int]] = []
    config = replace(TINY, epochs_max=3)
    fit_tower(
        checkerboard(), VOCABULARY, TEXTS, config, lambda done, total, text: told.append((done, total)), device="cpu"
    )
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]
