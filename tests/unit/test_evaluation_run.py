"""`freshrank evaluate --events`: start to end on files, by its command line. Expected values by hand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli import app
from services.domain import BadRequest

DAY = 86_400
START = 1_700_006_400


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, ...]:
    """Ten users take a item each on days 0 to 8: a b c d e f g h i, the last day i by all; on day 9 and 10 u0 to u4
    take x, which nobody had before, u5 to u9 take i's neighbour y, known from strangers' clicks on day 8."""
    lines = [f"u{n},{item},{START + day * DAY + n}" for day, item in enumerate("abcdefghi") for n in range(10)]
    lines += [f"s{n},y,{START + 8 * DAY + 100 + n}" for n in range(3)]
    lines += [f"u{n},{'x' if n < 5 else 'y'},{START + 10 * DAY + n}" for n in range(10)]
    lines += [f"fresh,i,{START + 10 * DAY + 50}"]
    (tmp_path / "e.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(lines) + "\n")
    titles = [f"{item},{item.upper()},{'odd' if n % 2 else 'even'}" for n, item in enumerate("abcdefghixy")]
    (tmp_path / "i.csv").write_text("item_id,title,categories\n" + "\n".join(titles) + "\n")
    return ("--events", str(tmp_path / "e.csv"), "--items", str(tmp_path / "i.csv"), "--out", str(tmp_path / "out"))


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["evaluate", *arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_a_temporal_run_writes_every_number_with_its_interval(files: tuple[str, ...], tmp_path: Path) -> None:
    told = run(
        *files, "--protocol", "temporal", "--cut", "0.9", "--models", "popularity:7d,last-click:1", "--at", "1,2"
    )
    assert "test_set: " in told
    lines = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(lines[0]) == {"model", "slice", "metric", "value", "low", "high", "seeds", "users"}
    found = {(line["model"], line["slice"], line["metric"]): line for line in lines}
    # In the 7 days before day 9: y 3; all that u0 to u9 have had is left out, so y is first, the cold x second.
    popular = found["popularity:7d", "all", "hr@1"]
    assert (popular["value"], popular["users"], popular["seeds"]) == (0.5, 10, 1)
    assert popular["low"] < 0.5 < popular["high"]
    assert found["popularity:7d", "all", "hr@2"]["value"] == 1.0
    assert found["popularity:7d", "all", "mrr"]["value"] == 0.75
    assert found["popularity:7d", "cold items", "hr@1"]["value"] == 0.0
    assert found["popularity:7d", "warm items", "hr@1"]["users"] == 5
    assert found["popularity:7d", "cold users", "hr@1"]["users"] == 1  # fresh, who is asked too, but not in `all`
    assert found["popularity:7d", "all", "coverage@1"]["value"] == pytest.approx(1 / 11)
    # Nobody's last click leads to y: it is first only as the most popular of what is left.
    assert found["last-click:1", "all", "hr@1"]["value"] == 0.5
    difference = found["last-click:1", "all", "hr@1 - popularity:7d"]
    assert (difference["value"], difference["low"], difference["high"]) == (0.0, 0.0, 0.0)


def test_the_report_shows_all_models_and_the_run_says_what_was_measured(files: tuple[str, ...], tmp_path: Path) -> None:
    told = json.loads(run(*files, "--protocol", "leave-one-out", "--models", "itemknn,ease,trending", "--json"))
    page = (tmp_path / "out" / "report.html").read_text()
    for each in ("itemknn", "ease", "trending", told["facts"]["test_set"], "<svg", "95 %"):
        assert each in page
    assert json.loads((tmp_path / "out" / "run.json").read_text())["facts"] == told["facts"]
    assert told["against"] in ("itemknn", "ease", "trending")
    again = json.loads(run(*files, "--protocol", "leave-one-out", "--models", "itemknn,ease,trending", "--json"))
    assert again == told  # the same run is the same numbers


def test_the_test_set_changes_with_what_is_asked(files: tuple[str, ...]) -> None:
    def hash_of(*arguments: str) -> str:
        told = json.loads(run(*files, "--models", "popularity:all", "--json", *arguments))
        found: str = told["facts"]["test_set"]
        return found

    assert hash_of("--cut", "0.9") == hash_of("--cut", "0.9", "--at", "5")
    assert hash_of("--cut", "0.9") != hash_of("--cut", "0.7")


def test_targets_of_a_file_are_judged_and_not_learned_from(files: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"user_id,item_id,timestamp\nu0,y,{START + 9 * DAY}\nnew,a,\n")
    targets = ("--protocol", "targets", "--targets", str(tmp_path / "t.csv"), "--models", "popularity:7d", "--at", "1")
    told = json.loads(run(*files, *targets, "--json"))
    lines = {(line["slice"], line["metric"]): line for line in told["metrics"]}
    # u0 is asked on day 9 and has had all but x and y (3 clicks). new gets the most popular of the week before the end,
    # i (11 clicks): a miss.
    assert (lines["all", "hr@1"]["value"], lines["all", "hr@1"]["users"]) == (0.5, 2)
    assert lines["cold users", "hr@1"]["value"] == 0.0


def test_shown_lists_are_judged_by_their_clicks(files: tuple[str, ...], tmp_path: Path) -> None:
    # Asked on day 9: in the 7 days before it c to i were clicked 10 times each, y 3 times, a and b never.
    at = START + 9 * DAY
    rows = [
        f"1,u0,{at},i,1",
        f"1,u0,{at},y,0",
        f"1,u0,{at},a,0",
        f"2,new,{at},c,0",
        f"2,new,{at},y,1",
        f"3,u0,{at},a,0",
    ]
    (tmp_path / "s.csv").write_text("impression_id,user_id,timestamp,item_id,clicked\n" + "\n".join(rows) + "\n")
    shown = ("--impressions", str(tmp_path / "s.csv"), "--models", "popularity:7d,popularity:1d")
    told = json.loads(run(*files, *shown, "--against", "popularity:7d", "--json"))
    lines = {(line["model"], line["slice"], line["metric"]): line for line in told["metrics"]}
    assert set(told["metrics"][0]) == {"model", "slice", "metric", "value", "low", "high", "seeds", "users"}
    assert lines["popularity:7d", "all", "gauc"]["value"] == 0.5  # 1 in the first list, 0 in the second
    assert lines["popularity:7d", "all", "mrr"]["value"] == 0.75
    assert lines["popularity:7d", "cold users", "mrr"]["value"] == 0.5
    assert lines["popularity:7d", "all", "mrr"]["users"] == 2
    # Clicked: i 10, y 3. Not: y 3, a 0, c 10, a 0. i wins 3 and ties 1; y wins 2 and ties 1.
    assert lines["popularity:7d", "all", "auc"]["value"] == pytest.approx((3.5 + 2.5) / 8)
    # Of the last day only i (10) and y (3) are left: in the second list y is above c.
    assert lines["popularity:1d", "all", "mrr - popularity:7d"]["value"] == pytest.approx(0.25)
    assert not any(line["metric"] == "ece" for line in told["metrics"])  # a count is no chance
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()


def test_lists_of_one_item_are_judged_all_together(files: tuple[str, ...], tmp_path: Path) -> None:
    at = START + 9 * DAY
    rows = [f"1,u0,{at},i,1", f"2,new,{at},c,0", f"3,u1,{at},y,0"]
    (tmp_path / "s.csv").write_text("impression_id,user_id,timestamp,item_id,clicked\n" + "\n".join(rows) + "\n")
    told = json.loads(run(*files, "--impressions", str(tmp_path / "s.csv"), "--models", "popularity:7d", "--json"))
    found = {line["metric"]: line["value"] for line in told["metrics"] if line["slice"] == "all"}
    assert found == {"auc": 0.75}  # i ties with c and is above y


def test_shown_lists_without_a_click_or_with_a_protocol_are_refused(files: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text(f"impression_id,user_id,timestamp,item_id,clicked\n1,u0,{START},i,0\n")
    shown = ("--impressions", str(tmp_path / "s.csv"), "--models", "popularity")
    with pytest.raises(BadRequest, match="no impression has a click"):
        run(*files, *shown)
    with pytest.raises(BadRequest, match="--protocol does not go with --impressions"):
        run(*files, *shown, "--protocol", "temporal")


def test_a_choice_is_worth_what_the_propensities_say(files: tuple[str, ...], tmp_path: Path) -> None:
    # In the 7 days before day 9 i was clicked most of what this log shows; it is shown twice, clicked once.
    at = START + 9 * DAY
    rows = [f"1,u0,{at},i,1,0.5", f"2,new,{at},y,1,0.5", f"3,u1,{at},i,0,0.25", f"4,u1,{at},a,0,0.25"]
    header = "impression_id,user_id,timestamp,item_id,clicked,propensity"
    (tmp_path / "s.csv").write_text("\n".join([header, *rows]) + "\n")
    told = json.loads(run(*files, "--impressions", str(tmp_path / "s.csv"), "--models", "popularity:7d", "--json"))
    found = {line["metric"]: line["value"] for line in told["metrics"] if line["slice"] == "all"}
    assert found["ips"] == pytest.approx(2 / 4)
    assert found["snips"] == pytest.approx(2 / 6)
    assert found["effective rows"] == pytest.approx(36 / 20)


def test_lists_before_a_cut_are_learned_from_and_clicks_among_the_events_are_told(
    files: tuple[str, ...], tmp_path: Path
) -> None:
    times = [START + (n + 1) * DAY for n in range(8)]
    rows = [f"{n},u{n},{at},i,1\n{n},u{n},{at},y,0" for n, at in enumerate(times)]
    (tmp_path / "s.csv").write_text("impression_id,user_id,timestamp,item_id,clicked\n" + "\n".join(rows) + "\n")
    shown = ("--impressions", str(tmp_path / "s.csv"), "--models", "popularity:all", "--json")
    facts = json.loads(run(*files, *shown, "--cut", "0.5"))["facts"]
    assert facts["impressions"].startswith("4 with 8 items and 4 clicks")
    assert facts["lists to learn from"].startswith("4 with 8 items, 4 of use")
    assert "judged clicks among the events" not in facts
    answers = json.loads(run(*files, *shown))["facts"]["judged clicks among the events"]
    assert answers.startswith("1: they are learned from, too")  # u7 took i on day 8


def test_the_recipe_of_a_data_set_makes_its_files(tmp_path: Path) -> None:
    features = ",".join(f"user_feature_{n}" for n in range(4))
    lines = [f"0,2019-11-24 00:01:0{n}+00:00,{n % 2},{n % 3 + 1},{n % 2},0.5,aaaaaaab,b,c,d{n % 2}" for n in range(6)]
    text = "\n".join([f",timestamp,item_id,position,click,propensity_score,{features}", *lines]) + "\n"
    for name in ("bts-men.csv.gz", "random-men.csv.gz"):
        with gzip.open(tmp_path / name, "wt") as file:
            file.write(text)
    out = tmp_path / "out"
    told = json.loads(run("--recipe", "open-bandit", "--folder", str(tmp_path), "--models", "popularity:all",
                          "--out", str(out), "--json"))  # fmt: skip
    assert told["facts"]["impressions"].startswith("6 with 6 items and 3 clicks")
    assert (out / "shown.csv").read_text().splitlines()[:2] == [
        "impression_id,user_id,timestamp,item_id,clicked,position,propensity",
        "0,aaaaaa-b-c-d0,1574553660.0,0,0,1,0.5",
    ]
    assert (out / "events.csv").read_text().splitlines()[1:3] == [
        "aaaaaa-b-c-d0,0,1574553660.0,impression", "aaaaaa-b-c-d1,1,1574553661.0,click",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--recipe", "x", "--out", "o"), "there is no recipe 'x' for an evaluation; known: open-bandit"),
        (("--recipe", "open-bandit", "--out", "o"), "--recipe goes with --folder FOLDER, which is not given"),
        (("--folder", "x"), "--folder goes with --recipe, which is not given"),
        (("--learn-from", "x"), "--learn-from goes with --events FILE, which is not given"),
        (("--recipe", "open-bandit", "--events", "e"), "--events does not go with --recipe"),
    ],
)
def test_options_of_lists_that_do_not_fit_together_are_refused(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(BadRequest) as error:
        run(*arguments)
    assert said in str(error.value)


def test_the_news_model_and_lists_to_learn_from_go_with_shown_lists(files: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="the model news scores shown lists: it goes with --impressions FILE"):
        run(*files, "--models", "news")
    with pytest.raises(BadRequest, match="--learn-from FILE goes with --impressions FILE only"):
        run(*files, "--models", "popularity", "--learn-from", "x.csv")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--protocol", "magic"), "there is no protocol 'magic'; there are temporal, leave-one-out, targets, replay"),
        (("--models", "oracle"), "there is no model 'oracle'"),
        (("--models", "popularity:7d,popularity:7d"), "names each model once"),
        (("--protocol", "targets"), "--targets FILE goes with --protocol targets"),
        (("--protocol", "leave-one-out", "--cut", "0.5"), "--cut goes with --protocol temporal or replay only"),
        (("--protocol", "temporal", "--features", "live"), "--features goes with --protocol replay only"),
        (("--retrain", "1d"), "--retrain goes with --protocol replay only"),
        (
            ("--protocol", "replay", "--features", "fresh"),
            "--features is live, hourly, daily or frozen, not",
        ),
        (("--protocol", "replay", "--retrain", "2d"), "--retrain is never, 1h, 1d or 7d, not '2d'"),
        (("--protocol", "replay", "--cut", "1.5"), "--cut 1.5 "),
        (("--against", "ease", "--models", "popularity"), "--against ease is none of --models"),
        (("--at", "ten"), "--at ten: whole numbers"),
        (("--seen", "maybe"), "--seen is drop or keep"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(
    arguments: tuple[str, ...], said: str, files: tuple[str, ...]
) -> None:
    with pytest.raises(BadRequest) as error:
        run(*files, *arguments)
    assert said in str(error.value)


def test_options_of_files_without_events_are_refused() -> None:
    with pytest.raises(BadRequest, match="--models goes with --events FILE"):
        run("--models", "ease")
    with pytest.raises(BadRequest, match="--events goes with --items FILE"):
        run("--events", "e.csv")
