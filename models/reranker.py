"""The reranker: each candidate asks the history what it has to say about it, by multi-head target attention.

The answer, the features of the feature store and the retrieval score go through one small network to
one logit: the chance that this user takes this item now. A candidate never sees its neighbours, so a score does not
depend on who else is in the list. A learned null slot stands beside the events: "nothing here speaks for it". The
candidate's own vector asks, but does not go into the network: that would learn which items were liked at the time of
fitting, and what is liked passes (for strangers most of all: NDCG@10 .111 with it, .122 without, on film ratings).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.batches import PLACES_MAX
from models.config import ModelConfig
from models.dropout import Dropout
from models.tower import BUCKETS, time_bucket

PLACE_DROPOUT = 0.1
FEATURE_LIMIT = 5.0
"""Standardised features are held within this many deviations: an outlier must not decide alone."""


class Reranker(nn.Module):
    """Target attention over the history plus features. `feature_mean`, `feature_scale` [F + 1] are given, not learned
    (the last is the retrieval score's)."""

    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(self, actions: int, features: int, config: ModelConfig) -> None:
        super().__init__()
        width, heads, head = config.width, config.reranker_heads, config.reranker_head_width
        self.heads = heads
        self.scale = width**0.5
        self.actions = nn.Embedding(actions, width)
        self.gaps = nn.Embedding(BUCKETS, width)
        self.query = nn.Linear(width, heads * head)
        self.key = nn.Linear(width, heads * head)
        self.value = nn.Linear(width, heads * head)
        self.null = nn.Parameter(torch.randn(2, heads, head) * 0.1)
        self.register_buffer("feature_mean", torch.zeros(features + 1))
        self.register_buffer("feature_scale", torch.ones(features + 1))
        inputs = heads * head + heads + 2 + features + 1
        self.body = _body(inputs, config)
        self.straight = nn.Linear(features + 1, 1)
        self.by_place = nn.Parameter(torch.zeros(PLACES_MAX + 1, 1))  # row 0, of no known place, stays 0
        nn.init.normal_(self.actions.weight, std=0.1)
        nn.init.normal_(self.gaps.weight, std=0.1)
        nn.init.zeros_(self.straight.weight)

    def forward(
        self, vectors: Tensor, actions: Tensor, gaps_s: Tensor, real: Tensor,
        candidates: Tensor, features: Tensor, retrieval_score: Tensor, places: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Logits [B, C]. vectors [B, H, D], actions, gaps_s, real [B, H]; candidates [B, C, D], features [B, C, F],
        retrieval_score [B, C]; places [B, C] in the list that was shown (0: unknown), or None: all as if first."""
        said, null_share = self._attend(vectors, actions, gaps_s, real, candidates)
        likeness = self._likeness(vectors, real, candidates)
        known = self.standardised(features, retrieval_score)
        joined = torch.cat([said, null_share, likeness, known], dim=-1)
        logits: Tensor = self.body(joined) + self.straight(known)
        return logits[..., 0] + self._of_place(places)

    def _of_place(self, places: Tensor | None) -> Tensor:
        """What standing there adds: learned apart from what the candidate is, and the same for all when they are asked
        about. Some places are hidden while learning, so that not all is put down to them."""
        if places is None:
            return self.by_place[1, 0]
        if self.training and bool(places.any()):
            places = places * (torch.rand(places.shape, device=places.device) >= PLACE_DROPOUT)
        return nn.functional.embedding(places, self.by_place, padding_idx=0)[..., 0]

    def standardised(self, features: Tensor, retrieval_score: Tensor) -> Tensor:
        """Features and retrieval score as deviations from what is usual. [B, C, F + 1]"""
        joined = torch.cat([features, retrieval_score[..., None]], dim=-1)
        return ((joined - self.feature_mean) / self.feature_scale).clamp(-FEATURE_LIMIT, FEATURE_LIMIT)

    def attention(self, vectors: Tensor, actions: Tensor, gaps_s: Tensor, real: Tensor, candidates: Tensor) -> Tensor:
        """How much each candidate looks at the null slot (first) and at each event, over the heads. [B, C, H + 1]"""
        return self._shares(vectors, actions, gaps_s, real, candidates)[0].mean(dim=1)

    def _attend(
        self, vectors: Tensor, actions: Tensor, gaps_s: Tensor, real: Tensor, candidates: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the history says of each candidate [B, C, heads * head] and the null slot's share [B, C, heads]."""
        share, value = self._shares(vectors, actions, gaps_s, real, candidates)
        said = (share @ value).transpose(1, 2).reshape(len(vectors), candidates.shape[1], self.value.out_features)
        return said, share[..., 0].transpose(1, 2)

    def _shares(
        self, vectors: Tensor, actions: Tensor, gaps_s: Tensor, real: Tensor, candidates: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The shares [B, heads, C, H + 1] and the values [B, heads, H + 1, head] of null slot and events."""
        batch, length, _ = vectors.shape
        events = vectors * self.scale + self.actions(actions) + self.gaps(time_bucket(gaps_s))
        null_key, null_value = self.null[:, :, None, :].expand(-1, -1, 1, -1)  # [heads, 1, head]
        query = self._split(self.query(candidates * self.scale))  # [B, heads, C, head]
        key = torch.cat([null_key.expand(batch, -1, -1, -1), self._split(self.key(events))], dim=2)
        value = torch.cat([null_value.expand(batch, -1, -1, -1), self._split(self.value(events))], dim=2)
        logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5  # [B, heads, C, H + 1]
        shown = torch.cat([real.new_ones(batch, 1), real], dim=1)
        share = logits.masked_fill(~shown[:, None, None, :], float("-inf")).softmax(dim=-1)
        assert share.shape[-1] == length + 1, f"{share.shape} is not a share of {length} events and the null slot"
        return share, value

    def _likeness(self, vectors: Tensor, real: Tensor, candidates: Tensor) -> Tensor:
        """The largest and the mean cosine of each candidate with the events; 0 without events. [B, C, 2]"""
        if vectors.shape[1] == 0:
            return candidates.new_zeros(*candidates.shape[:2], 2)
        cosine = candidates @ vectors.transpose(-1, -2)  # [B, C, H]; vectors have length 1, padding 0
        shown = real[:, None, :]
        highest = cosine.masked_fill(~shown, -1.0).amax(dim=-1)
        counted = shown.sum(dim=-1)
        mean = cosine.masked_fill(~shown, 0.0).sum(dim=-1) / counted.clamp(min=1)
        return torch.stack([torch.where(counted > 0, highest, torch.zeros_like(highest)), mean], dim=-1)

    def _split(self, joined: Tensor) -> Tensor:
        return joined.view(*joined.shape[:2], self.heads, joined.shape[2] // self.heads).transpose(1, 2)


def _body(inputs: int, config: ModelConfig) -> nn.Sequential:
    """The network above the attention: linear layers with ReLU (GELU would cost a fifth of a request) and dropout."""
    layers: list[nn.Module] = []
    for hidden in config.reranker_hidden:
        layers += [nn.Linear(inputs, hidden), nn.ReLU(), Dropout(config.reranker_dropout)]
        inputs = hidden
    return nn.Sequential(*layers, nn.Linear(inputs, 1))
