"""`freshrank evaluate --impressions` on a news log where the titles decide the click, and those that are judged were
never clicked before: the news model reads them, taught by lists that were shown or by lists made of the events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from news_world import NewsWorld, news_world
from training_world import RULES

from models.news import NewsConfig, NewsLists
from services.domain import BadRequest
from services.evaluation.impressions import evaluate_impressions
from services.evaluation.run import Means, Report, Wanted
from services.learning import unrecorded

TINY = NewsConfig(width=32, layers=1, history=8, hidden=32, dropout=0.1, batch=32, epochs_max=12, warmup_steps=10,
                  learning_rate=5e-3, patience=4)  # fmt: skip
MEANS = Means(unrecorded, "demo", "hashing", "cpu", 1, 64, news=TINY)
World = tuple[NewsWorld, Path]


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made, folder = news_world(lists=450), tmp_path_factory.mktemp("news")
    titles = [f"n{n:03d},{title}" for n, title in enumerate(made.titles)]
    write(folder / "items.csv", "item_id,title", titles)
    for name, lists in (("learn.csv", made.learned), ("shown.csv", made.judged)):
        write(folder / name, "impression_id,user_id,timestamp,item_id,clicked,position", rows_of(lists, made))
    write(folder / "events.csv", "user_id,item_id,timestamp", [f"r{r},n{t - 1:03d},{at}" for r, t, at in made.events])
    return made, folder


def write(path: Path, header: str, lines: list[str]) -> None:
    path.write_text("\n".join([header, *lines]) + "\n")


def rows_of(lists: NewsLists, world: NewsWorld) -> list[str]:
    found = []
    readers = world.readers_learned if lists is world.learned else world.readers_judged
    for n, reader in enumerate(readers.tolist()):
        first, last = lists.offsets[n : n + 2].tolist()
        for place, row in enumerate(range(first, last), start=1):
            item, hit = lists.rows[row] - 1, int(lists.clicked[row])
            found.append(f"{n},r{reader},{lists.asked_s[n]},n{item:03d},{hit},{place}")
    return found


def report(folder: Path, *models: str, means: Means = MEANS, **given: object) -> Report:
    wanted = Wanted(
        folder / "events.csv", folder / "items.csv", "temporal", models, seeds=1, impressions=folder / "shown.csv"
    )
    return evaluate_impressions(replace(wanted, **given), RULES, means, lambda *_: None)  # type: ignore[arg-type]


def of_all(found: Report) -> dict[tuple[str, str], float]:
    return {(line.model, line.metric): line.value for line in found.lines if line.slice == "all"}


def test_titles_nobody_has_clicked_are_told_apart_and_popularity_cannot(world: World) -> None:
    _, folder = world
    found = report(folder, "news", "popularity:all", learn_from=folder / "learn.csv")
    values = of_all(found)
    assert values["news", "auc"] > 0.8
    assert values["news", "gauc"] > 0.8
    assert abs(values["popularity:all", "gauc"] - 0.5) < 0.02
    assert "learned from 450 lists (the lists before)" in found.settings["news"]
    assert 0.8 < values["news", "pcoc"] < 1.25
    # Every list has one click; all of them are new to the events, which end before the lists begin.
    assert "450 of use; 450 of their clicks were no events yet" in found.facts["lists to learn from"]
    assert "judged clicks among the events" not in found.facts


def test_an_untrained_model_is_at_chance(world: World) -> None:
    means = replace(MEANS, news=replace(TINY, epochs_max=0))
    assert of_all(report(world[1], "news", learn_from=world[1] / "learn.csv", means=means))["news", "gauc"] == 0.5


def test_with_the_histories_of_others_nothing_is_left(world: World, tmp_path: Path) -> None:
    made, folder = world
    other = np.random.default_rng(0).permutation(made.readers_judged)
    shuffled = replace(made, readers_judged=other)
    for name in ("events.csv", "items.csv", "learn.csv"):
        (tmp_path / name).write_text((folder / name).read_text())
    write(tmp_path / "shown.csv", "impression_id,user_id,timestamp,item_id,clicked,position",
          rows_of(made.judged, shuffled))  # fmt: skip
    values = of_all(report(tmp_path, "news", learn_from=tmp_path / "learn.csv"))
    assert abs(values["news", "gauc"] - 0.5) < 0.1


def test_without_lists_it_learns_from_lists_made_of_the_events_and_says_so(world: World, tmp_path: Path) -> None:
    made, folder = world
    clicks = [line for line in rows_of(made.learned, made) if line.split(",")[4] == "1"]
    lines = [",".join((each.split(",")[1], each.split(",")[3], each.split(",")[2])) for each in clicks]
    events = (folder / "events.csv").read_text() + "\n".join(lines) + "\n"
    for name in ("items.csv", "shown.csv"):
        (tmp_path / name).write_text((folder / name).read_text())
    (tmp_path / "events.csv").write_text(events)
    found = report(tmp_path, "news")
    assert of_all(found)["news", "gauc"] > 0.55  # a fifth of what is put beside a click is of the reader's subjects
    assert "lists made of the events: each click beside titles alive then, not shown" in found.settings["news"]


def test_a_cut_makes_the_older_lists_those_to_learn_from(world: World, tmp_path: Path) -> None:
    made, folder = world
    for name in ("items.csv", "events.csv"):
        (tmp_path / name).write_text((folder / name).read_text())
    older = rows_of(made.learned, made)
    newer = [f"z{line}" for line in rows_of(made.judged, made)]
    write(tmp_path / "shown.csv", "impression_id,user_id,timestamp,item_id,clicked,position", older + newer)
    found = report(tmp_path, "news", "popularity:all", cut=str(int(made.judged.asked_s[0])))
    assert found.facts["impressions"].startswith("150 with ")
    assert of_all(found)["news", "gauc"] > 0.8


def test_the_clicks_that_are_judged_are_not_learned(world: World, tmp_path: Path) -> None:
    # The titles of the judged lists become words without sense: only a model that saw their clicks could tell them.
    made, folder = world
    for name in ("events.csv", "learn.csv", "shown.csv"):
        (tmp_path / name).write_text((folder / name).read_text())
    first = len(made.titles) * 4 // 5
    titles = [f"n{n:03d},{made.titles[n] if n < first else f'x{n}'}" for n in range(len(made.titles))]
    write(tmp_path / "items.csv", "item_id,title", titles)
    values = of_all(report(tmp_path, "news", learn_from=tmp_path / "learn.csv"))
    assert abs(values["news", "gauc"] - 0.5) < 0.12


def test_lists_to_learn_from_that_are_not_older_are_refused(world: World) -> None:
    _, folder = world
    with pytest.raises(BadRequest, match="must end before what is judged begins"):
        report(folder, "news", learn_from=folder / "shown.csv")
    with pytest.raises(BadRequest, match="give one of them"):
        report(folder, "news", learn_from=folder / "learn.csv", cut="0.5")
