"""What an item is to the models: its text and its own learned vector, mixed by how often it was seen.

    e = LN(g * P(text) + (1 - g) * id),   g = sigmoid(a + b log(1 + n) + W [P(text); id])

scaled to length 1. The same vectors are the towers' input and their output. While fitting, an item's id is dropped now
and then (with n = 0), so the path of an item that was never seen is trained too: `P(text)` alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models.config import ModelConfig

ID_START = 0.5


@dataclass(frozen=True, slots=True)
class TextBasis:
    """How raw text vectors are centred, reduced and whitened: fitted once per release. mean [T], projection [T, W]"""

    mean: NDArray[np.float32]
    projection: NDArray[np.float32]

    @staticmethod
    def fitted(text_vectors: NDArray[np.float32], width: int) -> TextBasis:
        """The whitened principal axes of the rows that have text (all-zero rows have none). Fewer axes than `width`
        carry something when the corpus is small: the others are 0."""
        raw_width = text_vectors.shape[1]
        known = text_vectors[np.any(text_vectors != 0, axis=1)].astype(np.float64)
        projection = np.zeros((raw_width, width))
        if len(known) < 2:
            return TextBasis(np.zeros(raw_width, np.float32), np.eye(raw_width, width, dtype=np.float32))
        mean = known.mean(axis=0)
        values, axes = np.linalg.eigh(np.cov(known - mean, rowvar=False))
        kept = np.argsort(-values, kind="stable")[:width]
        kept = kept[values[kept] > values.max() * 1e-4]
        # An axis of an eigenvector is free in sign: fixed here, so that equal data give equal weights everywhere.
        signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
        # Whitening in full would blow the last axes up to the size of the first ones: the square root goes half way.
        projection[:, : len(kept)] = axes[:, kept] * signs[kept] / np.sqrt(values[kept] + 0.1 * values[kept].mean())
        return TextBasis(mean.astype(np.float32), projection.astype(np.float32))

    def reduced(self, text_vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """[n, T] into [n, W], about unit variance per axis; a row without text stays 0."""
        known = np.any(text_vectors != 0, axis=1, keepdims=True)
        return np.where(known, (text_vectors - self.mean) @ self.projection, 0.0).astype(np.float32)


class ItemEncoder(nn.Module):
    """All items of a vocabulary as unit vectors. `text` [V, W] reduced and `counts` [V] are given, not learned."""

    text: Tensor
    counts: Tensor

    def __init__(self, rows: int, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.id_dropout = config.id_dropout
        self.project = nn.Sequential(nn.Linear(config.text_width, width), nn.GELU(), nn.Linear(width, width))
        self.ids = nn.Parameter(torch.empty(rows, width))
        self.mix = nn.Linear(2 * width, width)
        self.by_count = nn.Parameter(torch.full((width,), -0.5))
        self.norm = nn.LayerNorm(width)
        self.register_buffer("text", torch.zeros(rows, config.text_width), persistent=False)
        self.register_buffer("counts", torch.zeros(rows))
        nn.init.normal_(self.ids, std=ID_START)
        nn.init.constant_(self.mix.bias, 1.0)

    def forward(self, rows: Tensor | None = None) -> Tensor:
        """All items [V, D], or those of the rows [n] alone [n, D]. Row 0 is zero."""
        ids: Tensor = self.ids
        counts, text = self.counts, self.text
        if rows is not None:
            ids, counts, text = F.embedding(rows, ids), counts[rows], text[rows]
        if self.training and self.id_dropout > 0:
            kept = (torch.rand(len(ids), device=ids.device) >= self.id_dropout).to(ids.dtype)
            ids, counts = ids * kept[:, None], counts * kept
        vectors = self._mixed(text, ids, counts)
        if rows is not None:
            return vectors * (rows > 0)[:, None].to(vectors.dtype)
        keep = torch.ones(len(ids), 1, device=ids.device)
        keep[0] = 0.0
        return vectors * keep

    def cold(self, text: Tensor) -> Tensor:
        """Items that were never seen, by reduced text [n, W] alone. [n, D]; no text, no vector: 0."""
        known = (text != 0).any(dim=1, keepdim=True).to(text.dtype)
        ids = torch.zeros(len(text), self.ids.shape[1], device=text.device)
        return self._mixed(text, ids, torch.zeros(len(text), device=text.device)) * known

    def _mixed(self, text: Tensor, ids: Tensor, counts: Tensor) -> Tensor:
        known = (text != 0).any(dim=1, keepdim=True).to(text.dtype)
        by_text = self.project(text) * known
        gate = torch.sigmoid(self.mix(torch.cat([by_text, ids], dim=1)) + self.by_count * torch.log1p(counts)[:, None])
        return F.normalize(self.norm(gate * by_text + (1 - gate) * ids), dim=1)
