"""The reranker's promises, on random weights: the mask as a literal, candidates that do not see each other, and the
same attention worked out slowly in numpy."""

from __future__ import annotations

import numpy as np
import torch
from model_world import TINY

from models.reranker import Reranker

FEATURES = 3


def _network() -> Reranker:
    torch.manual_seed(0)
    return Reranker(3, FEATURES, TINY).eval()


def _inputs(history: int = 3, candidates: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    unit = torch.nn.functional.normalize
    return [
        unit(torch.randn(1, history, TINY.width, generator=generator), dim=-1),
        torch.randint(1, 3, (1, history), generator=generator),
        torch.randint(1, 10_000, (1, history), generator=generator),
        torch.ones(1, history, dtype=torch.bool),
        unit(torch.randn(1, candidates, TINY.width, generator=generator), dim=-1),
        torch.randn(1, candidates, FEATURES, generator=generator),
        torch.randn(1, candidates, generator=generator),
    ]


def test_a_candidate_sees_the_history_and_itself_and_nothing_else() -> None:
    network, inputs = _network(), _inputs(history=2, candidates=3)
    vectors, candidates = inputs[0].requires_grad_(), inputs[4].requires_grad_()
    logits = network(vectors, inputs[1], inputs[2], torch.tensor([[True, False]]), candidates, inputs[5], inputs[6])
    seen = []
    for place in range(3):
        by_event, by_candidate = torch.autograd.grad(logits[0, place], (vectors, candidates), retain_graph=True)
        seen.append([int(g.abs().sum() > 0) for g in (*by_event[0], *by_candidate[0])])
    # Columns: event 0, event 1 (padding), candidates 0, 1, 2.
    assert seen == [
        [1, 0, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [1, 0, 0, 0, 1],
    ]


def test_the_order_of_candidates_permutes_their_scores() -> None:
    network, inputs = _network(), _inputs()
    order = [2, 0, 3, 1]
    permuted = [*inputs[:4], *(each[:, order] for each in inputs[4:])]
    assert torch.allclose(network(*inputs)[:, order], network(*permuted), atol=1e-6)


def test_padding_of_the_history_changes_nothing() -> None:
    network, inputs = _network(), _inputs()
    padded = [torch.cat([each.new_zeros(1, 2, *each.shape[2:]), each], dim=1) for each in inputs[:4]]
    assert torch.allclose(network(*inputs), network(*padded, *inputs[4:]), atol=1e-5)


def test_without_history_the_null_slot_takes_all_the_attention() -> None:
    network, inputs = _network(), _inputs(history=0)
    assert torch.isfinite(network(*inputs)).all()
    _, null_share = network._attend(*inputs[:4], inputs[4])
    assert null_share.tolist() == [[[1.0] * TINY.reranker_heads] * 4]


def test_attention_is_what_it_is_when_worked_out_slowly() -> None:
    network, inputs = _network(), _inputs()
    said, null_share = network._attend(*inputs[:4], inputs[4])
    with torch.no_grad():
        events = inputs[0] * network.scale + network.actions(inputs[1]) + network.gaps(_buckets(inputs[2]))
        query = network.query(inputs[4] * network.scale)[0].numpy().reshape(4, TINY.reranker_heads, -1)
        key = network.key(events)[0].numpy().reshape(3, TINY.reranker_heads, -1)
        value = network.value(events)[0].numpy().reshape(3, TINY.reranker_heads, -1)
        null_key, null_value = network.null.numpy()
    for candidate in range(4):
        for head in range(TINY.reranker_heads):
            keys = np.concatenate([null_key[None, head], key[:, head]])
            values = np.concatenate([null_value[None, head], value[:, head]])
            grown = np.exp(keys @ query[candidate, head] / keys.shape[1] ** 0.5)
            share = grown / grown.sum()
            width = TINY.reranker_head_width
            found = said[0, candidate, head * width : (head + 1) * width].detach().numpy()
            assert np.allclose(found, share @ values, atol=1e-5)
            assert np.isclose(null_share[0, candidate, head].item(), share[0], atol=1e-5)


def test_likeness_is_the_largest_and_the_mean_cosine() -> None:
    vectors = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]])
    real = torch.tensor([[True, True, False]])
    candidates = torch.tensor([[[0.6, 0.8], [-1.0, 0.0]]])
    found = _network()._likeness(vectors, real, candidates)
    assert torch.allclose(found, torch.tensor([[[0.8, 0.7], [0.0, -0.5]]]))


def test_an_outlier_is_held_within_the_limit() -> None:
    network, inputs = _network(), _inputs()
    wild = inputs[5].clone()
    wild[0, 0, 0] = 1e9
    assert network.standardised(wild, inputs[6]).max().item() == 5.0


def _buckets(gaps_s: torch.Tensor) -> torch.Tensor:
    return torch.tensor([[int(np.log(max(1, gap)) / 0.301) for gap in gaps_s[0].tolist()]])
