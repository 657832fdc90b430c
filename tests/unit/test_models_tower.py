"""The tower's promises, on random weights: it never looks ahead, padding changes nothing, the newest is the last."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from model_world import TINY

from models.batches import Prefixes
from models.blocks import BLOCKS, HIDDEN, Hstu, Ligr, Sasrec
from models.config import BLOCK_NAMES, Effort, ModelConfig
from models.device import half_precision
from models.items import ItemEncoder, TextBasis
from models.tower import QUERIES_AT_ONCE, UserTower, looked_up, time_bucket
from models.tower_run import user_vectors

CONFIGS = [replace(TINY, block=block, blocks=blocks) for block in BLOCK_NAMES for blocks in (1, 3)]


def _inputs(batch: int = 2, length: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(batch, length, TINY.width, generator=generator), dim=-1)
    actions = torch.randint(1, 3, (batch, length), generator=generator)
    times_s = 1_700_000_000 + torch.cumsum(torch.randint(1, 5000, (batch, length), generator=generator), dim=1)
    return vectors, actions, times_s, torch.ones(batch, length, dtype=torch.bool)


def _tower(config: object = TINY) -> UserTower:
    torch.manual_seed(1)
    tower = UserTower(3, config).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for each in (tower.by_distance, tower.by_gap):
            each.normal_()
    return tower


def test_gaps_fall_into_buckets_by_their_logarithm() -> None:
    gaps = torch.tensor([-5, 0, 1, 2, 60, 86_400, 10**9, 10**15])
    # floor(ln 2 / .301) = 2, floor(4.094 / .301) = 13, floor(11.367 / .301) = 37, floor(20.72 / .301) = 68: so 63.
    assert time_bucket(gaps).tolist() == [0, 0, 0, 2, 13, 37, 63, 63]


@pytest.mark.parametrize("config", CONFIGS)
def test_what_comes_later_changes_nothing_before(config: object) -> None:
    tower = _tower(config)
    vectors, actions, times_s, real = _inputs()
    asked = torch.cat([times_s, times_s[:, -1:] + 60], dim=1)
    before = tower(vectors, actions, times_s, asked, real)
    changed = vectors.clone()
    changed[:, 3] = -changed[:, 3]
    after = tower(changed, actions, times_s, asked, real)
    assert torch.allclose(before[:, :4], after[:, :4], atol=1e-6)
    assert not torch.allclose(before[:, 4:], after[:, 4:], atol=1e-3)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_newest_vector_is_the_last_of_all(config: object) -> None:
    tower = _tower(config)
    vectors, actions, times_s, real = _inputs()
    now_s = times_s[:, -1] + 3600
    every = tower(vectors, actions, times_s, torch.cat([times_s, now_s[:, None]], dim=1), real)
    assert torch.allclose(every[:, -1], tower.newest(vectors, actions, times_s, now_s, real), atol=1e-5)


@pytest.mark.parametrize("block", BLOCK_NAMES)
def test_a_long_history_in_runs_of_queries_is_the_same_as_each_query_alone(block: str) -> None:
    tower = _tower(replace(TINY, block=block, history=150, blocks=1))  # type: ignore[arg-type]
    vectors, actions, times_s, real = _inputs(length=2 * QUERIES_AT_ONCE + 9)
    now_s = times_s[:, -1] + 3600
    asked = torch.cat([times_s, now_s[:, None]], dim=1)
    every = tower(vectors, actions, times_s, asked, real)
    for last in (0, 3, QUERIES_AT_ONCE - 1, QUERIES_AT_ONCE, 2 * QUERIES_AT_ONCE, every.shape[1] - 1):
        before = vectors[:, :last], actions[:, :last], times_s[:, :last]
        alone = tower.newest(*before, asked[:, last], real[:, :last])
        assert torch.allclose(every[:, last], alone, atol=1e-5), f"query {last}"


@pytest.mark.parametrize("config", CONFIGS)
def test_answers_from_a_place_on_are_those_of_all_from_there_on(config: object) -> None:
    tower = _tower(config)
    vectors, actions, times_s, real = _inputs()
    asked = torch.cat([times_s, times_s[:, -1:] + 60], dim=1)
    every = tower(vectors, actions, times_s, asked, real)
    assert torch.allclose(tower(vectors, actions, times_s, asked, real, 2), every[:, 2:], atol=1e-6)


def test_a_table_is_looked_up_and_learns_as_by_its_places() -> None:
    places = torch.tensor([[[0, 2], [2, 1]]])
    weights = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]], [[[5.0, 6.0], [7.0, 8.0]]]])
    table = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]], requires_grad=True)
    found = looked_up(table, places)
    assert found.tolist() == [[[[1.0, 3.0], [3.0, 2.0]]], [[[5.0, 7.0], [7.0, 6.0]]]]
    (found * weights).sum().backward()
    assert table.grad is not None
    assert table.grad.tolist() == [[1.0, 4.0, 5.0, 0.0], [5.0, 8.0, 13.0, 0.0]]


@pytest.mark.parametrize("config", CONFIGS)
def test_padding_at_the_front_changes_nothing(config: object) -> None:
    tower = _tower(config)
    vectors, actions, times_s, real = _inputs()
    now_s = times_s[:, -1] + 3600
    padded = [
        torch.cat([each.new_zeros(2, 4, *each.shape[2:]), each], dim=1) for each in (vectors, actions, times_s, real)
    ]
    plain = tower.newest(vectors, actions, times_s, now_s, real)
    assert torch.allclose(plain, tower.newest(*padded[:3], now_s, padded[3]), atol=1e-5)


def test_a_stranger_among_others_has_the_vector_of_a_stranger_alone() -> None:
    tower = _tower()
    table = torch.nn.functional.normalize(torch.randn(5, TINY.width, generator=torch.Generator().manual_seed(2)), dim=1)
    now_s = np.array([1_700_009_000, 1_700_009_000])
    rows, actions = np.array([[0, 1, 2], [0, 0, 0]], dtype=np.int32), np.array([[0, 1, 1], [0, 0, 0]], dtype=np.int16)
    times_s = np.array([[0, 1_700_000_000, 1_700_001_000], [0, 0, 0]])
    both = user_vectors(tower, table, Prefixes(rows, actions, times_s, now_s))
    empty = torch.zeros(1, 0, TINY.width), torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 0, dtype=torch.int64)
    alone = tower.newest(*empty, torch.from_numpy(now_s[1:]), torch.zeros(1, 0, dtype=torch.bool))
    assert np.allclose(both[1], alone.detach().numpy()[0], atol=1e-6)
    known = user_vectors(tower, table, Prefixes(rows[:1, 1:], actions[:1, 1:], times_s[:1, 1:], now_s[:1]))
    assert np.allclose(both[0], known[0], atol=1e-5)


def test_a_stranger_has_a_vector_of_length_1() -> None:
    empty = torch.zeros(1, 0, TINY.width), torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 0, dtype=torch.int64)
    found = _tower().newest(*empty, torch.tensor([1_700_000_000]), torch.zeros(1, 0, dtype=torch.bool))
    assert found.norm().item() == pytest.approx(1.0, abs=1e-5)


def test_the_time_since_the_newest_event_matters() -> None:
    tower = _tower()
    vectors, actions, times_s, real = _inputs()
    soon = tower.newest(vectors, actions, times_s, times_s[:, -1] + 10, real)
    late = tower.newest(vectors, actions, times_s, times_s[:, -1] + 30 * 86_400, real)
    assert not torch.allclose(soon, late, atol=1e-3)


@pytest.mark.parametrize("block", BLOCK_NAMES)
def test_in_half_precision_a_tower_says_nearly_the_same_and_learns(block: str) -> None:
    tower = _tower(replace(TINY, block=block, blocks=2))
    vectors, actions, times_s, real = _inputs()
    asked = torch.cat([times_s, times_s[:, -1:] + 60], dim=1)
    exact = tower(vectors, actions, times_s, asked, real)
    with half_precision(torch.device("cpu"), wanted=True):
        rough = tower(vectors, actions, times_s, asked, real)
    assert rough.dtype == torch.float32
    assert (rough * exact).sum(dim=-1).min().item() > 0.99, "cosines"
    assert not torch.equal(rough, exact)
    rough[..., 0].sum().backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in tower.parameters())


@pytest.mark.parametrize("block", BLOCK_NAMES)
def test_a_block_can_be_compiled_as_a_whole(block: str) -> None:
    layer = BLOCKS[block](TINY).eval()  # type: ignore[index]
    tokens, biases = torch.randn(2, 5, TINY.width), [torch.zeros(2, 2, 3, 3), torch.zeros(2, 2, 2, 5)]
    graph = torch.compile(layer, backend="eager", fullgraph=True, dynamic=True)
    assert torch.allclose(graph(tokens, biases), layer(tokens, biases), atol=1e-6)


ONE_HEAD = replace(TINY, width=1, heads=1, ff_multiple=1, dropout=0.0)
"""Of width 1 every LayerNorm gives its bias, so that a block can be worked out by hand."""


def _all_ones(block: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for each in block.parameters():
            each.fill_(1.0)
    return block


def test_an_hstu_block_sums_what_each_event_says_by_its_own_logit() -> None:
    block = Hstu(replace(TINY, width=2, heads=1)).eval()
    with torch.no_grad():
        for name, each in block.named_parameters():
            each.copy_(torch.eye(2).repeat(len(each) // 2, 1) if each.ndim == 2 else torch.zeros_like(each))
            if name.startswith("norm") and name.endswith("weight"):
                each.fill_(1.0)
    tokens = torch.tensor([[[3.0, 1.0], [1.0, 3.0], [5.0, 1.0]]])
    biases = [torch.tensor([[[[0.5, HIDDEN, 0.0]]]])]
    # The norm makes (1, -1), (-1, 1), (1, -1) of the tokens; SiLU makes (.7311, -.2689) of (1, -1): q, k, v, u of the
    # first and of the last. Logit: (.5345 + .0723) / sqrt 2 = .4291; with the bias .9291 and .4291, the second unseen.
    # SiLU: .9291 * .7169 = .6661, .4291 * .6057 = .2599; the sum .9260 * (.7311, -.2689) is normed to (1, -1) and
    # gated to (.7311, .2689).
    assert torch.allclose(block(tokens, biases), torch.tensor([[[5.7311, 1.2689]]]), atol=2e-3)


def test_a_sasrec_block_adds_and_a_ligr_block_adds_through_its_gates() -> None:
    tokens, biases = torch.tensor([[[2.0], [4.0]]]), [torch.zeros(1, 1, 1, 2)]
    # Norms give 1, so every query, key and value is 2, and mix makes 3 of the attended 2: 4 + 3 = 7. The network:
    # gelu(2) = 1.9545, + 1: 7 + 2.9545.
    assert _all_ones(Sasrec(ONE_HEAD))(tokens, biases).item() == pytest.approx(9.9545, abs=1e-3)
    # Gates: sigmoid(4 + 1) = .9933, so 4 + .9933 * 3 = 6.9799. The network: silu(2) * 2 = 3.5232, + 1; its gate
    # sigmoid(7.98) = .99966: 6.9799 + 4.5217.
    assert _all_ones(Ligr(ONE_HEAD))(tokens, biases).item() == pytest.approx(11.5016, abs=1e-3)


def test_the_size_of_the_data_chooses_that_of_the_tower_unless_it_is_chosen() -> None:
    def shape(events: int, **chosen: object) -> tuple[str, int, int]:
        config = ModelConfig.for_data(events, 1000, "normal", **chosen)  # type: ignore[arg-type]
        return config.block, config.width, config.blocks

    assert [shape(events) for events in (100_000, 1_000_000, 10_000_000)] == [
        ("ligr", 64, 1), ("ligr", 64, 2), ("ligr", 128, 4),
    ]  # fmt: skip
    assert shape(100_000, size="large") == ("ligr", 128, 4)
    assert shape(10_000_000, size="small", block="sasrec") == ("sasrec", 64, 1)
    assert shape(1_000_000, block="hstu") == ("hstu", 64, 4)


def test_a_target_is_told_from_drawn_items_where_all_would_take_too_long() -> None:
    def negatives(items: int, effort: Effort) -> int:
        return ModelConfig.for_data(100_000, items, effort).negatives

    assert [negatives(items, "normal") for items in (50_000, 50_001)] == [0, 2048]
    assert [negatives(items, "demo") for items in (4_000, 4_001, 50_001)] == [0, 512, 512]


def test_an_item_never_seen_stands_where_its_text_does() -> None:
    torch.manual_seed(0)
    encoder = ItemEncoder(4, TINY).eval()
    texts = torch.randn(4, TINY.text_width)
    texts[0] = 0
    encoder.text.copy_(texts)
    with torch.no_grad():
        encoder.ids[2] = 0.0
        table, cold = encoder(), encoder.cold(texts)
    assert torch.allclose(table[2], cold[2], atol=1e-6), "no id and no count: text alone"
    assert not torch.allclose(table[1], cold[1], atol=1e-2)
    assert table[0].abs().sum() == 0
    assert torch.allclose(table[1:].norm(dim=1), torch.ones(3), atol=1e-5)


def test_an_item_without_text_is_nothing_when_cold() -> None:
    assert ItemEncoder(3, TINY).eval().cold(torch.zeros(2, TINY.text_width)).abs().sum() == 0


def test_the_text_basis_whitens_and_leaves_missing_text_at_zero() -> None:
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(500, 3)).astype(np.float32) * np.array([10.0, 1.0, 1e-4], dtype=np.float32) + 5
    texts[7] = 0
    basis = TextBasis.fitted(texts, width=4)
    reduced = basis.reduced(texts)
    assert reduced.shape == (500, 4)
    assert reduced[7].tolist() == [0, 0, 0, 0]
    others = np.delete(reduced, 7, axis=0)
    assert np.abs(others.mean(axis=0)).max() < 1e-4
    assert 0.8 < others[:, 0].std() <= 1.0
    assert others[:, 2:].std() == 0, "axes that carry nothing are left out"


def test_a_corpus_of_one_text_still_has_a_basis() -> None:
    assert np.isfinite(
        TextBasis.fitted(np.eye(1, 5, dtype=np.float32), width=3).reduced(np.ones((2, 5), np.float32))
    ).all()
