"""One fit of a tower: batches, loss, optimizer, early stopping, a checkpoint after every epoch.

Seeded runs on one machine with one number of threads are equal, whether they were killed and resumed or not.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.adam import MOMENTS, AdamW, Group
from models.batches import HeldOut, Prefixes, Progress, Sequences
from models.checkpoint import Checkpoints, Reached
from models.config import BUDGET_FLOP, ModelConfig
from models.device import compiled, fast_products, half_precision, moved
from models.items import ItemEncoder
from models.losses import Negatives, full_softmax, sampled_softmax
from models.metrics import ndcg, places
from models.ranks import Ranks
from models.tower import UserTower
from models.windows import Packed, Windows, batches, cut_windows, target_weights

USERS_AT_ONCE = 256
GRADIENT_MAX = 1.0
LOSS_TOLD_EVERY = {"cpu": 1, "cuda": 50}
"""Steps between two looks at the loss: a GPU would stand still for each."""


@dataclass(slots=True)
class Best:
    """The best epoch so far: its number from 1 (0: none yet), its NDCG@10 and its weights."""

    epoch: int
    ndcg: float
    items: dict[str, Tensor]
    tower: dict[str, Tensor]


class TowerRun:
    """What stays the same over the epochs of one fit: windows, weights, optimizer, chance."""

    def __init__(
        self, items: ItemEncoder, tower: UserTower, sequences: Sequences, config: ModelConfig, rate: float, ranks: Ranks
    ) -> None:
        self.items, self.tower, self.config, self.sequences, self.ranks = items, tower, config, sequences, ranks
        compiled(tower.blocks, items.ids.device)
        self.weights = target_weights(sequences, config.recency_half_life_days)
        windows = cut_windows(sequences, config.history)
        # A window without a target teaches nothing.
        taught = np.concatenate([[0.0], np.cumsum(self.weights, dtype=np.float64)])
        some = taught[windows.stops] > taught[windows.targets_from]
        self.windows = Windows(windows.starts[some], windows.stops[some], windows.targets_from[some])
        self.batch_targets = config.batch_targets * ranks.world
        self.steps = max(1, math.ceil(np.count_nonzero(self.weights) / self.batch_targets))
        self.rng = np.random.default_rng(config.seed)
        self.rate = rate
        self.optimizer = AdamW(_groups_of(items, tower, config, rate), betas=(0.9, 0.98))
        self.taken = 0
        self.loss = 0.0
        counted = np.bincount(sequences.rows[sequences.positive], minlength=len(items.counts)).astype(np.float32)
        counted[0] = 0
        items.counts.copy_(torch.from_numpy(counted))
        as_target = np.bincount(sequences.rows[self.weights > 0], minlength=len(counted)).astype(np.float32)
        self.negatives = Negatives(torch.from_numpy(as_target), config.negatives) if config.negatives else None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that is learned, in a fixed order."""
        return [*self.items.parameters(), *self.tower.parameters()]

    def epochs_affordable(self) -> int:
        """As many epochs as the effort's budget pays for, at least one."""
        tokens = int((self.windows.stops - self.windows.starts).sum())
        targets = int(np.count_nonzero(self.weights))
        flop = self.config.tower_flop(tokens, targets, len(self.items.counts), self.steps)
        return max(1, min(self.config.epochs_max, int(BUDGET_FLOP[self.config.effort] / max(flop, 1.0))))

    def epoch(self, epoch: int, epochs: int, progress: Progress, text: str) -> float:
        """One pass over all windows. The mean loss."""
        self.items.train()
        self.tower.train()
        losses = []
        planned = epochs * self.steps
        told_every = LOSS_TOLD_EVERY[self.items.ids.device.type]
        shard = self.ranks.rank, self.ranks.world
        for packed in batches(self.sequences, self.windows, self.weights, self.batch_targets, self.rng, shard):
            if not packed.weight_sum:
                continue
            losses.append(self.step(packed, planned))
            if self.taken % told_every == 0:
                self.loss = float(losses[-1])
            said = f"{text}, epoch {epoch + 1} of at most {epochs}, loss {self.loss:.3f}"
            progress(min(self.taken, planned - 1), planned, said)
        return float(torch.stack(losses).mean()) if losses else 0.0

    def step(self, packed: Packed, planned: int) -> Tensor:
        """One batch, one step. The loss of this rank's share of it."""
        self._set_rate(planned)
        self.optimizer.forget_gradients()
        loss = torch.zeros((), device=self.items.ids.device)
        if packed.weights.any():
            with fast_products(loss.device):
                with half_precision(loss.device):
                    loss = tower_loss(self.items, self.tower, packed, self.config, self.negatives)
                loss.backward()  # type: ignore[no-untyped-call]
        self.ranks.add_up(self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, GRADIENT_MAX)
        self.optimizer.step()
        self.taken += 1
        return loss.detach()

    def reached(self, epoch: int, best: Best) -> Reached:
        """All that the epochs after `epoch` need of those before."""
        moments = {
            f"{number}.{name}": value
            for number, each in enumerate(self.parameters)
            for name, value in self.optimizer.state.get(each, {}).items()
        }
        parts = {"items": self.items.state_dict(), "tower": self.tower.state_dict(), "moments": moments,
                 "best_items": best.items, "best_tower": best.tower}  # fmt: skip
        return Reached(parts, epoch, self.taken, best.epoch, best.ndcg, self.rng.bit_generator.state)

    def resume(self, reached: Reached) -> Best:
        """Stand where a run stood when it said `reached`."""
        self.items.load_state_dict(reached.parts["items"])
        self.tower.load_state_dict(reached.parts["tower"])
        for number, each in enumerate(self.parameters):
            names = {name: f"{number}.{name}" for name in MOMENTS}
            moments = reached.parts["moments"]
            if moments.keys() >= set(names.values()):  # what never had a gradient has no moments
                self.optimizer.state[each] = {name: moments[key] for name, key in names.items()}
        self.taken = reached.taken
        self.rng.bit_generator.state = reached.order
        best_items, best_tower = dict(reached.parts["best_items"]), dict(reached.parts["best_tower"])
        return Best(reached.best_epoch, reached.best_ndcg, best_items, best_tower)

    def _set_rate(self, planned: int) -> None:
        """Up in a straight line over the first steps, then down to a twentieth at the last planned one."""
        up = min(1.0, (self.taken + 1) / self.config.warmup_steps)
        down = max(0.05, 1.0 - self.taken / max(planned, 1))
        for group in self.optimizer.groups:
            group.rate = self.rate * up * down


