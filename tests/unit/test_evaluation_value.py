"""What a policy would have been worth: estimates against numbers worked out by hand, and against a policy's own log."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest

from services.evaluation.recipes import RECIPES
from services.evaluation.shown import read_shown
from services.evaluation.value import value_of, weights_of_choice

OPEN_BANDIT = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "open-bandit"


def flags(*given: int) -> np.ndarray:
    return np.array(given, dtype=np.bool_)


def test_a_shown_choice_counts_by_how_unlikely_it_was_to_be_shown() -> None:
    weights = weights_of_choice(np.array([1, 1, 2, 2]), np.array([1, 3, 2, 2]), np.array([0.5, 0.5, 0.25, 0.5], "f4"))
    assert weights.tolist() == [2.0, 0.0, 4.0, 2.0]
    found = value_of(weights, flags(1, 1, 1, 0), np.arange(4))
    assert found.ips.value == pytest.approx((2 + 4) / 4)
    assert found.snips.value == pytest.approx((2 + 4) / 8)
    assert found.effective == pytest.approx(8**2 / (4 + 16 + 4))
    assert found.matched == 3
    assert found.snips.low <= found.snips.value <= found.snips.high


def test_no_weight_counts_more_than_ten_times_the_mean() -> None:
    weights = np.array([1.0] * 99 + [901.0])  # the mean is 10: 901 counts as 100
    found = value_of(weights, flags(*[0] * 99, 1), np.arange(100))
    assert found.ips.value == pytest.approx(1.0)
    assert found.snips.value == pytest.approx(100 / 199)


def test_a_choice_that_was_never_shown_is_worth_nothing_known() -> None:
    found = value_of(np.zeros(3), flags(1, 0, 1), np.arange(3))
    assert (found.ips.value, found.snips.value, found.effective, found.matched) == (0.0, 0.0, 0.0, 0)


def test_a_log_of_chance_gives_a_policys_value_back() -> None:
    # Arms of click rates .1, .2 and .6; the log shows each as often; the policy shows the last one half of the time.
    rng = np.random.default_rng(0)
    arms = rng.integers(0, 3, 30_000)
    clicked = rng.random(len(arms)) < np.array([0.1, 0.2, 0.6])[arms]
    found = value_of(np.array([0.25, 0.25, 0.5])[arms] * 3, clicked, np.arange(len(arms)))
    assert found.ips.low < 0.375 < found.ips.high
    assert found.snips.low < 0.375 < found.snips.high
    assert found.snips.high - found.snips.low < 0.02


@pytest.mark.skipif(not OPEN_BANDIT.is_dir(), reason="the data set is not here")
def test_the_random_log_of_open_bandit_gives_thompson_samplings_own_click_rate_back(tmp_path: Path) -> None:
    # Thompson sampling's choice depends on the position alone: its propensities by (arm, position) are the policy.
    _, _, shown = RECIPES["open-bandit"](OPEN_BANDIT, tmp_path)
    random = read_shown(shown)
    with gzip.open(OPEN_BANDIT / "bts-men.csv.gz", "rt") as file:
        rows = [
            (r["item_id"], int(r["position"]), float(r["propensity_score"]), r["click"]) for r in csv.DictReader(file)
        ]
    given: dict[tuple[str, int], list[float]] = {}
    for arm, position, propensity, _ in rows:
        given.setdefault((arm, position), []).append(propensity)
    keys = [
        (random.item_ids[code], at) for code, at in zip(random.items.tolist(), random.position.tolist(), strict=True)
    ]
    policy = np.array([np.mean(given.get(key, [0.0])) for key in keys])
    found = value_of(policy / random.propensity, random.clicked, random.owners)
    own = float(np.mean([click == "1" for *_, click in rows]))
    assert own == pytest.approx(0.0069)
    assert found.ips.low < own < found.ips.high
    assert found.snips.low < own < found.snips.high
    assert found.effective > 1000
