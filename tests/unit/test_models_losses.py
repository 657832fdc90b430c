"""What the tower is fitted by: worked out by hand, and beside what PyTorch makes of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.dropout import Dropout
from models.losses import LOGITS_AT_ONCE, Negatives, full_softmax, sampled_softmax, softmax_loss


def test_the_loss_is_the_share_of_the_target_among_all_weighted() -> None:
    users = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    items = torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.0, 1.0]])  # row 0 is padding
    # Logits at temperature 2: (.5, 0) and (0, 1). log(1 + e^-.5) = .4741 for the first, log(1 + e^1) = 1.3133 for the
    # second, which weighs three times as much: (.4741 + 3 * 1.3133) / 4.
    loss = full_softmax(users, items, torch.tensor([1, 1]), torch.tensor([0.25, 0.75]), 2.0)
    assert loss.item() == pytest.approx(1.1035, abs=1e-4)


def test_loss_and_gradients_are_those_of_cross_entropy_however_many_chunks_there_are() -> None:
    count, rows = 900, 3001
    assert count * rows > LOGITS_AT_ONCE["cpu"]
    torch.manual_seed(0)
    users, items = torch.randn(count, 8, requires_grad=True), torch.randn(rows, 8, requires_grad=True)
    targets, weights = torch.randint(0, rows, (count,)), torch.rand(count) / count
    (3.0 * softmax_loss(users, items, targets, weights, 0.5)).backward()
    found = users.grad, items.grad
    users.grad = items.grad = None
    plain = F.cross_entropy(users @ items.T / 0.5, targets, reduction="none")
    (3.0 * (plain * weights).sum()).backward()
    for mine, theirs in zip(found, (users.grad, items.grad), strict=True):
        assert mine is not None
        assert theirs is not None
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_a_drawn_item_stands_for_as_many_as_it_was_not_expected_and_never_against_itself() -> None:
    # Rows 1 to 4 were targets 6, 2, 0 and 2 times. Of 5 draws 3 are in-batch and 2 even: row 1 is expected 3 * .6
    # + .5 = 2.3 times, row 3 .5 times.
    negatives = Negatives(torch.tensor([0.0, 6.0, 2.0, 0.0, 2.0]), 5)
    assert negatives.expected(3, 2).tolist() == pytest.approx([0.5, 2.3, 1.1, 0.5, 1.1])
    drawn, corrections = negatives.draw(torch.tensor([1, 1, 4]))
    assert set(drawn[:3].tolist()) <= {1, 4}
    assert all(row > 0 for row in drawn.tolist())
    assert corrections.tolist() == pytest.approx(negatives.expected(3, 2)[drawn].log().tolist())

    user, own = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    others = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # the first is the target itself
    corrections, same = torch.tensor([2.3, 0.5, 1.1]).log(), torch.tensor([[True, False, False]])
    # e^2 = 7.389 against e^0 / .5 = 2 and e^1 / 1.1 = 2.4712: log((7.389 + 4.4712) / 7.389) = .4732.
    loss = sampled_softmax(user, own, others, corrections, same, torch.ones(1), 1.0)
    assert loss.item() == pytest.approx(0.4732, abs=1e-4)


def test_the_more_are_drawn_the_nearer_is_the_loss_to_that_over_all() -> None:
    torch.manual_seed(0)
    rows, count = 41, 64
    items, users = torch.randn(rows, 8), torch.randn(count, 8)
    targets = torch.multinomial(torch.arange(rows).float() ** 2, count, replacement=True)
    weights = torch.full((count,), 1 / count)
    as_target = torch.bincount(targets, minlength=rows).float()
    exact = full_softmax(users, items, targets, weights, 1.0).item()

    def estimated(drawn_count: int) -> float:
        drawn, corrections = Negatives(as_target, drawn_count).draw(targets)
        same = targets[:, None] == drawn[None, :]
        return sampled_softmax(users, items[targets], items[drawn], corrections, same, weights, 1.0).item()

    errors = [abs(sum(estimated(n) for _ in range(20)) / 20 - exact) for n in (10, 20_000)]
    assert errors[1] < 0.003
    assert errors[1] < errors[0]
    without = sampled_softmax(
        users, items[targets], items[1:], torch.zeros(rows - 1), targets[:, None] == torch.arange(1, rows), weights, 1.0
    )
    assert without.item() == pytest.approx(exact, abs=1e-4), "every item drawn once and nothing taken off is exact"


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
