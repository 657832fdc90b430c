"""Metrics and losses against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.losses import full_softmax, ranking_loss
from models.metrics import MISSING, hit_ratio, mrr, ndcg, places


def test_a_place_counts_what_stands_before_and_a_tie_is_lost_to_the_columns_before() -> None:
    scores = np.array([[0.1, 0.9, 0.5], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]], dtype=np.float32)
    assert places(scores, np.array([2, 0, 2])).tolist() == [1, 0, 2]


def test_metrics_of_four_places() -> None:
    found = np.array([0, 1, 10, MISSING])
    assert hit_ratio(found, 10) == 0.5
    assert ndcg(found, 10) == pytest.approx((1 + 1 / math.log2(3)) / 4)
    assert mrr(found) == pytest.approx((1 + 1 / 2 + 1 / 11) / 4)


def test_metrics_of_nobody_are_zero() -> None:
    nobody = np.zeros(0, dtype=np.int64)
    assert (hit_ratio(nobody, 10), ndcg(nobody, 10), mrr(nobody)) == (0.0, 0.0, 0.0)


def test_full_softmax_leaves_row_0_out() -> None:
    users = torch.tensor([[1.0, 0.0]])
    items = torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.0, 1.0]])
    # Logits 2 and 0 at temperature .5: -log(e^2 / (e^2 + 1)).
    found = full_softmax(users, items, torch.tensor([1]), torch.tensor([1.0]), temperature=0.5)
    assert found.item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_padding_has_no_part_in_the_ranking_loss() -> None:
    logits, labels = torch.tensor([[0.0, 0.0, 50.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    real = torch.tensor([[True, True, False]])
    # Both entries of the pointwise part and the list of two: log 2 each.
    assert ranking_loss(logits, labels, real, 0.5).item() == pytest.approx(1.5 * math.log(2))


def test_a_list_of_nothing_taken_has_no_listwise_loss() -> None:
    logits, labels = torch.zeros(1, 2), torch.zeros(1, 2)
    real = torch.ones(1, 2, dtype=torch.bool)
    assert ranking_loss(logits, labels, real, 0.5).item() == pytest.approx(math.log(2))
