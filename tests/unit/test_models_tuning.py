"""Tuning a text encoder: the loss and the accuracy by hand, what is adapted, that it learns, stops and merges."""

from __future__ import annotations

import builtins
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from text_world import FAMILIES, WORDS, Family, model_of, tokenizer_of

from models.transformer import TransformerEncoder
from models.tuning import Pairs, TuningConfig, TuningMissing, in_batch_softmax, pair_accuracy, tune

GROUPS, GROUP_WORDS = 4, 12
FAST = TuningConfig(learning_rate=2e-2, warmup_steps=2, batch=64, epochs_max=12, patience=3, pairs_max=1000)


def encoder_of(family: Family) -> TransformerEncoder:
    return TransformerEncoder("hand", tokenizer_of(WORDS, family), model_of(family, 104), "cpu", 64)


def world(seed: int = 0) -> tuple[list[str], Pairs, Pairs]:
    """Items of four groups; a title is two words of its group's twelve, so that most of a group share none. Pairs are
    within a group; those held out are of other items than those to learn from."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(GROUPS), 30)
    texts = [" ".join(f"w{g * GROUP_WORDS + w}" for w in rng.choice(GROUP_WORDS, 2, replace=False)) for g in groups]

    def pairs(items: np.ndarray, count: int) -> Pairs:
        one = rng.choice(items, count)
        other = np.array([rng.choice(items[(groups[items] == groups[i]) & (items != i)]) for i in one])
        return Pairs(one, other)

    held = np.arange(len(texts)) % 3 == 0
    return texts, pairs(np.flatnonzero(~held), 1000), pairs(np.flatnonzero(held), 200)


def test_the_loss_is_a_softmax_over_the_partners_less_the_logarithm_of_their_chance() -> None:
    """Scores 1 and 0 over temperature .5: 2 and 0; chances 1/2 and 1/4: 2 + ln 2 against ln 4. The second item must not
    be told apart from the first partner: its loss is 0."""
    items = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    wrong = torch.tensor([[False, False], [True, False]])
    log_chance = torch.log(torch.tensor([0.5, 0.25]))
    found = in_batch_softmax(items, items, log_chance, wrong, 0.5)
    first = -math.log(2 * math.e**2 / (2 * math.e**2 + 4))
    assert float(found) == pytest.approx((first + 0.0) / 2, abs=1e-6)


def test_accuracy_is_the_share_of_other_partners_that_are_further_away() -> None:
    """Rows 0 to 3 on a circle. Of (0, 1) the other partners are 3 (further: right) and 2 (as near: half); of (1, 3)
    they are 1, which is itself and does not count, and 2 (further); of (3, 2) 1 (nearer: wrong)."""
    angles = np.deg2rad([0.0, 30.0, -30.0, 70.0])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    vectors[2, 0] = vectors[1, 0]
    pairs = Pairs(np.array([0, 1, 3]), np.array([1, 3, 2]))
    assert pair_accuracy(vectors, pairs) == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert pair_accuracy(vectors, Pairs(np.array([0]), np.array([1]))) == 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_held_out_pairs_of_new_items_come_near_and_the_merged_model_is_what_was_tuned(family: Family) -> None:
    texts, pairs, held_out = world()
    encoder = encoder_of(family)
    before = encoder.embed(texts)
    tuned = tune(encoder, texts, pairs, held_out, FAST)
    assert tuned.accuracy_before < 0.75
    assert tuned.accuracy > tuned.accuracy_before + 0.12
    merged = TransformerEncoder("tuned", tuned.tokenizer, tuned.model, "cpu", 64)
    assert pair_accuracy(merged.embed(texts), held_out) == pytest.approx(tuned.accuracy, abs=0.005)
    np.testing.assert_array_equal(encoder.embed(texts), before)  # the given one stays as it is


def test_where_nothing_can_be_learned_no_epoch_is_kept() -> None:
    """Pairs by lot: what is learned of them is wrong for the others."""
    texts, _, held_out = world()
    rng = np.random.default_rng(1)
    by_lot = Pairs(rng.integers(0, 120, 300), rng.integers(0, 120, 300))
    encoder = encoder_of("bert")
    tuned = tune(encoder, texts, by_lot, held_out, replace(FAST, learning_rate=0.0))
    assert tuned.epochs == 0
    assert tuned.accuracy == tuned.accuracy_before
    merged = TransformerEncoder("tuned", tuned.tokenizer, tuned.model, "cpu", 64)
    np.testing.assert_allclose(merged.embed(texts), encoder.embed(texts), atol=1e-5)


def test_equal_seeds_tune_equally() -> None:
    texts, pairs, held_out = world()
    few = replace(FAST, epochs_max=1)
    one, other = (tune(encoder_of("bert"), texts, pairs, held_out, few) for _ in range(2))
    for name, weight in one.model.state_dict().items():
        assert torch.equal(weight, other.model.state_dict()[name]), name


def test_without_peft_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("peft"):
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    texts, pairs, held_out = world()
    with pytest.raises(TuningMissing, match=r"pip install 'freshrank\[text\]'"):
        tune(encoder_of("bert"), texts, pairs, held_out, FAST)


def test_the_effort_bounds_the_pairs() -> None:
    assert TuningConfig.for_effort("demo", 3) == replace(TuningConfig(seed=3), pairs_max=6_400, epochs_max=2)
    assert (TuningConfig().rank, TuningConfig().alpha, TuningConfig().learning_rate) == (8, 16, 1e-4)
