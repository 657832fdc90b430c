"""What the models are fitted to make small."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MASKED = -1e9
"""Stands for minus infinity where a row may be masked throughout: exp of it is 0, and no NaN comes of it."""


def full_softmax(users: Tensor, items: Tensor, target_rows: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Cross entropy of each target among all items but row 0, weighted. users [N, D], items [V, D], target_rows [N]."""
    logits = (users / temperature) @ items[1:].T  # [N, V - 1]
    loss = F.cross_entropy(logits, target_rows - 1, reduction="none")
    return (loss * weights).sum() / weights.sum()


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
