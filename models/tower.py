"""The user tower: causal self-attention over the newest events, one user vector per position.

Choices: attention knows how far apart two events stand in the row and in time, by learned biases, and needs no
positions else; a start token stands before the oldest event, so that a stranger has a vector too; the question's own
time is the time that gaps are measured from, in training (the next event's) as in serving (now). Output has length 1:
its product with an item vector is what the index searches. What a layer is made of: `models/blocks.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.blocks import BLOCKS, HIDDEN
from models.config import ModelConfig
from models.dropout import Dropout

BUCKETS = 64
BUCKET_WIDTH = 0.301
QUERIES_AT_ONCE = 64
"""What later tokens hold is hidden from a query anyway: queries in runs of so many look only as far as their last."""


def time_bucket(gap_s: Tensor) -> Tensor:
    """The bucket of a gap in seconds, by logarithm; the future counts as now. Same shape, int64."""
    places = gap_s.to(torch.float32).clamp_(min=1).log_().div_(BUCKET_WIDTH).clamp_(max=BUCKETS - 1)
    return places.to(torch.int64)


class UserTower(nn.Module):
    """Item vectors, actions and times of a history into user vectors."""

    def __init__(self, actions: int, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.scale = width**0.5
        self.start = nn.Parameter(torch.randn(width) * 0.5)
        self.actions = nn.Embedding(actions, width)
        self.by_distance = nn.Parameter(torch.zeros(config.heads, config.history + 2))
        self.by_gap = nn.Parameter(torch.zeros(config.heads, BUCKETS))
        self.drop = Dropout(config.dropout)
        self.blocks = nn.ModuleList(BLOCKS[config.block](config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)
        nn.init.normal_(self.actions.weight, std=0.1)

    def forward(
        self, vectors: Tensor, actions: Tensor, times_s: Tensor, asked_s: Tensor, real: Tensor, first: int = 0
    ) -> Tensor:
        """A user vector after each event from the `first`th on, at 0 before any event, too. [B, H + 1 - first, D]

        vectors [B, H, D], actions, times_s, real (bool: no padding) [B, H]; asked_s [B, H + 1], when each is asked.
        """
        tokens, times, present = self._tokens(vectors, actions, times_s, real)
        answered = self._biases(asked_s[:, first:], times, present)
        *lower, last = self.blocks
        if lower:
            every = [*self._biases(asked_s[:, :first], times[:, :first], present[:, :first]), *answered]
            for block in lower:
                tokens = block(tokens, every)
        return self._output(last(tokens, answered))

    def newest(self, vectors: Tensor, actions: Tensor, times_s: Tensor, now_s: Tensor, real: Tensor) -> Tensor:
        """The user vector after the newest event alone, for `now_s` [B]: equals the last of `forward`. [B, D]

        Only the lower blocks are worked out for every position, and the events are asked for their next one's time.
        """
        tokens, times, present = self._tokens(vectors, actions, times_s, real)
        *lower, last = self.blocks
        if lower:
            # The start is asked for the first event's time, however much padding stands between them.
            never = torch.iinfo(times.dtype).max
            first = torch.cat([times_s.masked_fill(~real, never), now_s[:, None]], dim=1).amin(dim=1)
            asked = torch.cat([first[:, None], times[:, 2:], now_s[:, None]], dim=1)[:, -tokens.shape[1] :]
            biases = self._biases(asked, times, present)
            for block in lower:
                tokens = block(tokens, biases)
        return self._output(last(tokens, self._biases(now_s[:, None], times, present)))[:, 0]

    def _tokens(self, vectors: Tensor, actions: Tensor, times_s: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch = len(vectors)
        events = self.drop(vectors * self.scale + self.actions(actions))
        tokens = torch.cat([self.start.expand(batch, 1, -1), events], dim=1)  # [B, H + 1, D]
        # The start stands as far back as time goes: its bias is the last bucket's.
        times = torch.cat([times_s.new_zeros(batch, 1), times_s], dim=1)
        present = torch.cat([real.new_ones(batch, 1), real], dim=1)
        return tokens, times, present

    def _biases(self, asked_s: Tensor, times_s: Tensor, present: Tensor) -> Sequence[Tensor]:
        """What is added to the attention logits of the last Q tokens, in runs of queries: [B, heads, q, k] each, over
        the first k tokens. asked_s [B, Q], times_s, present [B, K]"""
        queries, keys = asked_s.shape[1], times_s.shape[1]
        earlier = keys - queries
        return [
            self._bias(asked_s[:, run : run + QUERIES_AT_ONCE], times_s[:, :last], present[:, :last])
            for run in range(0, queries, QUERIES_AT_ONCE)
            for last in (min(keys, earlier + run + QUERIES_AT_ONCE),)
        ]

    def _bias(self, asked_s: Tensor, times_s: Tensor, present: Tensor) -> Tensor:
        """One run: HIDDEN where a token may not be looked at. [B, heads, q, k]"""
        queries, keys = asked_s.shape[1], times_s.shape[1]
        places = torch.arange(keys, device=times_s.device)
        distance = places[keys - queries :, None] - places[None, :]  # [q, k]
        reach = self.by_distance.shape[1] - 1
        # The start is at a distance of its own, so that padding behind it changes nothing.
        apart = torch.where(places[None, :] == 0, reach, distance.clamp(0, reach - 1))
        gaps = time_bucket(asked_s[:, :, None] - times_s[:, None, :])  # [B, q, k]
        bias = looked_up(self.by_gap, gaps).transpose(0, 1) + looked_up(self.by_distance, apart)
        hidden = (distance < 0)[None, :, :] | ~present[:, None, :]
        return bias.masked_fill_(hidden[:, None], HIDDEN)

    def _output(self, tokens: Tensor) -> Tensor:
        vectors: Tensor = F.normalize(self.out(self.norm(tokens)).float(), dim=-1)
        return vectors


def looked_up(table: Tensor, places: Tensor) -> Tensor:
    """Each row of a table [R, N] at places of any shape. [R, *places]

    What `table[:, places]` gives, whose gradient is summed up far more slowly.
    """
    found: Tensor = _LookedUp.apply(table, places)  # type: ignore[no-untyped-call]
    return found


class _LookedUp(torch.autograd.Function):
    """looked_up: its gradient is a sum by place."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, places: Tensor) -> Tensor:
        flat = places.flatten()
        ctx.save_for_backward(flat)
        ctx.size = table.shape[1]
        return table.index_select(1, flat).view(len(table), *places.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_found: Tensor) -> tuple[Tensor, None]:
        (flat,) = ctx.saved_tensors
        summed = by_found.new_zeros(len(by_found), ctx.size)
        return summed.index_add_(1, flat, by_found.reshape(len(by_found), -1)), None
