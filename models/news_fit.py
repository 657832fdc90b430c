"""Fitting a news model: each click beside some of what was shown with it and passed over, by binary cross entropy.

A batch holds clicks that are near in time, because what was shown within an hour is much the same: each title of a
batch goes through the transformer once, however many lists it stands in. The budget of arithmetic says how many of the
upper layers of a pretrained transformer are learned, and how many steps are taken.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models.batches import Progress, no_progress
from models.config import BUDGET_FLOP
from models.device import pick_device
from models.metrics import auc_by_list
from models.news import NewsConfig, NewsLists, NewsModel, NewsNetwork
from models.titles import Pretrained, TitleBody, TitleReader, Titles

EPOCHS_WORTH = 2
"""Layers are learned only if the budget pays for this many passes over the lists."""
TOKENS_USUAL = 16
STATES_BYTES_MAX = 2 << 30
GRADIENT_MAX = 1.0
CALIBRATION_STEPS = 25
SLOPE_MIN = 0.01


@dataclass(frozen=True, slots=True)
class FittedNews:
    """A fitted news model; the `steps` it took to where it was stopped, and `held_out_auc` there: the mean of the AUC
    within each of the newest lists; 0.5 where there were none to stop it by."""

    model: NewsModel
    steps: int
    held_out_auc: float


@dataclass(frozen=True, slots=True)
class _Clicks:
    """Every click of some lists in the order asked, E of them: its list, its row, and where in `passed` stands what was
    passed over in that list: `starts`, `counts`. All int64."""

    lists: NDArray[np.int64]
    rows: NDArray[np.int64]
    passed: NDArray[np.int64]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)


def fit_news(
    lists: NewsLists,
    titles: Titles,
    reader: TitleReader,
    body: TitleBody,
    width: int,
    config: NewsConfig,
    progress: Progress = no_progress,
    device: str = "auto",
) -> FittedNews:
    """A news model over a body for the titles' tokens, stopped by the AUC within the newest tenth of the lists; lists
    without a click, or with nothing passed over, teach nothing. Its logits are made chances by those newest lists.
    The body must have been made with the same seed for equal runs to be equal."""
    where = pick_device(device)
    learned, held = _newest_tenth(lists, config)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        network = NewsNetwork(body, width, config).to(where)
        model = NewsModel(config, reader, network, width, where)
        run = _Run(network, titles, learned, config)
        steps, best = _stopped_early(run, _HeldOut(titles, held), model, progress)
    network.eval()
    if len(held):
        _calibrate(network, _HeldOut(titles, held).scores(model), held.clicked)
    return FittedNews(model, steps, best)


def depth_affordable(pretrained: Pretrained, lists: NewsLists, config: NewsConfig, titles: int) -> int:
    """The depth from which on a pretrained transformer is learned: the lowest that the budget pays EPOCHS_WORTH passes
    for and whose states can be kept; `pretrained.layers` where none of it is learned."""
    clicks = _clicks_of(lists)
    if not len(clicks) or titles * TOKENS_USUAL * pretrained.width * 2 > STATES_BYTES_MAX:
        return pretrained.layers
    steps = EPOCHS_WORTH * math.ceil(len(clicks) / config.batch)
    left = BUDGET_FLOP[config.effort] - steps * _head_flop(pretrained.width, config)
    by_layer = steps * _titles_of_a_step(lists, clicks, config) * 6.0 * TOKENS_USUAL * pretrained.layer_parameters()
    return pretrained.layers - int(min(max(left / by_layer, 0.0), pretrained.layers))


# ------------------------------------------------------------------------------------------------- the steps


class _Run:
    """What stays the same over the steps of one fit."""

    def __init__(self, network: NewsNetwork, titles: Titles, lists: NewsLists, config: NewsConfig) -> None:
        self.network, self.titles, self.lists, self.config = network, titles, lists, config
        self.clicks = _clicks_of(lists)
        self.rng = np.random.default_rng(config.seed)
        body = network.body
        flop = _head_flop(network.asks.in_features, config)
        flop += _titles_of_a_step(lists, self.clicks, config) * 6.0 * TOKENS_USUAL * body.token_parameters()
        steps_each = math.ceil(len(self.clicks) / config.batch)
        self.planned = min(config.epochs_max * steps_each, max(1, int(BUDGET_FLOP[config.effort] / flop)))
        of_body = list(body.parameters())
        left_out = {id(each) for each in (*of_body, network.scale, network.shift)}
        others = [each for each in network.parameters() if id(each) not in left_out]
        rate = config.layer_learning_rate if body.pretrained else config.learning_rate
        groups = [{"params": of_body, "lr": rate}, {"params": others, "lr": config.learning_rate}]
        self.optimizer = torch.optim.Adam([group for group in groups if group["params"]])
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.taken = 0

    def checks(self, progress: Progress) -> Iterator[None]:
        """Take all planned steps; stop after every `steps_per_check` and at every end of an epoch."""
        while self.taken < self.planned:
            for places in self._epoch():
                self._step(places)
                progress(min(self.taken, self.planned - 1), self.planned, "news model")
                if self.taken == self.planned:
                    break
                if self.taken % self.config.steps_per_check == 0:
                    yield
            yield

    def _epoch(self) -> Iterator[NDArray[np.int64]]:
        """All clicks, those of a batch near in time, the batches in any order; where they are cut changes."""
        size, clicks = self.config.batch, len(self.clicks)
        first = int(self.rng.integers(1, size + 1))
        blocks = np.split(np.arange(clicks), np.arange(first, clicks, size))
        for n in self.rng.permutation(len(blocks)).tolist():
            yield blocks[n]

    def _step(self, places: NDArray[np.int64]) -> None:
        self.network.train()
        up = min(1.0, (self.taken + 1) / self.config.warmup_steps)
        down = max(0.05, 1.0 - self.taken / self.planned)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * up * down
        self.optimizer.zero_grad(set_to_none=True)
        self._loss(places).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_MAX)
        self.optimizer.step()
        self.taken += 1

    def _loss(self, places: NDArray[np.int64]) -> Tensor:
        candidates, history = _drawn(self.lists, self.clicks, places, self.config.negatives, self.rng)
        where = self.network.null.device
        rows, place = np.unique(np.concatenate([candidates.ravel(), history.ravel()]), return_inverse=True)
        tokens, real = (torch.from_numpy(each).to(where) for each in self.titles.padded(rows))
        table, at = self.network.vectors(tokens, real), torch.from_numpy(place).to(where)
        of_candidates = table[at[: candidates.size]].view(*candidates.shape, table.shape[1])
        of_history = table[at[candidates.size :]].view(*history.shape, table.shape[1])
        logits = self.network(of_history, torch.from_numpy(history > 0).to(where), of_candidates)
        labels = torch.zeros_like(logits)
        labels[:, 0] = 1.0
        return F.binary_cross_entropy_with_logits(logits, labels)


def _stopped_early(run: _Run, held: _HeldOut, model: NewsModel, progress: Progress) -> tuple[int, float]:
    """Fit until the held-out AUC has not risen for `patience` checks; leave the weights of the best."""
    best, best_state, best_steps, waited = -1.0, copy.deepcopy(run.network.state_dict()), 0, 0
    for _ in run.checks(progress):
        found = held.auc(model)
        progress(min(run.taken, run.planned - 1), run.planned, f"news model, AUC {found:.4f} in held-out lists")
        if found > best or not len(held):
            best, best_state, best_steps, waited = found, copy.deepcopy(run.network.state_dict()), run.taken, 0
            continue
        waited += 1
        if waited == run.config.patience:
            break
    run.network.load_state_dict(best_state)
    progress(1, 1, "news model fitted")
    return best_steps, max(best, 0.0)


class _HeldOut:
    """The newest lists, with only the titles that stand in them."""

    def __init__(self, titles: Titles, lists: NewsLists) -> None:
        joined = np.concatenate([[0], lists.history_rows.ravel(), lists.rows]).astype(np.int64)
        used, place = np.unique(joined, return_inverse=True)
        history = place[1 : 1 + lists.history_rows.size].reshape(lists.history_rows.shape)
        rows = place[1 + lists.history_rows.size :]
        self._lists = NewsLists(
            history.astype(np.int32), rows.astype(np.int32), lists.offsets, lists.clicked, lists.asked_s
        )
        lengths = titles.offsets[used + 1] - titles.offsets[used]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        tokens = np.repeat(titles.offsets[used] - offsets[:-1], lengths) + np.arange(offsets[-1])
        self._titles = Titles(titles.tokens[tokens], offsets)

    def __len__(self) -> int:
        return len(self._lists)

    def scores(self, model: NewsModel) -> NDArray[np.float32]:
        """The logit of every title shown, in their order."""
        return model.scores(model.vectors(self._titles), self._lists)

    def auc(self, model: NewsModel) -> float:
        """The mean of the lists' AUC; 0.5 without lists."""
        if not len(self):
            return 0.5
        values = auc_by_list(self.scores(model), self._lists.clicked, self._lists.offsets)
        return float(np.nanmean(values))


