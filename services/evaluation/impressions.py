"""Shown lists: every model scores the items of each list, and the clicks say which should have stood first."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from models.batches import Progress
from services.candidates.sources import GivenSource
from services.domain import BadRequest, KindRules
from services.evaluation.baselines import Ranker, Scores
from services.evaluation.cases import COLD_USER_EVENTS, Cases, Histories
from services.evaluation.clicks import DEPTHS, Flags, over_rows, per_list
from services.evaluation.files import Data, Impression, read_data
from services.evaluation.intervals import Resampled, mean_over_seeds, resampled
from services.evaluation.measures import PerCase
from services.evaluation.run import BASELINES, TRAINED, Line, Means, Report, Wanted, check
from services.evaluation.tuning import choices_of, tuned

SCORED_AT_ONCE = 256
AMONG_MAX = GivenSource().limit
OF_CHANCES = ("pipeline",)
"""Models whose score is the chance of a click."""


def evaluate_impressions(wanted: Wanted, rules: KindRules, means: Means, progress: Progress) -> Report:
    """What each model makes of the lists. Raises BadRequest where the files make no sense or no list has a click."""
    check(wanted)
    progress(0, 1, "reading")
    data = read_data(wanted.events, wanted.items, None, rules, wanted.impressions)
    progress(1, 1, "reading")
    if not any(any(each.clicked) for each in data.impressions):
        raise BadRequest(f"{wanted.impressions}: no impression has a click")
    if "pipeline" in wanted.models and any(len(each.item_ids) > AMONG_MAX for each in data.impressions):
        raise BadRequest(f"{wanted.impressions}: the pipeline scores lists of at most {AMONG_MAX} items")
    cases, shown = cases_of(data)
    settings: dict[str, str] = {}
    scored: dict[str, list[list[Scores]]] = {}
    for model in wanted.models:
        name, _, given = model.partition(":")
        if name in BASELINES:
            found = tuned(cases, choices_of(name, given or None), "targets", progress, f"tuning {name}")
            settings[model] = found.setting
            scored[model] = [_scores(found.ranker, cases, shown, progress, f"scoring by {model}")]
    learned = [model for model in wanted.models if model in TRAINED]
    if learned:
        from services.evaluation.trained import Trainer

        trainer = Trainer(data.items, cases, means, progress)
        lists = [each.item_ids for each in data.impressions]
        for seed in range(1, wanted.seeds + 1):
            release = trainer.fitted(seed)
            for model in learned:
                text = f"scoring by {model} {seed}"
                made = (
                    _scores(trainer.tower(release), cases, shown, progress, text)
                    if model == "tower"
                    else trainer.scores_among(release, lists, text)
                )
                scored.setdefault(model, []).append(made)
                settings[model] = means.told(seed)
    ordered = {model: scored[model] for model in wanted.models}
    against, lines = _lines(wanted, cases, data.impressions, ordered)
    return Report(wanted, _facts(data, cases), settings, against, lines)


def cases_of(data: Data) -> tuple[Cases, list[NDArray[np.int64]]]:
    """A case per impression, which knows its user's events before it, and the codes of its items. Every event of the
    events file may be learned from. (A case's target is its first item; nothing reads it.)"""
    events = data.events
    user_code = {user_id: code for code, user_id in enumerate(events.user_ids)}
    item_code = {item_id: code for code, item_id in enumerate(events.item_ids)}
    if not events.positive.any():
        raise BadRequest("no event that may be learned from is positive")
    shown = [np.array([item_code[i] for i in each.item_ids], dtype=np.int64) for each in data.impressions]
    users = np.array([user_code[each.user_id] for each in data.impressions], dtype=np.int64)
    until_us = np.array([each.time_us for each in data.impressions], dtype=np.int64)
    histories = Histories(events)
    pairs = zip(users.tolist(), until_us.tolist(), strict=True)
    history = np.array([len(histories.before(user, until)) for user, until in pairs], dtype=np.int64)
    first = np.array([each[0] for each in shown], dtype=np.int64)
    return Cases(events, users, first, until_us, history, np.ones(len(users), dtype=np.bool_), "keep"), shown


def _scores(
    ranker: Ranker, cases: Cases, shown: Sequence[NDArray[np.int64]], progress: Progress, text: str
) -> list[Scores]:
    found: list[Scores] = [np.zeros(0)] * len(cases)
    by_time = np.argsort(cases.until_us, kind="stable")
    for start in range(0, len(cases), SCORED_AT_ONCE):
        some = by_time[start : start + SCORED_AT_ONCE]
        for row, case in zip(ranker.scores(cases, some), some.tolist(), strict=True):
            found[case] = np.maximum(row[shown[case]], -1e12)  # what may not be shown was: it comes last
        progress(start + len(some), len(cases), text)
    return found


def _lines(
    wanted: Wanted, cases: Cases, impressions: Sequence[Impression], scored: Mapping[str, Sequence[Sequence[Scores]]]
) -> tuple[str | None, tuple[Line, ...]]:
    """Who the others are compared with (the baseline with the best NDCG if nobody is named), and all numbers."""
    cold = cases.history < COLD_USER_EVENTS
    parts = {"all": np.ones(len(cases), dtype=np.bool_), "warm users": ~cold, "cold users": cold}
    has_click = np.array([any(each.clicked) for each in impressions])
    parts = {part: mask for part, mask in parts.items() if (mask & has_click).any()}
    found = {
        part: {model: _measured(model, seeds, impressions, mask) for model, seeds in scored.items()}
        for part, mask in parts.items()
    }
    if (fresh := _fresh_rows(cases, impressions)) is not None:
        parts["new items"], reduced = fresh.lists, fresh.of(impressions)
        found["new items"] = {
            model: _measured(model, [fresh.scores(made) for made in seeds], reduced, fresh.lists)
            for model, seeds in scored.items()
        }
    named = [model for model in scored if model.partition(":")[0] in BASELINES]
    last = f"ndcg@{DEPTHS[-1]}" if any(sum(each.clicked) and len(each.clicked) > 1 for each in impressions) else "auc"
    against = wanted.against or max(named, key=lambda model: found["all"][model][last].value, default=None)
    lines: list[Line] = []
    for model, seeds in scored.items():
        for part, mask in parts.items():
            users, own = len(np.unique(cases.users[mask])), found[part][model]
            told = {name: each.interval() for name, each in own.items()}
            if against is not None and model != against:
                other = found[part][against]
                told |= {f"{name} - {against}": own[name].less(other[name]) for name in own if name in other}
            lines += [Line(model, part, n, i.value, i.low, i.high, len(seeds), users) for n, i in told.items()]
    return against, tuple(lines)


@dataclass(frozen=True, slots=True)
class _FreshRows:
    """The shown items that nobody had taken: `rows` says which ones of each list, `lists` which lists have one."""

    rows: tuple[Flags, ...]
    lists: Flags

    def of(self, impressions: Sequence[Impression]) -> list[Impression]:
        """The lists with these items alone."""
        return [
            replace(
                each,
                item_ids=tuple(compress(each.item_ids, kept.tolist())),
                clicked=tuple(compress(each.clicked, kept.tolist())),
            )
            for each, kept in zip(impressions, self.rows, strict=True)
        ]

    def scores(self, made: Sequence[Scores]) -> list[Scores]:
        """The scores of these items alone."""
        return [scores[kept] for scores, kept in zip(made, self.rows, strict=True)]


def _fresh_rows(cases: Cases, impressions: Sequence[Impression]) -> _FreshRows | None:
    """None where no such item was clicked."""
    events = cases.train
    liked = {events.item_ids[code] for code in np.unique(events.item_codes[events.positive]).tolist()}
    rows = tuple(np.array([item_id not in liked for item_id in each.item_ids]) for each in impressions)
    clicked = any((np.array(each.clicked) & kept).any() for each, kept in zip(impressions, rows, strict=True))
    return _FreshRows(rows, np.array([kept.any() for kept in rows])) if clicked else None


def _measured(
    model: str, seeds: Sequence[Sequence[Scores]], impressions: Sequence[Impression], mask: Flags
) -> dict[str, Resampled]:
    """Every metric of one model on some of the lists, averaged over the seeds."""
    chosen = np.flatnonzero(mask).tolist()
    clicked = np.concatenate([np.array(impressions[n].clicked, dtype=np.bool_) for n in chosen])
    offsets = np.concatenate([[0], np.cumsum([len(impressions[n].clicked) for n in chosen])]).astype(np.int64)
    by_list: list[dict[str, PerCase]] = []
    by_row: list[dict[str, Resampled]] = []
    for made in seeds:
        scores = np.concatenate([made[n] for n in chosen])
        chances = scores if model in OF_CHANCES else None
        by_list.append(per_list(scores, clicked, offsets))
        by_row.append(over_rows(scores, chances, clicked, offsets))
    names = list(by_list[0])
    means = resampled([mean_over_seeds([each[name] for each in by_list]) for name in names]) if names else []
    whole = {name: _over_seeds([each[name] for each in by_row]) for name in by_row[0]}
    return {"auc": whole.pop("auc"), **dict(zip(names, means, strict=True)), **whole}


def _over_seeds(seeds: Sequence[Resampled]) -> Resampled:
    return Resampled(float(np.mean([each.value for each in seeds])), np.mean([each.means for each in seeds], axis=0))


def _facts(data: Data, cases: Cases) -> dict[str, str]:
    rows = sum(len(each.item_ids) for each in data.impressions)
    clicks = sum(sum(each.clicked) for each in data.impressions)
    return {
        "test_set": lists_hash(data.impressions),
        "events": f"{len(data.events):,}, all of them learned from",
        "users": f"{len(data.events.user_ids):,}",
        "impressions": f"{len(data.impressions):,} with {rows:,} items and {clicks:,} clicks; "
        f"{int((cases.history > 0).sum()):,} of users with a history",
    }


def lists_hash(impressions: Sequence[Impression]) -> str:
    """SHA-256 of the lists: a line `user, moment, item, clicked` per row, in the order of these lines."""
    lines = sorted(
        f"{each.user_id}\t{each.time_us}\t{item_id}\t{int(clicked)}"
        for each in impressions
        for item_id, clicked in zip(each.item_ids, each.clicked, strict=True)
    )
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()
