"""A checkerboard for the models: even users take even items, odd users odd ones. What a user has not had yet, of their
own colour, is what comes next: the answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from models.batches import RankingExamples, Sequences
from models.config import ModelConfig
from models.fit import FittedTower, assemble, fit_reranker, fit_tower
from models.release import ModelRelease
from models.vocabulary import Vocabulary

ITEMS = 24
USERS = 64
PER_USER = 8
DAY_S = 86_400
START_S = 1_700_000_000

TINY = replace(
    ModelConfig(effort="demo"), width=16, text_width=8, heads=2, history=12, dropout=0.1, id_dropout=0.1,
    epochs_max=15, patience=15, temperature=0.07,
    batch_targets=64, learning_rate=1e-2, warmup_steps=5, reranker_hidden=(16,), reranker_batch=16,
    reranker_learning_rate=1e-2, reranker_epochs_max=20, reranker_patience=20, recency_half_life_days=1e6,
)  # fmt: skip

VOCABULARY = Vocabulary(tuple(f"item-{n}" for n in range(ITEMS)), ("click",))
TEXTS = np.zeros((ITEMS + 1, 6), dtype=np.float32)


def checkerboard(seed: int = 0, users: int = USERS) -> Sequences:
    """PER_USER clicks of each user, a minute apart, on items of their own colour (row = item number + 1)."""
    rng = np.random.default_rng(seed)
    half = ITEMS // 2
    taken = np.stack([rng.permutation(half)[:PER_USER] * 2 + user % 2 for user in range(users)])
    times_s = START_S + np.arange(PER_USER)[None, :] * 60 + rng.integers(0, DAY_S, users)[:, None]
    count = users * PER_USER
    return Sequences.of_events(
        np.repeat(np.arange(users), PER_USER), taken.ravel() + 1, np.ones(count, np.int64), np.ones(count, np.bool_),
        times_s.ravel(),
    )  # fmt: skip


def without_newest(sequences: Sequences) -> tuple[Sequences, NDArray[np.int64]]:
    """The sequences without each user's newest event, and the rows of those."""
    newest = sequences.offsets[1:] - 1
    kept = np.ones(len(sequences.rows), dtype=np.bool_)
    kept[newest] = False
    return sequences.keep(kept), sequences.rows[newest].astype(np.int64)


def examples_of(tower: FittedTower, sequences: Sequences, features: int = 3, seed: int = 0) -> RankingExamples:
    """Each user's newest event among five items of the other colour, with features that say nothing."""
    rng = np.random.default_rng(seed)
    newest = sequences.offsets[1:] - 1
    prefixes = sequences.prefixes_of(newest, TINY.history)
    wanted = sequences.rows[newest].astype(np.int64)
    others = rng.integers(0, ITEMS // 2, (len(wanted), 5)) * 2 + wanted[:, None] % 2 + 1
    candidates = np.concatenate([wanted[:, None], others], axis=1).astype(np.int32)
    labels = np.zeros(candidates.shape, dtype=np.float32)
    labels[:, 0] = 1.0
    return RankingExamples(
        prefixes.rows, prefixes.actions, prefixes.times_s, prefixes.now_s, candidates,
        rng.normal(size=(*candidates.shape, features)).astype(np.float32),
        rng.normal(size=candidates.shape).astype(np.float32), labels, np.ones(len(labels), dtype=np.float32),
    )  # fmt: skip


def tiny_release(release_id: str = "r1", seed: int = 1) -> ModelRelease:
    """A release of the checkerboard with texts, fitted in a second."""
    sequences = checkerboard()
    texts = np.zeros((ITEMS + 1, 6), dtype=np.float32)
    texts[1:] = np.random.default_rng(3).normal(size=(ITEMS, 6))
    config = replace(TINY, seed=seed, epochs_max=2, reranker_epochs_max=1)
    tower = fit_tower(sequences, VOCABULARY, texts, config, device="cpu")
    reranker = fit_reranker(tower, examples_of(tower, sequences), config)
    return assemble(release_id, tower, reranker, ("a", "b", "c"), "ranking_v1", "hashing-512", 5, {"ndcg": 0.5})
