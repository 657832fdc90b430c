"""What the judge decides about a reranker, and what ranking requests stand for. Expected values by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from model_world import TEXTS, TINY, VOCABULARY, checkerboard, examples_of, tiny_release

from models.batches import RankingExamples
from models.calibration import Calibration
from models.fit import FittedReranker, FittedTower, fit_reranker, fit_tower
from models.release import Manifest
from services.domain import Candidate
from services.training.chances import chances_of, chances_told, drawn_from_pools
from services.training.examples import joined_examples
from services.training.orders import Orders, _another, _gain

Fitted = tuple[FittedTower, FittedReranker, RankingExamples]


def _orders(reranked: list[float], retrieved: list[float]) -> Orders:
    none = np.zeros(0, dtype=np.float32)
    flags = np.zeros(0, dtype=np.bool_)
    return Orders(
        np.array(reranked), np.array(retrieved), np.array(retrieved), none, none, flags, flags, np.zeros(0, np.int64)
    )


def test_a_reranker_goes_only_where_it_is_worse_beyond_chance() -> None:
    level = [1.0, 0.5] * 50
    assert _orders(level, level).earned
    assert _orders([1.0] * 100, level).earned
    assert not _orders([0.5] * 100, level).earned
    one_worse = [0.5, *level[1:]]
    assert _orders(one_worse, level).gain()[0] == pytest.approx(-0.005)
    assert _orders(one_worse, level).earned  # one user of a hundred is within chance: a resample may miss them


def test_what_was_found_is_said_in_one_sentence_and_as_numbers() -> None:
    worse = _orders([0.25] * 4, [0.75] * 4)
    assert worse.told() == (
        "Reranker against retrieval score on the same candidates, 4 users: NDCG@10 -0.5000 (-0.5000 to -0.5000), with "
        "another user's history +0.0000 (+0.0000 to +0.0000): served without it, by the retrieval score."
    )
    found = {each.name: each.value for each in worse.metrics()}
    assert found["ndcg@10 gain"] == found["ndcg@10 gain low"] == -0.5
    assert found["ndcg@10 gain, other history high"] == 0.0


def test_the_place_of_the_target_is_that_of_a_list_ties_by_id() -> None:
    kept = [Candidate(item_id, "faiss", 0.0, n) for n, item_id in enumerate("cab")]
    scores = np.float32([0.5, 0.5, 0.9])
    assert _gain(kept, scores, "b") == 1.0
    assert _gain(kept, scores, "a") == pytest.approx(1 / np.log2(3))
    assert _gain(kept, scores, "c") == pytest.approx(1 / np.log2(4))
    assert _gain(kept, scores, "z") == 0.0


def test_everybody_reads_another_users_history() -> None:
    others = _another(20, seed=3)
    assert sorted(others.tolist()) == list(range(20))
    assert (others != np.arange(20)).all()


def test_chances_are_measured_for_all_for_new_users_and_for_new_items(manifest: Manifest) -> None:
    # Two users with two candidates each; the second is new and takes an item that nobody took before.
    orders = Orders(
        np.zeros(2), np.zeros(2), np.zeros(2), np.float32([0.5, 0.5, 0.25, 0.25]), np.zeros(4, np.float32),
        np.array([True, False, True, False]), np.array([False, False, True, False]), np.array([0, 0, 1, 1]),
    )  # fmt: skip
    told = {(m.part, m.name): m.value for m in orders.calibration(manifest, np.array([True, False]))}
    assert told["all", "pcoc"] == pytest.approx(1.5 / 2)
    assert told["new users", "pcoc"] == pytest.approx(0.5)
    assert told["new items", "pcoc"] == pytest.approx(0.25)
    assert told["new items", "brier"] == pytest.approx(0.75**2)
    by_retrieval = replace(manifest, rerank=False, retrieval_chances=Calibration(1.0, (0.0,), (np.log(3),)))
    told = {(m.part, m.name): m.value for m in orders.calibration(by_retrieval, np.array([True, False]))}
    assert told["all", "pcoc"] == pytest.approx(4 * 0.75 / 2)  # a retrieval score of 0 has a chance of 3 in 4


def test_a_drawn_negative_stands_for_as_many_as_it_was_drawn_from() -> None:
    rows = np.array([[9, 1, 2, 3, 4], [9, 1, 2, 0, 0], [9, 1, 2, 3, 4]])
    assert drawn_from_pools(rows, np.array([41, 41, 41])).tolist() == [10.0, 20.0, 10.0]
    # One of three had its target nowhere: the negatives of the other two stand for half of its pool each.
    assert drawn_from_pools(rows, np.array([41, 41, 0])).tolist() == [(40 + 20.5) / 4, (40 + 20.5) / 2, 1.0]
    assert drawn_from_pools(rows, np.zeros(3, np.int64)).tolist() == [1.0, 1.0, 1.0]


def test_chances_are_learned_from_lists_that_somebody_saw_where_these_are_enough(fitted: Fitted) -> None:
    tower, reranker, examples = fitted
    many = joined_examples([examples] * 40)  # 64 requests each: the newest tenth are 256
    sampled, _ = chances_of(tower, reranker, replace(many, drawn_from=np.full(len(many), 3, np.float32)))
    assert (sampled.lists, sampled.sampled) == (256, True)
    seen, _ = chances_of(tower, reranker, replace(many, drawn_from=np.zeros(len(many), np.float32)))
    assert (seen.lists, seen.sampled) == (256, False)
    # Each negative that stands for three makes a chance less: at the same logit by about ln 3.
    assert sampled.log_odds[0] < seen.log_odds[0] - 0.5
    some = replace(many, drawn_from=(np.arange(len(many)) % 3 == 0).astype(np.float32))
    assert chances_of(tower, reranker, some)[0].sampled is False
    few = replace(many, drawn_from=(np.arange(len(many)) % 6 > 0).astype(np.float32))
    assert chances_of(tower, reranker, few)[0].sampled is True


def test_a_report_says_whose_lists_the_chances_were_learned_from(manifest: Manifest) -> None:
    assert "not calibrated" in chances_told(replace(manifest, chances=Calibration()))
    sampled = replace(manifest, chances=Calibration(lists=1200, sampled=True))
    assert "1,200 sampled lists that nobody saw" in chances_told(sampled)
    assert "1,200 newest served" in chances_told(replace(manifest, chances=Calibration(lists=1200)))


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return tiny_release().manifest


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    sequences, config = checkerboard(), replace(TINY, epochs_max=2, reranker_epochs_max=3)
    tower = fit_tower(sequences, VOCABULARY, TEXTS, config, device="cpu")
    examples = examples_of(tower, sequences)
    return tower, fit_reranker(tower, examples, config), examples
