"""Fitting: sequences into a tower, ranking examples into a reranker, both into a release.

Seeded runs on one machine with one number of threads are equal. The caller sets the threads.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.adam import AdamW, one_group
from models.batches import HeldOut, Prefixes, Progress, RankingExamples, Sequences, no_progress
from models.checkpoint import Checkpoints, fingerprint_of
from models.config import ModelConfig
from models.device import pick_device
from models.index import FaissIndex
from models.items import ItemEncoder, TextBasis
from models.losses import ranking_loss
from models.metrics import ndcg
from models.pretrain import pretrain
from models.ranks import joined
from models.release import Manifest, ModelRelease, Networks
from models.reranker import Reranker
from models.tower import UserTower
from models.tower_run import GRADIENT_MAX, USERS_AT_ONCE, TowerRun, seeded, stopped_early, table_of, user_vectors
from models.vocabulary import Vocabulary
from models.windows import hold_out

__all__ = [
    "Averaged", "FittedReranker", "FittedTower", "ModelConfig",
    "assemble", "continue_tower", "fit_reranker", "fit_tower",
]  # fmt: skip


AVERAGE_MAX = 0.99
"""The most that an average keeps of itself at a step: over no more than a hundred steps."""


@dataclass(frozen=True, slots=True)
class FittedTower:
    """A fitted tower and its items. `epochs` it took, `held_out_ndcg` (NDCG@10) it had where it was stopped."""

    config: ModelConfig
    vocabulary: Vocabulary
    text_basis: TextBasis
    items: ItemEncoder
    tower: UserTower
    vectors: NDArray[np.float32]
    device: torch.device
    epochs: int
    held_out_ndcg: float

    def item_vectors(self) -> NDArray[np.float32]:
        """[V, D], length 1; row 0 is zero."""
        return self.vectors

    def user_vectors(self, prefixes: Prefixes) -> NDArray[np.float32]:
        """What B users wanted at their times. [B, D], length 1."""
        table = torch.from_numpy(self.vectors).to(self.device)
        return user_vectors(self.tower, table, prefixes)

    def scores(self, user_vectors: NDArray[np.float32], rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """Inner products of users [B, D] with their candidates' rows [B, C]: the retrieval score. [B, C]"""
        products: NDArray[np.float32] = np.einsum("bd,bcd->bc", user_vectors, self.vectors[rows]).astype(np.float32)
        return products

    def top(self, user_vectors: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """The k best rows of each user, best first, never row 0. [B, min(k, V - 1)]"""
        k = min(k, len(self.vectors) - 1)
        found = torch.from_numpy(user_vectors) @ torch.from_numpy(self.vectors[1:]).T
        best: NDArray[np.int64] = found.topk(k, dim=1).indices.numpy() + 1
        return best


@dataclass(frozen=True, slots=True)
class FittedReranker:
    """A fitted reranker. `held_out_ndcg` is NDCG@10 within the held-out lists (candidates where they stood),
    `retrieval_ndcg` that of the retrieval score alone on the same lists (ties lost), `epochs` where it was stopped."""

    network: Reranker
    epochs: int
    held_out_ndcg: float
    retrieval_ndcg: float


def fit_tower(
    sequences: Sequences,
    vocabulary: Vocabulary,
    text_vectors: NDArray[np.float32],
    config: ModelConfig,
    progress: Progress = no_progress,
    validation: HeldOut | None = None,
    device: str = "auto",
    checkpoints: Path | None = None,
) -> FittedTower:
    """A tower by softmax over all items, or over drawn ones (`config.negatives`), stopped by NDCG@10 on `validation`.

    `text_vectors` float32 [V, T], row 0 and items without text all zero. Without `validation` the newest twentieth of
    time is held out (and not learned from: see `continue_tower`). The effort's budget of arithmetic bounds the epochs.
    With `checkpoints` (a folder) a fit that was killed goes on after its last whole epoch, if all it was given is the
    same (`models.checkpoint.forget` once that is not wanted). Under `torchrun` the processes share every batch.
    """
    assert len(text_vectors) == len(vocabulary), f"{len(text_vectors)} texts for {len(vocabulary)} rows"
    where = pick_device(device)
    if validation is None:
        sequences, validation = hold_out(sequences, config.history, config.held_out_max)
    given = sequences, validation, text_vectors, vocabulary, config
    kept = Checkpoints(checkpoints, fingerprint_of(*given)) if checkpoints else None
    with seeded(config.seed), joined() as ranks:
        basis = TextBasis.fitted(text_vectors, config.text_width)
        items = ItemEncoder(len(vocabulary), config).to(where)
        items.text.copy_(torch.from_numpy(basis.reduced(text_vectors)))
        tower = UserTower(vocabulary.action_count, config).to(where)
        pretrain(items, tower, sequences, config, progress)
        run = TowerRun(items, tower, sequences, config, config.learning_rate, ranks)
        epochs = run.epochs_affordable()
        epoch, best = stopped_early(run, epochs, validation, progress, kept)
    return _fitted(config, vocabulary, basis, items, tower, where, epoch, best)


def continue_tower(
    fitted: FittedTower, sequences: Sequences, epochs: int, progress: Progress = no_progress
) -> FittedTower:
    """The tower after some more epochs on (newer) sequences, not stopped early; `fitted` stays as it is.

    At the full rate: at a third of it, and in one epoch, the tower stayed in the past (MovieTweetings, HR@10 of the
    tower alone after the cut .117, .160 at the full rate, .195 after two epochs).
    """
    items, tower = copy.deepcopy(fitted.items), copy.deepcopy(fitted.tower)
    config = fitted.config
    with seeded(config.seed + 1), joined() as ranks:
        run = TowerRun(items, tower, sequences, config, config.learning_rate, ranks)
        for epoch in range(epochs):
            run.epoch(epoch, epochs, progress, "tower, newest events")
    done = fitted.epochs + epochs
    return _fitted(
        config, fitted.vocabulary, fitted.text_basis, items, tower, fitted.device, done, fitted.held_out_ndcg
    )


def fit_reranker(
    tower: FittedTower, examples: RankingExamples, config: ModelConfig, progress: Progress = no_progress
) -> FittedReranker:
    """A reranker over the tower's (fixed) item vectors, by binary cross entropy and a share of listwise softmax,
    stopped by NDCG@10 on the newest tenth of the requests. Its weights are averages over its last steps."""
    older, newest = examples.by_time()
    fit_on, stop_on = examples.take(older), examples.take(newest)
    retrieval_ndcg = _lists_ndcg(stop_on.retrieval_score, stop_on)
    with seeded(config.seed + 2):
        network = Reranker(tower.vocabulary.action_count, examples.features.shape[2], config).to(tower.device)
        _standardise(network, fit_on)
        table = torch.from_numpy(tower.vectors).to(tower.device)
        optimizer = AdamW(one_group(network.parameters(), config.reranker_learning_rate))
        averaged = Averaged(network)
        best, best_state, best_epoch = -1.0, averaged.network.state_dict(), 0
        rng = np.random.default_rng(config.seed)
        for epoch in range(config.reranker_epochs_max):
            _reranker_epoch(network, averaged, optimizer, table, fit_on, config, rng)
            found = _lists_ndcg(reranked(averaged.network, table, stop_on), stop_on)
            progress(epoch + 1, config.reranker_epochs_max, f"reranker, NDCG@10 {found:.4f} in held-out lists")
            if found > best:
                best, best_state, best_epoch = found, copy.deepcopy(averaged.network.state_dict()), epoch + 1
            elif epoch + 1 - best_epoch >= config.reranker_patience:
                break
        averaged.network.load_state_dict(best_state)
    return FittedReranker(averaged.network.eval(), best_epoch, best, retrieval_ndcg)


def assemble(
    release_id: str,
    tower: FittedTower,
    reranker: FittedReranker,
    feature_names: tuple[str, ...],
    feature_service: str,
    text_encoder: str,
    data_until_us: int,
    notes: Mapping[str, float],
) -> ModelRelease:
    """A release of what was fitted, ready to judge, to save and to serve. `notes`: numbers for the manifest."""
    manifest = Manifest(
        release_id, data_until_us, tower.config.seed, text_encoder, feature_service, feature_names, tower.config,
        len(tower.vocabulary), tower.vocabulary.action_count, len(tower.text_basis.mean), dict(notes),
    )  # fmt: skip
    networks = Networks(copy.deepcopy(tower.items), copy.deepcopy(tower.tower), copy.deepcopy(reranker.network))
    bad = [name for name, value in networks.state_dict().items() if not bool(torch.isfinite(value).all())]
    assert not bad, f"weights are not finite: {', '.join(bad)}"
    index = FaissIndex.built(tower.vectors)
    return ModelRelease(
        manifest, tower.vocabulary, tower.vectors, tower.text_basis, index, networks.eval(), tower.device
    )


def _fitted(
    config: ModelConfig, vocabulary: Vocabulary, basis: TextBasis, items: ItemEncoder, tower: UserTower,
    device: torch.device, epochs: int, held_out_ndcg: float,
) -> FittedTower:  # fmt: skip
    vectors: NDArray[np.float32] = table_of(items).cpu().numpy()
    tower.eval()
    return FittedTower(config, vocabulary, basis, items, tower, vectors, device, epochs, held_out_ndcg)


# --------------------------------------------------------------------------------------------- the reranker


class Averaged:
    """A copy of a network whose weights are averages of the network's over about the last ninth of its steps: where a
    fit happens to stop decides less ("Acceleration of Stochastic Approximation by Averaging", 1992)."""

    def __init__(self, network: Reranker) -> None:
        self.network = copy.deepcopy(network)
        self.steps = 0

    def follow(self, network: Reranker) -> None:
        """After a step of the network."""
        self.steps += 1
        kept = min(AVERAGE_MAX, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            for mine, its in zip(self.network.parameters(), network.parameters(), strict=True):
                mine.lerp_(its, 1.0 - kept)


def _reranker_epoch(
    network: Reranker, averaged: Averaged, optimizer: AdamW, table: Tensor, examples: RankingExamples,
    config: ModelConfig, rng: np.random.Generator,
) -> None:  # fmt: skip
    network.train()
    order = rng.permutation(len(examples))
    for start in range(0, len(order), config.reranker_batch):
        part = examples.take(order[start : start + config.reranker_batch])
        optimizer.forget_gradients()
        logits = _logits(network, table, part)
        real = torch.from_numpy(part.candidate_rows > 0).to(table.device)
        loss = ranking_loss(logits, torch.from_numpy(part.labels).to(table.device), real, config.listwise_weight)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_MAX)
        optimizer.step()
        averaged.follow(network)


def _logits(network: Reranker, table: Tensor, part: RankingExamples) -> Tensor:
    """[B, C], of candidates where they stood."""
    where = table.device
    rows, actions, times_s, now_s, candidates = (
        torch.from_numpy(each.astype(np.int64)).to(where)
        for each in (part.history_rows, part.history_actions, part.history_times_s, part.now_s, part.candidate_rows)
    )
    features, score = (torch.from_numpy(each).to(where) for each in (part.features, part.retrieval_score))
    places = torch.from_numpy(part.places.astype(np.int64)).to(where)
    logits: Tensor = network(
        table[rows], actions, now_s[:, None] - times_s, rows > 0, table[candidates], features, score, places
    )
    return logits


def reranked(network: Reranker, table: Tensor, examples: RankingExamples) -> NDArray[np.float32]:
    network.eval()
    with torch.inference_mode():
        parts = [
            _logits(network, table, examples.take(np.arange(start, min(start + USERS_AT_ONCE, len(examples)))))
            for start in range(0, len(examples), USERS_AT_ONCE)
        ]
    scores: NDArray[np.float32] = torch.cat(parts).cpu().numpy()
    return scores


def _lists_ndcg(scores: NDArray[np.float32], examples: RankingExamples) -> float:
    """NDCG@10 of the first taken candidate of each list that has one; of equal scores the taken one comes last."""
    some = examples.labels.max(axis=1) > 0
    real = examples.candidate_rows[some] > 0
    wanted = examples.labels[some].argmax(axis=1)
    shown = np.where(real, scores[some], -np.inf)
    own = shown[np.arange(len(shown)), wanted][:, None]
    return ndcg(np.asarray((shown >= own).sum(axis=1) - 1, dtype=np.int64), 10)


def _standardise(network: Reranker, examples: RankingExamples) -> None:
    real = examples.candidate_rows > 0
    joined = np.concatenate([examples.features, examples.retrieval_score[..., None]], axis=2)[real].astype(np.float64)
    mean, deviation = joined.mean(axis=0), joined.std(axis=0)
    network.feature_mean.copy_(torch.from_numpy(mean.astype(np.float32)))
    network.feature_scale.copy_(torch.from_numpy(np.where(deviation > 1e-6, deviation, 1.0).astype(np.float32)))