def stopped_early(
    run: TowerRun, epochs: int, validation: HeldOut, progress: Progress, checkpoints: Checkpoints | None
) -> tuple[int, float]:
    """Fit until NDCG@10 on `validation` has not risen for `patience` epochs; leave the weights of the best epoch.

    With checkpoints: go on where they end, and leave one after each epoch.
    """
    best, first = Best(0, -1.0, *_state(run.items, run.tower)), 0
    reached = checkpoints.read(run.items.ids.device) if checkpoints else None
    if reached:
        best, first = run.resume(reached), reached.epoch
    said = "tower"
    for epoch in range(first, epochs):
        if epoch - best.epoch >= run.config.patience:
            break
        run.epoch(epoch, epochs, progress, said)
        found = run.ranks.agreed(held_out_ndcg(run.items, run.tower, validation))
        said = f"tower, NDCG@10 {found:.4f} held out"
        progress(min(run.taken, epochs * run.steps - 1), epochs * run.steps, f"{said}, loss {run.loss:.3f}")
        if found >= best.ndcg:
            best = Best(epoch + 1, found, *_state(run.items, run.tower))
        if checkpoints and run.ranks.writes:
            checkpoints.write(run.reached(epoch + 1, best))
    run.items.load_state_dict(best.items)
    run.tower.load_state_dict(best.tower)
    progress(epochs * run.steps, epochs * run.steps, "tower fitted")
    return best.epoch, best.ndcg


