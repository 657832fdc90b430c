"""The forwards of one question in numpy give what the networks give, whatever a tower is made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from model_world import START_S, TINY

from models.blocks import BLOCKS
from models.config import BlockName
from models.quick import QuickReranker, QuickTower
from models.reranker import Reranker
from models.tower import UserTower

ACTIONS, FEATURES = 5, 3
NOW_S = START_S + 100_000


def shaken(network: torch.nn.Module) -> torch.nn.Module:
    """The network with every weight moved: none of them is 0 or 1 any more, so none can be left out unnoticed."""
    torch.manual_seed(4)
    with torch.no_grad():
        for each in [*network.parameters(), *network.buffers()]:
            each.add_(0.3 * torch.rand_like(each))
    return network.eval()


def history(length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors of length 1, actions and rising times; the last event is in the future of the question."""
    rng = np.random.default_rng(length)
    vectors = rng.normal(size=(length, TINY.width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    times_s = np.sort(START_S + rng.integers(0, 90_000, length))
    times_s[-1:] = NOW_S + 50
    return vectors, rng.integers(0, ACTIONS, length), times_s


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("length", [0, 1, 2, 12])
def test_a_user_vector_is_the_towers(block: BlockName, blocks: int, length: int) -> None:
    tower = UserTower(ACTIONS, replace(TINY, block=block, blocks=blocks))
    shaken(tower)
    vectors, actions, times_s = history(length)
    with torch.inference_mode():
        wanted = tower.newest(
            *(torch.from_numpy(each)[None] for each in (vectors, actions, times_s)), torch.tensor([NOW_S]),
            torch.ones(1, length, dtype=torch.bool),
        )[0]  # fmt: skip
    assert QuickTower(tower).newest(vectors, actions, times_s, NOW_S) == pytest.approx(wanted.numpy(), abs=1e-5)


@pytest.mark.parametrize("length", [0, 1, 12])
@pytest.mark.parametrize("hidden", [(), (16,), (16, 8)])
def test_logits_are_the_rerankers(length: int, hidden: tuple[int, ...]) -> None:
    reranker = Reranker(ACTIONS, FEATURES, replace(TINY, reranker_hidden=hidden, reranker_heads=3))
    shaken(reranker)
    rng = np.random.default_rng(9)
    vectors, actions, times_s = history(length)
    candidates = history(7)[0]
    features = rng.normal(size=(7, FEATURES)).astype(np.float32)
    features[0] = 1e6  # held within limits
    retrieval_score = rng.normal(size=7).astype(np.float32)
    asked = (vectors, actions, NOW_S - times_s, candidates, features, retrieval_score)
    real = np.ones(length, dtype=np.bool_)
    with torch.inference_mode():
        wanted = reranker(*(torch.from_numpy(each)[None] for each in (*asked[:3], real, *asked[3:])))[0]
    assert QuickReranker(reranker).logits(*asked) == pytest.approx(wanted.numpy(), abs=1e-4)


def test_weights_that_are_loaded_later_count() -> None:
    tower, other = UserTower(ACTIONS, TINY), UserTower(ACTIONS, TINY)
    quick = QuickTower(tower)
    before = quick.newest(*history(3), NOW_S)
    tower.load_state_dict(other.state_dict())
    after = quick.newest(*history(3), NOW_S)
    assert np.abs(after - before).max() > 1e-3
    assert after == pytest.approx(QuickTower(other).newest(*history(3), NOW_S))


def test_no_candidate_is_no_score() -> None:
    reranker = QuickReranker(Reranker(ACTIONS, FEATURES, TINY))
    vectors, actions, times_s = history(2)
    nobody = np.zeros((0, TINY.width), np.float32), np.zeros((0, FEATURES), np.float32), np.zeros(0, np.float32)
    assert reranker.logits(vectors, actions, NOW_S - times_s, *nobody).shape == (0,)
