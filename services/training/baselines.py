"""What a release has to beat: windowed popularity and item-kNN. Ties always go to the lower item code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from services.training.columns import EventColumns

if TYPE_CHECKING:
    from scipy.sparse import csr_array


def windowed_popularity(events: EventColumns, until_us: int, window_us: int) -> NDArray[np.float64]:
    """Positive events per item code in `[until_us - window_us, until_us)`. [items]"""
    first, last = np.searchsorted(events.occurred_us, [until_us - window_us, until_us])
    items = events.item_codes[first:last][events.weight[first:last] > 0]
    return np.bincount(items, minlength=len(events.item_ids)).astype(np.float64)


def item_similarity(events: EventColumns, neighbours_max: int = 100) -> csr_array:
    """Item-kNN: cosine of the sets of users who liked each item, the nearest of each. [items, items]"""
    from scipy.sparse import coo_array, csr_array, diags_array

    liked = events.keep(events.positive)
    shape = (len(events.user_ids), len(events.item_ids))
    ones = np.ones(len(liked), dtype=np.float64)
    taken = csr_array(coo_array((ones, (liked.user_codes, liked.item_codes)), shape=shape))
    taken.data[:] = 1.0  # a set of users: taking an item twice counts once
    norms = np.sqrt(np.asarray(taken.sum(axis=0)).ravel())
    scaled = taken @ diags_array(1.0 / np.maximum(norms, 1e-12))
    cosine = csr_array(scaled.T @ scaled)
    cosine.setdiag(0.0)
    cosine.eliminate_zeros()
    return strongest(cosine, neighbours_max)


def knn_scores(similarity: csr_array, history_items: NDArray[np.int64]) -> NDArray[np.float64]:
    """Summed similarity of every item to the distinct items of a history. [items]"""
    rows = similarity[np.unique(history_items)]
    return np.asarray(rows.sum(axis=0), dtype=np.float64).ravel()


def place_of(scores: NDArray[np.float64], target: int, hidden: NDArray[np.int64]) -> int:
    """The place (from 0) of a target among all items but the hidden ones, by score, ties by code."""
    shown = np.ones(len(scores), dtype=np.bool_)
    shown[hidden] = False
    better = (scores > scores[target]) | ((scores == scores[target]) & (np.arange(len(scores)) < target))
    return int(np.count_nonzero(better & shown))


def strongest(matrix: csr_array, per_row: int) -> csr_array:
    """The highest entries of each row, ties to the lower column."""
    from scipy.sparse import csr_array

    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -matrix.data, rows))
    place = np.arange(len(order)) - matrix.indptr[:-1][rows[order]]
    kept = order[place < per_row]
    return csr_array((matrix.data[kept], (rows[kept], matrix.indices[kept])), shape=matrix.shape)
