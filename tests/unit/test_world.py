"""The generated world: equal arguments give an equal world, its rules hold, and its known answer is true (by hand and
by counting)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from services.demo.world import KINDS, Taste, World, WorldItem, WorldSize, make_world, newborn, user_id
from services.domain import DAY_US

ENDS_AT = datetime(2026, 1, 15, tzinfo=UTC)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(WorldSize.dial(0.2), 7, ENDS_AT)


def test_equal_arguments_give_an_equal_world_and_another_seed_another_one(world: World) -> None:
    again = make_world(WorldSize.dial(0.2), 7, ENDS_AT)
    assert list(again.events()) == list(world.events())
    assert list(again.item_changes()) == list(world.item_changes())
    assert list(make_world(WorldSize.dial(0.2), 8, ENDS_AT).events()) != list(world.events())


def test_events_come_in_time_order_within_the_worlds_time_and_have_ids_of_their_own(world: World) -> None:
    assert (np.diff(world.occurred_us) >= 0).all()
    assert world.starts_us <= world.occurred_us[0]
    assert world.occurred_us[-1] < world.ends_us
    assert len({each.event_id for each in world.events()}) == len(world.occurred_us)


def test_nobody_touches_an_item_twice_nor_before_its_birth(world: World) -> None:
    pairs = set(zip(world.user_numbers.tolist(), world.item_numbers.tolist(), strict=True))
    assert len(pairs) == len(world.occurred_us)
    born = np.array([each.born_us for each in world.items])
    assert (born[world.item_numbers] <= world.occurred_us).all()


def test_items_are_born_during_the_run_and_carry_text(world: World) -> None:
    born_late = sum(each.born_us > world.starts_us for each in world.items)
    assert 0.35 < born_late / len(world.items) < 0.45  # BORN_BEFORE = 0.6
    assert all(each.title and each.text for each in world.items)


def test_most_clicks_follow_the_taste_of_the_time_and_tastes_drift(world: World) -> None:
    clicks = np.flatnonzero(world.kind_codes != KINDS.index("hide"))
    of_main = [
        world.items[world.item_numbers[n]].topic
        == world.taste(int(world.user_numbers[n]), int(world.occurred_us[n])).main
        for n in clicks
    ]
    assert np.mean(of_main) > 0.5
    assert np.mean([len(each) for each in world.tastes]) > 2


def test_the_chances_are_those_worked_out_by_hand(world: World) -> None:
    long_ago = world.starts_us - 1000 * DAY_US  # so long ago that no youth is left: the weight is the appeal
    one, three = (WorldItem(name, name, "", 0, 0, long_ago, appeal, -1) for name, appeal in (("a", 1.0), ("b", 3.0)))
    other = WorldItem("c", "c", "", 1, 1, long_ago, 1.0, -1)
    tiny = replace(
        world,
        items=(one, three, other),
        tastes=((Taste(0, main=0, second=1),),),
        user_numbers=np.array([], dtype=np.int32),
        item_numbers=np.array([], dtype=np.int32),
        occurred_us=np.array([], dtype=np.int64),
    )
    # shares: 0.72 + 0.1/12 = 0.72833 for topic 0 and 0.18 + 0.1/12 = 0.18833 for topic 1, of 0.91667 together
    assert tiny.chances(0, world.ends_us) == pytest.approx([0.198636, 0.595909, 0.205455], abs=1e-6)
    begun = replace(
        tiny,
        items=(replace(one, next_item=1), three, other),
        user_numbers=np.array([0], dtype=np.int32),
        item_numbers=np.array([0], dtype=np.int32),
        occurred_us=np.array([world.starts_us], dtype=np.int64),
    )
    # after `a`: b 0.35 + 0.65 * 0.595909 = 0.737341, c 0.65 * 0.205455 = 0.133546; `a` is seen, so of 0.870887
    assert begun.chances(0, world.ends_us) == pytest.approx([0.0, 0.846656, 0.153344], abs=1e-6)


def test_the_best_guess_by_the_chances_is_right_as_often_as_it_claims(world: World) -> None:
    clicks = np.flatnonzero(world.kind_codes != KINDS.index("hide"))[-500:]
    claimed, right = 0.0, 0
    for n in clicks.tolist():
        chances = world.chances(int(world.user_numbers[n]), int(world.occurred_us[n]))
        claimed += float(chances.max())
        right += int(chances.argmax()) == world.item_numbers[n]
    assert right / len(clicks) == pytest.approx(claimed / len(clicks), abs=0.07)  # 3 sigma of 500 draws


def test_a_newborn_has_a_text_of_its_topic_and_is_equal_for_an_equal_seed() -> None:
    change = newborn(2, 5, ENDS_AT, seed=1)
    assert change == newborn(2, 5, ENDS_AT, seed=1)
    assert change.fields["categories"] == ("Astronomy",)
    assert str(change.fields["title"]).startswith("Astronomy ")


def test_the_dial_grows_users_and_keeps_a_smallest_world() -> None:
    assert WorldSize.dial(2.0).users == 2 * WorldSize.dial(1.0).users
    assert WorldSize.dial(0.0).users == 20
    assert user_id(3) == "user-3"
