"""The trends in memory tell the item table what the trends consumer tells it, to the last digit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from services import wire
from services.catalogue.live import ItemFeed, write_parts
from services.domain import Event, KindRule, KindRules, hash64, to_us
from services.features.history import MemoryHistory
from services.items import ItemTable
from services.memory import MemoryBus
from services.sqlite import open_database
from services.trends.consumer import TrendsConsumer, TrendsSettings
from services.trends.covisits import merged, similar
from services.trends.memory import MemoryTrends, Met

START = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
ITEMS = ("i0", "i1", "i2", "i4")  # the squares modulo 7
RULES = KindRules({
    "click": KindRule("positive"), "purchase": KindRule("positive"), "hide": KindRule("negative"),
    "impression": KindRule("neutral"),
})  # fmt: skip


def stream(count: int = 160) -> list[Event]:
    """Clicks of six users on seven items, seven minutes apart; now and then a purchase, a hide, an impression, and the
    click before again, which does not count."""
    kinds = {5: "purchase", 9: "hide", 13: "impression"}
    times = [START + timedelta(minutes=7 * n) for n in range(count)]
    events = [
        Event(f"e{n}", f"u{n % 6}", f"i{n * n % 7}", kinds.get(n % 20, "click"), t, t) for n, t in enumerate(times)
    ]
    again = [
        Event(f"again{n}", e.user_id, e.item_id, e.kind, t, t)
        for n, e in enumerate(events[::10])
        for t in [e.occurred_at + timedelta(minutes=1)]
    ]
    return sorted([*events, *again], key=lambda event: event.occurred_at)


def consumed(path: Path, events: list[Event], together: int) -> ItemTable:
    """The table that a server has after the consumer has flushed `together` events at a time."""
    later = START + timedelta(days=3)
    engine, bus = open_database(path), MemoryBus(1, lambda: later)
    settings = TrendsSettings(flush_events=together, flush_s=1e9, impressions_from="clients")
    history = MemoryHistory(lambda: ())
    consumer = TrendsConsumer(engine, RULES, history, write_parts, bus.log_id, lambda: later, settings)
    source = bus.source("trends", consumer.topics)
    bus.publish([wire.encode_event(event) for event in events])
    batch = source.poll(1, 0)
    consumer.start(source, batch.gained)
    while (batch := source.poll(together, 0)).messages:
        consumer.apply(batch)
    consumer.stop(())
    table = ItemTable()
    ItemFeed(engine).load(table)
    return table


def in_memory(events: list[Event], together: int) -> ItemTable:
    trends, table = MemoryTrends(), ItemTable()
    for start in range(0, len(events), together):
        for e in events[start : start + together]:
            weight = RULES.signed_weight(e.kind, e.value)
            trends.take(hash64(e.event_id), e.user_id, e.item_id, e.kind, weight, to_us(e.occurred_at))
        table.apply(trends.flush(start))
    return table


@pytest.mark.parametrize("together", [1, 25, 1000])
def test_counts_and_co_visits_are_the_consumer_s(together: int, tmp_path: Path) -> None:
    events = stream()
    theirs, mine = consumed(tmp_path / "meta.db", events, together), in_memory(events, together)
    expected, found = theirs.block(ITEMS), mine.block(ITEMS)
    assert expected.counts[:, 0].any()
    assert expected.counts[:, 6].any()
    assert found.counts.tolist() == expected.counts.tolist()
    assert found.counts_at_us.tolist() == expected.counts_at_us.tolist()
    for item_id in ITEMS:
        theirs_of, mine_of = dict(theirs.covisits(item_id)), dict(mine.covisits(item_id))
        assert len(mine_of) > 0
        assert mine_of == pytest.approx(theirs_of)
        assert np.all(np.diff(list(mine_of.values())) <= 0)


def test_a_row_in_arrays_grows_and_lets_go_of_the_weakest_as_the_consumer_s() -> None:
    """Thirty items met by lot, four to eight at a time; of more than ten the five strongest stay."""
    rng = np.random.default_rng(3)
    numbers = {f"i{n}": n for n in range(30)}
    totals = dict(zip(numbers, rng.uniform(5, 9, len(numbers)).tolist(), strict=True))
    mine, theirs = Met(0), None
    for _ in range(40):
        some = rng.choice(list(numbers), rng.integers(4, 9), replace=False).tolist()
        met = dict(zip(some, rng.uniform(0, 1, len(some)).tolist(), strict=True))
        mine.add({item_id: (numbers[item_id], weight) for item_id, weight in met.items()}, 5)
        theirs = merged(theirs, met, 5)
        expected = similar(totals["i0"], theirs, totals, to_us(START), 4)
        found = mine.near(np.array(list(totals.values())), to_us(START), 4)
        assert found.item_ids == expected.item_ids
        assert found.weights == expected.weights


def test_what_does_not_count_changes_nothing() -> None:
    trends = MemoryTrends()
    at = to_us(START)
    trends.take(1, "u", "a", "hide", -1.0, at)
    assert trends.flush(1) == []
    trends.take(2, "u", "a", "click", 1.0, at)
    assert [change.item_id for change in trends.flush(2)] == ["a"]
    trends.take(3, "u", "a", "click", 1.0, at + 60_000_000)  # the same user and item again within 30 minutes
    assert trends.flush(3) == []
    with pytest.raises(AssertionError, match="after one of"):
        trends.take(4, "u", "b", "click", 1.0, at)
