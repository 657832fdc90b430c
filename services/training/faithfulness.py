"""How far the reasons of a release can be trusted, measured on some users.

Comprehensiveness@k: what the log-odds of a pick lose when the k items that its reason stands on are erased from the
row; sufficiency@k: what they lose when only these are left (DeYoung et al. 2020, arXiv:1911.03429). Beside both, the
same for k items by lot. Attention is set beside erasure as it is. A model whose reranker has random weights must be
explained otherwise, or the explanation does not depend on what was learned (Adebayo et al. 2018, arXiv:1810.03292).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from models.batches import Progress, no_progress
from services.domain import Candidate, Metric, Pick, Query, UserState, from_us
from services.recommend import Probe, Stages, gather, items_of, read_user, score, sift
from services.sharing import shared, shares_of
from services.training.columns import EventColumns
from services.training.gate import Slice

AT = (1, 3, 5)
ITEMS_MIN = 6
"""Users with fewer items in their row are passed over: five by lot would be all of them."""
PICKS = 10
MEASURED = 3
"""So many of the first picks are measured item by item."""
LISTED = 50
"""Among so many best candidates a pick's place is looked for."""
Numbers = NDArray[np.float64]


def faithfulness(
    stages: Stages, blank: Probe | None, queries: Sequence[Query], seed: int, progress: Progress = no_progress,
    processes: int = 1,
) -> Mapping[str, Numbers]:  # fmt: skip
    """Every measure for each query whose user has ITEMS_MIN items: float64 [users], NaN where it has no value (no
    reason by erasure was shown). `blank`: the probe of the same release with random weights in its reranker; None where
    the reranker has no say."""
    shares = shares_of(len(queries), processes)

    def measured(share: int) -> list[tuple[int, dict[str, float]]]:
        some: list[tuple[int, dict[str, float]]] = []
        for number in range(share, len(queries), shares):
            query = queries[number]
            user, _ = read_user(stages.features, query)
            if len(items_of(user)) >= ITEMS_MIN:
                rng = np.random.default_rng([seed, number])  # the same lots however the users are shared out
                asked = replace(query, limit=PICKS, reasons="erasure")
                some.append((number, _of_user(stages, blank, asked, user, rng)))
            if share == 0:
                progress(number + 1, len(queries), "erasing what reasons stand on")
        return some

    by_number = sorted((each for share in shared(shares, measured) for each in share), key=itemgetter(0))
    found = [each for _, each in by_number]
    names = dict.fromkeys(name for each in found for name in each)
    return {name: np.array([each.get(name, np.nan) for each in found]) for name in names}


def queries_of(judged: Slice, before: EventColumns, users_max: int) -> list[Query]:
    """What is asked for `users_max` of the judged users that were known before the cut."""
    codes = judged.user_codes[judged.known][:users_max].tolist()
    asked_at = from_us(judged.cut_us)
    return [Query(f"reasons-{code}", before.user_ids[code], PICKS, asked_at, record=False) for code in codes]


def faithfulness_metrics(measured: Mapping[str, Numbers]) -> tuple[Metric, ...]:
    """The means over the users that each measure has a value for."""
    values = {name: each[~np.isnan(each)] for name, each in measured.items()}
    return tuple(
        Metric("reasons", "all", name, float(each.mean()), len(each)) for name, each in values.items() if len(each)
    )


def faithfulness_told(metrics: Sequence[Metric]) -> str:
    """The means as one paragraph; empty where nobody could be measured."""
    found = {each.name: each.value for each in metrics if each.model == "reasons"}
    users = max((each.users for each in metrics if each.model == "reasons"), default=0)
    if not users:
        return ""

    def at(name: str, end: str = "") -> str:
        return "/".join(f"{found[f'{name}@{k}{end}']:.3f}" for k in AT)

    moved = f"{found.get('reasons that move the rank', 0.0):.0%}"
    return (
        f"Reasons, over {users} users: {found['picks with a reason']:.0%} of the picks name an item of the history, "
        f"erasing it moves {moved} of these to another place. Log-odds lost without the first 1/3/5 items that a "
        f"reason stands on {at('comprehensiveness')} (by lot {at('comprehensiveness', ' random')}), with only these "
        f"left {at('sufficiency')} (by lot {at('sufficiency', ' random')}). Rank correlation of attention with erasure "
        f"{found.get('attention against erasure', 0.0):+.2f}, of erasure with that of random weights "
        f"{found.get('random weights against erasure', 0.0):+.2f}."
    )


