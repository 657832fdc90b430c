"""`freshrank evaluate --events`: start to end on files, by its command line. Expected values by hand."""

from __future__ import annotations

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
