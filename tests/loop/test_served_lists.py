"""Lists served over the API and clicked become what the next release learns from: the whole loop on one home, with the
real consumers, stores, archive and models. What was clicked, and how deep, is chosen here, so the labels are known."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from services import wire
from services.api.app import create_app
from services.archive.parts import FOR_EVER
from services.demo.world import WorldSize, make_world
from services.domain import Interaction, UserState, from_us, to_us
from services.learning import parity, retrain
from services.memory import MemorySlateLog
from services.processes import Instance, run_consumer
from services.settings import Settings
from services.signals import COUNTS_WIDTH, RANKING_FEATURES
from services.training.columns import columns_of_arrow
from services.training.cutoff import ItemsAtCut
from services.training.examples import corpus_of
from services.training.gate import Gate
from services.training.parity import COUNTS_DIFFER, ROW_DIFFERS
from services.training.parts import Choices, ReleaseParts, Sources
from services.training.report import report_text
from services.training.served import ServedLists, ServedRules, list_examples, lists_between
from services.wiring import Home, build_stages, load_release, now, open_home

pytestmark = pytest.mark.slow

SIZE = WorldSize(users=40, items=60, events_per_user=24.0, days=14.0)
CONSUMERS = ("features", "trends", "archive", "catalogue")
ROUNDS, LIMIT = 8, 8
PATIENCE_S = 30.0


@dataclass
class Loop:
    """A home in which lists were served and clicked: by request, the user, what was shown and what was clicked."""

    settings: Settings
    asked: dict[str, tuple[str, tuple[str, ...], str]] = field(default_factory=dict)


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.01)


def serve_round(client: TestClient, loop: Loop, number: int) -> None:
    """A list for every user; user u of round n clicks the pick at place (u + n) % LIMIT, every fifth user none."""
    for user in range(SIZE.users):
        answer = client.get(f"/v1/users/u{user}/recommendations", params={"limit": LIMIT}).json()
        shown = tuple(item["item_id"] for item in answer["items"])
        assert len(shown) == LIMIT, answer
        clicked = "" if user % 5 == 4 else shown[(user + number) % LIMIT]
        loop.asked[answer["request_id"]] = (f"u{user}", shown, clicked)
        if clicked:
            event = {"user_id": f"u{user}", "item_id": clicked, "kind": "click", "request_id": answer["request_id"]}
            assert client.post("/v1/events", json=event).status_code == 202


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    threads = torch.get_num_threads()
    folder: Path = tmp_path_factory.mktemp("home")
    settings = Settings(
        home=folder, text_encoder="hashing", device="cpu", effort="demo", train_threads=1,
        slate_features_share=1.0,
    )  # fmt: skip
    made = Loop(settings)
    world = make_world(SIZE, seed=3, ends_at=now() - timedelta(minutes=1))
    with open_home(settings) as home:
        home.sink.publish([wire.encode_item(change) for change in world.item_changes()])
        home.sink.publish([wire.encode_event(event) for event in world.events()])
    run_consumer(settings, CONSUMERS, lambda: False, until_caught_up=True)
    assert retrain(settings).promoted
    with open_home(settings) as home:
        instance = Instance(home)  # the app starts and stops it
        with TestClient(create_app(instance)) as client:
            for number in range(ROUNDS):
                serve_round(client, made, number)
                if number % 4 == 2:  # what was clicked and shown reaches rows and counts, and the running server
                    before_us = instance.items.as_of_us
                    run_consumer(settings, CONSUMERS, lambda: False, until_caught_up=True)
                    until(lambda before_us=before_us: instance.items.as_of_us > before_us, "fresh counts served")
    run_consumer(settings, CONSUMERS, lambda: False, until_caught_up=True)
    yield made
    torch.set_num_threads(threads)


def lists_of(home: Home) -> ServedLists:
    rules = home.settings.kind_rules()
    return lists_between(home.archive, rules, 0, to_us(now()), ServedRules())


def test_what_was_clicked_of_what_was_shown_comes_back_as_labels(loop: Loop) -> None:
    with open_home(loop.settings) as home:
        lists = lists_of(home)
        served = {to_us(s.asked_at): s.request_id for s in home.archive.slates(*FOR_EVER)}
    assert lists.served == len(loop.asked) == ROUNDS * SIZE.users
    assert lists.left_out == {}
    assert len(lists) == sum(1 for _, _, clicked in loop.asked.values() if clicked) == ROUNDS * SIZE.users * 4 // 5
    for place, asked_us in enumerate(lists.asked_us.tolist()):
        user_id, shown, clicked = loop.asked[served[asked_us]]
        assert lists.user_ids[place] == user_id
        assert lists.item_ids[place] == shown[: shown.index(clicked) + 1 + ServedRules().seen_below]
        assert lists.taken[place] == tuple(item_id == clicked for item_id in lists.item_ids[place])


def test_the_examples_have_the_very_features_that_were_served(loop: Loop) -> None:
    """Joined at the times that the slates name, after rows and counts have moved on several times."""
    with open_home(loop.settings) as home:
        rules, lists = home.settings.kind_rules(), lists_of(home)
        events = columns_of_arrow(home.archive.events_table(*FOR_EVER), rules)
        corpus = corpus_of(events, home.items())
        size = len(corpus.vocabulary)
        made, left_out = list_examples(
            corpus, home.items(), home.history, lists, 16, lambda p: np.zeros((len(p), size), dtype=np.float32)
        )
        slates = {to_us(slate.asked_at): slate for slate in home.archive.slates(*FOR_EVER)}
    assert left_out == {}
    assert len(made) == len(lists)
    assert len(np.unique(lists.as_of_us)) >= 3
    assert made.labels.sum() == len(lists)
    for place, asked_us in enumerate(lists.asked_us.tolist()):
        slate = slates[asked_us]
        logged = np.frombuffer(slate.features, dtype="<f4").reshape(len(slate.items), len(RANKING_FEATURES))
        known = made.candidate_rows[place] > 0
        features = made.features[place][:, : len(RANKING_FEATURES)]  # what stands behind them is not recorded
        assert (features[known] == logged[: len(known)][known[: len(logged)]]).all()


def test_every_served_list_has_the_features_that_the_join_gives(loop: Loop) -> None:
    report = parity(loop.settings, 10_000, now() - timedelta(hours=1))
    assert (report.compared, report.agreed) == (ROUNDS * SIZE.users, ROUNDS * SIZE.users), report.causes
    assert report.picks == ROUNDS * SIZE.users * LIMIT
    some = parity(loop.settings, 50, now() - timedelta(hours=1))
    assert (some.compared, some.share) == (50, 1.0)
    assert parity(loop.settings, 50, now()).share is None


def test_the_next_release_learns_from_them_and_says_so(loop: Loop) -> None:
    """Cut before the newest clicks: lists and clicks after the cut are the judge's."""
    with open_home(loop.settings) as home:
        rules, history, moment = home.settings.kind_rules(), home.history, now()
        sources = Sources(
            lambda end: columns_of_arrow(home.archive.events_table(FOR_EVER[0], end), rules),
            history,
            ItemsAtCut(home.items, history),
            lambda release, items, rows: build_stages(release, items, rows, MemorySlateLog(0))[0],
            load_release,
            lambda since_us, until_us, chosen: lists_between(home.archive, rules, since_us, until_us, chosen),
        )
        gate = Gate(share=0.02, users_min=5)
        choices = Choices(
            "demo", 1, loop.settings.home / "releases", "hashing", "cpu", 1, gate, served=ServedRules(lists_min=100),
            explained_max=5,
        )  # fmt: skip
        parts = ReleaseParts(sources, choices, lambda *_: None)
        examples = parts.build(moment, None)
        cut_us = examples.judged.cut_us
        before = [s for s in home.archive.slates(FOR_EVER[0], from_us(cut_us)) if loop.asked[s.request_id][2]]
        release = parts.fit(examples)
        verdict = parts.judge(release, None, examples)
    assert 100 <= release.manifest.notes["lists"] <= len(before) < ROUNDS * SIZE.users * 4 // 5
    assert release.manifest.notes["lists_taken"] == release.manifest.notes["lists"]
    assert verdict.learned_from.startswith(
        f"Ranking was learned from {release.manifest.notes['lists']:.0f} served lists"
    )
    assert verdict.learned_from in report_text("run", moment, 1.0, "demo", verdict, verdict.reason)


