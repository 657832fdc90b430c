"""Small logs and hand-made cases for the tests of `freshrank evaluate`. Times are µs after a fixed start."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from services.domain import DAY_US, KindRule, KindRules
from services.evaluation.cases import Cases, Histories, Seen
from services.training.columns import EventColumns, columns_of_rows

RULES = KindRules({"click": KindRule("positive"), "hide": KindRule("negative"), "impression": KindRule("neutral")})
DAY = DAY_US
START_US = 1_700_006_400_000_000


def events_of(rows: Sequence[tuple[str, str, int] | tuple[str, str, int, str]]) -> EventColumns:
    """Events of `(user, item, at[, kind])`, clicks if not said; ids coded in their order."""
    full = [(row[0], row[1], row[3] if len(row) == 4 else "click", START_US + row[2], None) for row in rows]
    return sorted_ids(columns_of_rows(full, RULES))


def sorted_ids(events: EventColumns, more_users: Sequence[str] = (), more_items: Sequence[str] = ()) -> EventColumns:
    """The same events with ids in their order, as the files are read; `more` ids have no event."""
    users, items = sorted({*events.user_ids, *more_users}), sorted({*events.item_ids, *more_items})
    user = np.array([users.index(each) for each in events.user_ids], dtype=np.int32)
    item = np.array([items.index(each) for each in events.item_ids], dtype=np.int32)
    return EventColumns(
        tuple(users), tuple(items), events.kinds, user[events.user_codes], item[events.item_codes],
        events.kind_codes, events.occurred_us, events.weight,
    )  # fmt: skip


def cases_of(events: EventColumns, wanted: Sequence[tuple[str, str, int]], seen: Seen = "drop") -> Cases:
    """Cases `(user, target, moment)` over events that all may be learned from."""
    train = sorted_ids(events, [user for user, _, _ in wanted], [item for _, item, _ in wanted])
    users = np.array([train.user_ids.index(user) for user, _, _ in wanted], dtype=np.int64)
    targets = np.array([train.item_ids.index(item) for _, item, _ in wanted], dtype=np.int64)
    until_us = np.array([START_US + at for _, _, at in wanted], dtype=np.int64)
    histories = Histories(train)
    history = np.array([len(histories.before(u, t)) for u, t in zip(users.tolist(), until_us.tolist(), strict=True)])
    return Cases(train, users, targets, until_us, history, np.ones(len(wanted), dtype=np.bool_), seen)
