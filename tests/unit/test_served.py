"""Lists that were served, as ranking examples: what counts as an answer, what was seen, what is left out and why, and
that an example knows exactly what the server knew. Expected values by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from training_world import RULES, START_US, columns, item_table

from services.archive.parts import ParquetArchive
from services.domain import (
    DAY_US,
    SECOND_US,
    Coordinate,
    Event,
    Interaction,
    Pick,
    Reason,
    Slate,
    UserState,
    from_us,
    to_us,
)
from services.features.history import MemoryHistory
from services.signals import COUNTS_WIDTH, RANKING_FEATURES, ItemBlock, ranking_features
from services.training.examples import Corpus, corpus_of, joined_examples
from services.training.served import (
    Answer,
    Learned,
    ServedLists,
    ServedRules,
    joined_lists,
    learned_from,
    list_examples,
    lists_between,
)

ASKED = datetime(2026, 11, 23, 12, tzinfo=UTC)
ASKED_US = to_us(ASKED)
LATER = 2**62
CHOSEN = ServedRules()


def slate(items: str, request_id: str = "r1", user_id: str | None = "ann", **given: object) -> Slate:
    picks = tuple(Pick(i, rank, 9.0 - rank, "faiss", Reason("for_you", (), "")) for rank, i in enumerate(items))
    made = Slate(request_id, user_id, "rel", START_US, 7, picks, (), (), ASKED, items_as_of_us=ASKED_US - SECOND_US)
    return replace(made, **given)  # type: ignore[arg-type]


def answer(item_id: str, after_us: int = 60 * SECOND_US, kind: str = "click", **given: object) -> Answer:
    weight = {"click": 1.0, "hide": -1.0, "impression": 0.0}[kind]
    return Answer("r1", "ann", item_id, kind, ASKED_US + after_us, weight)._replace(**given)


def seen_and_taken(lists: ServedLists) -> list[tuple[str, str]]:
    return [
        ("".join(items), "".join(item for item, was in zip(items, taken, strict=True) if was))
        for items, taken in zip(lists.item_ids, lists.taken, strict=True)
    ]


# --------------------------------------------------------------------------------------------- the join


def test_what_was_clicked_is_taken_and_what_stood_above_it_or_just_below_was_passed_over() -> None:
    lists = joined_lists([slate("abcdefgh")], [answer("b")], CHOSEN, LATER, served=4)
    assert seen_and_taken(lists) == [("abcde", "b")]  # b stands at 1, so 1 + 3 is the last that was seen
    assert (lists.user_ids, lists.row_time_us.tolist(), lists.asked_us.tolist()) == (("ann",), [START_US], [ASKED_US])
    assert (lists.as_of_us.tolist(), lists.served, lists.left_out) == ([ASKED_US - SECOND_US], 4, {})
    assert lists.places == ((1, 2, 3, 4, 5),)


def test_a_pick_that_explored_is_seen_and_taken_as_any_other() -> None:
    drawn = Pick("x", 2, 0.1, "explored", Reason("explored", (), ""), 0.05)
    shown = slate("abycdefgh")
    shown = replace(shown, items=tuple(drawn if pick.item_id == "y" else pick for pick in shown.items))
    assert seen_and_taken(joined_lists([shown], [answer("x")], CHOSEN, LATER)) == [("abxcde", "x")]
    assert seen_and_taken(joined_lists([shown], [answer("b")], CHOSEN, LATER)) == [("abxcd", "b")]  # passed over


def test_several_clicks_are_several_taken_and_a_repeated_one_is_one() -> None:
    answers = [answer("d"), answer("a"), answer("d", 90 * SECOND_US), answer("b", kind="hide")]
    assert seen_and_taken(joined_lists([slate("abcdefghi")], answers, CHOSEN, LATER)) == [("abcdefg", "ad")]


def test_impressions_that_the_client_reported_are_what_was_seen() -> None:
    answers = [answer("h", kind="impression"), answer("c", kind="impression"), answer("b")]
    lists = joined_lists([slate("abcdefgh")], answers, CHOSEN, LATER)
    assert seen_and_taken(lists) == [("bch", "b")]
    assert lists.places == ((2, 3, 8),)
    assert lists.take(np.array([0, 0])).places == ((2, 3, 8), (2, 3, 8))


def test_the_list_is_cut_to_as_many_picks_as_an_example_holds_and_keeps_what_was_taken() -> None:
    rules = ServedRules(picks_max=3)
    assert seen_and_taken(joined_lists([slate("abcdefgh")], [answer("f"), answer("g")], rules, LATER)) == [
        ("afg", "fg")
    ]


def test_an_answer_counts_within_the_window_and_from_a_clock_a_little_behind() -> None:
    def taken(after_us: int) -> list[tuple[str, str]]:
        return seen_and_taken(joined_lists([slate("ab")], [answer("a", after_us)], CHOSEN, LATER))

    assert taken(DAY_US) == taken(-300 * SECOND_US) == [("ab", "a")]
    assert taken(DAY_US + 1) == taken(-300 * SECOND_US - 1) == []


@pytest.mark.parametrize(
    ("given", "answers", "reason"),
    [
        ({}, [answer("a", kind="impression"), answer("b", kind="hide")], "without a click"),
        ({}, [answer("z")], "without a click"),
        ({}, [answer("a", user_id="bob")], "without a click"),
        ({}, [answer("a"), answer("b"), answer("c")], "nothing to compare"),
        ({"user_id": None}, [answer("a")], "anonymous"),
        ({"degraded": ("features",)}, [answer("a")], "made without the user's row"),
        ({"items_as_of_us": 0}, [answer("a")], "made before the time of counts was kept"),
    ],
)  # fmt: skip
def test_what_teaches_nothing_is_left_out_and_counted(
    given: Mapping[str, object], answers: list[Answer], reason: str
) -> None:
    lists = joined_lists([replace(slate("abc"), **given)], answers, CHOSEN, LATER)  # type: ignore[arg-type]
    assert (len(lists), lists.left_out) == (0, {reason: 1})


def test_a_slate_that_comes_twice_is_one_list() -> None:
    lists = joined_lists([slate("abc"), slate("cba")], [answer("b")], CHOSEN, LATER)
    assert seen_and_taken(lists) == [("abc", "b")]
    assert lists.left_out == {"served again": 1}


def test_nothing_crosses_the_cut() -> None:
    """Whatever is asked for or answered at or after the cut changes nothing."""
    cut_us = ASKED_US + 100 * SECOND_US
    early, late = answer("b", 99 * SECOND_US), [answer("a", 100 * SECOND_US), answer("h", 101 * SECOND_US)]
    after_cut = slate("abc", "r2", asked_at=from_us(cut_us))
    both = joined_lists([slate("abcdefgh"), after_cut], [early, *late, answer("a", request_id="r2")], CHOSEN, cut_us)
    assert seen_and_taken(both) == [("abcde", "b")]
    assert both.left_out == {}
    assert seen_and_taken(joined_lists([slate("abcdefgh")], late, CHOSEN, cut_us)) == []  # it sees a leak where one is
    assert seen_and_taken(joined_lists([slate("abcdefgh")], [early, *late], CHOSEN, LATER)) == [("abcdefgh", "abh")]


# ------------------------------------------------------------------------------------------ the archive


def archived(folder: Path, erased: Mapping[str, int] = {}) -> ParquetArchive:
    """Lists r1 (ann) and r2 (bob), served twice each, both clicked; one list that nobody clicked."""
    archive = ParquetArchive(folder, lambda: erased)
    clicked = [
        Event("e1", "ann", "b", "click", ASKED + timedelta(minutes=1), ASKED + timedelta(minutes=1), request_id="r1"),
        Event("e2", "bob", "a", "click", ASKED + timedelta(minutes=2), ASKED + timedelta(minutes=2), request_id="r2"),
        Event("e3", "bob", "a", "click", ASKED + timedelta(minutes=3), ASKED + timedelta(minutes=3)),
    ]
    slates = [slate("abc"), slate("abc"), slate("ac", "r2", "bob"), slate("ac", "r3", "cid")]
    archive.append(
        [(Coordinate("log", "freshrank.events", 0, n), event) for n, event in enumerate(clicked)],
        [(Coordinate("log", "freshrank.slates", 0, n), each) for n, each in enumerate(slates)],
        [],
    )
    return archive


def test_lists_and_their_answers_are_found_in_the_archive(tmp_path: Path) -> None:
    lists = lists_between(archived(tmp_path), RULES, ASKED_US, ASKED_US + DAY_US, CHOSEN)
    assert list(zip(lists.user_ids, seen_and_taken(lists), strict=True)) == [
        ("ann", ("abc", "b")), ("bob", ("ac", "a"))
    ]  # fmt: skip
    assert (lists.served, lists.left_out) == (4, {"served again": 1})
    newest = lists_between(archived(tmp_path), RULES, ASKED_US, ASKED_US + DAY_US, ServedRules(lists_max=1))
    assert newest.user_ids == ("bob",)
    assert len(lists_between(archived(tmp_path), RULES, ASKED_US + 1, ASKED_US + DAY_US, CHOSEN)) == 0


def test_an_erased_user_s_lists_and_answers_are_gone(tmp_path: Path) -> None:
    erased = {"ann": ASKED_US + DAY_US}
    lists = lists_between(archived(tmp_path, erased), RULES, ASKED_US, ASKED_US + DAY_US, CHOSEN)
    assert (lists.user_ids, lists.served) == (("bob",), 2)


# ----------------------------------------------------------------------------- what an example may know


EVENTS = columns([("ann", item_id, "click", n) for n, item_id in enumerate("abcdef")])
ROW_US = START_US + 10


def row(user_id: str, items: str, at_us: int) -> UserState:
    events = tuple(Interaction(at_us - n, n, item_id, "click", None, 1.0) for n, item_id in enumerate(items))
    return UserState(user_id, events, row_time_us=at_us)


def history() -> MemoryHistory:
    """Ann's rows at 10 and at 20, and counts written at 5, 15 and 25 (all in µs after START_US)."""
    made = datetime(2026, 11, 23, tzinfo=UTC)
    known = MemoryHistory(lambda: [(row("ann", "ba", ROW_US), made), (row("ann", "cba", START_US + 20), made)])
    for written in (5, 15, 25):
        counts = np.full((3, COUNTS_WIDTH), written, dtype=np.float32)
        known.append_item_live(["c", "d", "e"], counts, np.full(3, START_US + written - 1), START_US + written, made)
    return known


