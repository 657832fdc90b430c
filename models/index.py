"""Nearest items by inner product: `ExactIndex` is the meaning, `FaissIndex` the speed. Rows in, rows out, never row 0.

Up to EXACT_MAX vectors FAISS compares them all (0.1 ms for 10,000 of width 64, 0.75 ms for 100,000, one thread); above,
it walks an HNSW graph.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

EXACT_MAX = 200_000
HNSW_LINKS = 32
HNSW_BUILD_BREADTH = 200
HNSW_SEARCH_BREADTH = 512

Found = tuple[NDArray[np.int64], NDArray[np.float32]]


class VectorIndex(Protocol):
    """Searches the rows 1..V-1 of a matrix of item vectors. Safe to use from several threads."""

    def __len__(self) -> int:
        """How many vectors can be found: V - 1."""

    def search(self, vector: NDArray[np.float32], k: int) -> Found:
        """The rows with the highest inner product with `vector` [D] and these, best first; fewer than `k` when there
        are not so many. Never row 0."""


class ExactIndex:
    """Every product, sorted: what the others are measured against. Ties by row."""

    def __init__(self, item_vectors: NDArray[np.float32]) -> None:
        self._vectors = item_vectors[1:]

    def __len__(self) -> int:
        return len(self._vectors)

    def search(self, vector: NDArray[np.float32], k: int) -> Found:
        """See VectorIndex."""
        scores = self._vectors @ vector
        order = np.argsort(-scores, kind="stable")[:k]
        return order + 1, scores[order].astype(np.float32)


class FaissIndex:
    """A FAISS index over the rows 1..V-1."""

    def __init__(self, index: Any) -> None:
        self._index = index

    @staticmethod
    def built(item_vectors: NDArray[np.float32], exact_max: int = EXACT_MAX) -> FaissIndex:
        """An index of the rows 1..V-1 of `item_vectors` [V, D]: flat up to `exact_max` of them, HNSW above."""
        rows, width = len(item_vectors) - 1, item_vectors.shape[1]
        index: Any
        if rows <= exact_max:
            index = faiss.IndexFlatIP(width)
        else:
            index = faiss.IndexHNSWFlat(width, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = HNSW_BUILD_BREADTH
            index.hnsw.efSearch = HNSW_SEARCH_BREADTH
        index.add(np.ascontiguousarray(item_vectors[1:], dtype=np.float32))
        return FaissIndex(index)

    @staticmethod
    def read(path: Path) -> FaissIndex:
        """The index of a file. Raises ValueError when it is none."""
        try:
            return FaissIndex(faiss.read_index(os.fspath(path)))
        except RuntimeError as error:
            raise ValueError(f"{path.name} is no index: {error}") from error

    def write(self, path: Path) -> None:
        """The index as a file."""
        faiss.write_index(self._index, os.fspath(path))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def width(self) -> int:
        """D"""
        return int(self._index.d)

    def search(self, vector: NDArray[np.float32], k: int) -> Found:
        """See VectorIndex."""
        k = min(k, len(self))
        if k <= 0:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        scores, found = self._index.search(np.ascontiguousarray(vector, dtype=np.float32)[None, :], k)
        real = found[0] >= 0
        return found[0][real].astype(np.int64) + 1, scores[0][real]
