"""Shown lists as columns: what a file means, mistakes named by their place, and scores of only what was shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluation_world import DAY, RULES, START_US, events_of, sorted_ids

from services.domain import BadRequest
from services.evaluation.among import scores_shown
from services.evaluation.baselines import Popularity, Ranker, Trending
from services.evaluation.impressions import cases_of, fresh_rows
from services.evaluation.learned import (
    ServedByFile,
    answers_among,
    check_before,
    made_of,
    of_impressions,
    split,
    useful,
    with_clicks,
)
from services.evaluation.shown import ShownLists, read_shown
from services.training.history import EventsHistory
from services.training.served import ServedRules

HEADER = "impression_id,user_id,timestamp,item_id,clicked"
SHOWN = f"{HEADER}\n1,u,1700000000,a,0\n2,v,1700000001,a,true\n1,u,1700000000,b,1\n"


def read(tmp_path: Path, text: str) -> ShownLists:
    (tmp_path / "s.csv").write_text(text)
    return read_shown(tmp_path / "s.csv")


def lists_of(events_ids: tuple[tuple[str, ...], tuple[str, ...]], *rows: tuple[str, int, str]) -> ShownLists:
    """Lists `(user, at, items)` over the ids of some events; an item in capitals was clicked."""
    users, items = events_ids
    shown = [(n, item) for n, (_, _, of) in enumerate(rows) for item in of]
    return ShownLists(
        users, items,
        np.array([users.index(user) for user, _, _ in rows], dtype=np.int64),
        np.array([START_US + at for _, at, _ in rows], dtype=np.int64),
        np.concatenate([[0], np.cumsum([len(of) for _, _, of in rows])]).astype(np.int64),
        np.array([items.index(item.lower()) for _, item in shown], dtype=np.int64),
        np.array([item.isupper() for _, item in shown], dtype=np.bool_),
        np.zeros(len(shown), dtype=np.int16), np.full(len(shown), np.nan, dtype=np.float32),
    )  # fmt: skip


def in_words(lists: ShownLists) -> list[tuple[str, str]]:
    """Each list as its user and its items, what was clicked in capitals."""
    found = []
    for n in range(len(lists)):
        part = slice(lists.offsets[n], lists.offsets[n + 1])
        items = zip(lists.items[part].tolist(), lists.clicked[part].tolist(), strict=True)
        names = (lists.item_ids[code].upper() if hit else lists.item_ids[code] for code, hit in items)
        found.append((lists.user_ids[lists.users[n]], "".join(names)))
    return found


# --------------------------------------------------------------------------------------------------- the file


def test_the_lines_of_an_impression_are_one_list_wherever_they_stand(tmp_path: Path) -> None:
    lists = read(tmp_path, SHOWN)
    assert in_words(lists) == [("u", "aB"), ("v", "A")]
    assert lists.time_us.tolist() == [1_700_000_000_000_000, 1_700_000_001_000_000]
    assert lists.position.tolist() == [0, 0, 0]
    assert np.isnan(lists.propensity).all()


def test_the_hash_is_that_of_the_lists_and_not_of_the_order_of_their_lines(tmp_path: Path) -> None:
    first, *lines = SHOWN.splitlines()
    same = read(tmp_path, "\n".join([first, *reversed(lines)]) + "\n")
    assert read(tmp_path, SHOWN).hash() == same.hash()
    assert read(tmp_path, SHOWN.replace("b,1", "b,0")).hash() != same.hash()


def test_position_and_propensity_are_read_where_they_are_given(tmp_path: Path) -> None:
    text = f"{HEADER},position,propensity,other\n1,u,1700000000,a,0,2,0.25,x\n1,u,1700000000,b,1,,,x\n"
    lists = read(tmp_path, text)
    assert lists.position.tolist() == [2, 0]
    assert lists.propensity[0] == 0.25
    assert np.isnan(lists.propensity[1])


def test_a_parquet_file_with_numbers_for_ids_says_the_same(tmp_path: Path) -> None:
    columns = {"impression_id": [7, 7], "user_id": [3, 3], "timestamp": [1700000000] * 2, "item_id": [1, 2],
               "clicked": [True, False]}  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "s.parquet")
    lists = read_shown(tmp_path / "s.parquet")
    assert (lists.user_ids, lists.item_ids, lists.clicked.tolist()) == (("3",), ("1", "2"), [True, False])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1,u,1700000000,a,1", "line 5, column item_id: 'a' stands in impression '1' already"),
        ("1,x,1700000000,c,1", "line 5, column impression_id: '1' was shown to another user or at another time"),
        ("3,u,1700000000,a,yes", "line 5, column clicked: must be 1 or 0, not 'yes'"),
        ("3,u,,a,1", "line 5, column timestamp: is required"),
    ],
)
def test_a_mistake_in_the_lists_is_named_by_its_place(line: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadRequest) as error:
        read(tmp_path, SHOWN + line + "\n")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1,u,1700000000,a,1,1.5,0.5", "line 2, column position: must be a whole number"),
        ("1,u,1700000000,a,1,1,1.5", "line 2, column propensity: must be above 0 and at most 1"),
    ],
)
def test_a_position_or_propensity_that_is_none_is_named_by_its_place(line: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadRequest) as error:
        read(tmp_path, f"{HEADER},position,propensity\n{line}\n")
    assert said in str(error.value)


def test_a_file_without_a_line_or_a_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="holds no impression"):
        read(tmp_path, HEADER + "\n")
    with pytest.raises(BadRequest, match="there is no column clicked"):
        read(tmp_path, "impression_id,user_id,timestamp,item_id\n1,u,1700000000,a\n")


# ------------------------------------------------------------------------------------------ what is learned from


EVENTS = sorted_ids(
    events_of([("ann", "a", 0), ("bob", "b", DAY), ("ann", "c", 2 * DAY), ("bob", "a", 3 * DAY)]), ["zoe"]
)
IDS = EVENTS.user_ids, EVENTS.item_ids


def test_a_cut_divides_lists_and_events() -> None:
    lists = lists_of(IDS, ("ann", DAY, "aB"), ("bob", 2 * DAY, "Ab"), ("ann", 5 * DAY, "Cb"))
    learned, judged, events = split(lists, EVENTS, "0.5")  # half of the time from day 1 to day 5: day 3
    assert in_words(learned) == [("ann", "aB"), ("bob", "Ab")]
    assert in_words(judged) == [("ann", "Cb")]
    assert len(events) == 3  # the event of day 3 is not before it
    with pytest.raises(BadRequest, match="--cut 1700006400 leaves nothing"):
        split(lists, EVENTS, "1700006400")


def test_lists_to_learn_from_must_end_before_what_is_judged_begins() -> None:
    judged = lists_of(IDS, ("ann", 2 * DAY, "aB"))
    check_before(Path("l.csv"), lists_of(IDS, ("bob", 2 * DAY - 1, "aB")), judged)
    with pytest.raises(BadRequest, match=r"--learn-from l.csv ends at 2023-11-17 00:00:00, but the first judged list"):
        check_before(Path("l.csv"), lists_of(IDS, ("bob", 2 * DAY, "aB")), judged)


def test_of_use_is_a_list_with_a_click_and_something_passed_over() -> None:
    lists = lists_of(IDS, ("ann", DAY, "AB"), ("bob", 5, "aB"), ("ann", 2, "ab"), ("ann", 1, "Ab"))
    assert in_words(useful(lists)) == [("ann", "Ab"), ("bob", "aB")]


def test_clicks_of_lists_become_events_unless_they_are_among_them() -> None:
    minute = 60_000_000
    lists = lists_of(IDS, ("bob", DAY + 29 * minute, "aB"), ("bob", 2 * DAY, "aB"), ("ann", DAY, "Ac"))
    events, more = with_clicks(EVENTS, lists, RULES)  # bob's b of day 1 is known, that of day 2 is not, nor ann's a
    assert more == 2
    rows = zip(events.user_codes.tolist(), events.item_codes.tolist(), events.occurred_us.tolist(), strict=True)
    found = [(events.user_ids[u], events.item_ids[i], (at - START_US) // DAY) for u, i, at in rows]
    assert found == [
        ("ann", "a", 0), ("bob", "b", 1), ("ann", "a", 1), ("ann", "c", 2), ("bob", "b", 2), ("bob", "a", 3),
    ]  # fmt: skip
    assert events.positive.all()
    assert answers_among(EVENTS, lists) == 1
    assert answers_among(events, lists) == 3


def test_impressions_and_clicks_of_a_minute_are_a_list() -> None:
    second = 1_000_000
    events = events_of([
        ("ann", "a", 0, "impression"), ("ann", "b", 0, "impression"), ("ann", "b", 50 * second),
        ("bob", "c", 0), ("ann", "c", 200 * second, "impression"),
    ])  # fmt: skip
    assert in_words(of_impressions(events)) == [("ann", "aB"), ("ann", "c"), ("bob", "C")]


def test_made_lists_hold_what_was_alive_and_nothing_that_the_user_takes() -> None:
    rows = [(f"u{n % 7}", f"i{n // 1000}", n) for n in range(20_000)]
    events = events_of(rows)
    made = made_of(events, [(START_US + 19_000, events.item_ids.index("i3"))], 1000, 1)
    assert len(made.places) == 1000
    names = np.array([*events.item_ids, ""])[made.beside]
    assert set(np.unique(names)) <= {""}  # each user takes all that is alive
    other = events_of([*rows, *(("zoe", "z", 20_000 + n) for n in range(3))])
    names = np.array([*other.item_ids, ""])[made_of(other, [], 3, 1).beside]
    assert set(np.unique(names)) <= {"i18", "i19", ""}  # of the last 2,000 clicks; z is zoe's own
    assert {"i18", "i19"} & set(np.unique(names))
    dated = made_of(other, [(START_US + 19_500, other.item_ids.index("i3"))], 3, 1)
    assert "i3" in set(np.unique(np.array([*other.item_ids, ""])[dated.beside]))


def test_lists_of_a_file_are_learned_from_as_slates_are() -> None:
    lists = lists_of(
        IDS, ("ann", 2 * DAY, "aBc"), ("bob", 3 * DAY, "ab"), ("zoe", 3 * DAY, "Ab"), ("ann", 4 * DAY, "Ab")
    )
    placed = replace(lists, position=np.arange(len(lists.items), dtype=np.int16))
    served = ServedByFile(placed, EventsHistory(EVENTS), 1)(0, START_US + 4 * DAY, ServedRules())
    assert served.user_ids == ("ann", "zoe")  # bob clicked nothing, and ann's second list is not before the end
    assert (served.item_ids, served.taken) == ((("a", "b", "c"), ("a", "b")), ((False, True, False), (True, False)))
    assert served.places == ((0, 1, 2), (5, 6))
    assert served.row_time_us.tolist() == [START_US, 0]  # ann's event of day 2 is as old as the list: not known to it
    assert served.as_of_us.tolist() == served.asked_us.tolist() == [START_US + 2 * DAY, START_US + 3 * DAY]
    assert served.served == 3
    newest = ServedByFile(placed, EventsHistory(EVENTS), 1)(
        0, START_US + 5 * DAY, ServedRules(lists_max=1, picks_max=2)
    )
    assert newest.asked_us.tolist() == [START_US + 4 * DAY]
    few = ServedByFile(placed, EventsHistory(EVENTS), 1)(0, START_US + 3 * DAY, ServedRules(picks_max=2))
    assert few.taken[0].count(True) == 1
    assert len(few.item_ids[0]) == 2


def test_new_items_are_those_that_nobody_had_taken() -> None:
    events = sorted_ids(events_of([("ann", "a", 0), ("ann", "b", 1, "impression")]), ["bob"])
    lists = lists_of((events.user_ids, events.item_ids), ("ann", 5, "aB"), ("bob", 5, "A"))
    fresh = fresh_rows(events, lists)
    assert fresh is not None
    assert fresh.tolist() == [False, True, False]
    assert in_words(lists.keep(fresh)) == [("ann", "B")]
    assert fresh_rows(events, lists_of((events.user_ids, events.item_ids), ("ann", 5, "Ab"))) is None  # b: no click


# ------------------------------------------------------------------------------------------- only what was shown


class Plain:
    """Another ranker with the same scores: the whole catalogue, of which what was shown is taken."""

    def __init__(self, of: Ranker) -> None:
        self.scores = of.scores


@pytest.mark.parametrize("ranker", [Popularity(None), Popularity(3 * DAY), Trending(2 * DAY), Trending(DAY // 7)])
def test_what_was_shown_scores_as_it_does_among_the_whole_catalogue(ranker: Ranker) -> None:
    rng = np.random.default_rng(0)
    kinds = ["click", "hide"]
    events = events_of([
        (f"u{n % 5}", f"i{rng.integers(12):02d}", int(rng.integers(9 * DAY)), kinds[int(rng.random() < 0.1)])
        for n in range(300)
    ])  # fmt: skip
    rows = [(f"u{n % 5}", int(rng.integers(10 * DAY)), sorted(rng.permutation(12)[:4])) for n in range(40)]
    ids = events.user_ids, events.item_ids
    shown = [(user, at, [events.item_ids[code] for code in of]) for user, at, of in rows]
    lists = lists_of(ids, *((user, at, of) for user, at, of in shown))  # type: ignore[misc]
    cases = cases_of(events, lists)
    found = scores_shown(ranker, cases, lists, lambda *_: None, "")
    assert found == pytest.approx(scores_shown(Plain(ranker), cases, lists, lambda *_: None, ""))
    assert len(set(found.tolist())) > 5
