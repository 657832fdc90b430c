"""Vocabulary and batches: numbers worked out by hand on a handful of events."""

from __future__ import annotations

import numpy as np
import pytest

from models.batches import Sequences
from models.vocabulary import Vocabulary
from models.windows import batches, cut_windows, hold_out, pack, target_weights

V = Vocabulary(("a", "b", "c"), ("click", "hide"))


def test_row_0_is_padding_and_every_unknown_item() -> None:
    assert len(V) == 4
    assert V.rows(["b", "unheard of", "a"]).tolist() == [2, 0, 1]
    assert V.ids(np.array([3, 1])) == ("c", "a")
    with pytest.raises(AssertionError, match="row 0"):
        V.ids(np.array([1, 0]))


def test_each_kind_has_an_action_for_either_sign() -> None:
    assert [V.action("click", 1.0), V.action("click", -2.0), V.action("hide", -1.0)] == [1, 2, 4]
    assert V.action("impression", 1.0) == 0
    assert V.action("click", 0.0) == 0
    assert V.action_count == 5


def test_actions_of_many_events_are_those_of_each() -> None:
    kinds = ("impression", "click", "hide")
    codes = np.array([1, 1, 2, 0, 1])
    weights = np.array([1.0, -2.0, -1.0, 3.0, 0.0], dtype=np.float32)
    assert V.actions(kinds, codes, weights).tolist() == [1, 2, 4, 0, 0]


def _sequences() -> Sequences:
    """User 0: rows 1, 2, 3 at 10, 20, 30. User 1: nothing. User 2: row 2 at 15 (negative), row 1 at 25."""
    return Sequences.of_events(
        np.array([2, 0, 0, 2, 0]),
        np.array([1, 3, 1, 2, 2]),
        np.array([1, 1, 1, 4, 1]),
        np.array([True, True, True, False, True]),
        np.array([25, 30, 10, 15, 20]),
    )


def test_events_in_any_order_become_sequences_by_user_and_time() -> None:
    found = _sequences()
    assert found.rows.tolist() == [1, 2, 3, 2, 1]
    assert found.times_s.tolist() == [10, 20, 30, 15, 25]
    assert found.offsets.tolist() == [0, 3, 3, 5]
    assert found.positive.tolist() == [True, True, True, False, True]


def test_before_is_strict_and_keeps_the_users() -> None:
    found = _sequences().before(20)
    assert found.rows.tolist() == [1, 2]
    assert found.offsets.tolist() == [0, 1, 1, 2]


def test_a_prefix_ends_before_its_event_and_is_padded_at_the_front() -> None:
    found = _sequences().prefixes_of(np.array([2, 0, 4]), length=2)
    assert found.rows.tolist() == [[1, 2], [0, 0], [0, 2]]
    assert found.times_s.tolist() == [[10, 20], [0, 0], [0, 15]]
    assert found.actions.tolist() == [[1, 1], [0, 0], [0, 4]]
    assert found.now_s.tolist() == [30, 10, 25]


def test_a_prefix_at_a_time_holds_what_came_strictly_before_it() -> None:
    found = _sequences().prefixes_at(np.array([0, 1, 2]), np.array([30, 30, 16]), length=3)
    assert found.rows.tolist() == [[0, 1, 2], [0, 0, 0], [0, 0, 2]]


def test_windows_foretell_every_event_once_and_read_at_least_half_of_the_length() -> None:
    count = 11
    line = Sequences.of_events(
        np.zeros(count, np.int64), np.arange(1, count + 1), np.ones(count, np.int64), np.ones(count, np.bool_),
        np.arange(count, dtype=np.int64),
    )  # fmt: skip
    windows = cut_windows(line, length=4)
    assert windows.starts.tolist() == [0, 3, 6]
    assert windows.stops.tolist() == [5, 8, 11]
    assert windows.targets_from.tolist() == [0, 5, 8]
    chosen = [np.array(each) for each in ([0], [1], [0, 1])]
    firsts = [pack(line, windows, target_weights(line, 1e9), each).first for each in chosen]
    assert firsts == [0, 2, 0], "before its third position the second window only reads"


def test_a_packed_position_foretells_what_came_after_that_many_events() -> None:
    sequences = _sequences()
    windows = cut_windows(sequences, length=4)
    packed = pack(sequences, windows, target_weights(sequences, 1e9), np.array([0, 1]))
    assert packed.rows.tolist() == [[1, 2], [2, 0]]
    assert packed.target_rows.tolist() == [[1, 2, 3], [2, 1, 0]]
    assert packed.asked_s.tolist() == [[10, 20, 30], [15, 25, 0]]
    assert packed.weights.tolist() == [[1, 1, 1], [0, 1, 0]], "what a user disliked is no target"


def test_batches_hold_every_target_once() -> None:
    sequences = _sequences()
    windows = cut_windows(sequences, length=1)
    weights = target_weights(sequences, 1e9)
    found = list(batches(sequences, windows, weights, 1, np.random.default_rng(0)))
    targets = np.concatenate([b.target_rows[b.weights > 0] for b in found])
    assert sorted(targets.tolist()) == [1, 1, 2, 3]


def test_processes_share_out_every_batch_and_know_the_weight_of_all_of_it() -> None:
    sequences = _sequences()
    windows = cut_windows(sequences, length=1)
    weights = target_weights(sequences, 1e9)
    whole, one, other = (
        list(batches(sequences, windows, weights, 100, np.random.default_rng(0), shard))
        for shard in ((0, 1), (0, 2), (1, 2))
    )
    assert [b.weight_sum for b in (*whole, *one, *other)] == [4.0, 4.0, 4.0]
    shared = np.concatenate([b.target_rows[b.weights > 0] for b in (*one, *other)])
    assert sorted(shared.tolist()) == [1, 1, 2, 3]
    assert all(b.weights.any() for b in (*one, *other))
    empty = list(batches(sequences, windows, weights, 100, np.random.default_rng(0), (7, 8)))
    assert [(b.weights.any(), b.weight_sum) for b in empty] == [(False, 4.0)]


def test_a_target_halves_with_its_age_and_an_old_one_is_left_out() -> None:
    days = np.array([0, 10, 20, 40], dtype=np.int64)
    aged = Sequences.of_events(
        np.zeros(4, np.int64), np.arange(1, 5), np.ones(4, np.int64), np.ones(4, np.bool_), days * 86400
    )
    assert target_weights(aged, 20.0).tolist() == pytest.approx([0.25, 2**-1.5, 0.5, 1.0])
    assert target_weights(aged, 10.0).tolist() == pytest.approx([0.0, 0.125, 0.25, 1.0])


def test_what_is_held_out_is_newer_than_all_that_is_fitted() -> None:
    rng = np.random.default_rng(0)
    count = 400
    drawn = Sequences.of_events(
        rng.integers(0, 20, count), rng.integers(1, 9, count), np.ones(count, np.int64), np.ones(count, np.bool_),
        rng.permutation(count).astype(np.int64),
    )  # fmt: skip
    fitted, held = hold_out(drawn, length=5, held_out_max=100)
    assert int(fitted.times_s.max()) < int(held.prefixes.now_s.min())
    assert int(held.prefixes.times_s.max()) <= int(fitted.times_s.max())
    assert 0 < len(held.target_rows) <= 20
