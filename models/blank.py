"""A release whose reranker has learned nothing: what measures and gates are checked against."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from models.release import ModelRelease, Networks


def with_random_reranker(release: ModelRelease, seed: int) -> ModelRelease:
    """The same release with the weights of its reranker shuffled within each tensor: as large as before, and noise."""
    reranker = copy.deepcopy(release.networks.reranker)
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in reranker.parameters():
            order = torch.randperm(weights.numel(), generator=chance).to(weights.device)
            weights.copy_(weights.flatten()[order].view_as(weights))
    networks = Networks(release.networks.items, release.networks.tower, reranker)
    return replace(release, networks=networks.eval())
