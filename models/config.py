"""Every choice that shapes a model, in one frozen record that is saved in the release's manifest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

Effort = Literal["demo", "normal", "full"]
BlockName = Literal["ligr", "sasrec", "hstu"]
Size = Literal["small", "base", "large"]
Pretrain = Literal["none", "masked", "contrastive"]
BLOCK_NAMES: tuple[BlockName, ...] = get_args(BlockName)
SIZES: tuple[Size, ...] = get_args(Size)
PRETRAIN: tuple[Pretrain, ...] = get_args(Pretrain)

BUDGET_FLOP: dict[Effort, float] = {"demo": 6e11, "normal": 6e13, "full": 4e14}
"""Arithmetic that fitting a tower may take. Two common cores do 2e10 to 4e10 a second: half a minute, up to 25 to 50
minutes (24 epochs of a million events on 3,500 items; small data stop long before), hours. A budget of arithmetic and
not of time, so that a seeded run is the same run on every machine."""
FEW_EVENTS, MANY_EVENTS = 200_000, 3_000_000
"""Up to the first a tower is small, above the second it is large."""
SHAPES: dict[Size, tuple[int, int, int, int]] = {
    "small": (64, 1, 2, 50),
    "base": (64, 2, 2, 64),
    "large": (128, 4, 4, 64),
}
"""Width, blocks, heads and history of a tower; a user's row holds 64 events, so a longer reach would read nothing."""


FULL_ITEMS = 50_000
"""Up to so many items a target is told from all of them, which an epoch takes most of."""
DEMO_FULL_ITEMS, DEMO_NEGATIVES = 4_000, 512
"""With the effort `demo` a target is told from all of up to so many items, beyond them from so many drawn ones."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Tower and reranker. Defaults: those of up to some 100,000 events, and what an older manifest does not say."""

    effort: Effort = "normal"
    seed: int = 1

    width: int = 64
    text_width: int = 128
    block: BlockName = "ligr"
    blocks: int = 1
    heads: int = 2
    ff_multiple: int = 2
    history: int = 50
    dropout: float = 0.3
    id_dropout: float = 0.3
    temperature: float = 0.1
    recency_half_life_days: float = 15.0
    """An event this much older than the newest counts half as a target: taste drifts, and so does what is popular."""

    batch_targets: int = 1024
    negatives: int = 0
    """Items drawn for each batch that stand for all others; 0: every item counts (beyond FULL_ITEMS too many)."""
    learning_rate: float = 5e-3
    weight_decay: float = 0.01
    warmup_steps: int = 50
    epochs_max: int = 100
    patience: int = 4
    held_out_max: int = 2000
    pretrain: Pretrain = "none"
    pretrain_epochs: int = 5

    reranker_heads: int = 2
    reranker_head_width: int = 16
    reranker_hidden: tuple[int, ...] = (128, 64)
    reranker_dropout: float = 0.2
    reranker_batch: int = 64
    reranker_learning_rate: float = 1e-3
    reranker_epochs_max: int = 12
    reranker_patience: int = 2
    listwise_weight: float = 2.0

    def __post_init__(self) -> None:
        if self.block not in BLOCK_NAMES:
            raise ValueError(f"there is no block {self.block!r}; there are {', '.join(BLOCK_NAMES)}")

    @staticmethod
    def for_data(
        events: int, items: int, effort: Effort, seed: int = 1, block: BlockName = "ligr", size: Size | None = None
    ) -> ModelConfig:
        """The defaults for a data set of this size; `items` decides whether all of them count against
        a target. `block` and `size` shape the tower; without `size` it is chosen by the number of events."""
        config = ModelConfig(
            effort=effort,
            seed=seed,
            block=block,
            negatives=_negatives_for(items, effort),
            patience=2 if effort == "demo" else 4,
        )
        if events > FEW_EVENTS:
            config = replace(
                config,
                recency_half_life_days=30.0,
                batch_targets=4096,
                reranker_heads=4,
                dropout=0.2,
                id_dropout=0.1 if events > MANY_EVENTS else 0.2,
                reranker_hidden=(256, 128, 64),
            )
        width, blocks, heads, history = SHAPES[size or _size_for(events)]
        blocks *= 2 if block == "hstu" else 1  # one of them holds half of what another block does
        return replace(config, width=width, blocks=blocks, heads=heads, history=history)

    def tower_flop(self, tokens: int, targets: int, rows: int, steps: int) -> float:
        """Arithmetic of one epoch of the tower, forward and backward (3 forwards), in multiply-adds times two."""
        d = self.width
        squares = {"ligr": 6 + 3 * self.ff_multiple, "sasrec": 4 + 2 * self.ff_multiple, "hstu": 5}[self.block]
        per_token = self.blocks * d * d * squares + 2 * self.blocks * self.history * d
        per_row = 2 * self.text_width * d + 4 * d * d
        told_from = min(rows, self.negatives or rows)
        encoded = min(rows, tokens / max(steps, 1) + 2 * self.negatives) if self.negatives else rows
        return 6.0 * (tokens * per_token + targets * told_from * d + steps * encoded * per_row)


def _negatives_for(items: int, effort: Effort) -> int:
    if effort == "demo":
        return 0 if items <= DEMO_FULL_ITEMS else DEMO_NEGATIVES
    return 0 if items <= FULL_ITEMS else 2048


def _size_for(events: int) -> Size:
    return "small" if events <= FEW_EVENTS else "base" if events <= MANY_EVENTS else "large"
