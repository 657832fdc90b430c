"""What the models are fitted to make small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

MASKED = -1e9
"""Stands for minus infinity where a row may be masked throughout: exp of it is 0, and no NaN comes of it."""
IN_BATCH = 0.6
"""Share of drawn negatives that are targets of the batch: the popular, which an even draw would hardly ever show."""
LOGITS_AT_ONCE = {"cpu": 2_000_000, "cuda": 100_000_000}
"""How many logits are held at a time: on a CPU as many as its caches hold, on a GPU as many as its memory does."""


def full_softmax(users: Tensor, items: Tensor, target_rows: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Cross entropy of each target among all items but row 0, summed up by weight.

    users [N, D], items [V, D], target_rows [N]; weights [N]: each one's share of the batch.
    """
    return softmax_loss(users, items[1:], target_rows - 1, weights, temperature)


def softmax_loss(users: Tensor, items: Tensor, targets: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Cross entropy of each target among the items, summed up by weight. users [N, D], items [V, D], the others [N].

    Never are N x V logits held: their gradient is worked out beside them, some users at a time.
    """
    loss: Tensor = _SoftmaxLoss.apply(users, items, targets, weights, temperature)  # type: ignore[no-untyped-call]
    return loss


class _SoftmaxLoss(torch.autograd.Function):
    """softmax_loss. The loss is a number and its weights are known, so the gradient of each
    chunk of logits is known once its softmax is: three products of matrices, and no logit worked out twice."""

    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor, targets: Tensor, weights: Tensor, temperature: float) -> Tensor:
        with torch.autocast(users.device.type, enabled=False):
            loss, by_users, by_items = _worked_out(users.float(), items.float(), targets, weights, temperature)
        ctx.save_for_backward(by_users, by_items)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        by_users, by_items = ctx.saved_tensors
        return by_users * by_loss, by_items * by_loss, None, None, None


def _worked_out(
    users: Tensor, items: Tensor, targets: Tensor, weights: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, its gradient by the users [N, D] and that by the items [V, D]."""
    count = len(users)
    step = max(1, min(count, LOGITS_AT_ONCE[users.device.type] // max(len(items), 1)))
    users = users / temperature
    by_users, by_items = torch.empty_like(users), torch.zeros_like(items)
    room = users.new_empty(step, len(items))
    loss = users.new_zeros(())
    for first in range(0, count, step):
        some = users[first : first + step]
        wanted, weight = targets[first : first + step, None], weights[first : first + step, None]
        shares = torch.mm(some, items.T, out=room[: len(some)])
        torch.softmax(shares, dim=1, out=shares)
        mine = shares.gather(1, wanted)
        loss -= (mine.clamp(min=1e-38).log() * weight).sum()
        shares.scatter_(1, wanted, mine - 1.0)
        torch.mm(shares, items, out=by_users[first : first + step])
        torch.addmm(by_items, shares.T, some * weight, out=by_items)
    return loss, by_users.mul_(weights[:, None] / temperature), by_items


@dataclass(frozen=True, slots=True)
class Negatives:
    """How items are drawn that stand for all others: IN_BATCH of `count` from the targets of the batch, the others
    evenly. `as_target` float32 [V]: how often each row is a target, 0 for row 0."""

    as_target: Tensor
    count: int

    def draw(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Rows that were drawn, some more than once, and what is taken off their logits. targets [N]. [count] each

        A drawn item stands for as many as it was not to be expected: its logit less the logarithm of how often it is
        drawn on average, so that the sum over the drawn is, on average, the sum over all ("Sampling-Bias-Corrected
        Neural Modeling for Large Corpus Item Recommendations", 2019).
        """
        rows = len(self.as_target)
        popular = round(self.count * IN_BATCH)
        even = self.count - popular
        chosen = torch.randint(0, len(targets), (popular,), device=targets.device)
        drawn = torch.cat([targets[chosen], torch.randint(1, rows, (even,), device=targets.device)])
        return drawn, self.expected(popular, even).to(targets.device)[drawn].log()

    def expected(self, popular: int, even: int) -> Tensor:
        """How often each row is drawn on average. [V]"""
        return popular * self.as_target / self.as_target.sum() + even / (len(self.as_target) - 1)


def sampled_softmax(
    users: Tensor, own: Tensor, drawn: Tensor, corrections: Tensor, same: Tensor, weights: Tensor, temperature: float
) -> Tensor:
    """Cross entropy of each target among itself and the items drawn for all, summed up by weight.

    users [N, D], own [N, D] (the targets' vectors), drawn [n, D], corrections [n] (taken off their logits), same [N, n]
    (bool: this drawn item is this target, which must not count against itself), weights [N].
    """
    with torch.autocast(users.device.type, enabled=False):
        users, own, drawn = users.float() / temperature, own.float(), drawn.float()
        others = (users @ drawn.T - corrections).masked_fill(same, MASKED)
        mine = (users * own).sum(dim=1)
        total = torch.logaddexp(mine, others.logsumexp(dim=1))
        return ((total - mine) * weights).sum()


def ranking_loss(logits: Tensor, labels: Tensor, real: Tensor, listwise_weight: float) -> Tensor:
    """Binary cross entropy of every real candidate, and a share of listwise softmax over the lists that hold a taken
    one. logits, labels, real (bool: no padding) [B, C]"""
    pointwise = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    loss = (pointwise * real).sum() / real.sum().clamp(min=1)
    taken = labels * real
    lists = taken.sum(dim=1)
    chances = logits.masked_fill(~real, MASKED).log_softmax(dim=1)
    listwise = -(taken * chances).sum(dim=1) / lists.clamp(min=1)
    return loss + listwise_weight * listwise.sum() / torch.count_nonzero(lists).clamp(min=1)
