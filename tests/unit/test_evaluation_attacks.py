"""Attacks on the training events, and the served list under them. Expected values by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from evaluation_world import START_US, events_of
from typer.testing import CliRunner

from services.cli import app
from services.domain import DAY_US, BadRequest
from services.evaluation.attacks import attack_of, injected, ordinary_per_day
from services.training.columns import EventColumns

DAY = 86_400
CUT_US = START_US + 60 * DAY_US


def log() -> EventColumns:
    """100 users who take one of two popular items on each of four days, two weeks apart, and five items that five of
    them take: fit for targets."""
    rows = [
        (f"u{user:03d}", f"popular{(user + turn) % 2}", turn * 14 * DAY_US + user)
        for user in range(100)
        for turn in range(4)
    ]
    rows += [(f"u{user:03d}", f"rare{n}", 43 * DAY_US + user) for n in range(5) for user in range(5)]
    return events_of([(user, item, at) for user, item, at in rows])


def test_names_of_attacks_say_their_share_and_profile() -> None:
    assert attack_of("spam").share == 0.01
    assert attack_of("shilling:3%").profiles == ("random", "average", "bandwagon")
    assert attack_of("shilling:0.5%:bandwagon").profiles == ("bandwagon",)
    for wrong in ("shill", "spam:0%", "shilling:70%", "spam:1%:random", "shilling:bandwagon:1%"):
        with pytest.raises(BadRequest, match="--attack"):
            attack_of(wrong)


def test_spam_is_a_hundred_times_an_ordinary_users_day_on_every_day_before_the_cut() -> None:
    rare = [(f"u{user}", f"rare{n}", user) for n in range(5) for user in range(3)]
    events = events_of([(u, i, at) for u, i, at in rare] + [(f"v{n}", "a", DAY_US) for n in range(97)])
    assert ordinary_per_day(events) == pytest.approx((15 + 97) / 100)
    made = injected(events, attack_of("spam:2%"), CUT_US, seed=1)
    attackers = made.train.user_codes >= len(events.user_ids)
    assert made.accounts == 2
    assert attackers.sum() == pytest.approx(2 * 100 * 1.12 * 7, rel=0.1)
    assert sorted(made.train.item_ids[code] for code in made.targets.tolist()) == [f"rare{n}" for n in range(5)]
    assert set(made.train.item_codes[attackers].tolist()) == set(made.targets.tolist())
    assert made.train.occurred_us[attackers].min() >= CUT_US - 7 * DAY_US
    assert made.train.occurred_us.max() < CUT_US


def test_shilling_accounts_look_like_the_average_user_and_take_the_target_once() -> None:
    events = log()
    made = injected(events, attack_of("shilling:6%"), CUT_US, seed=2)
    attackers = made.train.user_codes >= len(events.user_ids)
    accounts, sizes = np.unique(made.train.user_codes[attackers], return_counts=True)
    assert (len(accounts), len(made.targets)) == (6, 1)
    on_target = made.train.item_codes[attackers] == made.targets[0]
    assert np.unique(made.train.user_codes[attackers][on_target], return_counts=True)[1].tolist() == [1] * 6
    assert set(sizes.tolist()) == {5}, "425 events of 100 users are 4 each, and the target"


def test_the_same_seed_makes_the_same_attack_and_the_events_of_users_stay() -> None:
    events = log()
    one, other = (injected(events, attack_of("shilling:5%"), CUT_US, seed=3).train for _ in range(2))
    assert (one.occurred_us == other.occurred_us).all()
    assert (one.item_codes == other.item_codes).all()
    users = one.keep(one.user_codes < len(events.user_ids))
    assert (users.item_codes == events.item_codes).all()
    assert one.user_ids[: len(events.user_ids)] == events.user_ids


def test_an_attack_needs_items_that_few_have_taken() -> None:
    events = events_of([(f"u{n}", "a", n) for n in range(30)])
    with pytest.raises(BadRequest, match="0 items"):
        injected(events, attack_of("spam"), CUT_US, seed=1)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, ...]:
    """The users of `log`, who take a film of the week on day 59 and one after the cut."""
    events = log()
    lines = [
        f"{events.user_ids[u]},{events.item_ids[i]},{at // 1_000_000}"
        for u, i, at in zip(
            events.user_codes.tolist(), events.item_codes.tolist(), events.occurred_us.tolist(), strict=True
        )
    ]
    start = START_US // 1_000_000
    lines += [f"u{n:03d},week,{start + 59 * DAY + n}" for n in range(40)]
    lines += [f"u{n:03d},week,{start + 61 * DAY + n}" for n in range(40, 90)]
    (tmp_path / "e.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(lines) + "\n")
    titles = [f"{item},{item}" for item in (*events.item_ids, "week")]
    (tmp_path / "i.csv").write_text("item_id,title\n" + "\n".join(titles) + "\n")
    cut = str(start + 60 * DAY)
    return (
        "--events", str(tmp_path / "e.csv"), "--items", str(tmp_path / "i.csv"), "--out", str(tmp_path / "out"),
        "--cut", cut, "--history-min", "2", "--seeds", "1",
    )  # fmt: skip


def attacked(files: tuple[str, ...], tmp_path: Path, **environment: str) -> dict[tuple[str, str], float]:
    """By (attack, metric), the value of the popularity of the week."""
    done = CliRunner().invoke(
        app, ["evaluate", *files, "--attack", "spam:10%", "--models", "popularity:7d"], env=environment
    )
    assert done.exit_code == 0, done.output
    lines = json.loads((tmp_path / "out" / "metrics.json").read_text())
    return {(line["slice"], line["metric"]): line["value"] for line in lines}


def test_machines_push_their_items_above_all_others_without_the_bounds_and_above_none_with_them(
    files: tuple[str, ...], tmp_path: Path
) -> None:
    without = attacked(files, tmp_path, FRESHRANK_USER_EVENTS_PER_DAY_MAX="0", FRESHRANK_NEWCOMER_WEIGHT="1")
    # Forty users take the film of the week. Ten machines take each of five films over a hundred times: it is the sixth.
    name = "spam:10%"
    assert without[name, "ndcg@10 before"] == 1.0
    assert without[name, "ndcg@10"] == pytest.approx(1 / np.log2(7))
    assert without[name, "ndcg@10 / before"] == pytest.approx(1 / np.log2(7))
    bounded = attacked(files, tmp_path)
    assert bounded[name, "ndcg@10"] == 1.0, "ten newcomers weigh half an event"


def test_an_attack_goes_with_the_temporal_protocol_and_models_of_the_served_list(files: tuple[str, ...]) -> None:
    for more, told in (
        (("--attack", "spam", "--protocol", "leave-one-out"), "temporal"),
        (("--attack", "spam", "--models", "ease"), "not ease"),
        (("--attack", "flood"), "--attack flood"),
    ):
        without_cut = [each for each in files if each not in ("--cut",)] if "leave-one-out" in more else list(files)
        if "leave-one-out" in more:
            del without_cut[6]
        done = CliRunner().invoke(app, ["evaluate", *without_cut, *more])
        assert done.exit_code != 0
        assert told in str(done.exception) + done.output
