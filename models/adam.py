"""AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101) over PyTorch's fused kernel, step for step what
`torch.optim.AdamW(fused=True)` does.

That class imports PyTorch's compiler when it is made, though nothing is compiled: 2 s and 74 MB of each process that
trains.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

EPSILON = 1e-8
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What is remembered of a parameter, by the names that PyTorch has for it: checkpoints hold them."""


@dataclass(slots=True)
class Group:
    """Parameters of one rate and one decay of weights."""

    parameters: Sequence[Tensor]
    rate: float
    decay: float = 0.0


@dataclass(slots=True)
class AdamW:
    """`state`: the moments of every parameter that had a gradient, `step` [] and two of its shape."""

    groups: Sequence[Group]
    betas: tuple[float, float] = (0.9, 0.999)
    state: dict[Tensor, dict[str, Tensor]] = field(default_factory=dict)

    def forget_gradients(self) -> None:
        """None for every gradient."""
        for group in self.groups:
            for each in group.parameters:
                each.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        for group in self.groups:
            learned = [each for each in group.parameters if each.grad is not None]
            if not learned:
                continue
            for each in learned:
                if each not in self.state:
                    self.state[each] = _nothing_yet(each)
            gradients = [each.grad for each in learned if each.grad is not None]
            step, mean, square = ([self.state[each][name] for each in learned] for name in MOMENTS)
            torch._foreach_add_(step, 1)
            torch._fused_adamw_(
                learned, gradients, mean, square, [], step, lr=group.rate, beta1=self.betas[0], beta2=self.betas[1],
                weight_decay=group.decay, eps=EPSILON, amsgrad=False, maximize=False,
            )  # fmt: skip


def one_group(parameters: Iterable[Tensor], rate: float) -> list[Group]:
    """All parameters at one rate, without decay."""
    return [Group(list(parameters), rate)]


def _nothing_yet(parameter: Tensor) -> dict[str, Tensor]:
    step = torch.zeros((), dtype=torch.float32, device=parameter.device)
    return dict(zip(MOMENTS, (step, torch.zeros_like(parameter), torch.zeros_like(parameter)), strict=True))
