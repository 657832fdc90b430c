"""Several processes that fit one tower together, as `torchrun` starts them: each takes its share of every batch.

All of them hold the same data and the same weights; what they send each other is the gradient of every step.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of how many processes this is."""

    rank: int = 0
    world: int = 1

    @property
    def writes(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def add_up(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give every parameter the sum of its gradients over all processes. Each process's loss is already divided by
        the weight of the whole batch, so the sum is the gradient of the whole batch's mean."""
        if self.world == 1:
            return
        flat = torch.cat([_gradient(each).flatten() for each in parameters])
        dist.all_reduce(flat)
        first = 0
        for each in parameters:
            each.grad = flat[first : first + each.numel()].view_as(each)
            first += each.numel()

    def agreed(self, value: float) -> float:
        """The value that the first process has: decisions over it must not differ."""
        if self.world == 1:
            return value
        where = "cuda" if dist.get_backend() == "nccl" else "cpu"
        told = torch.tensor([value], dtype=torch.float64, device=where)
        dist.broadcast(told, src=0)
        return float(told.item())


ALONE = Ranks()


@contextmanager
def joined(environment: Mapping[str, str] = os.environ) -> Iterator[Ranks]:
    """The group of processes that the environment speaks of, as long as this lasts; alone where it speaks of none.

    On GPUs by NCCL, each process on the GPU of its local rank (device `auto`); on CPUs by Gloo.
    """
    world = int(environment.get("WORLD_SIZE", "1"))
    if world == 1 or "RANK" not in environment:
        yield ALONE
        return
    on_gpus = torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(int(environment.get("LOCAL_RANK", "0")))
    already = dist.is_initialized()
    if not already:
        dist.init_process_group("nccl" if on_gpus else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        if not already:
            dist.destroy_process_group()


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
