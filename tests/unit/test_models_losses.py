"""What the tower is fitted by: worked out by hand, and beside what PyTorch makes of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.dropout import Dropout
from models.losses import LOGITS_AT_ONCE, full_softmax, softmax_loss


def test_the_loss_is_the_share_of_the_target_among_all_weighted() -> None:
    users = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    items = torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.0, 1.0]])  # row 0 is padding
    # Logits at temperature 2: (.5, 0) and (0, 1). log(1 + e^-.5) = .4741 for the first, log(1 + e^1) = 1.3133 for the
    # second, which weighs three times as much: (.4741 + 3 * 1.3133) / 4.
    loss = full_softmax(users, items, torch.tensor([1, 1]), torch.tensor([1.0, 3.0]), 2.0)
    assert loss.item() == pytest.approx(1.1035, abs=1e-4)


def test_loss_and_gradients_are_those_of_cross_entropy_however_many_chunks_there_are() -> None:
    count, rows = 900, 3001
    assert count * rows > LOGITS_AT_ONCE["cpu"]
    torch.manual_seed(0)
    users, items = torch.randn(count, 8, requires_grad=True), torch.randn(rows, 8, requires_grad=True)
    targets, weights = torch.randint(0, rows, (count,)), torch.rand(count)
    (3.0 * softmax_loss(users, items, targets, weights, 0.5)).backward()
    found = users.grad, items.grad
    users.grad = items.grad = None
    plain = F.cross_entropy(users @ items.T / 0.5, targets, reduction="none")
    (3.0 * (plain * weights).sum() / weights.sum()).backward()
    for mine, theirs in zip(found, (users.grad, items.grad), strict=True):
        assert mine is not None
        assert theirs is not None
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    values = torch.ones(1000, 201)
    drop = Dropout(0.25)
    dropped = drop(values)
    # 64 of 256: what is kept counts 4 / 3.
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.005)
    assert dropped.max().item() == pytest.approx(4 / 3)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.01)
    assert abs((dropped[:, :-1] * dropped[:, 1:]).mean().item() - 1.0) < 0.01, "neighbours have nothing to do with it"
    torch.manual_seed(0)
    assert torch.equal(drop(values), dropped)
    assert torch.equal(drop.eval()(values), values)
