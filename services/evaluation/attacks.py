"""Attacks: made-up accounts among the training events, which push some items in the days before the cut.

`spam`: machines that click their targets all day long, each RATE times as often as an ordinary user on a day of theirs.
`shilling`: accounts that look like anybody's, one visit each, and take one target on the way: among items drawn evenly
(random), as often as all users take them (average), or from the best known ones (bandwagon); the profiles of Lam and
Riedl (WWW 2004) and of Burke et al. (2005), for events instead of ratings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from services.domain import DAY_US, BadRequest
from services.training.columns import EventColumns

Profile = Literal["spam", "random", "average", "bandwagon"]
DAYS = 7
RATE = 100
SPAM_SHARE = 0.01
SPAM_TARGETS = 5
TARGET_EVENTS = (3, 10)
"""A target is an item that few have taken: nobody has to push what is popular."""
BEST_KNOWN = 50
SHILLING: tuple[Profile, ...] = ("random", "average", "bandwagon")


@dataclass(frozen=True, slots=True)
class Attack:
    """`share` of the users that there are more, made-up ones; they take the profiles in turn."""

    name: str
    share: float
    profiles: tuple[Profile, ...]


@dataclass(frozen=True, slots=True)
class Attacked:
    """The training events with those of an attack among them, and the item codes that it pushes. int64 [targets]"""

    train: EventColumns
    targets: NDArray[np.int64]
    accounts: int


def attack_of(name: str) -> Attack:
    """`spam`, `spam:2%`, `shilling:1%` or `shilling:1%:bandwagon`. Raises BadRequest."""
    found = re.fullmatch(r"(spam|shilling)(?::(\d+(?:\.\d+)?)%)?(?::(random|average|bandwagon))?", name)
    share = float(found[2] or 100 * SPAM_SHARE) / 100 if found else 0.0
    if found is None or not 0.0 < share <= 0.5 or (found[1] == "spam" and found[3]):
        raise BadRequest(f"--attack {name}: spam, spam:1%, shilling:1% or shilling:1%:random|average|bandwagon")
    if found[1] == "spam":
        return Attack(name, share, ("spam",))
    return Attack(name, share, tuple(each for each in SHILLING if found[3] in (None, each)))


def injected(train: EventColumns, attack: Attack, until_us: int, seed: int) -> Attacked:
    """The attack in the DAYS before `until_us`; users and items keep their codes, the accounts come after the users.
    Raises BadRequest where too few items are fit for targets."""
    rng = np.random.default_rng(seed)
    liked = train.keep(train.positive)
    taken = np.bincount(liked.item_codes, minlength=len(train.item_ids))
    fit = np.flatnonzero((taken >= TARGET_EVENTS[0]) & (taken <= TARGET_EVENTS[1]))
    wanted = SPAM_TARGETS if "spam" in attack.profiles else 1
    if len(fit) < wanted:
        raise BadRequest(f"--attack {attack.name}: of {wanted} wanted, {len(fit)} items have 3 to 10 positive events")
    targets = np.sort(rng.choice(fit, wanted, replace=False))
    known = len(np.unique(liked.user_codes))
    accounts = max(1, round(attack.share * known))
    if "spam" in attack.profiles:
        owners, items = _spam(liked, accounts, targets, rng)
    else:
        owners, items = _shilling(attack.profiles, accounts, round(len(liked) / known), targets[0], taken, rng)
    times = until_us - rng.integers(1, DAYS * DAY_US, len(items))
    return Attacked(_joined(train, owners, items, times, accounts), targets, accounts)


def ordinary_per_day(liked: EventColumns) -> float:
    """Positive events of a user on a day that they have any."""
    return len(liked) / len(np.unique(liked.user_codes.astype(np.int64) << 32 | liked.occurred_us // DAY_US))


def _spam(
    liked: EventColumns, accounts: int, targets: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Owner and item of each event."""
    events = rng.poisson(RATE * ordinary_per_day(liked) * DAYS, accounts)
    return np.repeat(np.arange(accounts), events), rng.choice(targets, int(events.sum()))


def _shilling(
    profiles: tuple[Profile, ...], accounts: int, fillers: int, target: int, taken: NDArray[np.int64],
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # fmt: skip
    """Owner and item of each event: the target once, and as many other items as a user has events on average."""
    taken = np.where(np.arange(len(taken)) == target, 0, taken)
    best_known = np.argsort(-taken, kind="stable")[:BEST_KNOWN]
    pools = {
        "random": (taken > 0).astype(np.float64),
        "average": taken.astype(np.float64),
        "bandwagon": np.isin(np.arange(len(taken)), best_known).astype(np.float64) * (taken > 0),
    }
    owners, items = [np.arange(accounts)], [np.full(accounts, target)]
    for account in range(accounts):
        pool = pools[profiles[account % len(profiles)]]
        size = min(fillers, int(np.count_nonzero(pool)))
        owners.append(np.full(size, account))
        items.append(rng.choice(len(pool), size, replace=False, p=pool / pool.sum()))
    return np.concatenate(owners), np.concatenate(items)


def _joined(
    train: EventColumns, owners: NDArray[np.int64], items: NDArray[np.int64], times: NDArray[np.int64], accounts: int
) -> EventColumns:
    """The events of the accounts among the others, of the kind that is most frequent among the positive ones."""
    kinds = train.kind_codes[train.positive]
    kind = int(np.bincount(kinds).argmax())
    weight = float(train.weight[train.positive][kinds == kind][0])
    user_ids = (*train.user_ids, *(f"attacker-{number}" for number in range(accounts)))
    occurred = np.concatenate([train.occurred_us, times])
    order = np.argsort(occurred, kind="stable")
    return EventColumns(
        user_ids, train.item_ids, train.kinds,
        np.concatenate([train.user_codes, owners + len(train.user_ids)])[order].astype(np.int32),
        np.concatenate([train.item_codes, items])[order].astype(np.int32),
        np.concatenate([train.kind_codes, np.full(len(items), kind)])[order].astype(np.int16),
        occurred[order],
        np.concatenate([train.weight, np.full(len(items), weight)])[order].astype(np.float32),
    )  # fmt: skip
