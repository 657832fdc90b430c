"""Pre-training: what is hidden, what a view keeps, and that the losses can be learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.batches import Sequences
from models.config import ModelConfig, Pretrain
from models.items import ItemEncoder
from models.pretrain import Stretches, hidden_of, pretrain, stretches_of, view_of
from models.tower import UserTower

ROWS = 21


def rounds(users: int = 40, length: int = 8) -> Sequences:
    """Each user walks through the twenty items in a round from a place of their own."""
    owners = np.repeat(np.arange(users), length)
    rows = (np.tile(np.arange(length), users) + owners * 7) % (ROWS - 1) + 1
    times = np.tile(np.arange(length), users) * 3600 + 1_700_000_000
    return Sequences.of_events(owners, rows, np.ones(len(rows)), np.ones(len(rows), dtype=np.bool_), times)


def stretch(lengths: list[int]) -> Stretches:
    real = np.arange(max(lengths))[None, :] < np.array(lengths)[:, None]
    rows = np.where(real, np.arange(max(lengths))[None, :] + 1, 0)
    return Stretches(rows, real.astype(np.int64), np.where(real, 100 + rows, 0), real)


def test_a_stretch_holds_the_events_of_its_window_and_padding_behind_them() -> None:
    made = stretches_of(rounds(2, 4), np.array([0, 5]), np.array([4, 7]))
    assert made.rows.tolist() == [[1, 2, 3, 4], [9, 10, 0, 0]]
    assert made.real.tolist() == [[True] * 4, [True, True, False, False]]
    assert made.times_s[1].tolist() == [1_700_003_600, 1_700_007_200, 0, 0]


def test_at_least_one_event_is_hidden_and_at_least_one_is_left() -> None:
    real = stretch([2, 3, 12]).real
    for seed in range(20):
        hidden = hidden_of(real, np.random.default_rng(seed))
        assert hidden.sum(axis=1).tolist() == [1, 1, 3], "a quarter, rounded, but one at least"
        assert not (hidden & ~real).any()


def test_a_view_keeps_some_of_its_own_events_and_nothing_else() -> None:
    whole = stretch([10] * 60)
    view = view_of(whole, np.random.default_rng(3))
    assert (view.rows[~view.real] == 0).all()
    kept = view.real.sum(axis=1)
    ordered = [bool((np.diff(row[real]) > 0).all()) for row, real in zip(view.rows, view.real, strict=True)]
    cut, mixed = (kept == 6) & np.array(ordered), (kept == 10) & ~np.array(ordered)
    assert cut.sum() > 5, "ways that cut six of ten out"
    assert mixed.sum() > 5, "ways that keep all ten in another order"
    assert all(set(row[real]) <= set(range(1, 11)) for row, real in zip(view.rows, view.real, strict=True))
    assert (whole.rows == stretch([10] * 60).rows).all(), "what is read stays as it is"


def fitted(way: Pretrain, epochs: int) -> tuple[ItemEncoder, UserTower, list[str]]:
    config = ModelConfig(width=16, text_width=4, history=12, pretrain=way, pretrain_epochs=epochs, warmup_steps=1)
    torch.manual_seed(1)
    items, tower = ItemEncoder(ROWS, config), UserTower(3, config)
    told: list[str] = []
    pretrain(items, tower, rounds(), config, lambda _done, _total, text: told.append(text))
    return items, tower, told


def test_without_pretraining_nothing_is_touched() -> None:
    items, tower, told = fitted("none", 5)
    torch.manual_seed(1)
    config = ModelConfig(width=16, text_width=4, history=12)
    untouched = ItemEncoder(ROWS, config), UserTower(3, config)
    for mine, other in zip((items, tower), untouched, strict=True):
        assert all(
            torch.equal(a, b) for a, b in zip(mine.state_dict().values(), other.state_dict().values(), strict=True)
        )
    assert told == []


@pytest.mark.parametrize("way", ["masked", "contrastive"])
def test_equal_seeds_pretrain_equally(way: Pretrain) -> None:
    one, other = (fitted(way, 2)[1].state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_masked_pretraining_learns_which_items_stand_together() -> None:
    """Of eight neighbours in the round two are hidden: told far better than by chance after it, by chance before."""

    def found(items: ItemEncoder, tower: UserTower) -> float:
        items.eval()
        tower.eval()
        made = stretches_of(rounds(), np.arange(40) * 8, np.arange(1, 41) * 8)
        hidden = np.zeros_like(made.real)
        hidden[:, 3:5] = True
        with torch.inference_mode():
            table = items()
            rows = torch.from_numpy(np.where(hidden, 0, made.rows))
            times = torch.from_numpy(made.times_s)
            actions, real = torch.from_numpy(made.actions), torch.from_numpy(made.real & ~hidden)
            users = tower.newest(table[rows], actions, times, times.amax(dim=1), real)
            scores = (users @ table[1:].T).numpy()
        seen = np.where(hidden, 0, made.rows)
        for number, row in enumerate(seen):
            scores[number, row[row > 0] - 1] = -np.inf
        best = np.argsort(-scores, axis=1)[:, :2] + 1
        return float(np.mean([np.isin(b, r[3:5]).mean() for b, r in zip(best, made.rows, strict=True)]))

    assert found(*fitted("masked", 0)[:2]) < 0.4, "2 of the 14 that were not read, by chance"
    assert found(*fitted("masked", 150)[:2]) > 0.8
