"""What a user has taken, packed: against the same rules on a dict, sorted."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from services.domain import Seen

HASHES = st.one_of(st.integers(-3, 3), st.sampled_from([-(2**63), 2**63 - 1, 2**32, 2**40, 0x0101010101010101]))


def test_seen_items_take_twelve_bytes_each() -> None:
    seen = Seen.of([(490_000, -(2**63)), (3, 2**63 - 1), (3, 0)])
    assert seen.packed == struct.pack("<3i3q", 490_000, 3, 3, -(2**63), 2**63 - 1, 0)
    assert list(seen) == [(490_000, -(2**63)), (3, 2**63 - 1), (3, 0)]
    assert seen.hashes() == (-(2**63), 2**63 - 1, 0)
    assert (len(seen), len(Seen()), list(Seen())) == (3, 0, [])
    assert not Seen()


def test_what_is_no_news_is_the_same_object() -> None:
    seen = Seen.of([(5, 1), (3, 2)])
    assert seen.taken(5, 1, 9) is seen
    assert seen.taken(2, 2, 9) is seen
    assert seen.taken(2, 7, 2) is seen  # full, and older than the oldest
    assert seen.taken(3, 1, 2) is seen  # full, the order within the hour decides: 1 < 2
    assert list(seen.taken(3, 3, 2)) == [(5, 1), (3, 3)]


def test_a_hash_that_lies_across_two_others_is_not_found() -> None:
    inner = struct.unpack("<q", struct.pack("<2q", 0x1122334455667788, 0x0807060504030201)[3:11])[0]
    seen = Seen.of([(2, 0x1122334455667788), (1, 0x0807060504030201)])
    assert next(iter(seen.taken(3, inner, 9))) == (3, inner)
    assert len(seen.taken(3, inner, 9)) == 3


@given(st.lists(st.tuples(st.integers(-2, 4), HASHES), max_size=30), st.integers(1, 6))
def test_the_greatest_are_kept_whatever_the_order(taken: list[tuple[int, int]], most: int) -> None:
    seen = Seen()
    for hour, item_hash in taken:
        seen = seen.taken(hour, item_hash, most)
    newest: dict[int, int] = {}
    for hour, item_hash in taken:
        newest[item_hash] = max(hour, newest.get(item_hash, hour))
    assert list(seen) == sorted(((hour, each) for each, hour in newest.items()), reverse=True)[:most]
