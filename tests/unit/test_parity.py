"""Parity: a list whose features the join gives again agrees; a history that was tampered with is found, and the cause
has its name. One list of three films, served from a row of two events and counts written once."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from services.domain import SECOND_US, Interaction, Pick, Reason, Slate, UserState, from_us
from services.features.history import MemoryHistory
from services.item_parts import CardPart, ItemChanged, StatsPart
from services.items import ItemTable
from services.signals import COUNTS_WIDTH, RANKING_FEATURES, ranking_features
from services.telemetry import PARITY_LISTS, PARITY_SHARE
from services.training import parity
from services.training.parity import Parity, compare

ASKED_US = 1_795_435_200_000_000
ROW_US, WRITTEN_US = ASKED_US - 100, ASKED_US - 10 * SECOND_US
MADE = datetime(2026, 11, 23, tzinfo=UTC)
FILMS = ("alien", "brazil", "clue")


def items(categories: str = "odd", published_us: int = ASKED_US - SECOND_US) -> ItemTable:
    """The films with their cards and counts 1, 2, 3, as a server had them."""
    table = ItemTable()
    for number, film in enumerate(FILMS, start=1):
        card = CardPart(film, [categories if film == "alien" else "even"], True, False, published_us, 0, 1)
        counts = StatsPart([float(number)] * COUNTS_WIDTH, WRITTEN_US - 5, WRITTEN_US)
        table.apply([ItemChanged(film, card, number), ItemChanged(film, counts, number)])
    return table


def row(*films: str, at_us: int = ROW_US, weight: float = 1.0) -> UserState:
    events = tuple(Interaction(at_us - n, n, film, "click", None, weight) for n, film in enumerate(films))
    return UserState("ann", events, row_time_us=at_us)


def served(user: UserState | None = None) -> Slate:
    """The list as the server made it: its features from its own table and the row it read."""
    user, table = user or row("alien", "dune"), items()
    block = table.block(FILMS)
    features = ranking_features(table.history(user), block, ASKED_US)
    picks = tuple(Pick(film, rank, 1.0, "faiss", Reason("for_you", (), "")) for rank, film in enumerate(FILMS))
    return Slate(
        "r1", "ann", "rel", user.row_time_us, block.as_of, picks, (), (), from_us(ASKED_US), block.as_of_us,
        features.astype("<f4").tobytes(),
    )  # fmt: skip


def history(rows: Sequence[UserState] = (), films: Sequence[str] = FILMS, counted: float = 1.0) -> MemoryHistory:
    """What was kept: rows, and the counts of some films, `counted` times what they were."""
    made = [(each, MADE) for each in (rows or [row("alien", "dune")])]
    known = MemoryHistory(lambda: made)
    counts = np.array([[counted * (FILMS.index(film) + 1)] * COUNTS_WIDTH for film in films], dtype=np.float32)
    known.append_item_live(films, counts, np.full(len(films), WRITTEN_US - 5), WRITTEN_US, MADE)
    return known


def checked(known: MemoryHistory, slate: Slate | None = None, table: ItemTable | None = None) -> Parity:
    def changed(since: datetime) -> Collection[str]:
        assert since < from_us(ASKED_US)
        return {"dune"} if table is not None else ()

    return compare([slate or served()], known, table or items(), changed)


def test_a_list_that_the_join_gives_again_agrees() -> None:
    found = checked(history())
    assert (found.compared, found.agreed, found.picks, found.share) == (1, 1, 3, 1.0)
    assert (found.causes, found.passed_over, found.differences) == ({}, {}, ())


def test_newer_rows_and_counts_do_not_disturb() -> None:
    known = history([row("alien", "dune"), row("brazil", "alien", "dune", at_us=ASKED_US - 1)])
    known.append_item_live(["clue"], np.full((1, COUNTS_WIDTH), 9, np.float32), np.array([1]), WRITTEN_US + 1, MADE)
    assert checked(known).agreed == 1


def test_a_stranger_s_list_agrees_with_no_row_at_all() -> None:
    assert checked(history([row("alien", at_us=ROW_US)]), served(UserState("ann"))).agreed == 1


@pytest.mark.parametrize(
    ("known", "cause"),
    [
        (history([row("dune", at_us=ROW_US + 1)]), parity.ROW_MISSING),
        (history([row("dune", at_us=ROW_US - 1)]), parity.ROW_TIME),
        (history([row("alien")]), parity.ROW_DIFFERS),
        (history([row("dune", "alien")]), parity.CARD_DIFFERS),
        (history([row("alien", "dune", weight=-1.0)]), parity.ROW_DIFFERS),
        (history(films=["alien", "brazil"]), parity.COUNTS_MISSING),
        (history(counted=1.001), parity.COUNTS_DIFFER),
    ],
)  # fmt: skip
def test_what_was_tampered_with_is_found_and_named(known: MemoryHistory, cause: str) -> None:
    found = checked(known)
    assert (found.compared, found.agreed, found.causes) == (1, 0, {cause: 1})
    assert {each.cause for each in found.differences} == {cause}
    assert {each.request_id for each in found.differences} == {"r1"}


def test_a_difference_says_which_feature_of_which_pick_and_both_numbers() -> None:
    known = history(films=["alien", "brazil"])
    (first, *_) = checked(known).differences
    assert (first.item_id, first.feature) == ("clue", "item_clicks_1h")
    assert first.served == pytest.approx(np.log1p(3.0), rel=0.01)  # decayed for ten seconds
    assert first.joined == 0.0


def test_counts_that_the_server_was_just_taking_in_are_named_as_such() -> None:
    """The list names the writing before; what it was made of was written two seconds later."""
    known = history(counted=0.5)
    counts = np.array([[n] * COUNTS_WIDTH for n in (1, 2, 3)], dtype=np.float32)
    known.append_item_live(FILMS, counts, np.full(3, WRITTEN_US - 5), WRITTEN_US + 2 * SECOND_US, MADE)
    assert checked(known).causes == {parity.COUNTS_NEWER: 1}


def test_a_card_that_changed_since_is_the_cause_of_what_depends_on_it() -> None:
    found = checked(history(), table=items(published_us=ASKED_US - 3600 * SECOND_US))
    assert {each.feature for each in found.differences} == {"item_age_days"}
    assert found.causes == {parity.CARD_CHANGED: 1}  # an item of the row changed; the films themselves did not
    moved = compare([served()], history(), items(categories="even"), lambda _since: ())
    assert moved.causes == {parity.CARD_DIFFERS: 1}
    assert all(each.feature.startswith("category") for each in moved.differences)


def test_other_features_than_ours_are_named_and_what_recorded_none_is_passed_over() -> None:
    whole = served()
    assert checked(history(), replace(whole, features=whole.features[:-12])).causes == {parity.OTHER_FEATURES: 1}
    found = checked(history(), replace(whole, features=b""))
    assert (found.compared, found.share, found.passed_over) == (0, None, {"no features recorded": 1})
    assert len(whole.features) == 4 * len(FILMS) * len(RANKING_FEATURES)


def test_the_report_is_kept_and_told(tmp_path: Path) -> None:
    parity.tell(tmp_path)  # nothing there yet
    lists = [served(), replace(served(), request_id="r2", user_row_time_us=ROW_US + 7)]
    parity.keep(compare(lists, history(), items(), lambda _since: ()), tmp_path, MADE)
    told = json.loads((tmp_path / parity.REPORT).read_text())
    assert (told["share"], told["compared"], told["causes"]) == (0.5, 2, {parity.ROW_TIME: 1})
    parity.tell(tmp_path)
    assert PARITY_SHARE._value.get() == 0.5
    assert PARITY_LISTS._value.get() == 2


@pytest.mark.parametrize("report", ["", '{"share": 0.', "[]", '{"share": 1.0}'])
def test_a_report_that_cannot_be_read_is_passed_over(tmp_path: Path, report: str) -> None:
    """The scheduler tells it at its start, and must not end over it."""
    PARITY_LISTS.set(7)
    (tmp_path / parity.REPORT).write_text(report)
    parity.tell(tmp_path)
    assert PARITY_LISTS._value.get() == 7
