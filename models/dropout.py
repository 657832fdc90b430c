"""Dropout that costs little on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CHANCES = 256


class Dropout(nn.Module):
    """Entries are 0 by chance while fitting, the others as much larger. On a CPU by a random byte each: eight of them
    come out of one drawn number, where torch draws a number of its own for each entry (a twentieth of an epoch). So the
    chance is a multiple of 1/256 there; what is kept is scaled by the chance it really had."""

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.chance = chance

    def forward(self, values: Tensor) -> Tensor:
        """The same shape."""
        if not self.training or self.chance <= 0.0:
            return values
        if values.device.type != "cpu":
            return nn.functional.dropout(values, self.chance)
        count = values.numel()
        drawn = torch.empty((count + 7) // 8, dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
        dropped = min(CHANCES - 1, round(self.chance * CHANCES))
        kept = (drawn.view(torch.uint8)[:count] >= dropped).view(values.shape)
        return values * (kept.to(values.dtype) * (CHANCES / (CHANCES - dropped)))