def tower_loss(
    items: ItemEncoder, tower: UserTower, packed: Packed, config: ModelConfig, negatives: Negatives | None = None
) -> Tensor:
    """The loss of a batch. Among all items, or among `negatives` drawn for it."""
    where, first = items.ids.device, packed.first
    taught = np.flatnonzero(packed.weights[:, first:])
    wanted, weights = packed.target_rows[:, first:].ravel()[taught], packed.weights[:, first:].ravel()[taught]
    rows, actions, times_s, asked_s, places, targets, weight = (
        moved(each, where)
        for each in (packed.rows, packed.actions, packed.times_s, packed.asked_s, taught, wanted,
                     weights / np.float32(packed.weight_sum))
    )  # fmt: skip
    if negatives is None:
        table = items()
        users = tower(nn.functional.embedding(rows, table), actions, times_s, asked_s, rows > 0, first)
        return full_softmax(users.flatten(0, 1)[places], table, targets, weight, config.temperature)
    drawn, corrections = negatives.draw(targets)
    needed, where_each = torch.unique(torch.cat([rows.flatten(), targets, drawn]), return_inverse=True)
    own, target, negative = where_each.split([rows.numel(), len(targets), len(drawn)])
    table = items(needed)
    read = nn.functional.embedding(own.view(rows.shape), table)
    users = tower(read, actions, times_s, asked_s, rows > 0, first).flatten(0, 1)[places]
    same = targets[:, None] == drawn[None, :]
    return sampled_softmax(users, table[target], table[negative], corrections, same, weight, config.temperature)


def user_vectors(tower: UserTower, table: Tensor, prefixes: Prefixes) -> NDArray[np.float32]:
    """What users wanted at their times. [B, D]"""
    tower.eval()
    found = [np.zeros((0, table.shape[1]), dtype=np.float32)]
    with torch.inference_mode():
        for start in range(0, len(prefixes), USERS_AT_ONCE):
            part = prefixes.take(np.arange(start, min(start + USERS_AT_ONCE, len(prefixes))))
            rows, actions, times_s, now_s = (
                moved(each.astype(np.int64), table.device)
                for each in (part.rows, part.actions, part.times_s, part.now_s)
            )
            wanted = tower.newest(table[rows], actions, times_s, now_s, rows > 0)
            strangers = ~(rows > 0).any(dim=1)  # their newest token is the start, not the padding of the others
            if bool(strangers.any()):
                none, when, nobody = actions[strangers, :0], now_s[strangers], (rows > 0)[strangers, :0]
                wanted[strangers] = tower.newest(table[rows[strangers, :0]], none, times_s[strangers, :0], when, nobody)
            found.append(wanted.cpu().numpy())
    return np.concatenate(found)


def table_of(items: ItemEncoder) -> Tensor:
    """All item vectors. [V, D]"""
    items.eval()
    with torch.inference_mode():
        table: Tensor = items()
        return table


def held_out_ndcg(items: ItemEncoder, tower: UserTower, validation: HeldOut) -> float:
    """NDCG@10 among all items."""
    table = table_of(items)
    users = torch.from_numpy(user_vectors(tower, table, validation.prefixes))
    known = table[1:].cpu()
    parts = [np.zeros(0, dtype=np.int64)]
    for start in range(0, len(users), USERS_AT_ONCE):
        scores = (users[start : start + USERS_AT_ONCE] @ known.T).numpy()
        parts.append(places(scores, validation.target_rows[start : start + USERS_AT_ONCE] - 1))
    return ndcg(np.concatenate(parts), 10)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's chance from a seed, and put back as it was afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _groups_of(items: ItemEncoder, tower: UserTower, config: ModelConfig, rate: float) -> list[Group]:
    """Matrices of the networks decay; id vectors, biases and norms do not."""
    named = [*items.named_parameters(), *tower.named_parameters()]
    dense = [value for name, value in named if value.ndim == 2 and name != "ids" and not name.startswith("by_")]
    others = [value for name, value in named if not (value.ndim == 2 and name != "ids" and not name.startswith("by_"))]
    return [Group(dense, rate, config.weight_decay), Group(others, rate)]


def _state(items: nn.Module, tower: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return copy.deepcopy(items.state_dict()), copy.deepcopy(tower.state_dict())
