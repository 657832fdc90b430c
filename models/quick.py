"""The forwards of one question in plain numpy, on the very weights of the networks: `UserTower.newest` and the
`Reranker` without a batch.

A question is a few million multiplications: what PyTorch takes for it is mostly calls. Nothing is copied, so weights
that are loaded into the tensors of the networks later count here, too; networks are never moved or reassigned after
that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models.blocks import HIDDEN, Block, Hstu, Ligr, Sasrec
from models.reranker import FEATURE_LIMIT, Reranker
from models.tower import BUCKETS, UserTower, time_bucket

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
HALF = np.float32(0.5)
Step = Callable[[Floats], Floats]
Layer = Callable[[Floats, Floats], Floats]
"""Tokens [K, D] and a bias [heads, q, K] into what the newest q of them become. [q, D]"""


class QuickTower:
    """`UserTower.newest` of one history."""

    def __init__(self, tower: UserTower) -> None:
        self._scale = np.float32(tower.scale)
        self._start, self._actions = _array(tower.start), _array(tower.actions.weight)
        self._by_gap, self._by_distance = _array(tower.by_gap), _array(tower.by_distance)
        *self._lower, self._last = [_layer(block) for block in tower.blocks if isinstance(block, Block)]
        self._norm, self._out = _norm(tower.norm), _linear(tower.out)

    def newest(self, vectors: Floats, actions: Ints, times_s: Ints, now_s: int) -> Floats:
        """The user vector after the newest event, for `now_s`: vectors [H, D], actions, times_s [H]. [D]"""
        count = len(times_s) + 1
        tokens = np.empty((count, vectors.shape[1]), dtype=np.float32)
        tokens[0] = self._start
        tokens[1:] = vectors * self._scale + self._actions[actions]
        times = np.zeros(count, dtype=np.int64)
        times[1:] = times_s
        if self._lower:
            asked = np.empty(count, dtype=np.int64)  # each for the time of the next
            asked[:-1], asked[-1] = times[1:], now_s
            asked[0] = min(int(times_s.min(initial=now_s)), now_s)
            bias = self._bias(asked, times)
            for layer in self._lower:
                tokens = layer(tokens, bias)
        newest = self._last(tokens, self._bias(np.array([now_s]), times))
        found = self._out(self._norm(newest))[0]
        unit: Floats = found / max(np.sqrt(found @ found), np.float32(1e-12))
        return unit

    def _bias(self, asked_s: Ints, times_s: Ints) -> Floats:
        """[heads, q, K] for the newest q tokens."""
        queries, keys = len(asked_s), len(times_s)
        places = np.arange(keys)
        distance = places[keys - queries :, None] - places
        reach = self._by_distance.shape[1] - 1
        apart = np.minimum(np.maximum(distance, 0), reach - 1)
        apart[:, 0] = reach
        bias = self._by_gap[:, _bucket(asked_s[:, None] - times_s)] + self._by_distance[:, apart]
        if queries > 1:
            bias[:, distance < 0] = HIDDEN
        found: Floats = bias
        return found


class QuickReranker:
    """`Reranker` of one history and its candidates."""

    def __init__(self, reranker: Reranker) -> None:
        self._scale = np.float32(reranker.scale)
        self._actions, self._gaps = _array(reranker.actions.weight), _array(reranker.gaps.weight)
        self._query, self._key, self._value = (_linear(each) for each in (reranker.query, reranker.key, reranker.value))
        self._null = _array(reranker.null)
        self._mean, self._deviation = _array(reranker.feature_mean), _array(reranker.feature_scale)
        self._straight = _linear(reranker.straight)
        *self._hidden, self._chance = [_linear(each) for each in reranker.body if isinstance(each, nn.Linear)]
        self._by_place = _array(reranker.by_place)

    def logits(
        self,
        vectors: Floats,
        actions: Ints,
        gaps_s: Ints,
        candidates: Floats,
        features: Floats,
        retrieval_score: Floats,
    ) -> Floats:
        """vectors [H, D], actions, gaps_s [H]; candidates [C, D], features [C, F], retrieval_score [C] into [C]."""
        _, heads, width = self._null.shape
        said_width, count = heads * width, len(candidates)
        joined = np.empty((count, said_width + heads + 2 + features.shape[1] + 1), dtype=np.float32)
        events = vectors * self._scale + self._actions[actions] + self._gaps[_bucket(gaps_s)]
        keys = np.concatenate([self._null[:1], self._key(events).reshape(-1, heads, width)])
        values = np.concatenate([self._null[1:], self._value(events).reshape(-1, heads, width)])
        asked = self._query(candidates * self._scale).reshape(count, heads, width)
        for head in range(heads):
            shares = _softmax(asked[:, head] @ keys[:, head].T / np.float32(width**0.5))
            np.matmul(shares, values[:, head], out=joined[:, head * width : (head + 1) * width])
            joined[:, said_width + head] = shares[:, 0]
        likeness = joined[:, said_width + heads : said_width + heads + 2]
        if len(vectors):
            cosines = candidates @ vectors.T
            np.maximum.reduce(cosines, axis=1, out=likeness[:, 0])
            np.divide(np.add.reduce(cosines, axis=1), np.float32(len(vectors)), out=likeness[:, 1])
        else:
            likeness[:] = 0.0
        known = joined[:, said_width + heads + 2 :]
        known[:, :-1], known[:, -1] = features, retrieval_score
        known -= self._mean
        known /= self._deviation
        np.maximum(known, -FEATURE_LIMIT, out=known)
        np.minimum(known, FEATURE_LIMIT, out=known)
        hidden = joined
        for linear in self._hidden:
            hidden = linear(hidden)
            np.maximum(hidden, 0.0, out=hidden)
        logits: Floats = (self._chance(hidden) + self._straight(known))[:, 0] + self._by_place[1, 0]
        return logits


def _layer(block: Block) -> Layer:
    if isinstance(block, Ligr):
        return _ligr(block)
    if isinstance(block, Sasrec):
        return _sasrec(block)
    assert isinstance(block, Hstu), f"{type(block).__name__} has no quick layer"
    return _hstu(block)


def _ligr(block: Ligr) -> Layer:
    heads = block.heads
    norm, query, key_value, mix = (
        _norm(block.norm_attention), _linear(block.query), _linear(block.key_value), _linear(block.mix),
    )  # fmt: skip
    gate, gate_forward = _linear(block.gate_attention), _linear(block.gate_forward)
    norm_forward, widen, narrow = _norm(block.norm_forward), _linear(block.widen), _linear(block.narrow)

    def layer(tokens: Floats, bias: Floats) -> Floats:
        asking, normed = tokens[-bias.shape[1] :], norm(tokens)
        key, value = _halves(key_value(normed))
        shares = _softmax(_logits(query(normed[-bias.shape[1] :]), key, bias))
        asking = asking + _sigmoid(gate(asking)) * mix(_summed(shares, value, heads))
        gated, linear = _halves(widen(norm_forward(asking)))
        answer: Floats = asking + _sigmoid(gate_forward(asking)) * narrow(_silu(gated) * linear)
        return answer

    return layer


def _sasrec(block: Sasrec) -> Layer:
    heads = block.heads
    norm, query, key_value, mix = (
        _norm(block.norm_attention), _linear(block.query), _linear(block.key_value), _linear(block.mix),
    )  # fmt: skip
    norm_forward, widen, narrow = _norm(block.norm_forward), _linear(block.widen), _linear(block.narrow)

    def layer(tokens: Floats, bias: Floats) -> Floats:
        normed = norm(tokens)
        key, value = _halves(key_value(normed))
        shares = _softmax(_logits(query(normed[-bias.shape[1] :]), key, bias))
        asking = tokens[-bias.shape[1] :] + mix(_summed(shares, value, heads))
        answer: Floats = asking + narrow(_gelu(widen(norm_forward(asking))))
        return answer

    return layer


def _hstu(block: Hstu) -> Layer:
    heads = block.heads
    norm, query_gate, key_value = _norm(block.norm_attention), _linear(block.query_gate), _linear(block.key_value)
    norm_sum, mix = _norm(block.norm_sum), _linear(block.mix)

    def layer(tokens: Floats, bias: Floats) -> Floats:
        normed = norm(tokens)
        query, gate = _halves(_silu(query_gate(normed[-bias.shape[1] :])))
        key, value = _halves(_silu(key_value(normed)))
        summed = _summed(_silu(_logits(query, key, bias)), value, heads)
        answer: Floats = tokens[-bias.shape[1] :] + mix(norm_sum(summed) * gate)
        return answer

    return layer


def _logits(query: Floats, key: Floats, bias: Floats) -> Floats:
    """query [q, D], key [K, D], bias [heads, q, K]. [heads, q, K]"""
    asked, keys = _by_head(query, len(bias)), _by_head(key, len(bias))
    logits: Floats = asked @ keys.transpose(0, 2, 1) / np.float32(asked.shape[2] ** 0.5) + bias
    return logits


def _summed(shares: Floats, value: Floats, heads: int) -> Floats:
    """shares [heads, q, K], value [K, D]. [q, D]"""
    summed: Floats = (shares @ _by_head(value, heads)).transpose(1, 0, 2).reshape(shares.shape[1], -1)
    return summed


def _by_head(joined: Floats, heads: int) -> Floats:
    return joined.reshape(len(joined), heads, -1).transpose(1, 0, 2)


def _halves(joined: Floats) -> tuple[Floats, Floats]:
    width = joined.shape[1] // 2
    return joined[:, :width], joined[:, width:]


def _softmax(logits: Floats) -> Floats:
    shares: Floats = logits - np.maximum.reduce(logits, axis=-1, keepdims=True)
    np.exp(shares, out=shares)
    shares /= np.add.reduce(shares, axis=-1, keepdims=True)
    return shares


def _sigmoid(values: Floats) -> Floats:
    """By tanh, which never overflows."""
    squashed: Floats = values * HALF
    np.tanh(squashed, out=squashed)
    squashed *= HALF
    squashed += HALF
    return squashed


def _silu(values: Floats) -> Floats:
    return values * _sigmoid(values)


def _gelu(values: Floats) -> Floats:
    found: Floats = F.gelu(torch.from_numpy(values)).numpy()
    return found


def _linear(linear: nn.Linear) -> Step:
    weight, bias = _array(linear.weight).T, _array(linear.bias)

    def step(values: Floats) -> Floats:
        made = values @ weight
        made += bias
        return made

    return step


def _norm(norm: nn.LayerNorm) -> Step:
    weight, bias, least = _array(norm.weight), _array(norm.bias), np.float32(norm.eps)
    width = np.float32(len(weight))

    def step(values: Floats) -> Floats:
        apart: Floats = values - values.mean(axis=1, keepdims=True)
        squares: Floats = np.einsum("nd,nd->n", apart, apart)
        squares /= width
        apart /= np.sqrt(squares + least)[:, None]
        apart *= weight
        apart += bias
        return apart

    return step


def _array(weights: Tensor) -> Floats:
    """The weights themselves, not a copy."""
    array: Floats = weights.detach().numpy()
    return array


def _bucket(gap_s: Ints) -> Ints:
    """`time_bucket`, to the second."""
    places: Ints = np.searchsorted(_bucket_starts(), gap_s, side="right")
    return places


@cache
def _bucket_starts() -> Ints:
    """The least gap in seconds of each bucket but the first; found by halving, so that rounding is that of PyTorch."""
    wanted = torch.arange(1, BUCKETS)
    below, reached = torch.zeros_like(wanted), torch.full_like(wanted, 2**40)
    while bool((reached - below > 1).any()):
        middle = (below + reached) // 2
        there = time_bucket(middle) >= wanted
        below, reached = torch.where(there, below, middle), torch.where(there, middle, reached)
    return reached.numpy()
