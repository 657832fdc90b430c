"""Many questions in one forward: each gets the answer it gets alone, whatever stands beside it."""

from __future__ import annotations

import numpy as np
import pytest
from model_world import DAY_S, START_S, tiny_release

from models.batched import Asked, reranked, user_vectors
from models.batches import History
from models.release import ModelRelease

NOW_S = START_S + 3 * DAY_S


@pytest.fixture(scope="module")
def release() -> ModelRelease:
    return tiny_release()


def histories(release: ModelRelease) -> list[History]:
    """Of 0, 1, 5, 12 (all the towers take), 30 and 3 events; one event of the last is of an unknown item."""
    rng = np.random.default_rng(2)
    found = []
    for length in (0, 1, 5, 12, 30, 3, 0):
        rows = rng.integers(1, len(release.item_vectors), length)
        times_s = np.sort(START_S + rng.integers(0, DAY_S, length))
        vectors = release.item_vectors[rows]
        if length == 3:
            vectors[1] = 0.0
        found.append(History(vectors, np.ones(length, dtype=np.int64), times_s))
    return found


def test_user_vectors_are_those_of_one_question(release: ModelRelease) -> None:
    asked = histories(release)
    now_s = [NOW_S + 60 * n for n in range(len(asked))]
    found = user_vectors(release, asked, now_s)
    alone = np.stack([release.user_vector(each, now) for each, now in zip(asked, now_s, strict=True)])
    assert found == pytest.approx(alone, abs=1e-5)
    assert np.ptp(alone, axis=0).max() > 0.1


def test_scores_are_those_of_one_question_whatever_its_number_of_candidates(release: ModelRelease) -> None:
    rng = np.random.default_rng(5)
    asked = [
        Asked(
            history, NOW_S + n, release.item_vectors[rng.integers(0, len(release.item_vectors), size)],
            rng.normal(size=(size, 3)).astype(np.float32), rng.normal(size=size).astype(np.float32),
        )
        for n, (history, size) in enumerate(zip(histories(release), (4, 9, 1, 20, 20, 7, 2), strict=True))
    ]  # fmt: skip
    found = reranked(release, asked)
    for each, scores in zip(asked, found, strict=True):
        one = (each.history, each.now_s, each.candidate_vectors, each.features, each.retrieval_score)
        assert scores == pytest.approx(release.rerank(*one), abs=1e-5)


def test_one_history_gets_what_it_gets_among_others(release: ModelRelease) -> None:
    """Alone a question is answered in numpy, two at once in PyTorch: times, chances and the order of things agree."""
    assert release._quick is not None
    rng = np.random.default_rng(7)
    for history in histories(release):
        vectors = release.item_vectors[rng.integers(0, len(release.item_vectors), 9)]
        features, score = rng.normal(size=(9, 3)).astype(np.float32), rng.normal(size=9).astype(np.float32)
        twice = release.rerank_rows(
            [history, history], NOW_S, vectors, np.stack([features, features]), np.stack([score, score])
        )
        assert release.rerank(history, NOW_S, vectors, features, score) == pytest.approx(twice[0], abs=1e-5)
        assert release.user_vector(history, NOW_S) == pytest.approx(
            release.user_vectors([history, history], NOW_S)[1], abs=1e-5
        )


def test_nothing_asked_is_nothing_answered(release: ModelRelease) -> None:
    assert user_vectors(release, [], []).shape == (0, release.width)
    assert reranked(release, []) == []
