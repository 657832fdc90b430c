"""The judged slice and the decision: where the cut falls, who is asked what, and when a challenger may go live."""

from __future__ import annotations

import pytest

from services.domain import DAY_US, HOUR_US, BadRequest, KindRule, KindRules, Metric
from services.training.columns import EventColumns, columns_of_rows
from services.training.gate import Gate, choose_cut, decide, slice_after

RULES = KindRules({"click": KindRule("positive"), "hide": KindRule("negative"), "impression": KindRule("neutral")})
START = 1_700_000_000_000_000


def hourly(users: int, hours: int) -> EventColumns:
    """Every hour one click by the next user in turn, each on an item of its own."""
    rows = [(f"u{n % users}", f"i{n}", "click", START + n * HOUR_US, None) for n in range(hours)]
    return columns_of_rows(rows, RULES)


def test_the_slice_is_the_newest_share_of_the_events() -> None:
    assert choose_cut(hourly(10, 1000), Gate(users_min=1), 0) == START + 950 * HOUR_US


def test_the_slice_is_at_most_days_max_long() -> None:
    cut = choose_cut(hourly(10, 10_000), Gate(users_min=1), 0)
    assert cut == START + 9999 * HOUR_US - 7 * DAY_US


def test_the_slice_goes_further_back_until_it_has_enough_users() -> None:
    # 200 users in turn: the newest 50 hours have 50 users, the newest 120 have 120.
    assert choose_cut(hourly(200, 1000), Gate(users_min=120), 0) == START + 880 * HOUR_US


def test_few_users_never_take_more_than_half_of_the_events() -> None:
    assert choose_cut(hourly(900, 1000), Gate(users_min=5000), 0) == START + 500 * HOUR_US


def test_the_slice_never_starts_before_the_live_release_s_data_ends() -> None:
    live_until = START + 980 * HOUR_US
    assert choose_cut(hourly(200, 1000), Gate(users_min=120), live_until) == live_until


def test_nothing_newer_than_the_live_release_is_the_caller_s_mistake() -> None:
    with pytest.raises(BadRequest, match="newer"):
        choose_cut(hourly(10, 100), Gate(), START + 200 * HOUR_US)


def test_too_few_events_and_no_positive_event_are_said_plainly() -> None:
    with pytest.raises(BadRequest, match="too few"):
        choose_cut(hourly(3, 10), Gate(), 0)
    hidden = columns_of_rows([("u", "i", "hide", START + n, None) for n in range(60)], RULES)
    with pytest.raises(BadRequest, match="kinds"):
        choose_cut(hidden, Gate(), 0)


def test_a_target_is_the_first_positive_event_on_an_item_new_to_the_user() -> None:
    rows = [
        ("ann", "a", "click", START, None),
        ("bob", "a", "click", START + 1, None),
        ("ann", "a", "click", START + 10, None),  # not new to her
        ("ann", "b", "hide", START + 11, None),  # not positive
        ("ann", "c", "click", START + 12, None),  # the target
        ("ann", "d", "click", START + 13, None),  # later
        ("eve", "a", "click", START + 14, None),  # a stranger's target
        ("bob", "b", "impression", START + 15, None),
    ]
    events = columns_of_rows(rows, RULES)
    judged = slice_after(events, START + 10, 100, 1)
    named = {
        events.user_ids[user]: (events.item_ids[item], bool(known))
        for user, item, known in zip(judged.user_codes, judged.target_codes, judged.known, strict=True)
    }
    assert named == {"ann": ("c", True), "eve": ("a", False)}


def test_more_users_than_wanted_are_sampled_by_seed() -> None:
    events = hourly(200, 1000)
    one, again, other = (slice_after(events, START + 800 * HOUR_US, 50, seed) for seed in (1, 1, 2))
    assert len(one) == 50
    assert one.user_codes.tolist() == again.user_codes.tolist() != other.user_codes.tolist()


def ndcg(value: float, users: int = 600) -> tuple[Metric, ...]:
    return (Metric("m", "all", "ndcg@10", value, users),)


@pytest.mark.parametrize(
    ("ours", "live", "promoted"),
    [(0.1, 0.1, True), (0.0991, 0.1, True), (0.0989, 0.1, False), (0.2, 0.1, True), (0.0, 0.0, True)],
)
def test_a_challenger_may_lose_one_percent_to_the_live_release(ours: float, live: float, promoted: bool) -> None:
    assert decide(ndcg(ours), ndcg(live), ndcg(0.05), ())[0] is promoted


def test_the_first_release_is_promoted_when_sound_and_says_whether_popularity_wins() -> None:
    promoted, reason = decide(ndcg(0.04), None, ndcg(0.05), ())
    assert promoted
    assert "not above 7-day popularity (0.0500)" in reason
    assert "not above" not in decide(ndcg(0.06), None, ndcg(0.05), ())[1]


def test_a_fault_is_never_promoted_however_good_the_numbers() -> None:
    promoted, reason = decide(ndcg(0.9), None, ndcg(0.05), ("weights that are not finite: tower",))
    assert not promoted
    assert "not finite" in reason


def test_a_handful_of_users_cannot_replace_a_live_release() -> None:
    promoted, reason = decide(ndcg(0.9, users=29), ndcg(0.1, users=29), ndcg(0.05, users=29), ())
    assert not promoted
    assert "only 29 users" in reason


def test_an_item_that_was_merely_shown_is_still_new_to_the_user() -> None:
    rows = [
        ("ann", "a", "impression", START, None),
        ("ann", "b", "hide", START + 1, None),
        ("ann", "b", "click", START + 10, None),  # hidden before: not new
        ("ann", "a", "click", START + 11, None),
    ]
    events = columns_of_rows(rows, RULES)
    judged = slice_after(events, START + 10, 100, 1)
    assert [events.item_ids[item] for item in judged.target_codes] == ["a"]