def lists_of(*slates: Slate, taken: str = "d") -> ServedLists:
    answers = [answer(item_id, request_id=each.request_id) for each in slates for item_id in taken]
    return joined_lists(slates, answers, CHOSEN, LATER)


def made_of(lists: ServedLists) -> tuple[Corpus, object, Mapping[str, int]]:
    corpus = corpus_of(EVENTS, item_table(EVENTS))
    vocabulary = len(corpus.vocabulary)
    scores = np.arange(vocabulary, dtype=np.float32)[None, :]
    made, left_out = list_examples(
        corpus, item_table(EVENTS), history(), lists, 4, lambda prefixes: np.repeat(scores, len(prefixes), axis=0)
    )
    return corpus, made, left_out


def test_an_example_knows_the_row_and_the_counts_that_the_server_had_and_nothing_newer() -> None:
    """The list was asked for at 30; the server had the row of 10 and the counts of 15, though a click had come at 20
    and counts at 25. Its features are worked out here as the server does, from what it had."""
    asked = slate("cde", user_row_time_us=ROW_US, items_as_of_us=START_US + 24, asked_at=from_us(START_US + 30))
    answers = [answer("d", START_US + 40 - ASKED_US)]
    corpus, made, left_out = made_of(joined_lists([asked], answers, CHOSEN, LATER))
    items, now_us = item_table(EVENTS), START_US + 30
    known = items.block(["c", "d", "e"])
    counts = np.full((3, COUNTS_WIDTH), 15, dtype=np.float32)
    block = ItemBlock(
        known.item_hash, counts, np.full(3, START_US + 14), known.published_us, known.categories
    )  # fmt: skip
    expected = ranking_features(items.history(row("ann", "ba", ROW_US)), block, now_us)
    assert (made.features[0, :, : len(RANKING_FEATURES)] == expected).all()
    assert made.candidate_rows.tolist() == [corpus.vocabulary.rows(["c", "d", "e"]).tolist()]
    assert made.labels.tolist() == [[0.0, 1.0, 0.0]]
    assert made.retrieval_score.tolist() == made.candidate_rows.astype(np.float32).tolist()
    assert made.history_rows.tolist() == [[0, 0, *corpus.vocabulary.rows(["a", "b"]).tolist()]]
    assert made.now_s.tolist() == [now_us // SECOND_US]
    assert left_out == {}
    newer = ranking_features(items.history(row("ann", "cba", START_US + 20)), block, now_us)
    assert (made.features[0, :, : len(RANKING_FEATURES)] != newer).any()  # the test would see the row of 20


def test_a_list_whose_row_is_not_in_the_history_is_left_out_and_a_stranger_s_is_not() -> None:
    stranger = slate("cde", "r2", "zoe", user_row_time_us=0)
    gone = slate("cde", "r1", "ann", user_row_time_us=ROW_US + 1)
    lists = joined_lists([gone, stranger], [answer("d"), answer("d", request_id="r2", user_id="zoe")], CHOSEN, LATER)
    _, made, left_out = made_of(lists)
    assert (len(made), left_out) == (1, {"row not in the history": 1})
    assert made.features[0, 0, RANKING_FEATURES.index("user_is_stranger")] == 1.0
    assert not made.history_rows.any()


def test_items_that_no_model_knows_are_no_candidates() -> None:
    known = {"user_row_time_us": ROW_US, "asked_at": ASKED}
    lists = lists_of(slate("cxde", "r1", **known), slate("xd", "r2", **known), slate("yc", "r3", **known), taken="dy")
    corpus, made, left_out = made_of(lists)
    assert made.candidate_rows.tolist() == [[corpus.vocabulary.row("c"), 0, *corpus.vocabulary.rows(["d", "e"])]]
    assert made.labels.tolist() == [[0.0, 0.0, 1.0, 0.0]]
    assert made.places.tolist() == [[1, 0, 3, 4]]
    assert not made.features[0, 1].any()
    assert left_out == {"items not in the vocabulary": 2}


def test_examples_of_different_widths_are_padded_together() -> None:
    known = {"user_row_time_us": ROW_US}
    _, wide, _ = made_of(lists_of(slate("bcde", "r1", **known)))
    _, narrow, _ = made_of(lists_of(slate("cd", "r2", **known)))
    joined = joined_examples([narrow, wide])
    assert joined.candidate_rows.shape == joined.labels.shape == (2, 4)
    assert joined.candidate_rows[0, 2:].tolist() == [0, 0]
    assert joined.places.tolist() == [[1, 2, 0, 0], [1, 2, 3, 4]]
    assert joined.candidate_rows[1].all()
    assert (joined.features[0, :2] == narrow.features[0]).all()


# ------------------------------------------------------------------------------------------- the report


def test_a_run_says_in_one_sentence_what_it_learned_from() -> None:
    lists = lists_of(slate("cde", user_row_time_us=ROW_US))
    lists = replace(lists, served=1200, left_out={"anonymous": 3})
    few = Learned(lists, lists_min=2)
    few.sampled = 5000
    assert not few.enough
    assert learned_from(few.notes()) == (
        "Ranking was learned from 5,000 requests with sampled candidates alone: of 1,200 served lists 1 can be learned "
        "from, 2 are needed. Left out: 3 anonymous."
    )
    enough = Learned(lists, lists_min=1)
    _, made, left_out = made_of(lists)
    enough.took(made, left_out)
    enough.sampled = 40
    assert enough.enough
    assert learned_from(enough.notes()) == (
        "Ranking was learned from 1 served lists (3 picks seen, 1 taken) of 1,200 and from 40 requests with sampled "
        "candidates. Left out: 3 anonymous."
    )
    assert learned_from({"sampled_negatives": 1.0}) == ""
