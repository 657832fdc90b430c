"""The blocks a user tower can be made of, behind one interface: tokens in, the newest of them out, under a bias.

    ligr     gated residuals around softmax attention and a SwiGLU network ("From Features to Transformers: Redefining
             Ranking for Scalable Impact", 2025; as the tower of "eSASRec", 2025)
    sasrec   softmax attention and a plain network, pre-norm ("Self-Attentive Sequential Recommendation", 2018)
    hstu     attention by SiLU of each logit alone, its sum gated, no network behind it ("Actions Speak Louder than
             Words: Trillion-Parameter Sequential Transducers for Generative Recommendations", 2024)

The bias holds what attention knows beside the tokens: how far apart two events stand in the row and in time, and what
may not be looked at.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import BlockName, ModelConfig

HIDDEN = -1e4
"""The bias of what may not be looked at: its softmax is 0, and so is its SiLU (minus infinity would give NaN there)."""


class Block(nn.Module):
    """One layer of a tower."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads

    def forward(self, tokens: Tensor, bias: Tensor) -> Tensor:
        """The last Q of the tokens [B, K, D] after they looked at all of them under bias [B, heads, Q, K]. [B, Q, D]"""
        raise NotImplementedError

    def split(self, joined: Tensor) -> Tensor:
        """[B, N, heads * E] by heads. [B, heads, N, E]"""
        return joined.view(*joined.shape[:2], self.heads, joined.shape[2] // self.heads).transpose(1, 2)


class Ligr(Block):
    """Gated softmax attention, then a gated SwiGLU: `x + sigmoid(W x) * f(LN x)` each."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        width, inner = config.width, config.width * config.ff_multiple
        self.norm_attention = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.mix = nn.Linear(width, width)
        self.gate_attention = nn.Linear(width, width)
        self.norm_forward = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 2 * inner)
        self.narrow = nn.Linear(inner, width)
        self.gate_forward = nn.Linear(width, width)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, bias: Tensor) -> Tensor:
        """Block."""
        queries = bias.shape[2]
        asking, normed = tokens[:, -queries:], self.norm_attention(tokens)
        attended = self.mix(_softmax_attention(self, self.query(normed[:, -queries:]), self.key_value(normed), bias))
        asking = asking + torch.sigmoid(self.gate_attention(asking)) * self.drop(attended)
        gated, linear = self.widen(self.norm_forward(asking)).chunk(2, dim=-1)
        widened = self.narrow(F.silu(gated) * linear)
        answer: Tensor = asking + torch.sigmoid(self.gate_forward(asking)) * self.drop(widened)
        return answer


class Sasrec(Block):
    """Softmax attention, then two linear layers with GELU: `x + f(LN x)` each."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        width, inner = config.width, config.width * config.ff_multiple
        self.norm_attention = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.mix = nn.Linear(width, width)
        self.norm_forward = nn.LayerNorm(width)
        self.widen = nn.Linear(width, inner)
        self.narrow = nn.Linear(inner, width)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, bias: Tensor) -> Tensor:
        """Block."""
        queries = bias.shape[2]
        normed = self.norm_attention(tokens)
        attended = _softmax_attention(self, self.query(normed[:, -queries:]), self.key_value(normed), bias)
        asking = tokens[:, -queries:] + self.drop(self.mix(attended))
        answer: Tensor = asking + self.drop(self.narrow(F.gelu(self.widen(self.norm_forward(asking)))))
        return answer


class Hstu(Block):
    """Each event adds its value as strongly as its own logit says, whatever the others say: how much was done counts.

    `x + W(LN(sum of SiLU(q k + bias) v) * u)`, all of q, k, v, u through SiLU. The paper divides the sum by the length
    of the row; the norm behind it makes any constant factor vanish, so it is left out.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        width = config.width
        self.norm_attention = nn.LayerNorm(width)
        self.query_gate = nn.Linear(width, 2 * width)
        self.key_value = nn.Linear(width, 2 * width)
        self.norm_sum = nn.LayerNorm(width)
        self.mix = nn.Linear(width, width)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, bias: Tensor) -> Tensor:
        """Block."""
        queries = bias.shape[2]
        normed = self.norm_attention(tokens)
        query, gate = F.silu(self.query_gate(normed[:, -queries:])).chunk(2, dim=-1)
        key, value = F.silu(self.key_value(normed)).chunk(2, dim=-1)
        query, key, value = self.split(query), self.split(key), self.split(value)
        logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + bias  # [B, heads, Q, K]
        summed = (F.silu(logits) @ value).transpose(1, 2).flatten(2)
        answer: Tensor = tokens[:, -queries:] + self.mix(self.drop(self.norm_sum(summed) * gate))
        return answer


BLOCKS: Mapping[BlockName, type[Block]] = {"ligr": Ligr, "sasrec": Sasrec, "hstu": Hstu}


def _softmax_attention(block: Block, query: Tensor, key_value: Tensor, bias: Tensor) -> Tensor:
    """query [B, Q, D], key_value [B, K, 2 D], bias [B, heads, Q, K]. [B, Q, D]"""
    key, value = key_value.chunk(2, dim=-1)
    asked, keys, values = block.split(query), block.split(key), block.split(value)
    attended = F.scaled_dot_product_attention(asked, keys, values, attn_mask=bias)
    return attended.transpose(1, 2).flatten(2)
