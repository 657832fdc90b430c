"""How fast tower and reranker are fitted, and how much of the machine's arithmetic that is.

The arithmetic is counted by PyTorch while it happens (products of matrices alone); the most that the machine can do is
measured by a product of two large matrices just before. On a CPU seconds are processor seconds by the number of
threads, so that other work on the machine disturbs little; on a GPU they are seconds of the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import ratings
import torch
from figures import Figure, figure
from torch.utils.flop_counter import FlopCounterMode

from models.batches import RankingExamples
from models.config import ModelConfig
from models.fit import FittedTower, fit_reranker
from models.items import ItemEncoder, TextBasis
from models.ranks import ALONE
from models.tower import UserTower
from models.tower_run import TowerRun, table_of
from models.vocabulary import Vocabulary
from models.windows import Packed, batches

USERS, STEPS, RUNS = 1500, 4, 3
LISTS, CANDIDATES, FEATURES = 640, 40, 30
SQUARE = {"cpu": 1024, "cuda": 8192}


def training() -> Iterator[Figure]:
    """Tower and reranker on the CPU and, where there is one, on the GPU."""
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        suffix = "" if device == "cpu" else "_gpu"
        flop_max = peak(device)
        run, steps = prepared(device)
        per_s, share = measured(device, partial(stepped, run, steps), flop_max)
        yield figure(f"tower_sequences_per_s{suffix}", sum(len(each.rows) for each in steps) * per_s)
        yield figure(f"tower_flop_share{suffix}", share)
        per_s, share = measured(device, partial(fit_reranker, *ranking(run)), flop_max)
        yield figure(f"reranker_lists_per_s{suffix}", LISTS * per_s)
        yield figure(f"reranker_flop_share{suffix}", share)


def measured(device: str, work: Callable[[], object], flop_max: float) -> tuple[float, float]:
    """How often a second, and how much of the machine's arithmetic: the median of RUNS after one that counts it."""
    with FlopCounterMode(display=False) as counter:
        work()
    seconds = float(np.median([seconds_of(device, work) for _ in range(RUNS)]))
    return 1.0 / seconds, float(counter.get_total_flops()) / seconds / flop_max


def prepared(device: str) -> tuple[TowerRun, list[Packed]]:
    """A tower of a million events' size with 200 events of history, and batches to fit it to."""
    sequences = ratings.ratings(0, USERS)
    config = replace(
        ModelConfig.for_data(1_000_000, ratings.ITEMS, "full"), history=200, batch_targets=4096,
        recency_half_life_days=1e9,
    )  # fmt: skip
    texts = ratings.texts(0)
    torch.manual_seed(0)
    items = ItemEncoder(len(texts), config)
    items.text.copy_(torch.from_numpy(TextBasis.fitted(texts, config.text_width).reduced(texts)))
    run = TowerRun(items.to(device), UserTower(2, config).to(device), sequences, config, config.learning_rate, ALONE)
    run.items.train()
    run.tower.train()
    every = batches(sequences, run.windows, run.weights, config.batch_targets, run.rng)
    return run, [packed for packed, _ in zip(every, range(STEPS), strict=False)]


def stepped(run: TowerRun, steps: list[Packed]) -> None:
    """Some steps of the fit."""
    for packed in steps:
        run.step(packed, 1000)


def ranking(run: TowerRun) -> tuple[FittedTower, RankingExamples, ModelConfig]:
    """One epoch's worth of lists for the reranker."""
    rng = np.random.default_rng(0)
    config = replace(run.config, reranker_epochs_max=1)
    places = np.sort(rng.choice(len(run.sequences.rows), LISTS, replace=False))
    prefixes = run.sequences.prefixes_of(places, 50)
    candidates = rng.integers(1, ratings.ITEMS + 1, (LISTS, CANDIDATES)).astype(np.int32)
    labels = np.zeros(candidates.shape, dtype=np.float32)
    labels[:, 0] = 1.0
    features = rng.normal(size=(*candidates.shape, FEATURES)).astype(np.float32)
    examples = RankingExamples(
        prefixes.rows,
        prefixes.actions,
        prefixes.times_s,
        prefixes.now_s,
        candidates,
        features,
        features[..., 0],
        labels,
        np.ones(LISTS, dtype=np.float32),
    )
    vectors = table_of(run.items).cpu().numpy()
    vocabulary = Vocabulary(tuple(f"item-{n}" for n in range(ratings.ITEMS)), ("click",))
    basis = TextBasis.fitted(ratings.texts(0), config.text_width)
    device = run.items.ids.device
    return FittedTower(config, vocabulary, basis, run.items, run.tower, vectors, device, 1, 0.0), examples, config


def peak(device: str) -> float:
    """Arithmetic a second of one large product of matrices, the best of seven."""
    side = SQUARE[device]
    one = torch.randn(side, side, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    return float(2 * side**3 / min(seconds_of(device, lambda: one @ one) for _ in range(7)))


def seconds_of(device: str, work: Callable[[], object]) -> float:
    """Seconds that something took: see the file's first lines."""
    if device == "cpu":
        started = time.process_time()
        work()
        return (time.process_time() - started) / torch.get_num_threads()
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started
