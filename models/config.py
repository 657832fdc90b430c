"""Every choice that shapes a model, in one frozen record that is saved in the release's manifest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Effort = Literal["demo", "normal", "full"]

BUDGET_FLOP: dict[Effort, float] = {"demo": 1.2e12, "normal": 8e12, "full": 4e14}
"""Arithmetic that fitting a tower may take. Two common cores do about 2e10 a second: a minute, 7 minutes, 6 hours. A
budget of arithmetic and not of time, so that a seeded run is the same run on every machine."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Tower and reranker. Defaults are those of up to some 100,000 events."""

    effort: Effort = "normal"
    seed: int = 1

    width: int = 64
    text_width: int = 128
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
    learning_rate: float = 5e-3
    weight_decay: float = 0.01
    warmup_steps: int = 50
    epochs_max: int = 100
    patience: int = 4
    held_out_max: int = 2000

    reranker_heads: int = 2
    reranker_head_width: int = 16
    reranker_hidden: tuple[int, ...] = (128, 64)
    reranker_dropout: float = 0.2
    reranker_batch: int = 64
    reranker_learning_rate: float = 1e-3
    reranker_epochs_max: int = 12
    reranker_patience: int = 2
    listwise_weight: float = 2.0

    @staticmethod
    def for_data(events: int, items: int, effort: Effort, seed: int = 1) -> ModelConfig:
        """The defaults for a data set of this size; `items` bounds the width of the batches, so that logits fit."""
        config = ModelConfig(
            effort=effort,
            seed=seed,
            batch_targets=max(64, min(1024, 20_000_000 // max(items, 1))),
            patience=2 if effort == "demo" else 4,
        )
        if events <= 200_000:
            return config
        larger = replace(
            config,
            blocks=2,
            recency_half_life_days=30.0,
            reranker_heads=4,
            history=64,
            dropout=0.2,
            id_dropout=0.2,
            reranker_hidden=(256, 128, 64),
        )
        return larger if events <= 3_000_000 else replace(larger, width=128, heads=4, id_dropout=0.1)

    def tower_flop(self, tokens: int, targets: int, rows: int, steps: int) -> float:
        """Arithmetic of one epoch of the tower, forward and backward (3 forwards), in multiply-adds times two."""
        d = self.width
        per_token = self.blocks * d * d * (6 + 3 * self.ff_multiple) + 2 * self.blocks * self.history * d
        per_row = 2 * self.text_width * d + 4 * d * d
        return 6.0 * (tokens * per_token + targets * rows * d + steps * rows * per_row)