# ------------------------------------------------------------------------------------------------- the lists


def _newest_tenth(lists: NewsLists, config: NewsConfig) -> tuple[NewsLists, NewsLists]:
    """The lists that teach something, in the order asked: the older ones, and of the newest tenth some to hold out."""
    clicks = np.bincount(_owners(lists), lists.clicked, minlength=len(lists))
    some = np.flatnonzero((clicks > 0) & (clicks < np.diff(lists.offsets)))
    order = some[np.argsort(lists.asked_s[some], kind="stable")]
    held = order[len(order) - len(order) // 10 :]
    if len(held) > config.held_out_max:
        held = np.sort(np.random.default_rng(config.seed).choice(held, config.held_out_max, replace=False))
    return lists.take(order[: len(order) - len(order) // 10]), lists.take(held)


def _clicks_of(lists: NewsLists) -> _Clicks:
    owners = _owners(lists)
    passed = np.bincount(owners[~lists.clicked], minlength=len(lists))
    starts = np.concatenate([[0], np.cumsum(passed)]).astype(np.int64)
    own = owners[lists.clicked]
    taught = passed[own] > 0
    own, rows = own[taught], lists.rows[lists.clicked][taught].astype(np.int64)
    return _Clicks(own, rows, lists.rows[~lists.clicked].astype(np.int64), starts[own], passed[own].astype(np.int64))


def _drawn(
    lists: NewsLists, clicks: _Clicks, places: NDArray[np.int64], negatives: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each click first and `negatives` of what was passed over with it (again, where there was less) [E, 1 + N],
    and what had been read [E, H]; E as many as `places`."""
    drawn = (rng.random((len(places), negatives)) * clicks.counts[places][:, None]).astype(np.int64)
    passed = clicks.passed[clicks.starts[places][:, None] + drawn]
    history = lists.history_rows[clicks.lists[places]].astype(np.int64)
    longest = int((history > 0).sum(axis=1).max(initial=0))
    return np.concatenate([clicks.rows[places][:, None], passed], axis=1), history[:, history.shape[1] - longest :]


def _owners(lists: NewsLists) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(lists)), np.diff(lists.offsets))


def _titles_of_a_step(lists: NewsLists, clicks: _Clicks, config: NewsConfig) -> float:
    """How many different titles a step reads, by a few steps spread over the lists."""
    rng = np.random.default_rng(0)
    found = []
    for start in np.linspace(0, max(len(clicks) - config.batch, 0), 5).astype(np.int64).tolist():
        places = np.arange(start, min(start + config.batch, len(clicks)))
        found.append(len(np.unique(np.concatenate([e.ravel() for e in _drawn(lists, clicks, places, 4, rng)]))))
    return float(np.mean(found))


def _head_flop(width: int, config: NewsConfig) -> float:
    """Arithmetic of a step above the titles' vectors, forward and backward (3 forwards), two per multiply-add."""
    by_event = 6 * width * width + 2 * config.history * width
    by_candidate = width * width + 2 * config.history * width + (3 * width + 3) * config.hidden
    return 6.0 * config.batch * (config.history * by_event + (1 + config.negatives) * by_candidate)


def _calibrate(network: NewsNetwork, logits: NDArray[np.float32], clicked: NDArray[np.bool_]) -> None:
    """Scale and shift of the logits so that their chances fit the clicks (Platt 1999), by Newton's steps. Where the
    clicks speak against the order of the logits, it is kept, and hardly anything is made of it."""
    middle, spread = float(logits.mean()), max(float(logits.std()), 1e-6)
    rate = float(np.clip(clicked.mean(), 1e-6, 1 - 1e-6))
    odds = math.log(rate / (1 - rate))
    given = np.stack([(logits - middle) / spread, np.ones(len(logits))], axis=1).astype(np.float64)
    best = np.array([0.0, odds])
    for _ in range(CALIBRATION_STEPS):
        chance = 1.0 / (1.0 + np.exp(-np.clip(given @ best, -30, 30)))
        weight = np.maximum(chance * (1 - chance), 1e-9)
        curve = given.T @ (given * weight[:, None]) + 1e-6 * np.eye(2)
        best = best - np.clip(np.linalg.solve(curve, given.T @ (chance - clicked)), -1.0, 1.0)
    slope, shift = best if best[0] > SLOPE_MIN else (SLOPE_MIN, odds)
    with torch.no_grad():
        network.scale.fill_(float(slope) / spread)
        network.shift.fill_(float(shift) - float(slope) * middle / spread)
