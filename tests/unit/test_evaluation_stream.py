"""The protocol `replay`: which events of a stream are cases, what each may know, and what baselines make of it.
Expected values by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evaluation_world import DAY, START_US, events_of
from typer.testing import CliRunner

from services.cli import app
from services.domain import HOUR_US, SECOND_US, BadRequest
from services.evaluation.baselines import LastClick, Popularity
from services.evaluation.replay import by_baseline
from services.evaluation.stream import (
    FEATURES,
    Features,
    Retrain,
    Stream,
    as_asked,
    cut_place,
    known_until,
    segments,
    stream_of,
    strictly_rising,
)
from services.evaluation.tuning import choices_of
from services.training.columns import EventColumns

START = START_US // SECOND_US
EVENTS = events_of([
    ("ann", "a", 0), ("bob", "a", 10), ("ann", "b", 20), ("bob", "c", 30, "hide"), ("zoe", "n", 40, "impression"),
    ("ann", "c", 50), ("ann", "a", 60), ("zoe", "n", 60), ("bob", "c", 60), ("ann", "d", 70),
])  # fmt: skip


def told(stream: Stream) -> list[tuple[str, str, int, int, int]]:
    """(user, target, moment, events known, known until) of each case."""
    cases, ids, items = stream.cases, stream.events.user_ids, stream.events.item_ids
    columns = (cases.users, cases.targets, cases.until_us - START_US, cases.history, stream.known_us - START_US)
    rows = zip(*(each.tolist() for each in columns), strict=True)
    return [(ids[u], items[t], at, known, until) for u, t, at, known, until in rows]


def test_a_positive_event_on_an_item_new_to_its_user_is_a_case_that_knows_all_before_it() -> None:
    stream = stream_of(EVENTS, "0.5", "drop", "live")
    # ann has had a, bob hid c; zoe's impression of n is nothing she has had. n and c are a microsecond later than a.
    assert told(stream) == [("ann", "c", 50, 2, 50), ("zoe", "n", 61, 0, 61), ("ann", "d", 70, 4, 70)]
    assert len(stream.cases.train) == 5
    assert stream.cases.judged.all()


def test_with_seen_kept_every_positive_event_is_a_case_and_few_events_before_it_can_be_too_few() -> None:
    stream = stream_of(EVENTS, "0.5", "keep", "live", history_min=2)
    assert [(user, item) for user, item, *_ in told(stream)] == [
        ("ann", "c"), ("ann", "a"), ("zoe", "n"), ("bob", "c"), ("ann", "d"),
    ]  # fmt: skip
    assert stream.cases.judged.tolist() == [True, True, False, True, True]


def test_events_of_one_moment_keep_their_order_a_microsecond_apart() -> None:
    events = events_of([("u", "a", 5), ("u", "b", 5), ("u", "c", 5), ("u", "d", 6), ("u", "e", 100)])
    assert (strictly_rising(events).occurred_us - START_US).tolist() == [5, 6, 7, 8, 100]


def test_a_cut_is_a_share_of_the_events_or_a_time() -> None:
    assert cut_place(EVENTS, "0.5") == 5
    assert cut_place(EVENTS, "0.9") == 9
    assert cut_place(EVENTS, "2023-11-15T00:00:00.000050Z") == 5  # START_US is midnight
    for cut, said in (
        ("2020-01-01T00:00:00Z", "nothing to"),
        ("2030-01-01T00:00:00Z", "nothing to"),
        ("soon", "--cut soon: "),
    ):
        with pytest.raises(BadRequest, match=said):
            cut_place(EVENTS, cut)
    with pytest.raises(BadRequest, match="no positive event to learn from"):
        stream_of(events_of([("u", "a", 0, "hide"), ("u", "b", 1)]), "0.5", "drop", "live")
    with pytest.raises(BadRequest, match="nobody to judge"):
        stream_of(events_of([("u", "a", 0), ("u", "a", 1)]), "0.5", "drop", "live")


def test_knowledge_ends_at_the_event_the_full_hour_the_utc_day_or_the_cut() -> None:
    cut, moments = START_US + HOUR_US // 2, np.array([2 * HOUR_US // 3, 2 * HOUR_US, DAY + HOUR_US + 5]) + START_US
    ends = {each: (known_until(moments, cut, each) - START_US).tolist() for each in FEATURES}
    assert ends["live"] == (moments - START_US).tolist()
    # The first is in the hour and the day of the cut: what was known at the cut stays known.
    assert ends["hourly"] == [HOUR_US // 2, 2 * HOUR_US, DAY + HOUR_US]
    assert ends["daily"] == [HOUR_US // 2, HOUR_US // 2, DAY]
    assert ends["frozen"] == [HOUR_US // 2] * 3


def test_trained_anew_a_part_begins_with_every_day_of_the_stream_that_has_a_case() -> None:
    rows = [("u", "a", 0), ("u", "b", DAY), ("u", "c", DAY + 1), ("u", "d", 2 * DAY), ("u", "e", 5 * DAY)]
    stream = stream_of(events_of(rows), "0.2", "drop", "frozen")
    assert [part.places.tolist() for part in segments(stream, "never")] == [[0, 1, 2, 3]]
    daily = segments(stream, "1d")
    assert [part.places.tolist() for part in daily] == [[0, 1], [2], [3]]
    assert [len(part.learned) for part in daily] == [1, 3, 4]  # d, at the boundary itself, is not yet consumed
    assert [part.until_us - START_US for part in daily] == [DAY, 2 * DAY, 5 * DAY]
    assert (daily[2].asked.until_us - START_US).tolist() == [DAY]  # frozen: features are older than what was learned


def test_popularity_of_a_stream_counts_nothing_from_a_case_s_moment_on() -> None:
    rows = [("u1", "a", 0), ("u2", "b", 10), ("u3", "b", 20), ("u4", "a", 30), ("u5", "b", 40)]
    cases = as_asked(stream_of(events_of(rows), "0.4", "drop", "live"), np.arange(3))
    for ranker in (Popularity(None), Popularity(25)):
        counts = ranker.scores(cases, np.arange(3))
        # Before u3: a b. Before u4: a b b (or b b of the last 25). Before u5: a b b a (b a of the last 25).
        assert counts.tolist() == ([[1, 1], [1, 2], [2, 2]] if ranker.window_us is None else [[1, 1], [0, 2], [1, 1]])
    frozen = as_asked(stream_of(events_of(rows), "0.4", "drop", "frozen"), np.arange(3))
    assert Popularity(None).scores(frozen, np.arange(3)).tolist() == [[1, 1]] * 3


@pytest.mark.parametrize("half_life_us", [math.inf, 40.0])
def test_live_co_visits_are_those_fitted_on_everything_before_the_case(half_life_us: float) -> None:
    rng = np.random.default_rng(4)
    rows = [(f"u{rng.integers(4)}", f"i{rng.integers(5)}", at) for at in range(60)]
    stream = stream_of(events_of(rows), "0.5", "keep", "live")
    cases = as_asked(stream, np.arange(len(stream.cases)))
    streamed = LastClick(stream.cases.train, 3, half_life_us)
    for n, until_us in enumerate(cases.until_us.tolist()):
        anew = LastClick(stream.events.before(until_us), 3, half_life_us).scores(cases, np.array([n]))[0]
        found = streamed.scores(cases, np.array([n]))[0]
        grown = 2.0 ** ((until_us - stream.cut_us) / half_life_us)  # held as of the cut, not of the moment
        assert found / grown == pytest.approx(anew, rel=1e-6)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, ...]:
    """Four users take a, b; then, at the end, x comes up: u0 to u3 take it a minute apart, and u4, a stranger, too. An
    hour and a day later u5 and u6 do."""
    lines = [f"u{n},{item},{START + at + n}" for item, at in (("a", 0), ("b", 1000)) for n in range(4)]
    lines += [f"u{n},x,{START + 4000 + 60 * n}" for n in range(5)]
    lines += [f"u5,x,{START + 8000}", f"u6,x,{START + 90_000}"]
    (tmp_path / "e.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(lines) + "\n")
    (tmp_path / "i.csv").write_text("item_id,title\na,A\nb,B\nx,X\nz,Z\n")
    return ("--events", str(tmp_path / "e.csv"), "--items", str(tmp_path / "i.csv"), "--out", str(tmp_path / "out"))


def run(*arguments: str) -> dict[str, object]:
    done = CliRunner().invoke(app, ["evaluate", *arguments, "--protocol", "replay", "--json"])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    found: dict[str, object] = json.loads(done.output)
    return found


def hits(files: tuple[str, ...], out: Path, *arguments: str) -> dict[str, tuple[float, int]]:
    """HR@1 by slice, and its users."""
    run(*files, "--cut", "0.5", "--models", "popularity:all", "--at", "1", *arguments)
    lines = json.loads((out / "metrics.json").read_text())
    return {line["slice"]: (line["value"], line["users"]) for line in lines if line["metric"] == "hr@1"}


def test_live_a_list_knows_what_happened_a_minute_ago_and_frozen_never(files: tuple[str, ...], tmp_path: Path) -> None:
    # 15 events, the last 7 (half, rounded to even) are x, all of them cases, all judged. u0 to u3 have had a and b:
    # what is left is x and z, of which x is first by its id even before anybody had it. u4 to u6 have had nothing: a
    # and b (4 each) are above x (4 before u4, 5 before u5, 6 before u6) until x has more: before u5.
    cases = run(*files, "--models", "popularity:all", "--cut", "0.5")["facts"]
    assert "7 events" in str(cases)
    live = hits(files, tmp_path / "out")
    assert live["all"] == (pytest.approx(6 / 7), 7)
    assert live["cold users"] == (pytest.approx(6 / 7), 7)  # nobody has five events
    assert live["cold items"] == (pytest.approx(6 / 7), 7)  # x has no event before the cut
    frozen = hits(files, tmp_path / "out", "--features", "frozen")
    assert frozen["all"] == (pytest.approx(4 / 7), 7)
    # START is midnight. At the full hour before 8000 s, and so at 7200 s, all five had taken x: u5 is a hit. Of the day
    # that began at midnight the cut is later: u5 knows nothing new; u6, a day later, does.
    assert hits(files, tmp_path / "out", "--features", "hourly")["all"] == (pytest.approx(6 / 7), 7)
    assert hits(files, tmp_path / "out", "--features", "daily")["all"] == (pytest.approx(5 / 7), 7)


def test_trainings_are_counted(files: tuple[str, ...]) -> None:
    def facts(*arguments: str) -> object:
        told = run(*files, "--cut", "0.5", "--models", "itemknn:5", "--at", "1", *arguments)["facts"]
        assert isinstance(told, dict)
        return told["retraining"]

    assert facts() == "never: 0 times after the training at the cut"
    # The stream begins at 4000 s; u5 at 8000 s is in the second hour from there, u6 at 90,000 s in the 24th.
    assert facts("--retrain", "1h") == "1h: 2 times after the training at the cut"
    assert facts("--retrain", "1d") == "1d: 0 times after the training at the cut"


def test_baselines_are_tuned_on_a_stream_within_the_training_events(files: tuple[str, ...]) -> None:
    told = run(*files, "--models", "popularity,trending,itemknn,ease,last-click", "--cut", "0.8", "--at", "1,2")
    settings = told["settings"]
    assert isinstance(settings, dict)
    assert set(settings) == {"popularity", "trending", "itemknn", "ease", "last-click"}


def test_the_test_set_is_the_same_whatever_models_may_know(files: tuple[str, ...]) -> None:
    def hash_of(*arguments: str) -> object:
        facts = run(*files, "--models", "popularity:1d", "--cut", "0.6", *arguments)["facts"]
        assert isinstance(facts, dict)
        return facts["test_set"]

    assert hash_of() == hash_of("--features", "daily", "--retrain", "7d")
    assert hash_of() != hash_of("--cut", "0.7")


MODELS = ("popularity:3d", "popularity:all", "trending:1d", "itemknn:5", "ease:10", "last-click:2")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("features", FEATURES)
def test_no_baseline_s_list_depends_on_its_own_event_or_a_later_one(model: str, features: Features) -> None:
    rng = np.random.default_rng(1)
    rows = [(f"u{rng.integers(8)}", f"i{rng.integers(12):02d}", at * HOUR_US) for at in range(200)]
    events = events_of(rows)
    place = 100 if features == "frozen" else 130

    def lists(of: EventColumns) -> list[list[int]]:
        stream = stream_of(of, "0.5", "keep", features)
        choice = choices_of(*model.split(":"))[0]
        parts = segments(stream, "never" if features == "frozen" else "1d")
        found: list[list[int]] = by_baseline(choice, 100, parts, 12, lambda *_: None, "")[0].lists.tolist()
        return found

    turned = events.item_codes.copy()
    turned[place:] = (turned[place:] + 5) % len(events.item_ids)
    before, after = lists(events), lists(replace(events, item_codes=turned))
    known = 100 if features == "frozen" else 31  # what each of these cases may know is the same in both
    assert before[:known] == after[:known]
    assert before != after or features == "frozen"


def test_trained_anew_a_model_is_fitted_on_what_was_consumed_by_then() -> None:
    rows = [
        ("u1", "a", 0), ("u1", "b", 1), ("u2", "a", 2),
        ("u2", "x", 10), ("u3", "a", 11), ("u3", "x", 12), ("u4", "a", 2 * DAY), ("u4", "x", 2 * DAY + 9),
    ]  # fmt: skip
    stream = stream_of(events_of(rows), "0.4", "drop", "live")
    choice = choices_of("itemknn", "5")[0]

    def first_of_u4(retrain: Retrain) -> str:
        ranked = by_baseline(choice, 5, segments(stream, retrain), 2, lambda *_: None, "")[0]
        return stream.events.item_ids[ranked.lists[4, 0]]

    # At the cut a leads to b alone. A day later three had a, one of them b (cosine 1 / sqrt 3), two x (2 / sqrt 6).
    assert first_of_u4("never") == "b"
    assert first_of_u4("1d") == "x"
    assert first_of_u4("7d") == "b"
