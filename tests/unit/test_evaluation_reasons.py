"""What an evaluation says of reasons, on numbers that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_world import START_US, cases_of, events_of

from services.domain import Explanation, LookedAt, Metric, Pick, Reason
from services.evaluation.reasons import joined, means_of, query_of, sampled_cases
from services.training.faithfulness import _mean_rank_correlation, _of_reasons, faithfulness_told


def test_measures_of_several_moments_are_one_and_what_a_moment_lacks_counts_nowhere() -> None:
    whole = joined([{"a": np.array([1.0, 3.0]), "b": np.array([5.0, 5.0])}, {}, {"a": np.array([5.0])}])
    assert whole["a"].tolist() == [1.0, 3.0, 5.0]
    found = means_of([whole, {"a": np.array([3.0, 3.0, 3.0])}])
    assert found["a"][0] == 3.0
    assert found["a"][1] < 3.0 < found["a"][2]
    assert found["a"][3] == 3
    assert (found["b"][0], found["b"][3]) == (5.0, 2)
    assert means_of([{}]) == {}


def test_cases_with_history_enough_are_asked_as_the_pipeline_is() -> None:
    rows = [("ann", f"i{n}", n) for n in range(6)] + [("bob", f"i{n}", n) for n in range(5)]
    cases = cases_of(events_of(rows), [("ann", "x", 100), ("bob", "x", 100)], seen="keep")
    assert sampled_cases(cases, 200).tolist() == [0]
    asked = query_of(cases, 0)
    assert (asked.user_id, asked.seen, asked.record) == ("0", "keep", False)
    assert asked.asked_at.timestamp() * 1e6 == START_US + 100


def _pick(item_id: str, named: str | None) -> Pick:
    if named is None:
        return Pick(item_id, 0, 0.5, "new", Reason("new_in", (), "New"), explanation=Explanation(None))
    return Pick(
        item_id, 0, 0.5, "faiss", Reason("because_you_clicked", (named,), ""),
        explanation=Explanation(0.1, (LookedAt(named, named, 0.5, 0.1),)),
    )  # fmt: skip


def test_a_reason_moves_the_rank_where_its_erasure_gives_the_pick_another_place() -> None:
    # Candidates p, q, r; without x p falls behind q, without y q keeps its place although its score falls.
    odds = np.array([[3.0, 2.0, 1.0], [1.5, 2.0, 1.0], [3.0, 1.5, 1.0]])
    picks = [_pick("p", "x"), _pick("q", "y"), _pick("r", None)]
    found = _of_reasons(picks, ("x", "y"), odds)
    assert found["picks with a reason"] == pytest.approx(2 / 3)
    assert found["reasons that move the rank"] == 0.5
    assert "reasons that move the rank" not in _of_reasons([_pick("r", None)], ("x", "y"), odds)


def test_rank_correlation_is_a_mean_over_rows_that_say_something() -> None:
    ones = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [4.0, 4.0, 4.0]])
    others = np.array([[2.0, 5.0, 9.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    assert _mean_rank_correlation(ones, others) == pytest.approx(0.0)
    assert _mean_rank_correlation(ones[:1], others[:1]) == pytest.approx(1.0)
    assert np.isnan(_mean_rank_correlation(ones[2:], others[2:]))


def test_what_was_measured_of_reasons_is_told_in_a_paragraph() -> None:
    names = [f"{what}@{k}{end}" for what in ("comprehensiveness", "sufficiency") for k in (1, 3, 5)
             for end in ("", " random")]  # fmt: skip
    metrics = [Metric("reasons", "all", name, 0.25, 40) for name in [*names, "picks with a reason"]]
    told = faithfulness_told(metrics)
    assert told.startswith("Reasons, over 40 users: 25% of the picks name an item of the history, erasing it moves 0%")
    assert "0.250/0.250/0.250 (by lot 0.250/0.250/0.250)" in told
    assert faithfulness_told([]) == ""
