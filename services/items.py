"""The item table: what one process knows of every item, as arrays; fed by the change feed `items_live`.

A slot is an item's place in the arrays of this process; slot 0 is the unknown item. Slots never leave the process.
One thread applies changes, many read; whatever reads the arrays is atomic (one lock, held for microseconds).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from models.vocabulary import OrZero
from services.domain import SECOND_US, UserState, hash64
from services.item_columns import CLICKS, NEVER_US, CountsRows, ItemColumns, highest, in_turn
from services.item_parts import PARTS, CardPart, CovisitsPart, ItemChanged, Payload, StatsPart, VectorPart
from services.signals import (
    CATEGORIES_MAX,
    TOGETHER_PER_START,
    TOGETHER_STARTS,
    HistoryBlock,
    ItemBlock,
    decayed,
    decayed_column,
    history_arrays,
)

RANKING_KEPT_US = 60 * SECOND_US


@dataclass(slots=True)
class Lead:
    """How strongly co-visits lead to an item, in all and from where most strongly, and from where that is."""

    total: float
    strongest: float
    origin: str


class ItemTable(ItemColumns):
    """Cards, counts, co-visits and text vectors of all items, by slot."""

    def __init__(self, listed_only: bool = False) -> None:
        super().__init__(listed_only)
        self._lock = threading.RLock()
        self._ids: list[str] = [""]
        self._slots = OrZero({"": 0})
        self._titles: list[str] = [""]
        self._category_names: list[str] = [""]
        self._category_numbers: dict[str, int] = {"": 0}
        self._covisits: dict[int, CovisitsPart] = {}
        self._vectors: dict[str, dict[int, tuple[int, NDArray[np.float32]]]] = {}  # by encoder: number and vector
        self._vectors_new: list[tuple[str, str]] = []
        self._ranked: dict[tuple[str, int], tuple[int, NDArray[np.int64]]] = {}
        self._led: tuple[UserState | None, int, dict[str, Lead]] = (None, 0, {})
        self.as_of = 0
        self.as_of_us = 0  # when the newest counts in here were written
        self._counted_us = 0  # when the newest of them were true

    # ------------------------------------------------------------------------------------------ writing

    def apply(self, changes: Iterable[ItemChanged]) -> None:
        """Take changes in, all at once for those who read; applying one again, or an older one of the same part again,
        is harmless."""
        changes = list(changes)
        counted = sorted((each for each in changes if isinstance(each.payload, StatsPart)), key=lambda each: each.seq)
        counts = CountsRows.of([each.payload for each in counted if isinstance(each.payload, StatsPart)])
        with self._lock:
            for change in changes:
                slot = self._slot_made(change.item_id)
                payload = change.payload
                if isinstance(payload, StatsPart):
                    continue
                if isinstance(payload, VectorPart):
                    self._apply_vector(change.item_id, slot, payload, change.seq)
                    continue
                column = PARTS.index(type(payload))
                if change.seq < self._seqs[slot, column]:
                    continue
                self._seqs[slot, column] = change.seq
                match payload:
                    case CardPart():
                        self._apply_card(slot, payload)
                    case CovisitsPart():
                        self._covisits[slot] = payload
            self._apply_counts(counted, counts)
            self.as_of = max((self.as_of, *(change.seq for change in changes)))
            self._led = (None, 0, {})
            self._forget_rankings({type(change.payload) for change in changes})

    def take_new_vectors(self) -> tuple[tuple[str, str], ...]:
        """Encoder and item of the text vectors that came since the last call; each is told once."""
        with self._lock:
            fresh = tuple(dict.fromkeys(self._vectors_new))
            self._vectors_new = []
            return fresh

    def keep_vectors_of(self, encoders: Collection[str]) -> None:
        """Forget the text vectors of all other encoders."""
        with self._lock:
            self._vectors = {encoder: of for encoder, of in self._vectors.items() if encoder in encoders}

    # ------------------------------------------------------------------------------------------ reading

    def __len__(self) -> int:
        return len(self._ids) - 1

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._slots and item_id != ""

    def item_ids(self) -> tuple[str, ...]:
        """Every known item, in the order they became known."""
        with self._lock:
            return tuple(self._ids[1:])

    def title(self, item_id: str) -> str:
        """The title, or the id where there is none."""
        return self._titles[self._slots.get(item_id, 0)] or item_id

    def category_names(self, item_id: str) -> tuple[str, ...]:
        """The categories of an item; empty when it is unknown."""
        with self._lock:
            numbers = self._categories[self._slots.get(item_id, 0)].tolist()
            return tuple(self._category_names[n] for n in numbers if n)

    def vector(self, item_id: str, encoder: str = "") -> NDArray[np.float32] | None:
        """The raw text vector by an encoder (if none is named: the newest, of whichever), or None when it has not come
        yet. Vectors of two encoders must not be compared: who looks at more than one item names one."""
        slot = self._slots.get(item_id, 0)
        with self._lock:
            wanted = [self._vectors.get(encoder, {})] if encoder else self._vectors.values()
            found = [of[slot] for of in wanted if slot in of]
        return max(found, key=lambda each: each[0])[1] if found else None

    def encoder_of_most(self) -> str:
        """The encoder that most items have a vector of, of equals the first by name; empty when there are none."""
        with self._lock:
            sizes = [(-len(of), encoder) for encoder, of in self._vectors.items()]
        return min(sizes)[1] if sizes else ""

    def text_vectors(self, item_ids: Sequence[str]) -> NDArray[np.float32]:
        """The raw text vectors of some items, float32 [n, T], in the order asked, by the encoder of most items; zeros
        where none has come."""
        with self._lock:
            of_most = self._vectors.get(self.encoder_of_most(), {})
            found = [of_most.get(self._slots.get(item_id, 0), (0, None))[1] for item_id in item_ids]
        width = max((len(vector) for vector in found if vector is not None), default=0)
        nothing = np.zeros(width, dtype=np.float32)  # also for another encoder's, while items are embedded anew
        known = [nothing if vector is None or len(vector) != width else vector for vector in found]
        return np.array(known, dtype=np.float32).reshape(len(known), width)

    def covisits(self, item_id: str) -> tuple[tuple[str, float], ...]:
        """Items seen together with this one and how strongly, strongest first."""
        part = self._covisits.get(self._slots.get(item_id, 0))
        return tuple(zip(part.item_ids, part.weights, strict=True)) if part else ()

    def together(self, user: UserState) -> dict[str, Lead]:
        """Where the co-visits of the user's newest positive items lead. What was taken last leads furthest. A request
        asks twice, for candidates and for features."""
        asked, as_of, led = self._led
        if asked is user and as_of == self.as_of:
            return led
        as_of = self.as_of
        starts = dict.fromkeys(event.item_id for event in user.events if event.weight > 0)
        found: dict[str, Lead] = {}
        for place, start in enumerate(islice(starts, TOGETHER_STARTS)):
            part = self._covisits.get(self._slots.get(start, 0))
            if part is None:
                continue
            for item_id, weight in zip(part.item_ids[:TOGETHER_PER_START], part.weights, strict=False):
                share = weight / (1 + place)
                lead = found.get(item_id)
                if lead is None:
                    found[item_id] = Lead(share, share, start)
                    continue
                lead.total += share
                if share > lead.strongest:
                    lead.strongest, lead.origin = share, start
        self._led = (user, as_of, found)
        return found

    def servable(self, item_ids: Sequence[str], now_us: int) -> NDArray[np.bool_]:
        """Which items may be shown at `now_us`: available, not deleted, not expired, published.
        Items without a card may, unless only listed ones are wanted."""
        with self._lock:
            slots = self._slots_of(item_ids)
            return self._servable(now_us, slots)

    def block(self, item_ids: Sequence[str]) -> ItemBlock:
        """The knowledge of some items as parallel arrays (copies), in the order asked."""
        with self._lock:
            slots = self._slots_of(item_ids)
            return ItemBlock(
                item_hash=self._item_hash(item_ids, slots),
                counts=self._counts[slots],
                counts_at_us=self._counts_at_us[slots],
                published_us=self._published_us[slots],
                categories=self._categories[slots],
                as_of=self.as_of,
                as_of_us=self.as_of_us,
            )

    def hashes(self, item_ids: Sequence[str]) -> NDArray[np.int64]:
        """hash64 of some ids, in the order asked; known ones are looked up, so many are cheap."""
        with self._lock:
            return self._item_hash(item_ids, self._slots_of(item_ids))

    def history(self, user: UserState) -> HistoryBlock:
        """A user's row as arrays, newest first."""
        item_ids = [each.item_id for each in user.events]
        occurred, weight = history_arrays(user)
        with self._lock:
            slots = self._slots_of(item_ids)
            return HistoryBlock(self._item_hash(item_ids, slots), occurred, weight, self._categories[slots])

    def has_categories(self, item_ids: Sequence[str], wanted: frozenset[str]) -> NDArray[np.bool_]:
        """Which items carry at least one of the wanted categories."""
        with self._lock:
            numbers = [n for name in wanted if (n := self._category_numbers.get(name))]
            return np.asarray(np.isin(self._categories[self._slots_of(item_ids)], numbers).any(axis=1), dtype=np.bool_)

    def births(self, item_ids: Sequence[str]) -> NDArray[np.int64]:
        """When items were born (published, else their first card), in µs; 0: nobody knows. [n]"""
        with self._lock:
            return self._born_us[self._slots_of(item_ids)]

    def set_births(self, item_ids: Sequence[str], born_us: NDArray[np.int64]) -> None:
        """Say when items were born, in a table that is turned back to an earlier time. [n]"""
        with self._lock:
            self._born_us[self._slots_of(item_ids)] = born_us
            self._born_us[0] = 0
            self._ranked.clear()

    def category_numbers(self, names: frozenset[str]) -> frozenset[int]:
        """The numbers that these categories have in a block; unknown ones have none."""
        return frozenset(number for name in names if (number := self._category_numbers.get(name)))

    def trending(self, now_us: int, limit: int) -> tuple[tuple[str, float], ...]:
        """Items with the most clicks lately: the 24 h and the 7 d ranking, taken in turn; score is decayed clicks.

        All counts decay alike, so their order is the one of the newest of them: where nobody has come for years they
        are too small to be told apart, and what was wanted last is still what to show.
        """
        with self._lock:
            slots = self._ranking("trending", limit, now_us, lambda: self._in_turn(now_us, limit))
            slots = slots[self._servable(now_us, slots)]
            counts = decayed(self._counts[slots], self._counts_at_us[slots], now_us)[:, CLICKS].sum(axis=1)
            ids = self._ids
            return tuple((ids[slot], count) for slot, count in zip(slots.tolist(), counts.tolist(), strict=True))

    def newest(self, now_us: int, limit: int) -> tuple[tuple[str, float], ...]:
        """Servable items with the newest birth (published, else the first card), and that time in µs."""

        def births() -> NDArray[np.int64]:
            born = self._born_us[: len(self._ids)].astype(np.float64)
            return highest(born, self._servable(now_us, slice(0, len(born))) & (born > 0), limit)

        with self._lock:
            slots = self._ranking("newest", limit, now_us, births)
            slots = slots[(self._born_us[slots] > 0) & self._servable(now_us, slots)]
            return tuple((self._ids[s], float(self._born_us[s])) for s in slots.tolist())

    # ------------------------------------------------------------------------------------------ inside

    def _ranking(
        self, name: str, limit: int, now_us: int, ranked_now: Callable[[], NDArray[np.int64]]
    ) -> NDArray[np.int64]:
        """A ranking's slots; kept until a change that matters, at most for RANKING_KEPT_US."""
        period, ranked = self._ranked.get((name, limit), (-1, None))
        if ranked is None or period != now_us // RANKING_KEPT_US:
            ranked = ranked_now()
            self._ranked[(name, limit)] = (now_us // RANKING_KEPT_US, ranked)
        return ranked

    def _in_turn(self, now_us: int, limit: int) -> NDArray[np.int64]:
        """The slots of the 24 h and the 7 d ranking, taken in turn."""
        told_us, used = min(now_us, self._counted_us), len(self._ids)
        allowed = self._servable(now_us, slice(0, used))
        day, week = (highest(self._clicks(told_us, n), allowed, limit).tolist() for n in range(2))
        slots = np.array(in_turn(day, week), dtype=np.int64)
        counts = decayed(self._counts[slots], self._counts_at_us[slots], told_us)
        clicked: NDArray[np.int64] = slots[counts[:, CLICKS].sum(axis=1) > 0]
        return clicked[:limit]

    def _forget_rankings(self, changed: set[type[Payload]]) -> None:
        """A card may matter to every ranking, counts to those of clicks, the others to none."""
        if CardPart in changed:
            self._ranked.clear()
        elif StatsPart in changed:
            self._ranked = {kept: ranked for kept, ranked in self._ranked.items() if kept[0] == "newest"}

    def _clicks(self, told_us: int, which: int) -> NDArray[np.float64]:
        """What puts all slots in the order of their clicks over 24 h (0) or 7 d (1) at a moment."""
        used = len(self._ids)
        if told_us >= self._counted_us:
            return self._click_keys[:used, which]
        counts, at_us = self._counts[:used], self._counts_at_us[:used]  # some of them come later than that
        return decayed_column(counts, at_us, told_us, CLICKS.start + which).astype(np.float64)

    def _slots_of(self, item_ids: Sequence[str]) -> NDArray[np.int64]:
        return np.fromiter(map(self._slots.__getitem__, item_ids), dtype=np.int64, count=len(item_ids))

    def _item_hash(self, item_ids: Sequence[str], slots: NDArray[np.int64]) -> NDArray[np.int64]:
        hashes = self._hashes[slots]
        for place in np.flatnonzero(slots == 0).tolist():
            hashes[place] = hash64(item_ids[place])
        return hashes

    def _apply_counts(self, changes: Sequence[ItemChanged], rows: CountsRows) -> None:
        """All of them in a few strokes, however many a flush of trends has touched; an item's later row comes later."""
        column = PARTS.index(StatsPart)
        slots = np.array([self._slots[change.item_id] for change in changes], dtype=np.int64)
        seqs = np.array([change.seq for change in changes], dtype=np.int64)
        newer = seqs >= self._seqs[slots, column]
        slots = slots[newer]
        self._seqs[slots, column] = seqs[newer]
        self._set_counts(slots, rows.counts[newer], rows.at_us[newer])
        self._counted_us = max(self._counted_us, int(rows.at_us[newer].max(initial=0)))
        self.as_of_us = max(self.as_of_us, int(rows.written_us[newer].max(initial=0)))

    def _apply_vector(self, item_id: str, slot: int, part: VectorPart, seq: int) -> None:
        known = self._vectors.setdefault(part.encoder, {})
        if seq >= known.get(slot, (0,))[0]:
            known[slot] = (seq, np.frombuffer(part.float16, dtype="<f2").astype(np.float32))
            self._vectors_new.append((part.encoder, item_id))

    def _apply_card(self, slot: int, card: CardPart) -> None:
        self._titles[slot] = card.title
        self._shown[slot] = card.available and not card.deleted
        self._published_us[slot] = card.published_us
        self._expires_us[slot] = card.expires_us or NEVER_US
        self._born_us[slot] = card.published_us or card.created_us
        numbers = [self._category_made(name) for name in card.categories[:CATEGORIES_MAX]]
        self._categories[slot] = numbers + [0] * (CATEGORIES_MAX - len(numbers))

    def _category_made(self, name: str) -> int:
        number = self._category_numbers.setdefault(name, len(self._category_names))
        if number == len(self._category_names):
            self._category_names.append(name)
        return number

    def _slot_made(self, item_id: str) -> int:
        slot = self._slots.get(item_id, len(self._ids))
        if slot == len(self._ids):
            if slot == len(self._hashes):
                self._grow()
            self._ids.append(item_id)
            self._titles.append("")
            self._hashes[slot] = hash64(item_id)
            self._slots[item_id] = slot  # last: titles are read without the lock
        return slot
