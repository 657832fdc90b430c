"""Shown lists as columns: a line per shown item of a file, read at once, without an object per line.

A news log has millions of such lines: as columns they take some 25 bytes each and are read in seconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from services.archive.reading import Fields
from services.domain import BadRequest, WireError
from services.evaluation import files
from services.fields import id_text, number_of
from services.training.columns import EventColumns

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("impression_id", "user_id", "timestamp", "item_id", "clicked")
OPTIONAL = ("position", "propensity")
TRUE, FALSE = ("1", "true", "1.0"), ("0", "false", "0.0")
POSITIONS_MAX = 32_000


@dataclass(frozen=True, slots=True)
class ShownLists:
    """R lists in the order of their first lines, M shown items in the order of theirs; list n has
    `offsets[n]:offsets[n + 1]`.

    `users` int64 [R] and `items` int64 [M] are codes into `user_ids` and `item_ids`; `time_us`, `offsets` int64;
    `clicked` bool [M]; `position` int16 [M], from 1, 0 where not given; `propensity` float32 [M], the chance that the
    item stood there, NaN where not given.
    """

    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    users: NDArray[np.int64]
    time_us: NDArray[np.int64]
    offsets: NDArray[np.int64]
    items: NDArray[np.int64]
    clicked: NDArray[np.bool_]
    position: NDArray[np.int16]
    propensity: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.users)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """How many items each list shows."""
        return np.diff(self.offsets)

    @property
    def owners(self) -> NDArray[np.int64]:
        """The list of each shown item. int64 [M]"""
        return np.repeat(np.arange(len(self)), self.sizes)

    @property
    def clicks(self) -> NDArray[np.int64]:
        """How many items of each list were clicked."""
        return np.bincount(self.owners[self.clicked], minlength=len(self)).astype(np.int64)

    def take(self, places: NDArray[np.int64]) -> ShownLists:
        """Some of the lists, in the order asked."""
        sizes = self.sizes[places]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        rows = np.repeat(self.offsets[places] - offsets[:-1], sizes) + np.arange(offsets[-1])
        return ShownLists(
            self.user_ids, self.item_ids, self.users[places], self.time_us[places], offsets, self.items[rows],
            self.clicked[rows], self.position[rows], self.propensity[rows],
        )  # fmt: skip

    def keep(self, kept: NDArray[np.bool_]) -> ShownLists:
        """The lists with some of their items alone, without those that keep none. `kept` bool [M]"""
        sizes = np.bincount(self.owners[kept], minlength=len(self))
        some = sizes > 0
        offsets = np.concatenate([[0], np.cumsum(sizes[some])]).astype(np.int64)
        return ShownLists(
            self.user_ids, self.item_ids, self.users[some], self.time_us[some], offsets, self.items[kept],
            self.clicked[kept], self.position[kept], self.propensity[kept],
        )  # fmt: skip

    def coded(self, events: EventColumns) -> ShownLists:
        """The same lists in the codes of some events, which must know all ids."""
        users = {user_id: code for code, user_id in enumerate(events.user_ids)}
        items = {item_id: code for code, item_id in enumerate(events.item_ids)}
        by_user = np.array([users[each] for each in self.user_ids], dtype=np.int64)
        by_item = np.array([items[each] for each in self.item_ids], dtype=np.int64)
        return ShownLists(
            events.user_ids, events.item_ids, by_user[self.users], self.time_us, self.offsets, by_item[self.items],
            self.clicked, self.position, self.propensity,
        )  # fmt: skip

    def hash(self) -> str:
        """SHA-256 of the lists, whatever their order: of the sorted digests of each list's `user, moment` and sorted
        `item, clicked`. (All lines at once would be hundreds of bytes for each of millions.)"""
        users, items = self.user_ids, self.item_ids
        digests = []
        for n, (user, time_us) in enumerate(zip(self.users.tolist(), self.time_us.tolist(), strict=True)):
            rows = slice(self.offsets[n], self.offsets[n + 1])
            pairs = zip(self.items[rows].tolist(), self.clicked[rows].tolist(), strict=True)
            lines = [f"{users[user]}\t{time_us}", *sorted(f"{items[item]}\t{int(hit)}" for item, hit in pairs)]
            digests.append(hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).digest())
        return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def read_shown(path: Path) -> ShownLists:
    """The lists of a file `impression_id,user_id,timestamp,item_id,clicked[,position,propensity]`, a line per shown
    item. Read at once; where that meets a mistake, row by row up to it. Raises BadRequest with file and line."""
    import pyarrow as pa

    try:
        return _lists(files.read_table(path, COLUMNS, OPTIONAL, ("impression_id", "user_id", "item_id")))
    except (files.Suspect, pa.ArrowException, OSError) as error:
        _look_for_the_mistake(path)
        raise BadRequest(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def _lists(table: pa.Table) -> ShownLists:
    if len(table) == 0:
        raise files.Suspect("it holds no impression")
    coded = {name: files.ids_of(table[name], name) for name in ("impression_id", "user_id", "item_id")}
    codes = {name: np.asarray(each.indices.to_numpy(), dtype=np.int64) for name, each in coded.items()}
    time_us, clicked = files.times_us(table["timestamp"]), _flags(table["clicked"])
    position = _numbers(table, "position", 0.0)
    propensity = _numbers(table, "propensity", np.nan)
    if (position != np.rint(position)).any() or (position < 0).any() or (position > POSITIONS_MAX).any():
        raise files.Suspect("a position is no whole number from 1 on")
    if ((propensity <= 0) | (propensity > 1)).any():
        raise files.Suspect("a propensity is not in (0, 1]")
    lists, first, owner = np.unique(codes["impression_id"], return_index=True, return_inverse=True)
    by_first = np.argsort(first, kind="stable")
    place = np.empty(len(lists), dtype=np.int64)
    place[by_first] = np.arange(len(lists))
    owner, first = place[owner], first[by_first]
    users, times = codes["user_id"][first], time_us[first]
    if (codes["user_id"] != users[owner]).any() or (time_us != times[owner]).any():
        raise files.Suspect("an impression has two users or times")
    items = codes["item_id"]
    pairs = np.sort(owner * (int(items.max()) + 1) + items)
    if (pairs[1:] == pairs[:-1]).any():
        raise files.Suspect("an item stands twice in an impression")
    order = np.argsort(owner, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner))]).astype(np.int64)
    return ShownLists(
        tuple(coded["user_id"].dictionary.to_pylist()), tuple(coded["item_id"].dictionary.to_pylist()), users, times,
        offsets, items[order], clicked[order], position[order].astype(np.int16), propensity[order].astype(np.float32),
    )  # fmt: skip


def _flags(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = pc.utf8_lower(pc.utf8_trim_whitespace(column.cast(pa.string())))
    yes = pc.is_in(texts, value_set=pa.array(TRUE))
    if not pc.all(pc.or_(yes, pc.is_in(texts, value_set=pa.array(FALSE)))).as_py():
        raise files.Suspect("clicked is not 1 or 0")
    return np.asarray(yes.to_numpy(), dtype=np.bool_)


def _numbers(table: pa.Table, name: str, missing: float) -> NDArray[np.float64]:
    if name not in table.column_names:
        return np.full(len(table), missing)
    given = files.numbers_of(table[name])
    return np.where(np.isnan(given), missing, given)


# ------------------------------------------------------------------------------------------- row by row


def _look_for_the_mistake(path: Path) -> None:
    """Raise BadRequest at the first row that is wrong; where none is, come back."""
    lists: dict[str, tuple[str, Any, set[str]]] = {}
    for row in files.rows_in(path, COLUMNS):
        key = files.checked(path, row, "impression_id", lambda fields: id_text(fields, "impression_id"))
        user_id = files.checked(path, row, "user_id", lambda fields: id_text(fields, "user_id"))
        item_id = files.checked(path, row, "item_id", lambda fields: id_text(fields, "item_id"))
        time_us = files.checked(path, row, "timestamp", files.maybe_time_us)
        if time_us is None:
            files.wrong(path, row.line, "timestamp", "is required")
        known = lists.setdefault(key, (user_id, time_us, set()))
        if known[0] != user_id or known[1] != time_us:
            files.wrong(path, row.line, "impression_id", f"{key!r} was shown to another user or at another time above")
        if item_id in known[2]:
            files.wrong(path, row.line, "item_id", f"{item_id!r} stands in impression {key!r} already")
        known[2].add(item_id)
        files.checked(path, row, "clicked", _clicked)
        files.checked(path, row, "position", _position)
        files.checked(path, row, "propensity", _propensity)
    if not lists:
        raise BadRequest(f"{path} holds no impression")


def _clicked(fields: Fields) -> None:
    given = fields.get("clicked")
    if str(given).strip().lower() not in (*TRUE, *FALSE):
        raise WireError("bad_clicked", f"must be 1 or 0, not {given!r}")


def _position(fields: Fields) -> None:
    given = fields.get("position")
    if given in (None, ""):
        return
    number = number_of(given)
    if number != int(number) or not 0 <= number <= POSITIONS_MAX:
        raise WireError("bad_position", f"must be a whole number from 1 on, not {given!r}")


def _propensity(fields: Fields) -> None:
    given = fields.get("propensity")
    if given not in (None, "") and not 0 < number_of(given) <= 1:
        raise WireError("bad_propensity", f"must be above 0 and at most 1, not {given!r}")


def joined_ids(lists: Sequence[ShownLists]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The ids of all users and of all items of some lists, each as often as it comes."""
    users = tuple(user_id for each in lists for user_id in each.user_ids)
    return users, tuple(item_id for each in lists for item_id in each.item_ids)
