"""The reranker's promises, on random weights: the mask as a literal, candidates that do not see each other, and the
same attention worked out slowly in numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from model_world import ITEMS, TEXTS, TINY, VOCABULARY, checkerboard

from models.batches import PLACES_MAX, RankingExamples
from models.fit import Averaged, fit_reranker, fit_tower
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


def test_what_is_kept_of_a_fit_is_an_average_of_its_last_steps() -> None:
    network = _network()
    averaged = Averaged(network)
    start = network.null.detach().clone()
    with torch.no_grad():
        network.null += 1.0
        averaged.follow(network)
        network.null += 1.0
        averaged.follow(network)
    # Of itself it keeps 2/11 at the first step: 9/11 of the way to 1. Then 3/12 of that, and 9/12 of 2.
    expected = 0.25 * 9 / 11 + 0.75 * 2
    assert torch.allclose(averaged.network.null, start + expected, atol=1e-5)
    assert torch.equal(averaged.network.query.weight, network.query.weight)
    averaged.steps = 10_000
    with torch.no_grad():
        network.null += 1.0
        averaged.follow(network)
    assert torch.allclose(averaged.network.null, start + 0.99 * expected + 0.01 * 3, atol=1e-5)


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


def test_the_place_of_a_shown_candidate_is_added_and_all_are_asked_about_as_if_first() -> None:
    network, inputs = _network(), _inputs()
    plain = network(*inputs)
    with torch.no_grad():
        network.by_place[:] = torch.arange(PLACES_MAX + 1)[:, None] / 10.0
    network.by_place.data[0] = 0.0
    shown = network(*inputs, torch.tensor([[0, 1, 2, 50]]))
    assert torch.allclose(shown - plain, torch.tensor([[0.0, 0.1, 0.2, 5.0]]), atol=1e-5)
    assert torch.allclose(network(*inputs) - plain, torch.full((1, 4), 0.1), atol=1e-5)


def test_while_it_learns_a_tenth_of_the_places_is_hidden() -> None:
    network = _network().train()
    network.by_place.data[1:] = 1.0
    found = network._of_place(torch.ones(100, 100, dtype=torch.long))
    assert 0.88 < found.mean().item() < 0.92


def test_clicks_that_came_of_the_place_are_not_put_down_to_what_stood_there() -> None:
    # What stood higher had a higher feature, but it was clicked for its place alone.
    rng = np.random.default_rng(0)
    lists = 400
    places = np.tile(np.arange(1, 5, dtype=np.int16), (lists, 1))
    features = (-places + rng.normal(size=places.shape)).astype(np.float32)[..., None]
    labels = (rng.random(places.shape) < np.array([0.8, 0.5, 0.2, 0.1])).astype(np.float32)
    sequences = checkerboard()
    tower = fit_tower(sequences, VOCABULARY, TEXTS, replace(TINY, epochs_max=1), device="cpu")
    zeros = np.zeros((lists, 1), dtype=np.int64)
    rows = rng.integers(1, ITEMS + 1, places.shape).astype(np.int32)

    def slope(of_places: np.ndarray) -> float:
        examples = RankingExamples(
            zeros.astype(np.int32), zeros.astype(np.int16), zeros, np.arange(lists), rows, features,
            np.zeros(places.shape, dtype=np.float32), labels, np.zeros(lists, dtype=np.float32), of_places,
        )  # fmt: skip
        network = fit_reranker(tower, examples, replace(TINY, reranker_epochs_max=10)).network
        if of_places.any():
            assert network.by_place[1] > network.by_place[2] > network.by_place[3] > network.by_place[4]
            assert network.by_place[0] == 0
        asked = [torch.zeros(2, 1, TINY.width), torch.zeros(2, 1).long(), torch.zeros(2, 1), torch.zeros(2, 1).bool()]
        low_high = torch.tensor([[[-3.5], [-1.5]]] * 2)
        logits = network(*asked, torch.zeros(2, 2, TINY.width), low_high, torch.zeros(2, 2))
        return float((logits[0, 1] - logits[0, 0]).detach())

    assert slope(places) < 0.5 * slope(np.zeros_like(places))


def _buckets(gaps_s: torch.Tensor) -> torch.Tensor:
    return torch.tensor([[int(np.log(max(1, gap)) / 0.301) for gap in gaps_s[0].tolist()]])
