"""Self-supervised pre-training of a tower: what histories teach before any target is foretold.

masked: some events of a stretch of history are hidden, and their items are told from all the others, those after
included (the cloze of BERT4Rec, Sun et al., CIKM 2019, and the masked items of S3-Rec, Zhou et al., CIKM 2020; the
tower looks back only, so the hidden items are asked of its last position).
contrastive: two views of a stretch (a part cut out, some events left out, a part put in another order) belong together
among the views of others (CL4SRec, Xie et al., ICDE 2022).

Both use the tower as serving does: one vector of a whole history. Every event may be read, targets are not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models.adam import AdamW, one_group
from models.batches import Progress, Sequences
from models.config import ModelConfig
from models.items import ItemEncoder
from models.tower import UserTower
from models.windows import cut_windows

STRETCH_MIN = 3
HIDDEN_SHARE = 0.25
CUT_SHARE = 0.6
LEFT_OUT_SHARE = 0.3
GRADIENT_MAX = 1.0
TOKENS_PER_BATCH = 6000


@dataclass(frozen=True, slots=True)
class Stretches:
    """B stretches of histories, oldest first, padded at the end with row 0: rows, actions, times_s int64 [B, H]; real
    bool [B, H]."""

    rows: NDArray[np.int64]
    actions: NDArray[np.int64]
    times_s: NDArray[np.int64]
    real: NDArray[np.bool_]


def pretrain(
    items: ItemEncoder, tower: UserTower, sequences: Sequences, config: ModelConfig, progress: Progress
) -> None:
    """Fit items and tower in place, as `config.pretrain` says; `none` does nothing. The caller seeds torch."""
    if config.pretrain == "none":
        return
    windows = cut_windows(sequences, config.history - 1)  # a window has an event more than is read: here all are read
    long_enough = np.flatnonzero(windows.stops - windows.starts >= STRETCH_MIN)
    if not len(long_enough):
        return
    rng = np.random.default_rng(config.seed)
    parameters = [*items.parameters(), *tower.parameters()]
    optimizer = AdamW(one_group(parameters, config.learning_rate), betas=(0.9, 0.98))
    items.train()
    tower.train()
    loss_of = _masked if config.pretrain == "masked" else _contrastive
    lengths = windows.stops - windows.starts
    for epoch in range(config.pretrain_epochs):
        groups = _groups(long_enough, lengths, rng)
        for number, chosen in enumerate(groups):
            rate = min(1.0, (epoch * len(groups) + number + 1) / config.warmup_steps)
            for group in optimizer.groups:
                group.rate = config.learning_rate * rate
            stretches = stretches_of(sequences, windows.starts[chosen], windows.stops[chosen])
            optimizer.forget_gradients()
            loss = loss_of(items, tower, stretches, config, rng)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, GRADIENT_MAX)
            optimizer.step()
            progress(number, len(groups), f"pre-training, {config.pretrain}, epoch {epoch + 1}")


def stretches_of(sequences: Sequences, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> Stretches:
    """Events `starts:stops` of B windows. [B, longest]"""
    places = starts[:, None] + np.arange(int((stops - starts).max()))[None, :]
    inside = places < stops[:, None]
    safe = np.where(inside, places, 0)
    real = inside & (sequences.rows[safe] > 0)
    rows = np.where(real, sequences.rows[safe], 0).astype(np.int64)
    actions = np.where(real, sequences.actions[safe], 0).astype(np.int64)
    return Stretches(rows, actions, np.where(inside, sequences.times_s[safe], 0), real)


def hidden_of(real: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which events of B stretches are hidden: about HIDDEN_SHARE, at least one, never all. [B, H]"""
    order = np.where(real, rng.random(real.shape), 2.0).argsort(axis=1).argsort(axis=1)
    wanted = np.maximum(1, np.rint(HIDDEN_SHARE * real.sum(axis=1)).astype(np.int64))
    hidden: NDArray[np.bool_] = real & (order < np.minimum(wanted, real.sum(axis=1) - 1)[:, None])
    return hidden


def view_of(stretches: Stretches, rng: np.random.Generator) -> Stretches:
    """Each stretch changed in one of the three ways, by lot; times stay where they are."""
    rows, actions, real = stretches.rows.copy(), stretches.actions.copy(), stretches.real.copy()
    for number, way in enumerate(rng.integers(3, size=len(rows)).tolist()):
        known = np.flatnonzero(real[number])
        size = max(1, round(CUT_SHARE * len(known)))
        first = int(rng.integers(len(known) - size + 1)) if len(known) else 0
        part = known[first : first + size]
        if way == 0:
            real[number] = False
            real[number, part] = True
        elif way == 1:
            out = known[rng.random(len(known)) < LEFT_OUT_SHARE]
            real[number, out[: max(0, len(known) - 1)]] = False
        else:
            mixed = rng.permutation(part)
            rows[number, part], actions[number, part] = rows[number, mixed], actions[number, mixed]
    return Stretches(np.where(real, rows, 0), np.where(real, actions, 0), stretches.times_s, real)


def _masked(
    items: ItemEncoder, tower: UserTower, stretches: Stretches, config: ModelConfig, rng: np.random.Generator
) -> Tensor:
    hidden = hidden_of(stretches.real, rng)
    read = stretches.real & ~hidden
    left = Stretches(np.where(read, stretches.rows, 0), np.where(read, stretches.actions, 0), stretches.times_s, read)
    table = items()
    users = _vectors(tower, table, left)
    owners, places = np.nonzero(hidden)
    wanted = torch.from_numpy(stretches.rows[owners, places]).to(table.device)
    logits = (users[torch.from_numpy(owners).to(table.device)] / config.temperature) @ table[1:].T
    return F.cross_entropy(logits, wanted - 1)


def _contrastive(
    items: ItemEncoder, tower: UserTower, stretches: Stretches, config: ModelConfig, rng: np.random.Generator
) -> Tensor:
    """InfoNCE over both views of the batch: the other view of the same stretch among all others."""
    table = items()
    one, other = (_vectors(tower, table, view_of(stretches, rng)) for _ in range(2))
    views = torch.cat([one, other])
    logits = (views @ views.T / config.temperature).fill_diagonal_(float("-inf"))
    size = len(one)
    partner = torch.arange(2 * size, device=views.device).roll(size)
    return F.cross_entropy(logits, partner)


def _vectors(tower: UserTower, table: Tensor, stretches: Stretches) -> Tensor:
    """The user vector of each stretch, asked at its last event. [B, D]"""
    rows, actions, times_s, real = (
        torch.from_numpy(each).to(table.device)
        for each in (stretches.rows, stretches.actions, stretches.times_s, stretches.real)
    )
    vectors = F.embedding(rows, table)
    return tower.newest(vectors, actions, times_s, times_s.amax(dim=1), real)


def _groups(chosen: NDArray[np.int64], lengths: NDArray[np.int64], rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """All windows once, those of like length together, in random order."""
    order = chosen[np.argsort(lengths[chosen] * rng.uniform(0.9, 1.1, len(chosen)), kind="stable")]
    ends = np.cumsum(lengths[order]) // TOKENS_PER_BATCH
    parts = np.split(order, np.flatnonzero(np.diff(ends)) + 1)
    return [parts[place] for place in rng.permutation(len(parts)).tolist()]
