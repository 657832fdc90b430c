"""A fit that was killed goes on where its checkpoint stands, and ends as if it had never been away."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from model_world import ITEMS, TINY, VOCABULARY, checkerboard

from models.checkpoint import NAME, forget
from models.fit import FittedTower, fit_tower

CONFIG = replace(TINY, epochs_max=4, patience=9)
TEXTS = np.zeros((ITEMS + 1, 6), dtype=np.float32)


class Killed(Exception):
    """The end of a process, as far as a fit can tell."""


def _fit(
    folder: Path | None, stop_in: int | None = None, config: object = CONFIG, told: list[str] | None = None
) -> FittedTower:
    def progress(done: int, total: int, text: str) -> None:
        if told is not None:
            told.append(text)
        if stop_in is not None and f"epoch {stop_in} " in text:
            raise Killed

    return fit_tower(checkerboard(), VOCABULARY, TEXTS, config, progress, device="cpu", checkpoints=folder)  # type: ignore[arg-type]


def _weights(tower: FittedTower) -> dict[str, torch.Tensor]:
    return {**tower.items.state_dict(), **tower.tower.state_dict()}


@pytest.mark.parametrize("negatives", [0, 16])
def test_a_killed_fit_resumed_is_bit_equal_to_one_that_was_not_killed(tmp_path: Path, negatives: int) -> None:
    config = replace(CONFIG, negatives=negatives)
    whole = _fit(None, config=config)
    with pytest.raises(Killed):
        _fit(tmp_path, stop_in=3, config=config)
    told: list[str] = []
    resumed = _fit(tmp_path, config=config, told=told)
    assert "epoch 3 of at most 4" in told[0], "two epochs were there already"
    assert "loss " in told[0]
    assert any(text.startswith("tower, NDCG@10 0.") for text in told)
    assert (resumed.epochs, resumed.held_out_ndcg) == (whole.epochs, whole.held_out_ndcg)
    mine, theirs = _weights(resumed), _weights(whole)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert np.array_equal(resumed.vectors, whole.vectors)


def test_a_fit_to_other_data_or_choices_and_a_damaged_file_start_anew(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        _fit(tmp_path, stop_in=3)
    told: list[str] = []
    _fit(tmp_path, config=replace(CONFIG, seed=2), told=told)
    assert "epoch 1 of" in told[0]
    with pytest.raises(Killed):
        _fit(tmp_path, stop_in=2)
    file = tmp_path / NAME
    file.write_bytes(file.read_bytes()[:500])
    told.clear()
    _fit(tmp_path, told=told)
    assert "epoch 1 of" in told[0]


def test_a_finished_fit_is_not_done_again_until_it_is_forgotten(tmp_path: Path) -> None:
    first = _fit(tmp_path)
    told: list[str] = []
    again = _fit(tmp_path, told=told)
    assert told == ["tower fitted"]
    assert np.array_equal(first.vectors, again.vectors)
    forget(tmp_path)
    assert list(tmp_path.iterdir()) == []