def _of_user(
    stages: Stages, blank: Probe | None, query: Query, user: UserState, rng: np.random.Generator
) -> dict[str, float]:
    probe = stages.probe
    assert probe is not None, "stages of a release have a probe"
    found, _ = gather(stages.sources, query, user)
    kept, _ = sift(stages.filters, query, user, found)
    scored, _, _ = score(stages.scorer, query, user, kept)
    picks, _ = probe.explain(query, user, stages.arrange(query, user, scored), scored)
    if not picks:
        return {}
    by_id = {each.candidate.item_id: each.candidate for each in scored}
    best = sorted(scored, key=lambda each: (-each.score, each.candidate.item_id))[:LISTED]
    listed = list(dict.fromkeys([*(pick.item_id for pick in picks), *(each.candidate.item_id for each in best)]))
    candidates = [by_id[item_id] for item_id in listed]
    singles = [frozenset(), *(frozenset([item_id]) for item_id in items_of(user))]
    odds = _log_odds(probe.without(query, user, candidates, singles))
    first = candidates[: min(MEASURED, len(picks))]
    drops = (odds[0] - odds[1:])[:, : len(first)].T  # [picks, items]
    shares = probe.shares(query, user, first)[:, 1:].astype(np.float64)
    measured = _erased(probe, query, user, first, drops, shares, rng)
    measured["attention against erasure"] = _mean_rank_correlation(shares, drops)
    if blank is not None:
        odds_blank = _log_odds(blank.without(query, user, first, singles))
        measured["random weights against erasure"] = _mean_rank_correlation((odds_blank[0] - odds_blank[1:]).T, drops)
    return measured | _of_reasons(picks, items_of(user), odds)


def _of_reasons(picks: Sequence[Pick], item_ids: Sequence[str], odds: Numbers) -> dict[str, float]:
    """What the shown reasons are worth; the picks stand first among the candidates of `odds` [1 + items, C]."""
    named = [
        (n, 1 + item_ids.index(pick.reason.item_ids[0]))
        for n, pick in enumerate(picks)
        if pick.explanation is not None and pick.explanation.drop is not None
    ]
    found = {"picks with a reason": len(named) / len(picks)}
    if named:
        moved = [
            np.count_nonzero(odds[0] > odds[0, n]) != np.count_nonzero(odds[row] > odds[row, n]) for n, row in named
        ]
        found["reasons that move the rank"] = float(np.mean(moved))
    return found


def _erased(
    probe: Probe,
    query: Query,
    user: UserState,
    first: Sequence[Candidate],
    drops: Numbers,
    shares: Numbers,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Comprehensiveness and sufficiency, means over the first picks."""
    item_ids = items_of(user)
    named: list[tuple[str, int]] = []
    erased: list[frozenset[str]] = [frozenset()]
    for place in range(len(first)):
        attended = np.argsort(-shares[place], kind="stable")[: AT[-1]]
        chosen = attended[np.argsort(-drops[place][attended], kind="stable")]
        by_lot = rng.permutation(len(item_ids))
        for k in AT:
            for order, end in ((chosen, ""), (by_lot, " random")):
                some = frozenset(item_ids[code] for code in order[:k].tolist())
                named += [(f"comprehensiveness@{k}{end}", place), (f"sufficiency@{k}{end}", place)]
                erased += [some, frozenset(item_ids) - some]
    odds = _log_odds(probe.without(query, user, first, erased))
    lost: dict[str, list[float]] = {}
    for row, (name, place) in enumerate(named, start=1):
        lost.setdefault(name, []).append(float(odds[0, place] - odds[row, place]))
    return {name: float(np.mean(each)) for name, each in lost.items()}


def _log_odds(chances: NDArray[np.float32]) -> Numbers:
    held = np.clip(chances.astype(np.float64), 1e-12, 1 - 1e-7)
    return np.asarray(np.log(held / (1 - held)), dtype=np.float64)


def _mean_rank_correlation(ones: Numbers, others: Numbers) -> float:
    """Spearman's, row by row; NaN where no row has two different values on both sides."""
    from scipy.stats import rankdata

    found = []
    for one, other in zip(ones, others, strict=True):
        if np.ptp(one) > 0 and np.ptp(other) > 0:
            found.append(float(np.corrcoef(rankdata(one), rankdata(other))[0, 1]))
    return float(np.mean(found)) if found else float("nan")
