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

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import BlockName, ModelConfig
from models.dropout import Dropout

Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""query [B, heads, q, E], key, value [B, heads, k, E], bias [B, heads, q, k] into [B, heads, q, E]."""

HIDDEN = -1e4
"""The bias of what may not be looked at: its softmax is 0, and so is its SiLU (minus infinity would give NaN there)."""


class Block(nn.Module):
    """One layer of a tower."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads

    def forward(self, tokens: Tensor, biases: Sequence[Tensor]) -> Tensor:
        """The last Q of the tokens [B, K, D] after they looked at those up to them. [B, Q, D]

        `biases`: for each run of queries, one after another, what is added to its logits over the first k tokens
        [B, heads, q, k]. The runs' q sum up to Q.
        """
        raise NotImplementedError

    def attend(self, query: Tensor, key: Tensor, value: Tensor, biases: Sequence[Tensor], how: Attention) -> Tensor:
        """query [B, Q, D], key, value [B, K, D]. [B, Q, D]"""
        asked, keys, values = self.split(query), self.split(key), self.split(value)
        found, first = [], 0
        for bias in biases:
            queries, seen = bias.shape[2:]
            found.append(how(asked[:, :, first : first + queries], keys[:, :, :seen], values[:, :, :seen], bias))
            first += queries
        joined = found[0] if len(found) == 1 else torch.cat(found, dim=2)
        return joined.transpose(1, 2).flatten(2)

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
        self.drop = Dropout(config.dropout)

    def forward(self, tokens: Tensor, biases: Sequence[Tensor]) -> Tensor:
        """Block."""
        queries = sum(bias.shape[2] for bias in biases)
        asking, normed = tokens[:, -queries:], self.norm_attention(tokens)
        key, value = self.key_value(normed).chunk(2, dim=-1)
        attended = self.mix(self.attend(self.query(normed[:, -queries:]), key, value, biases, by_softmax))
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
        self.drop = Dropout(config.dropout)

    def forward(self, tokens: Tensor, biases: Sequence[Tensor]) -> Tensor:
        """Block."""
        queries = sum(bias.shape[2] for bias in biases)
        normed = self.norm_attention(tokens)
        key, value = self.key_value(normed).chunk(2, dim=-1)
        attended = self.attend(self.query(normed[:, -queries:]), key, value, biases, by_softmax)
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
        self.drop = Dropout(config.dropout)

    def forward(self, tokens: Tensor, biases: Sequence[Tensor]) -> Tensor:
        """Block."""
        queries = sum(bias.shape[2] for bias in biases)
        normed = self.norm_attention(tokens)
        query, gate = F.silu(self.query_gate(normed[:, -queries:])).chunk(2, dim=-1)
        key, value = F.silu(self.key_value(normed)).chunk(2, dim=-1)
        summed = self.attend(query, key, value, biases, by_silu)
        answer: Tensor = tokens[:, -queries:] + self.mix(self.drop(self.norm_sum(summed) * gate))
        return answer


BLOCKS: Mapping[BlockName, type[Block]] = {"ligr": Ligr, "sasrec": Sasrec, "hstu": Hstu}


def by_softmax(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Attention. On a CPU in plain steps: the fused one works them out one by one, too, once a bias is learned, and
    looks beside it for rows that see nothing, of which there are none here."""
    if query.is_cuda:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
    shares = _logits(query, key, bias).softmax(dim=-1)
    return shares.to(value.dtype) @ value


def by_silu(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Attention of HSTU."""
    return F.silu(_logits(query, key, bias)).to(value.dtype) @ value


def _logits(query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
    """[B, heads, q, k]"""
    batch, heads, queries, width = query.shape
    asked = (query / width**0.5).reshape(batch * heads, queries, width)
    keys = key.reshape(batch * heads, -1, width).transpose(1, 2)
    added = bias.to(query.dtype).reshape(batch * heads, queries, -1)
    return torch.baddbmm(added, asked, keys).view(batch, heads, queries, -1)