def test_a_history_that_was_tampered_with_is_found_and_named(loop: Loop) -> None:
    """One user's rows and one item's counts are written over, newer, at the very times that lists name."""
    with open_home(loop.settings) as home:
        slates = list(home.archive.slates(*FOR_EVER))
        lists = [slate for slate in slates if slate.user_id == "u3"]
        item_id = slates[0].items[0].item_id
        for row_time_us in {slate.user_row_time_us for slate in lists}:
            event = Interaction(row_time_us, 1, item_id, "hide", None, -1.0)
            home.features.append_history([UserState("u3", (event,), row_time_us=row_time_us)], now())
        for as_of_us in {slate.items_as_of_us for slate in slates}:
            counts = np.full((1, COUNTS_WIDTH), 77, dtype=np.float32)
            home.features.append_item_live([item_id], counts, np.array([as_of_us]), as_of_us, now())
    report = parity(loop.settings, 10_000, now() - timedelta(hours=1))
    with_item = [slate for slate in slates if item_id in {pick.item_id for pick in slate.items}]
    assert report.causes[ROW_DIFFERS] == len(lists) == ROUNDS
    assert report.causes[COUNTS_DIFFER] == len(with_item)
    assert report.agreed == len(slates) - len({slate.request_id for slate in lists + with_item})
