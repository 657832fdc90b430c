"""Pipelines with something about their lists changed: what they are called, what they change, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from serving_world import HandRelease, film_table, query, stages_of

from services.domain import BadRequest
from services.evaluation.run import Wanted, check
from services.evaluation.variants import PIPELINE, variants_of
from services.memory import MemoryFeatureStore


def test_each_variant_changes_one_thing_and_says_which() -> None:
    made = variants_of([0.3], [2], ["faiss"])
    assert [each.name for each in made] == ["pipeline diversity 0.3", "pipeline cap 2", "pipeline without faiss"]
    asked = query(record=False)
    assert [(q.diversity, q.category_cap) for q in (each.query(asked) for each in (PIPELINE, *made))] == [
        (None, None), (0.3, None), (None, 2), (None, None),
    ]  # fmt: skip
    stages = stages_of(film_table(), MemoryFeatureStore(), HandRelease())
    names = [[source.name for source in each.stages(stages).sources] for each in (PIPELINE, *made)]
    every = ["given", "related", "covisits", "faiss", "trending", "new"]
    assert names == [every, every, every, [name for name in every if name != "faiss"]]


@pytest.mark.parametrize(
    ("given", "why"),
    [(([], [], ["search"]), "no source 'search'"), (([1.5], [], []), "0 to 1, not 1.5"), (([], [0], []), "at least 1")],
)
def test_what_is_no_variant_is_refused(given: tuple[list[float], list[int], list[str]], why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        variants_of(*given)


def test_variants_are_of_the_pipeline() -> None:
    wanted = Wanted(Path("e"), Path("i"), "temporal", ("ease",), variants=variants_of([0.3]))
    with pytest.raises(BadRequest, match="change the model pipeline"):
        check(wanted)
