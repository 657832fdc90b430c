"""Shown lists: every model scores the items of each list, and the clicks say which should have stood first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from models.batches import Progress
from services.candidates.sources import GivenSource
from services.domain import BadRequest, KindRules
from services.evaluation.among import scores_shown
from services.evaluation.baselines import Scores
from services.evaluation.cases import COLD_USER_EVENTS, Cases, Histories
from services.evaluation.clicks import DEPTHS, Flags, over_rows, per_list
from services.evaluation.files import Data, read_data
from services.evaluation.intervals import Interval, Resampled, by_user, mean_over_seeds, resampled
from services.evaluation.learned import answers_among, check_before, split, useful, with_clicks
from services.evaluation.measures import PerCase
from services.evaluation.run import BASELINES, Line, Means, Report, Wanted, check
from services.evaluation.shown import ShownLists, joined_ids, read_shown
from services.evaluation.tuning import choices_of, tuned
from services.evaluation.value import value_of, weights_of_choice
from services.training.columns import EventColumns
from services.training.served import learned_from

AMONG_MAX = GivenSource().limit
ScoresOf = Callable[[ShownLists], Scores]
"""Scores what some lists show; list n is asked for as case n is."""
ARMS_MAX = 1000
"""A choice among all that a log shows is worked out where it shows at most so many different items."""


@dataclass(frozen=True, slots=True)
class _Read:
    """What was read: the judged lists, those to learn from (None: there are none), and what there is to say of them."""

    data: Data
    judged: ShownLists
    learned: ShownLists | None
    told: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Scored:
    """What one model made of the lists, per seed: the scores of what was shown [M], and the item (code) that it would
    have chosen among all that the log shows [R], where propensities are known. `chances`: the scores are chances."""

    shown: list[Scores]
    chosen: list[NDArray[np.int64]]
    chances: bool = False

    def add(self, scores_of: ScoresOf, lists: ShownLists, arms: NDArray[np.int64] | None) -> None:
        """One more seed."""
        self.shown.append(scores_of(lists))
        if arms is not None:
            found = scores_of(_of_arms(lists, arms))
            self.chosen.append(arms[found.reshape(len(lists), len(arms)).argmax(axis=1)])


def evaluate_impressions(wanted: Wanted, rules: KindRules, means: Means, progress: Progress) -> Report:
    """What each model makes of the lists. Raises BadRequest where the files make no sense or no list has a click."""
    check(wanted)
    progress(0, 1, "reading")
    read = _read(wanted, rules)
    progress(1, 1, "reading")
    cases = cases_of(read.data.events, read.judged)
    arms = _arms(read.judged)
    settings: dict[str, str] = {}
    scored: dict[str, _Scored] = {}
    for model in wanted.models:
        name, _, given = model.partition(":")
        if name in BASELINES:
            found = tuned(cases, choices_of(name, given or None), "targets", progress, f"tuning {name}")
            settings[model] = found.setting
            by = partial(scores_shown, found.ranker, cases, progress=progress, text=f"scoring by {model}")
            scored[model] = _Scored([], [])
            scored[model].add(by, read.judged, arms)
    for model, scores_of, chances, setting in _by_trained(wanted, read, cases, means, progress):
        scored.setdefault(model, _Scored([], [], chances)).add(scores_of, read.judged, arms)
        settings[model] = f"{setting}, seeds 1 to {len(scored[model].shown)}" if model == "news" else setting
    against, lines = _lines(wanted, cases, read.judged, {model: scored[model] for model in wanted.models})
    return Report(wanted, _facts(read, cases), settings, against, lines)


def cases_of(events: EventColumns, lists: ShownLists) -> Cases:
    """A case per list, which knows its user's events before it. Every one of the events may be learned from. (A case's
    target is its first item; nothing reads it.)"""
    if not events.positive.any():
        raise BadRequest("no event that may be learned from is positive")
    histories = Histories(events)
    pairs = zip(lists.users.tolist(), lists.time_us.tolist(), strict=True)
    history = np.array([len(histories.before(user, until)) for user, until in pairs], dtype=np.int64)
    first = lists.items[lists.offsets[:-1]]
    return Cases(events, lists.users, first, lists.time_us, history, np.ones(len(lists), dtype=np.bool_), "keep")


def _read(wanted: Wanted, rules: KindRules) -> _Read:
    assert wanted.impressions is not None, "no lists to judge"
    judged = read_shown(wanted.impressions)
    learned = None if wanted.learn_from is None else read_shown(wanted.learn_from)
    users, items = joined_ids([judged] if learned is None else [judged, learned])
    data = read_data(wanted.events, wanted.items, None, rules, users, items)
    events, told = data.events, {}
    judged = judged.coded(events)
    if learned is not None and wanted.learn_from is not None:
        learned = learned.coded(events)
        check_before(wanted.learn_from, learned, judged)
    if wanted.cut is not None:
        learned, judged, events = split(judged, events, wanted.cut)
    if not judged.clicked.any():
        raise BadRequest(f"{wanted.impressions}: no impression has a click")
    if "pipeline" in wanted.models and int(judged.sizes.max()) > AMONG_MAX:
        raise BadRequest(f"{wanted.impressions}: the pipeline scores lists of at most {AMONG_MAX} items")
    told["events"] = f"{len(events):,}, all of them learned from"
    if learned is not None:
        some = useful(learned)
        told["lists to learn from"] = f"{len(learned):,} with {len(learned.items):,} items, {len(some):,} of use"
        events, more = with_clicks(events, learned, rules)
        told["lists to learn from"] += f"; {more:,} of their clicks were no events yet"
        learned = some if len(some) else None
    answers = answers_among(events, judged)
    if answers:
        told["judged clicks among the events"] = f"{answers:,}: they are learned from, too; --cut or fewer events help"
    return _Read(Data(events, data.items, ()), judged, learned, told)


# ------------------------------------------------------------------------------------------------- scoring


def _by_trained(
    wanted: Wanted, read: _Read, cases: Cases, means: Means, progress: Progress
) -> Iterator[tuple[str, ScoresOf, bool, str]]:
    """Seed by seed how each trained model scores, whether these are chances of a click, and how it was set."""
    models = [model for model in wanted.models if model.partition(":")[0] not in BASELINES]
    if not models:
        return
    from services.evaluation.trained import Trainer

    trainer = Trainer(read.data.items, cases, means, progress, read.learned)
    if "news" in models:
        from services.evaluation.news import News

        lists = (read.judged, read.learned)
        news = News(cases.train, read.data.items, lists, means, trainer.vectors_of, progress)
    for seed in range(1, wanted.seeds + 1):
        if "news" in models:
            fitted = news.fitted(seed)
            yield "news", partial(news.scores, fitted.model), news.shown, news.setting
        if "tower" in models or "pipeline" in models:
            release = trainer.fitted(seed)
        if "tower" in models:
            yield (
                "tower",
                partial(trainer.tower_among, release, text=f"scoring by tower {seed}"),
                False,
                means.told(seed),
            )
        if "pipeline" in models:
            told = learned_from(release.manifest.notes)
            scores_of = partial(trainer.scores_among, release, text=f"scoring by pipeline {seed}")
            yield "pipeline", scores_of, True, f"{means.told(seed)}. {told}"


def _arms(lists: ShownLists) -> NDArray[np.int64] | None:
    """All items that a log with propensities shows, where there are few enough to choose among."""
    if np.isnan(lists.propensity).any():
        return None
    arms = np.unique(lists.items)
    return arms if len(arms) <= ARMS_MAX else None


def _of_arms(lists: ShownLists, arms: NDArray[np.int64]) -> ShownLists:
    """The same requests, as if each had shown everything."""
    count = len(lists) * len(arms)
    return ShownLists(
        lists.user_ids, lists.item_ids, lists.users, lists.time_us, np.arange(0, count + 1, len(arms)),
        np.tile(arms, len(lists)), np.zeros(count, dtype=np.bool_), np.zeros(count, dtype=np.int16),
        np.full(count, np.nan, dtype=np.float32),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------- measuring


def _lines(
    wanted: Wanted, cases: Cases, lists: ShownLists, scored: Mapping[str, _Scored]
) -> tuple[str | None, tuple[Line, ...]]:
    """Who the others are compared with (the baseline with the best NDCG if nobody is named), and all numbers."""
    cold = cases.history < COLD_USER_EVENTS
    parts = {"all": np.ones(len(cases), dtype=np.bool_), "warm users": ~cold, "cold users": cold}
    parts = {part: mask for part, mask in parts.items() if (mask & (lists.clicks > 0)).any()}
    rows = {part: mask[lists.owners] for part, mask in parts.items()}
    if (fresh := fresh_rows(cases.train, lists)) is not None:
        rows["new items"] = fresh
        parts["new items"] = np.bincount(lists.owners[fresh], minlength=len(lists)) > 0
    found = {
        part: {model: _measured(made, lists, some) for model, made in scored.items()} for part, some in rows.items()
    }
    named = [model for model in scored if model.partition(":")[0] in BASELINES]
    last = f"ndcg@{DEPTHS[-1]}" if ((lists.clicks > 0) & (lists.sizes > 1)).any() else "auc"
    against = wanted.against or max(named, key=lambda model: found["all"][model][last].value, default=None)
    lines: list[Line] = []
    for model, made in scored.items():
        for part, mask in parts.items():
            users, own = len(np.unique(cases.users[mask])), found[part][model]
            told = {name: each.interval() for name, each in own.items()}
            if against is not None and model != against:
                other = found[part][against]
                told |= {f"{name} - {against}": own[name].less(other[name]) for name in own if name in other}
            if part == "all":
                told |= _worth(lists, made)
            lines += [Line(model, part, n, i.value, i.low, i.high, len(made.shown), users) for n, i in told.items()]
    return against, tuple(lines)


def fresh_rows(events: EventColumns, lists: ShownLists) -> Flags | None:
    """The shown items that nobody had taken; None where none of them was clicked. bool [M]"""
    liked = np.zeros(len(events.item_ids), dtype=np.bool_)
    liked[events.item_codes[events.positive]] = True
    fresh: Flags = ~liked[lists.items]
    return fresh if (fresh & lists.clicked).any() else None


def _measured(model: _Scored, lists: ShownLists, rows: Flags) -> dict[str, Resampled]:
    """Every metric of one model on some of the shown items, averaged over the seeds."""
    some = lists.keep(rows)
    users = some.users[some.owners]
    by_list: list[dict[str, PerCase]] = []
    by_row: list[dict[str, Resampled]] = []
    for made in model.shown:
        scores = made[rows]
        of_lists = per_list(scores, some.clicked, some.offsets)
        by_list.append({name: by_user(each, some.users) for name, each in of_lists.items()})
        by_row.append(over_rows(scores, scores if model.chances else None, some.clicked, users))
    names = list(by_list[0])
    means = resampled([mean_over_seeds([each[name] for each in by_list]) for name in names]) if names else []
    whole = {name: _over_seeds([each[name] for each in by_row]) for name in by_row[0]}
    return {"auc": whole.pop("auc"), **dict(zip(names, means, strict=True)), **whole}


def _over_seeds(seeds: Sequence[Resampled]) -> Resampled:
    return Resampled(float(np.mean([each.value for each in seeds])), np.mean([each.means for each in seeds], axis=0))


def _worth(lists: ShownLists, made: _Scored) -> dict[str, Interval]:
    """The clicks per row that a policy showing the model's choice would have had; nothing without propensities."""
    if not made.chosen:
        return {}
    weights = [weights_of_choice(chosen[lists.owners], lists.items, lists.propensity) for chosen in made.chosen]
    value = value_of(np.mean(weights, axis=0), lists.clicked, lists.owners)  # of a policy that picks a seed by lot
    size = value.effective
    return {"ips": value.ips, "snips": value.snips, "effective rows": Interval(size, size, size)}


def _facts(read: _Read, cases: Cases) -> dict[str, str]:
    lists = read.judged
    return {
        "test_set": lists.hash(),
        **read.told,
        "users": f"{len(read.data.events.user_ids):,}",
        "impressions": f"{len(lists):,} with {len(lists.items):,} items and {int(lists.clicked.sum()):,} clicks; "
        f"{int((cases.history > 0).sum()):,} of users with a history",
    }
