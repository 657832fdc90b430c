"""Scores that are chances: what a fitted reranker says of the newest lists that no weight was fitted to, set beside
what was taken from them.

A request with sampled candidates shows its negatives too seldom (some of the pool were drawn) and its target always
(requests whose target stood in no pool are left out). Both are put right by what a drawn negative counts for. So a
score is the chance that this candidate, of all that serving proposes, is what the user takes next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from models.batches import RankingExamples
from models.calibration import UNFITTED, Calibration, calibrated
from models.fit import FittedReranker, FittedTower, reranked

if TYPE_CHECKING:
    from models.release import Manifest

SERVED_LISTS_MIN = 100
"""So many of the newest lists must have been shown to people for chances to be learned from those alone."""


def drawn_from_pools(rows: NDArray[np.int64], pool_sizes: NDArray[np.int64]) -> NDArray[np.float32]:
    """How many candidates of what serving will be asked each drawn one stands for. float32 [R]

    `rows` [R, 1 + drawn]: the target and what was drawn (0: nothing); `pool_sizes` [R], 0 where the target stood in
    none. Those requests are not learned from: the others' negatives stand for their candidates too.
    """
    reached = pool_sizes > 0
    drawn = np.maximum(np.count_nonzero(rows[:, 1:], axis=1), 1)
    left_out = np.count_nonzero(~reached) / max(int(np.count_nonzero(reached)), 1)
    stands_for = (pool_sizes - 1 + left_out * pool_sizes) / drawn
    return np.where(reached, np.maximum(stands_for, 1.0), 1.0).astype(np.float32)


def chances_of(
    tower: FittedTower, reranker: FittedReranker, ranking: RankingExamples
) -> tuple[Calibration, Calibration]:
    """The chances by the reranker's logits and by the retrieval score, learned from the newest tenth of the requests:
    from the lists among them that somebody saw where these are enough, else from the sampled ones."""
    _, newest = ranking.by_time()
    seen = ranking.drawn_from[newest] == 0
    enough = np.count_nonzero(seen) >= SERVED_LISTS_MIN
    some = ranking.take(newest[seen if enough else ~seen])
    if len(some) == 0:
        return UNFITTED, UNFITTED
    table = torch.from_numpy(tower.vectors).to(tower.device)
    real, taken = some.candidate_rows > 0, some.labels > 0
    weights = np.where(taken | enough, 1.0, some.drawn_from[:, None])[real].astype(np.float64)
    by_reranker, by_retrieval = (
        calibrated(scores[real].astype(np.float64), taken[real], weights, len(some), not enough)
        for scores in (reranked(reranker.network, table, some), some.retrieval_score)
    )
    return by_reranker, by_retrieval


def chances_told(manifest: Manifest) -> str:
    """What a score of this release means, in a sentence."""
    made = manifest.chances if manifest.rerank else manifest.retrieval_chances
    if made.lists == 0:
        return "Scores are not calibrated: too few lists were held out."
    if made.sampled:
        return (
            f"A score is the chance that the item is what the user takes next, calibrated on {made.lists:,} sampled "
            "lists that nobody saw: no chance of a click on a shown list, for which served lists are needed."
        )
    return (
        f"A score is the chance of a click within a list that gets one, calibrated on the {made.lists:,} newest served "
        "lists."
    )
