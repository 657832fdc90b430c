"""What every index must do, run over the exact one, FAISS comparing all and FAISS walking a graph; seeded vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.index import ExactIndex, FaissIndex, VectorIndex

ROWS, WIDTH, K = 3000, 16, 10


def _vectors(rows: int = ROWS) -> NDArray[np.float32]:
    found = np.random.default_rng(0).normal(size=(rows + 1, WIDTH)).astype(np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    found[0] = 0
    return found


class IndexContract(ABC):
    """What `VectorIndex` promises."""

    @abstractmethod
    def build(self, item_vectors: NDArray[np.float32]) -> VectorIndex:
        """The index under test."""

    def test_it_finds_what_the_exact_one_finds(self) -> None:
        vectors = _vectors()
        index, exact = self.build(vectors), ExactIndex(vectors)
        asked = np.random.default_rng(1).normal(size=(50, WIDTH)).astype(np.float32)
        hits = [len(set(index.search(each, K)[0]) & set(exact.search(each, K)[0])) for each in asked]
        assert sum(hits) / (50 * K) >= 0.95

    def test_scores_are_inner_products_best_first(self) -> None:
        vectors = _vectors()
        asked = np.random.default_rng(2).normal(size=WIDTH).astype(np.float32)
        rows, scores = self.build(vectors).search(asked, K)
        assert np.allclose(scores, vectors[rows] @ asked, atol=1e-5)
        assert (np.diff(scores) <= 1e-6).all()

    def test_it_never_returns_padding_even_when_all_else_is_worse(self) -> None:
        vectors = _vectors(rows=5)
        asked = -vectors[1:].sum(axis=0)
        rows, _ = self.build(vectors).search(asked, 5)
        assert sorted(rows.tolist()) == [1, 2, 3, 4, 5]

    def test_k_above_the_size_returns_all(self) -> None:
        rows, scores = self.build(_vectors(rows=3)).search(np.ones(WIDTH, dtype=np.float32), 50)
        assert sorted(rows.tolist()) == [1, 2, 3]
        assert len(scores) == 3

    def test_an_empty_index_finds_nothing(self) -> None:
        index = self.build(_vectors(rows=0))
        assert len(index) == 0
        assert [len(each) for each in index.search(np.ones(WIDTH, dtype=np.float32), 4)] == [0, 0]


class TestExactIndex(IndexContract):
    def build(self, item_vectors: NDArray[np.float32]) -> VectorIndex:
        return ExactIndex(item_vectors)


class TestFlatFaissIndex(IndexContract):
    def build(self, item_vectors: NDArray[np.float32]) -> VectorIndex:
        return FaissIndex.built(item_vectors)


class TestGraphFaissIndex(IndexContract):
    def build(self, item_vectors: NDArray[np.float32]) -> VectorIndex:
        return FaissIndex.built(item_vectors, exact_max=0)


@pytest.mark.parametrize("exact_max", [0, ROWS])
def test_an_index_read_again_answers_equally(tmp_path: Path, exact_max: int) -> None:
    index = FaissIndex.built(_vectors(), exact_max)
    index.write(tmp_path / "items.index")
    again = FaissIndex.read(tmp_path / "items.index")
    asked = np.random.default_rng(3).normal(size=WIDTH).astype(np.float32)
    assert again.search(asked, K)[0].tolist() == index.search(asked, K)[0].tolist()


def test_a_file_that_is_no_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "items.index").write_bytes(b"no index at all")
    with pytest.raises(ValueError, match=r"items\.index"):
        FaissIndex.read(tmp_path / "items.index")
