"""Logits into chances: what was put in is found again, and whatever is fitted, the order stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.calibration import BENT_FROM_TAKEN, UNFITTED, Calibration, calibrated
from models.metrics import calibration_error, mean_and_interval

GRID = np.linspace(-4, 6, 41)


def _rows(chances: np.ndarray, many: float = 1e4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two rows for each logit of GRID: takers and others, weighing what the chance says."""
    taken = np.repeat([True, False], len(GRID))
    return np.tile(GRID, 2), taken, many * np.concatenate([chances, 1 - chances])


def _sigmoid(odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-odds))


def test_a_temperature_and_a_shift_are_found_again() -> None:
    found = calibrated(*_rows(_sigmoid(0.5 * GRID - 1)), lists=7, sampled=True)
    assert found.slope == pytest.approx(0.5, abs=1e-3)
    assert found.log_odds[0] == pytest.approx(-1, abs=1e-3)
    assert (found.lists, found.sampled) == (7, True)
    # A logit of 2 stands for log-odds of 0.5 * 2 - 1 = 0: one in two.
    assert found.chances(np.float32([2.0]))[0] == pytest.approx(0.5, abs=1e-3)


def test_sampled_negatives_that_count_for_those_they_were_drawn_from_give_the_chances_of_all() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=40_000)
    taken = rng.random(40_000) < _sigmoid(logits - 4)
    drawn = taken | (rng.random(40_000) < 0.1)
    of_all = calibrated(logits, taken, np.ones(40_000), 1, False)
    counted = calibrated(logits[drawn], taken[drawn], np.where(taken[drawn], 1.0, 10.0), 1, True)
    assert counted.log_odds[0] == pytest.approx(of_all.log_odds[0], abs=0.05)
    assert counted.slope == pytest.approx(of_all.slope, abs=0.1)
    plain = calibrated(logits[drawn], taken[drawn], np.ones(drawn.sum()), 1, True)
    assert plain.log_odds[0] > of_all.log_odds[0] + 2  # not counted so, chances are almost e^2.3 times too high


def test_no_calibration_changes_an_order() -> None:
    logits = np.random.default_rng(1).normal(scale=4, size=500).astype(np.float32)
    bent = Calibration(0.02, (-1.0, 0.0, 2.0), (-4.0, -3.9, 1.0))
    for each in (UNFITTED, Calibration(0.3, (0.0,), (-5.0,)), bent):
        chances = each.chances(logits)
        assert ((chances > 0) & (chances < 1)).all()
        assert np.array_equal(np.argsort(chances, kind="stable"), np.argsort(logits, kind="stable"))


def test_a_scorer_that_is_wrong_way_round_is_made_flat_but_not_turned() -> None:
    found = calibrated(*_rows(_sigmoid(-GRID)), lists=1, sampled=False)
    assert found.slope > 0


def test_between_its_points_a_calibration_is_straight_and_beyond_them_it_has_its_slope() -> None:
    bent = Calibration(0.5, (0.0, 2.0), (-1.0, 3.0))
    assert bent.of(np.array([-2.0, 0.0, 1.0, 2.0, 4.0])).tolist() == [-2.0, -1.0, 1.0, 3.0, 4.0]


def test_too_few_takers_teach_nothing() -> None:
    logits = np.linspace(-1, 1, 100)
    assert calibrated(logits, np.arange(100) < 9, np.ones(100), 5, False) == UNFITTED
    assert calibrated(logits, np.arange(100) < 10, np.ones(100), 5, False) != UNFITTED


def test_with_labels_in_plenty_it_bends_to_what_a_straight_line_cannot_say() -> None:
    rng = np.random.default_rng(2)
    logits = rng.uniform(-3, 3, 150_000)
    truth = np.where(logits < 0, 0.2, 0.2 + 0.25 * logits)  # flat, then steep
    taken = rng.random(len(logits)) < truth
    assert taken.sum() > BENT_FROM_TAKEN
    found = calibrated(logits, taken, np.ones(len(logits)), 1, False)
    straight = replace(found, logits=(0.0,), log_odds=(float(np.log(taken.mean() / (1 - taken.mean()))),))
    errors = [
        calibration_error(each.chances(logits.astype(np.float32)).astype(float), taken, np.ones(len(logits)))
        for each in (found, straight)
    ]
    assert errors[0] < 0.01 < errors[1]
    assert (np.diff(found.logits) > 0).all()
    assert (np.diff(found.log_odds) > 0).all()


def test_a_manifest_without_one_is_read_as_the_logit_itself_and_one_that_falls_is_refused() -> None:
    assert Calibration.read(None) == UNFITTED
    said = {"slope": 0.5, "logits": [0.0, 1.0], "log_odds": [-1.0, 2.0], "lists": 3, "sampled": True}
    assert Calibration.read(said) == Calibration(0.5, (0.0, 1.0), (-1.0, 2.0), 3, True)
    for wrong in ({"slope": 0.0}, {"slope": -1.0}, {"log_odds": [2.0, -1.0]}, {"logits": [], "log_odds": []}):
        with pytest.raises(ValueError, match="would change the order"):
            Calibration.read({**said, **wrong})


def test_the_interval_of_a_mean_holds_it_and_narrows_with_more_cases() -> None:
    few = mean_and_interval(np.array([0.0, 1.0] * 10), seed=1)
    many = mean_and_interval(np.array([0.0, 1.0] * 1000), seed=1)
    assert few[0] == many[0] == 0.5
    assert few[1] < many[1] < 0.5 < many[2] < few[2]
    assert mean_and_interval(np.full(5, 0.25), seed=1) == (0.25, 0.25, 0.25)
    assert mean_and_interval(np.zeros(0), seed=1) == (0.0, 0.0, 0.0)
