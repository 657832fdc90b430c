"""Many questions through a release at once: the answers that `ModelRelease` gives one by one, up to float rounding.

A forward of one question is mostly overhead. Questions of like length share a forward, padded; padding changes nothing
(the newest event stands last, padding before the oldest, where nothing looks).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

from models.batches import History
from models.release import ModelRelease

HISTORIES_AT_ONCE = 64
CANDIDATES_AT_ONCE = 8192


@dataclass(frozen=True, slots=True)
class Asked:
    """What `ModelRelease.rerank` is asked: `candidate_vectors` [C, D], `features` [C, F], `retrieval_score` [C]."""

    history: History
    now_s: int
    candidate_vectors: NDArray[np.float32]
    features: NDArray[np.float32]
    retrieval_score: NDArray[np.float32]


def user_vectors(release: ModelRelease, histories: Sequence[History], now_s: Sequence[int]) -> NDArray[np.float32]:
    """`release.user_vector` of each history at its time. [B, D]"""
    found = np.zeros((len(histories), release.width), dtype=np.float32)
    newest = [release.newest(history) for history in histories]
    for some in _alike([len(each.times_s) for each in newest], [1] * len(newest), HISTORIES_AT_ONCE):
        vectors, actions, times_s, real = _padded([newest[n] for n in some], release)
        now = torch.tensor([now_s[n] for n in some], device=release.device)
        with torch.inference_mode():
            found[some] = release.networks.tower.newest(vectors, actions, times_s, now, real).cpu().numpy()
    return found


def reranked(release: ModelRelease, asked: Sequence[Asked]) -> list[NDArray[np.float32]]:
    """`release.rerank` of each question: float32 [C] of its own candidates."""
    found: list[NDArray[np.float32]] = [np.zeros(0, dtype=np.float32)] * len(asked)
    newest = [release.newest(each.history) for each in asked]
    sizes = [len(each.candidate_vectors) for each in asked]
    for some in _alike([len(each.times_s) for each in newest], sizes, CANDIDATES_AT_ONCE):
        vectors, actions, times_s, real = _padded([newest[n] for n in some], release)
        now = torch.tensor([asked[n].now_s for n in some], device=release.device)
        width = max(sizes[n] for n in some)
        with torch.inference_mode():
            logits = release.networks.reranker(
                vectors, actions, now[:, None] - times_s, real,
                _wide([asked[n].candidate_vectors for n in some], width, release),
                _wide([asked[n].features for n in some], width, release),
                _wide([asked[n].retrieval_score for n in some], width, release),
            )  # fmt: skip
            chances = torch.sigmoid(logits).cpu().numpy()
        for row, n in enumerate(some):
            found[n] = chances[row, : sizes[n]]
    return found


def one_thread() -> None:
    """From now on forwards, products and searches stay in the thread that asks (FAISS, in other threads than this one,
    where it is asked one question at a time): copies of the process may be made then, and for small ones threads mostly
    wait for each other (ten times as long beside a busy process)."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    threadpool_limits(1, user_api="blas")


@contextmanager
def in_this_thread() -> Iterator[None]:
    """`one_thread` within, and as before behind."""
    threads, searching = torch.get_num_threads(), faiss.omp_get_max_threads()
    with threadpool_limits(1, user_api="blas"):
        torch.set_num_threads(1)
        faiss.omp_set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            faiss.omp_set_num_threads(searching)


def _alike(lengths: Sequence[int], sizes: Sequence[int], at_once: int) -> Iterator[list[int]]:
    """Places in the order of their lengths, as many together as their sizes allow (one at least). An empty history
    shares a forward with none that is not: without an event the start token is the newest."""
    some: list[int] = []
    widest = 0
    for n in sorted(range(len(lengths)), key=lambda place: (lengths[place], sizes[place])):
        apart = some and lengths[n] > 0 and lengths[some[0]] == 0
        if apart or (some and (len(some) + 1) * max(widest, sizes[n]) > at_once):
            yield some
            some, widest = [], 0
        some.append(n)
        widest = max(widest, sizes[n])
    if some:
        yield some


def _padded(histories: Sequence[History], release: ModelRelease) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Vectors [B, H, D], actions, times and which are real [B, H]; the newest event last."""
    length = max(len(each.times_s) for each in histories)
    vectors = np.zeros((len(histories), length, release.width), dtype=np.float32)
    actions, times_s = np.zeros((2, len(histories), length), dtype=np.int64)
    real = np.zeros((len(histories), length), dtype=np.bool_)
    for row, history in enumerate(histories):
        first = length - len(history.times_s)
        vectors[row, first:], actions[row, first:], times_s[row, first:] = (
            history.vectors, history.actions, history.times_s,
        )  # fmt: skip
        real[row, first:] = True
    on = release.device
    return tuple(torch.from_numpy(each).to(on) for each in (vectors, actions, times_s, real))  # type: ignore[return-value]


def _wide(arrays: Sequence[NDArray[np.float32]], width: int, release: ModelRelease) -> Tensor:
    """Arrays [C, ...] of one question each as one [B, width, ...], zeros behind."""
    joined = np.zeros((len(arrays), width, *arrays[0].shape[1:]), dtype=np.float32)
    for row, array in enumerate(arrays):
        joined[row, : len(array)] = array
    return torch.from_numpy(joined).to(release.device)
