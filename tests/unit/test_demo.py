"""The demo's parts: whom it asks, what it shows beside what, and what it reads from a verdict; by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
from rich.text import Text

from services.demo.films import DATA, HISTORY, Cast, Rating, choose, read_films, read_ratings
from services.demo.plots import Progress, WorldPlot, choose_in
from services.demo.showing import curl_lines, moved, side_by_side
from services.demo.stage import MemoryWatch
from services.demo.story import quality_of
from services.demo.world import WorldSize, make_world
from services.lag import lags_of
from services.memory import MemoryBus
from services.wire import decode_event, decode_item


@contextmanager
def no_bars() -> Iterator[Progress]:
    yield lambda done, total, text: None


NOW = datetime(2026, 1, 15, tzinfo=UTC)


def test_the_film_data_is_whole_and_carries_its_licence_and_citation() -> None:
    ratings, films = read_ratings(), read_films()
    assert (len(ratings), len(films)) == (100_000, 10_506)
    assert films["0004936"] == ("The Bank (1915)", frozenset({"Comedy", "Short"}))
    assert ratings[0] == Rating("1", "1074638", 7, 1365029107)
    assert "Permission is hereby granted" in (DATA / "LICENSE").read_text()
    assert "Cite: Dooms" in (DATA / "README.md").read_text()
    assert sum(each.stat().st_size for each in DATA.iterdir()) < 1_500_000


def test_the_user_with_the_clearest_taste_is_asked_and_clicks_on_what_they_lack() -> None:
    films = {f"d{n}": (f"Drama {n}", frozenset({"Drama"})) for n in range(20)}
    films |= {f"c{n}": (f"Comedy {n}", frozenset({"Comedy"})) for n in range(10)}
    ratings = [Rating("dramatic", f"d{n}", 8, 1000) for n in range(HISTORY[0])]
    ratings += [Rating("mixed", f"{kind}{n}", 8, 1000) for kind in "dc" for n in range(10)]
    ratings += [Rating(f"crowd{u}", f"c{n}", 8, 1000 + u) for n in range(8) for u in range(3 + n)]
    ratings += [Rating("too-short", "d1", 9, 1000)]
    cast = choose(ratings, films)
    # all of dramatic's films are Drama, half of mixed's; c7 has 10 + 1 ratings, c6 9 + 1, c5 8 + 1
    assert cast == Cast("dramatic", "Drama", "Comedy", (("c7", "Comedy 7"), ("c6", "Comedy 6"), ("c5", "Comedy 5")))


def test_in_the_world_the_clicks_are_of_a_topic_that_is_not_the_users() -> None:
    world = make_world(WorldSize.dial(0.1), 3, NOW)
    cast = choose_in(world)
    assert cast.taste != cast.other
    assert len(cast.clicks) == 3
    assert all(title.startswith(cast.other) for _, title in cast.clicks)


def test_the_world_is_poured_whole_in_the_order_of_time() -> None:
    bus, plot = MemoryBus(2, lambda: NOW), WorldPlot(0.05, seed=1)
    poured = plot.pour(bus.sink(), NOW, no_bars)
    values = [message for log in bus.logs.values() for message in log]
    events = [decode_event(m.value, NOW) for m in values if m.coordinate.topic == "freshrank.events"]
    items = [decode_item(m.value, NOW) for m in values if m.coordinate.topic == "freshrank.items"]
    assert (len(events), len(items)) == (poured.events, poured.items)
    assert max(each.occurred_at for each in events) < NOW
    born = plot.newborn(NOW)
    assert born is not None
    assert born.item_id not in {each.item_id for each in items}


def test_lag_is_what_a_group_has_not_committed_of_its_own_topics() -> None:
    bus, plot = MemoryBus(2, lambda: NOW), WorldPlot(0.05, seed=1)
    poured = plot.pour(bus.sink(), NOW, no_bars)
    assert lags_of(bus.view()) == {
        "features": poured.events,
        "trends": poured.events,
        "archive": poured.events + poured.items,
        "catalogue": poured.items,
    }


@pytest.mark.parametrize(("was", "place", "mark"), [(None, 0, "new"), (2, 2, "="), (5, 2, "↑3"), (0, 1, "↓1")], ids=str)
def test_a_mark_says_how_an_item_moved(was: int | None, place: int, mark: str) -> None:
    assert moved(was, place)[0] == mark


def test_both_lists_stand_side_by_side() -> None:
    def item(name: str, source: str = "faiss") -> dict[str, object]:
        return {"item_id": name, "title": name.upper(), "source": source, "reason": {"text": f"because {name}"}}

    rows = side_by_side([item("a"), item("b")], [item("b"), item("c", "covisits"), item("a")])
    plain = [tuple(each.plain if isinstance(each, Text) else each for each in row) for row in rows]
    assert plain == [
        ("1", "A", "↑1", "B", "faiss", "because b"),
        ("2", "B", "new", "C", "covisits", "because c"),
        ("", "", "↓2", "A", "faiss", "because a"),
    ]


def test_quality_is_read_over_the_whole_slice_only() -> None:
    def metric(model: str, part: str, name: str, value: float) -> dict[str, object]:
        return {"model": model, "part": part, "name": name, "value": value, "users": 40}

    verdict = {
        "metrics": [
            metric("challenger", "all", "hr@10", 0.3),
            metric("challenger", "all", "ndcg@10", 0.2),
            metric("challenger", "new users", "hr@10", 0.9),
            metric("popularity", "all", "hr@10", 0.1),
            metric("popularity", "all", "ndcg@10", 0.05),
        ]
    }
    assert quality_of(verdict) == (("challenger", 0.3, 0.2, 40), ("popularity", 0.1, 0.05, 40))


def test_the_lines_to_try_name_the_user_and_an_item() -> None:
    lines = curl_lines("http://127.0.0.1:1", Cast("u", "a", "b", (("i", "I"),)))
    assert len(lines) == 3
    assert "/v1/users/u/recommendations" in lines[0]
    assert '{"user_id": "u", "item_id": "i", "kind": "like"}' in lines[1]


def test_memory_is_summed_over_a_process_and_what_it_started() -> None:
    hold = "import sys; held = bytearray(64_000_000); print('up', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"up\n"
    sizes = MemoryWatch(os.getpid()).now_bytes()
    process.communicate()
    assert len(sizes) >= 2
    assert max(size for name, size in sizes.items() if name.startswith(str(process.pid))) > 64_000_000
