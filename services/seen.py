"""What a user has taken, 12 bytes an item: rows of a thousand items are kept by the ten thousand."""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import neg

_HOUR, _HASH = struct.Struct("<i"), struct.Struct("<q")
ENTRY_BYTES = _HOUR.size + _HASH.size


@dataclass(frozen=True, slots=True)
class Seen:
    """Distinct items with the newest hour (since 1970) at which each was taken: `(hour, item hash)`, greatest first.

    `packed` is how stores keep it: n hours (int32), then n item hashes (int64), little-endian.
    """

    packed: bytes = b""

    @classmethod
    def of(cls, entries: Iterable[tuple[int, int]]) -> Seen:
        """Of entries with distinct hashes, greatest first."""
        hours, hashes = tuple(zip(*entries, strict=True)) or ((), ())
        return cls(struct.pack(f"<{len(hours)}i{len(hashes)}q", *hours, *hashes))

    def __len__(self) -> int:
        return len(self.packed) // ENTRY_BYTES

    def __iter__(self) -> Iterator[tuple[int, int]]:
        hours = struct.unpack_from(f"<{len(self)}i", self.packed)
        return zip(hours, self.hashes(), strict=True)

    def hashes(self) -> tuple[int, ...]:
        """The items alone."""
        return struct.unpack_from(f"<{len(self)}q", self.packed, len(self) * _HOUR.size)

    def taken(self, hour: int, item_hash: int, most: int) -> Seen:
        """With this item taken at this hour, the greatest `most`; itself where that is no news."""
        place = self._find(item_hash)
        if place is not None:
            return self if self._entry(place)[0] >= hour else self._without(place)._with(hour, item_hash)
        if len(self) < most:
            return self._with(hour, item_hash)
        if (hour, item_hash) < self._entry(len(self) - 1):
            return self
        return self._without(len(self) - 1)._with(hour, item_hash)

    def _entry(self, place: int) -> tuple[int, int]:
        (hour,) = _HOUR.unpack_from(self.packed, place * _HOUR.size)
        (item_hash,) = _HASH.unpack_from(self.packed, len(self) * _HOUR.size + place * _HASH.size)
        return hour, item_hash

    def _find(self, item_hash: int) -> int | None:
        """Where the item stands. The bytes are searched: ten times as fast as numbers, one by one."""
        wanted, begin = _HASH.pack(item_hash), len(self) * _HOUR.size
        at = self.packed.find(wanted, begin)
        while at >= 0 and (at - begin) % _HASH.size:  # across two hashes
            at = self.packed.find(wanted, at + 1)
        return None if at < 0 else (at - begin) // _HASH.size

    def _with(self, hour: int, item_hash: int) -> Seen:
        """A new item put in its place: greatest first, so the numbers are searched as their negatives."""
        packed, middle = self.packed, len(self) * _HOUR.size
        view = memoryview(packed)
        hours_of = view[:middle].cast("i")
        first = bisect_left(hours_of, -hour, key=neg)
        end = bisect_right(hours_of, -hour, first, key=neg)
        place = bisect_left(view[middle:].cast("q"), -item_hash, first, end, key=neg)
        hours, hashes = place * _HOUR.size, middle + place * _HASH.size
        return Seen(
            b"".join((packed[:hours], _HOUR.pack(hour), packed[hours:hashes], _HASH.pack(item_hash), packed[hashes:]))
        )

    def _without(self, place: int) -> Seen:
        hours, hashes = place * _HOUR.size, len(self) * _HOUR.size + place * _HASH.size
        packed = self.packed
        return Seen(packed[:hours] + packed[hours + _HOUR.size : hashes] + packed[hashes + _HASH.size :])


NOTHING_SEEN = Seen()
