"""Fitting a text encoder to behaviour: the texts of items that the same people took one after the other come near.

Low-rank adapters (Hu et al. 2021, LoRA: W + B A of rank r) on the queries and values of every attention layer; the
pre-trained weights stay. Fitted by softmax within the batch: of the partners of all pairs, an item's own is the next
one, each corrected by how often it is drawn as a partner (Yi et al. 2019, Sampling-bias-corrected neural modeling), or
popular items would be pushed away for being popular. Stopped by pairs that are newer than all it learns from.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.batches import Progress, no_progress
from models.config import Effort
from models.losses import MASKED
from models.transformer import TransformerEncoder, UnfitModel

QUERY_AND_VALUE = (
    ("query", "value"), ("q_lin", "v_lin"), ("query_proj", "value_proj"), ("q_proj", "v_proj"), ("q", "v"),
    ("c_attn",), ("Wqkv",), ("query_key_value",),
)  # fmt: skip
"""What query and value projections are called in BERT's kin, DistilBERT, DeBERTa, OPT and Llama's kin, MPNet; where
they are one with the key (GPT-2, ModernBERT, GPT-NeoX) all three are adapted."""


class TuningMissing(ImportError):
    """The package that tuning needs is not installed; the message says which and how."""


@dataclass(frozen=True, slots=True)
class TuningConfig:
    """How an encoder is tuned. `batch` pairs a step, at most `pairs_max` an epoch; `held_out_max` pairs stop it."""

    seed: int = 1
    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    learning_rate: float = 1e-4
    warmup_steps: int = 20
    temperature: float = 0.05
    batch: int = 128
    pairs_max: int = 64_000
    epochs_max: int = 4
    patience: int = 1
    held_out_max: int = 1000

    @staticmethod
    def for_effort(effort: Effort, seed: int) -> TuningConfig:
        """MiniLM and titles, 2 cores: about 3 s a step, so 5 minutes, an hour and a half, and not without a GPU."""
        match effort:
            case "demo":
                return TuningConfig(seed, pairs_max=6_400, epochs_max=2)
            case "normal":
                return TuningConfig(seed)
            case "full":
                return TuningConfig(seed, pairs_max=1_000_000, epochs_max=8, patience=2, held_out_max=4000)


@dataclass(frozen=True, slots=True)
class Pairs:
    """N pairs of rows: an item and one that its user took soon after. int64 [N] each."""

    items: NDArray[np.int64]
    partners: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.items)

    def take(self, places: NDArray[np.int64]) -> Pairs:
        """Some of them, in the order asked."""
        return Pairs(self.items[places], self.partners[places])


@dataclass(frozen=True, slots=True)
class Tuned:
    """What came of it. `model` is a transformers model with the adapters merged in; `epochs` it took (0: it was best as
    it had been); the accuracies are those of `pair_accuracy` on the held-out pairs."""

    model: Any
    tokenizer: Any
    epochs: int
    accuracy_before: float
    accuracy: float


def tune(
    encoder: TransformerEncoder,
    texts: Sequence[str],
    pairs: Pairs,
    held_out: Pairs,
    config: TuningConfig,
    progress: Progress = no_progress,
) -> Tuned:
    """Tune on pairs of rows of `texts` (of rows with a text only); `encoder` stays as it is. Raises TuningMissing,
    UnfitModel."""
    with _seeded(config.seed):
        adapted = _with_adapters(encoder, config)
        run = _Run(adapted, adapted.tokens(texts), pairs, config)
        held_out = _some(held_out, config.held_out_max, np.random.default_rng(config.seed))
        before = best = run.accuracy(held_out)
        best_state, best_epoch = run.state(), 0
        for epoch in range(config.epochs_max):
            run.epoch(epoch, progress)
            found = run.accuracy(held_out)
            text = f"text encoder, held-out pairs {found:.4f} right ({before:.4f} before)"
            progress((epoch + 1) * run.steps, config.epochs_max * run.steps, text)
            if found > best:
                best, best_state, best_epoch = found, run.state(), epoch + 1
            elif epoch + 1 - best_epoch >= config.patience:
                break
        run.restore(best_state)
    merged = adapted.model.merge_and_unload().eval().to("cpu")
    return Tuned(merged, encoder.tokenizer, best_epoch, before, best)


def pair_accuracy(vectors: NDArray[np.float32], pairs: Pairs) -> float:
    """How often an item is nearer to its partner than to the partner of another pair (another item), equal ones half:
    chance is .5. Others come as often as they are partners, so popularity alone gains nothing. vectors [V, T], scaled
    """
    near = vectors[pairs.items] @ vectors[pairs.partners].T  # [N, N]
    own = np.diagonal(near)[:, None]
    other = (pairs.partners[None, :] != pairs.partners[:, None]) & (pairs.partners[None, :] != pairs.items[:, None])
    right = (own > near) + 0.5 * (own == near)
    return float(right[other].mean()) if other.any() else 0.5


def in_batch_softmax(items: Tensor, partners: Tensor, log_chance: Tensor, wrong: Tensor, temperature: float) -> Tensor:
    """Cross entropy of each item's own partner among the partners of the batch, each score less the logarithm of the
    chance that the partner is drawn. items, partners [B, T] of length 1, log_chance [B], wrong (bool: not to be told
    apart from the own one) [B, B]"""
    logits = items @ partners.T / temperature - log_chance[None, :]
    logits = logits.masked_fill(wrong, MASKED)
    return F.cross_entropy(logits, torch.arange(len(items), device=items.device))


class _Run:
    """What stays the same over the epochs: tokens, pairs, chances, the optimizer."""

    def __init__(
        self, encoder: TransformerEncoder, tokens: list[list[int]], pairs: Pairs, config: TuningConfig
    ) -> None:
        self.encoder, self.tokens, self.pairs, self.config = encoder, tokens, pairs, config
        drawn = np.bincount(pairs.partners, minlength=len(tokens)) / max(len(pairs), 1)
        self.log_chance = np.log(np.maximum(drawn, 1e-9)).astype(np.float32)
        self.steps = max(1, -(-min(len(pairs), config.pairs_max) // config.batch))
        self.rng = np.random.default_rng(config.seed)
        self.taken = 0
        self.learned = [weight for weight in encoder.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.learned, lr=config.learning_rate, weight_decay=0.0)

    def epoch(self, epoch: int, progress: Progress) -> None:
        """One pass over the pairs, or over `pairs_max` of them, drawn anew."""
        self.encoder.model.train()
        order = self.rng.permutation(len(self.pairs))[: self.config.pairs_max]
        for start in range(0, len(order), self.config.batch):
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.learning_rate * min(1.0, (self.taken + 1) / self.config.warmup_steps)
            self.optimizer.zero_grad(set_to_none=True)
            loss = self._loss(self.pairs.take(order[start : start + self.config.batch]))
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.learned, 1.0)
            self.optimizer.step()
            self.taken += 1
            planned = self.config.epochs_max * self.steps
            text = f"text encoder, epoch {epoch + 1} of at most {self.config.epochs_max}"
            progress(min(self.taken, planned - 1), planned, text)

    def accuracy(self, pairs: Pairs) -> float:
        """See pair_accuracy."""
        self.encoder.model.eval()
        rows = np.unique(np.concatenate([pairs.items, pairs.partners]))
        vectors = np.zeros((len(self.tokens), self.encoder.width), dtype=np.float32)
        order = sorted(rows.tolist(), key=lambda row: len(self.tokens[row]))
        with torch.inference_mode():
            for start in range(0, len(order), self.config.batch):
                some = order[start : start + self.config.batch]
                found = self.encoder.pooled([self.tokens[row] for row in some])
                vectors[some] = F.normalize(found.float(), dim=1).cpu().numpy()
        return pair_accuracy(vectors, pairs)

    def state(self) -> list[Tensor]:
        """The adapters as they are."""
        return [weight.detach().clone() for weight in self.learned]

    def restore(self, state: list[Tensor]) -> None:
        """The adapters as they were."""
        with torch.no_grad():
            for weight, value in zip(self.learned, state, strict=True):
                weight.copy_(value)

    def _loss(self, pairs: Pairs) -> Tensor:
        rows, place = np.unique(np.concatenate([pairs.items, pairs.partners]), return_inverse=True)
        vectors = F.normalize(self.encoder.pooled([self.tokens[row] for row in rows.tolist()]).float(), dim=1)
        items, partners = (torch.from_numpy(each).to(vectors.device) for each in np.split(place, 2))
        same = partners[None, :] == partners[:, None]
        same.fill_diagonal_(False)
        wrong = same | (partners[None, :] == items[:, None])
        log_chance = torch.from_numpy(self.log_chance[pairs.partners]).to(vectors.device)
        return in_batch_softmax(vectors[items], vectors[partners], log_chance, wrong, self.config.temperature)


def _with_adapters(encoder: TransformerEncoder, config: TuningConfig) -> TransformerEncoder:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise TuningMissing("tuning a text encoder needs the package peft: pip install 'freshrank[text]'") from error
    leaves = {name.rpartition(".")[2] for name, _ in encoder.model.named_modules()}
    targets = next((each for each in QUERY_AND_VALUE if leaves.issuperset(each)), None)
    if targets is None:
        raise UnfitModel(f"{encoder.name}: its layers of queries and values go by no name that is known")
    lora = LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=list(targets),
        fan_in_fan_out=targets == ("c_attn",),  # GPT-2's layers are convolutions, their weights turned round
    )  # fmt: skip
    model = get_peft_model(copy.deepcopy(encoder.model), lora)
    return TransformerEncoder(encoder.name, encoder.tokenizer, model, encoder.device, config.batch)


def _some(pairs: Pairs, most: int, rng: np.random.Generator) -> Pairs:
    return pairs if len(pairs) <= most else pairs.take(np.sort(rng.choice(len(pairs), most, replace=False)))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
