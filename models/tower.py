"""The user tower: causal self-attention over the newest events, one user vector per position.

Choices: attention knows how far apart two events stand in the row and in time, by learned biases, and needs no
positions else; a start token stands before the oldest event, so that a stranger has a vector too; the question's own
time is the time that gaps are measured from, in training (the next event's) as in serving (now). Output has length 1:
its product with an item vector is what the index searches. What a layer is made of: `models/blocks.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import BLOCKS, HIDDEN
from models.config import ModelConfig

BUCKETS = 64
BUCKET_WIDTH = 0.301


def time_bucket(gap_s: Tensor) -> Tensor:
    """The bucket of a gap in seconds, by logarithm; the future counts as now. Same shape, int64."""
    return (gap_s.clamp(min=1).to(torch.float32).log() / BUCKET_WIDTH).to(torch.int64).clamp(max=BUCKETS - 1)


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
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(BLOCKS[config.block](config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)
        nn.init.normal_(self.actions.weight, std=0.1)

    def forward(self, vectors: Tensor, actions: Tensor, times_s: Tensor, asked_s: Tensor, real: Tensor) -> Tensor:
        """A user vector after each event, before the first too. [B, H + 1, D]

        vectors [B, H, D], actions, times_s, real (bool: no padding) [B, H]; asked_s [B, H + 1], when each is asked.
        """
        tokens, times, present = self._tokens(vectors, actions, times_s, real)
        bias = self._bias(asked_s, times, present, queries=tokens.shape[1])
        for block in self.blocks:
            tokens = block(tokens, bias)
        return self._output(tokens)

    def newest(self, vectors: Tensor, actions: Tensor, times_s: Tensor, now_s: Tensor, real: Tensor) -> Tensor:
        """The user vector after the newest event alone, for `now_s` [B]: equals the last of `forward`. [B, D]

        Only the lower blocks are worked out for every position, and the events are asked for their next one's time.
        """
        tokens, times, present = self._tokens(vectors, actions, times_s, real)
        if len(self.blocks) > 1:
            # The start is asked for the first event's time, however much padding stands between them.
            never = torch.iinfo(times.dtype).max
            first = torch.cat([times_s.masked_fill(~real, never), now_s[:, None]], dim=1).amin(dim=1)
            asked = torch.cat([first[:, None], times[:, 2:], now_s[:, None]], dim=1)[:, -tokens.shape[1] :]
            bias = self._bias(asked, times, present, queries=tokens.shape[1])
            for block in list(self.blocks)[:-1]:
                tokens = block(tokens, bias)
        last = self._bias(now_s[:, None], times, present, queries=1)
        return self._output(self.blocks[-1](tokens, last))[:, 0]

    def _tokens(self, vectors: Tensor, actions: Tensor, times_s: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch = len(vectors)
        events = self.drop(vectors * self.scale + self.actions(actions))
        tokens = torch.cat([self.start.expand(batch, 1, -1), events], dim=1)  # [B, H + 1, D]
        # The start stands as far back as time goes: its bias is the last bucket's.
        times = torch.cat([times_s.new_zeros(batch, 1), times_s], dim=1)
        present = torch.cat([real.new_ones(batch, 1), real], dim=1)
        return tokens, times, present

    def _bias(self, asked_s: Tensor, times_s: Tensor, present: Tensor, queries: int) -> Tensor:
        """What is added to the attention logits, HIDDEN where a token may not be looked at. [B, heads, Q, K]"""
        keys = times_s.shape[1]
        places = torch.arange(keys, device=times_s.device)
        distance = places[keys - queries :, None] - places[None, :]  # [Q, K]
        reach = self.by_distance.shape[1] - 1
        # The start is at a distance of its own, so that padding behind it changes nothing.
        apart = torch.where(places[None, :] == 0, reach, distance.clamp(0, reach - 1))
        near = self.by_distance[:, apart]  # [heads, Q, K]
        gaps = time_bucket(asked_s[:, :, None] - times_s[:, None, :])  # [B, Q, K]
        bias = self.by_gap[:, gaps].transpose(0, 1) + near
        visible = (distance >= 0)[None, :, :] & present[:, None, :]
        return bias.masked_fill(~visible[:, None], HIDDEN)

    def _output(self, tokens: Tensor) -> Tensor:
        vectors: Tensor = F.normalize(self.out(self.norm(tokens)), dim=-1)
        return vectors
