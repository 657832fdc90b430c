"""A transformers model as a text encoder: BERT, DistilBERT, MiniLM and their like by the mean of their real tokens,
causal decoders as GPT-2 by their last real token, which alone has seen the whole text.

Texts of like length in tokens go through together. They are padded at the end, whatever the tokenizer would do: no
padding token is needed, a decoder's real tokens never see what stands behind them, and positions count from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

TOKENS_MAX = 64
Pooling = Literal["mean", "last"]


class UnfitModel(ValueError):
    """A model that gives no text vectors; the message says why."""


class TransformerEncoder:
    """A TextEncoder over a tokenizer and a model, at most TOKENS_MAX tokens a text. `threads` work on each batch; 0: as
    many as the process has."""

    def __init__(self, name: str, tokenizer: Any, model: Any, device: str, batch_max: int, threads: int = 0) -> None:
        self.name = name
        self.width = int(model.config.hidden_size)
        self.tokenizer = tokenizer
        self.model = model
        self.device = device
        self.pooling: Pooling = pooling_of(model.config)
        self._batch_max = batch_max
        self._threads = threads
        self._tokens_max = min(TOKENS_MAX, getattr(model.config, "max_position_embeddings", None) or TOKENS_MAX)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See TextEncoder."""
        import torch

        if self._threads:
            torch.set_num_threads(self._threads)  # it counts for the thread that asks
        tokens = self.tokens(texts)
        vectors = np.zeros((len(texts), self.width), dtype=np.float32)
        order = sorted((place for place, each in enumerate(tokens) if each), key=lambda place: len(tokens[place]))
        with torch.inference_mode():
            for start in range(0, len(order), self._batch_max):
                chosen = order[start : start + self._batch_max]
                vectors[chosen] = self.pooled([tokens[place] for place in chosen]).float().cpu().numpy()
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text; none of a blank one."""
        real = [text for text in texts if text.strip()]
        found = iter(self.tokenizer(real, truncation=True, max_length=self._tokens_max)["input_ids"] if real else ())
        return [list(next(found)) if text.strip() else [] for text in texts]

    def pooled(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """The vectors [n, T] of texts of one token and more, not scaled. Gradients flow where they are wanted."""
        import torch

        longest = max(map(len, tokens))
        ids = torch.tensor([[*each, *[0] * (longest - len(each))] for each in tokens], device=self.device)
        lengths = torch.tensor([len(each) for each in tokens], device=self.device)
        mask = (torch.arange(longest, device=self.device)[None, :] < lengths[:, None]).to(torch.int64)
        hidden: Tensor = self.model(input_ids=ids, attention_mask=mask).last_hidden_state  # [n, L, T]
        if self.pooling == "last":
            return hidden[torch.arange(len(tokens), device=self.device), lengths - 1]
        real = mask[:, :, None].to(hidden.dtype)
        return (hidden * real).sum(dim=1) / real.sum(dim=1)


def pooling_of(config: Any) -> Pooling:
    """`last` for a model whose tokens see only what stands before them, else `mean`. By its configuration: a family
    that transformers knows to generate text and not to fill in masks is causal, and so is what says it is a decoder.
    Raises UnfitModel for an encoder with a decoder behind it."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if getattr(config, "is_encoder_decoder", False):
        raise UnfitModel(f"a {config.model_type} is an encoder with a decoder behind it")
    family = config.model_type
    causal = family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and family not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return "last" if causal or getattr(config, "is_decoder", False) else "mean"


def tiny_encoder(batch_max: int = 64) -> TransformerEncoder:
    """A transformer with random (seeded) weights and bytes for tokens: the wiring of a real one, none of its sense."""
    import torch
    from transformers import BertConfig, BertModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=256, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
        )
        model = BertModel(config).eval()
    return TransformerEncoder("tiny", _bytes_as_tokens, model, "cpu", batch_max)


def _bytes_as_tokens(texts: list[str], max_length: int, **_: object) -> dict[str, list[list[int]]]:
    return {"input_ids": [list(text.encode()[:max_length]) for text in texts]}
