"""Sequences cut into windows and windows packed into batches, for fitting the tower. Only numpy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.batches import HeldOut, Sequences

TOKENS_MAX_PER_TARGET = 6
"""A batch is closed, too, when padding makes it this many times as large as its targets."""
UNLIKE = 0.05
"""By how much the lengths of a batch's windows may differ: enough for other neighbours in every epoch."""
WEIGHT_MIN = 0.1


@dataclass(frozen=True, slots=True)
class Windows:
    """W stretches of sequences: events `starts:stops` are read, those from `targets_from` on are to be foretold."""

    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    targets_from: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Packed:
    """One batch of windows, padded at the end. Position p of `target_rows` is what came after p events (0: no target).

    rows, actions, times_s [B, H]; asked_s, target_rows [B, H + 1]; weights float32 [B, H + 1], 0 where no target is.
    `first`: no target of any of them comes before this position. `weight_sum`: of the whole batch, of which this may
    be one process's share.
    """

    rows: NDArray[np.int64]
    actions: NDArray[np.int64]
    times_s: NDArray[np.int64]
    asked_s: NDArray[np.int64]
    target_rows: NDArray[np.int64]
    weights: NDArray[np.float32]
    first: int
    weight_sum: float


def cut_windows(sequences: Sequences, length: int) -> Windows:
    """Windows that foretell every event once, each from at most `length` events and, beyond the first window of a
    user, from at least half as many: a later window starts `length // 2` before its first target."""
    starts, stops, targets_from = [], [], []
    for start, stop in zip(sequences.offsets[:-1].tolist(), sequences.offsets[1:].tolist(), strict=True):
        first, done = start, start
        while done < stop:
            end = min(stop, first + length + 1)
            starts.append(first)
            stops.append(end)
            targets_from.append(done)
            done, first = end, max(start, end - length // 2)
    return Windows(*(np.asarray(each, dtype=np.int64) for each in (starts, stops, targets_from)))


def target_weights(sequences: Sequences, half_life_days: float) -> NDArray[np.float32]:
    """How much each event counts as a target: 0 unless positive and known, else halved per `half_life_days` of age, and
    0 below WEIGHT_MIN: what counts so little is not worth its arithmetic (it is still read as history)."""
    newest_s = int(sequences.times_s.max(initial=0))
    age_days = (newest_s - sequences.times_s) / 86400.0
    weights = np.exp2(-age_days / half_life_days)
    counted = sequences.positive & (sequences.rows > 0) & (weights >= WEIGHT_MIN)
    return np.where(counted, weights, 0.0).astype(np.float32)


def batches(
    sequences: Sequences,
    windows: Windows,
    weights: NDArray[np.float32],
    targets_max: int,
    rng: np.random.Generator,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[Packed]:
    """All windows once, in random order; about `targets_max` targets to a batch. Windows of like length stand together,
    so that little is padding; those that only read before their first target stand apart, so that no answer is worked
    out there. `shard`: the number of this process and that of all, among which the windows of every batch are shared
    out."""
    rank, world = shard
    lengths = windows.stops - windows.starts
    read_only = windows.targets_from > windows.starts
    by_length = lengths * rng.uniform(1.0 - UNLIKE, 1.0 + UNLIKE, len(lengths)) + rng.uniform(0, 0.5, len(lengths))
    order = np.lexsort((by_length, read_only))
    groups = list(_groups(order, lengths, windows.stops - windows.targets_from, targets_max))
    for place in rng.permutation(len(groups)):
        whole = pack(sequences, windows, weights, groups[place][rank::world])
        total = whole.weight_sum if world == 1 else _weight_of(windows, weights, groups[place])
        yield replace(whole, weight_sum=total)


def pack(sequences: Sequences, windows: Windows, weights: NDArray[np.float32], chosen: NDArray[np.int64]) -> Packed:
    """Some windows as one batch."""
    starts, stops = windows.starts[chosen], windows.stops[chosen]
    width = int((stops - starts).max(initial=1))
    places = starts[:, None] + np.arange(width)[None, :]  # [B, H + 1]: each event as a target
    inside = places < stops[:, None]
    safe = np.where(inside, places, 0)
    counted = inside & (places >= windows.targets_from[chosen][:, None])
    read = inside[:, 1:]  # The last event of a window is only foretold: what is read stands one before it.
    rows = np.where(read, sequences.rows[safe[:, :-1]], 0).astype(np.int64)
    counts = np.where(counted, weights[safe], 0.0).astype(np.float32)
    return Packed(
        rows,
        np.where(read, sequences.actions[safe[:, :-1]], 0).astype(np.int64),
        np.where(read, sequences.times_s[safe[:, :-1]], 0),
        np.where(inside, sequences.times_s[safe], 0),
        np.where(counted, sequences.rows[safe], 0).astype(np.int64),
        counts,
        int((windows.targets_from[chosen] - starts).min()) if len(chosen) else 0,
        float(counts.sum(dtype=np.float64)),
    )


def hold_out(sequences: Sequences, length: int, held_out_max: int, share: float = 0.05) -> tuple[Sequences, HeldOut]:
    """The sequences without their newest share of time, and the first known thing each user took in it, at most
    `held_out_max` of them (the newest)."""
    candidates = np.flatnonzero(sequences.positive & (sequences.rows > 0))
    if len(candidates) < 20:
        return sequences, HeldOut(sequences.prefixes_of(candidates[:0], length), sequences.rows[:0])
    times_s = np.sort(sequences.times_s[candidates], kind="stable")
    cut_s = int(times_s[int(len(times_s) * (1.0 - share))])
    fitted = sequences.before(cut_s)
    late = candidates[sequences.times_s[candidates] >= cut_s]
    owners = sequences.owners()[late]
    _, first = np.unique(owners, return_index=True)
    wanted = late[first]
    seen = np.zeros(int(sequences.rows.max()) + 1, dtype=np.bool_)
    seen[fitted.rows] = True
    wanted = wanted[seen[sequences.rows[wanted]]]
    wanted = np.sort(wanted[np.argsort(-sequences.times_s[wanted], kind="stable")[:held_out_max]])
    users = sequences.owners()[wanted]
    prefixes = fitted.prefixes_at(users, sequences.times_s[wanted], length)
    return fitted, HeldOut(prefixes, sequences.rows[wanted])


def _weight_of(windows: Windows, weights: NDArray[np.float32], chosen: NDArray[np.int64]) -> float:
    pairs = zip(windows.targets_from[chosen].tolist(), windows.stops[chosen].tolist(), strict=True)
    return float(sum(weights[first:stop].sum(dtype=np.float64) for first, stop in pairs))


def _groups(
    order: NDArray[np.int64], lengths: NDArray[np.int64], targets: NDArray[np.int64], targets_max: int
) -> Iterator[NDArray[np.int64]]:
    group: list[int] = []
    held, longest = 0, 0
    for window in order.tolist():
        longest = max(longest, int(lengths[window]))
        too_long = longest * (len(group) + 1) > targets_max * TOKENS_MAX_PER_TARGET
        if group and (held + int(targets[window]) > targets_max or too_long):
            yield np.asarray(group, dtype=np.int64)
            group, held, longest = [], 0, int(lengths[window])
        group.append(window)
        held += int(targets[window])
    if group:
        yield np.asarray(group, dtype=np.int64)
