"""`tune-text` on a home: one release or none, whatever happens on the way; servers and catalogue go over to its encoder
together, and no vector of one encoder is ever taken for one of another."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from sqlalchemy.exc import IntegrityError
from text_world import saved, taste_world
from typer.testing import CliRunner

from models.tuning import TuningConfig
from services import wire
from services.candidates.vectors import ItemVectors
from services.catalogue.encoders import encoder_of
from services.cli import app
from services.domain import BadRequest, Event, ItemChange, ReleaseInfo
from services.learning import retrain, tune_text
from services.memory import MemorySlateLog
from services.processes import Instance, run_consumer
from services.settings import Settings
from services.wiring import now, open_home

pytestmark = pytest.mark.slow

CONSUMERS = ("features", "trends", "archive", "catalogue")
FAST = TuningConfig(learning_rate=1e-2, warmup_steps=5, batch=128, epochs_max=3, patience=2, pairs_max=1000)
LEARNED_DAYS = 6
PATIENCE_S = 60.0


def newest(instance: Instance) -> ItemVectors:
    """The vectors of the release that was built last."""
    return list(instance._vectors.values())[-1]


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.02)


def put(settings: Settings, titles: dict[str, str]) -> None:
    at = now()
    with open_home(settings) as home:
        home.sink.publish([wire.encode_item(ItemChange(i, "put", {"title": t}, at, at)) for i, t in titles.items()])
    run_consumer(settings, ("catalogue",), lambda: False, until_caught_up=True)
    with open_home(settings) as home:
        home.text_vectors.drain()


def publish(settings: Settings, events: list[Event]) -> None:
    with open_home(settings) as home:
        home.sink.publish([wire.encode_event(event) for event in events])
    run_consumer(settings, CONSUMERS, lambda: False, until_caught_up=True)


def live_of(settings: Settings) -> ReleaseInfo:
    with open_home(settings) as home:
        live = home.registry.live()
    assert live is not None
    return live


def tuned_live(settings: Settings) -> ReleaseInfo:
    """The live release of a home that was tuned: by a test before, or here, where that ran in another process."""
    if not (settings.home / "encoders").exists():
        assert tune_text(settings, config=FAST).promoted
    return live_of(settings)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A home whose live release, by the encoder of the setting, learned from half of the clicks; then came the other
    half, and an item."""
    threads = torch.get_num_threads()
    folder: Path = tmp_path_factory.mktemp("tune")
    base = saved(folder / "base", "bert")
    made = Settings(
        home=folder / "home", text_encoder=str(base), device="cpu", effort="demo", train_threads=1, items_poll_ms=20,
        release_keep=10,
    )  # fmt: skip
    world, at = taste_world(users=60), now()
    starts_at = at - timedelta(seconds=world.clicks[-1][2] + 60)
    events = [
        Event(f"e{n}", user, item, "click", starts_at + timedelta(seconds=second), at)
        for n, (user, item, second) in enumerate(world.clicks)
    ]
    first = [each for each in events if each.occurred_at < starts_at + timedelta(days=LEARNED_DAYS)]
    put(made, world.titles)
    publish(made, first)
    assert retrain(made).promoted
    publish(made, events[len(first) :])
    put(made, {"late": "w1 w2 w3"})
    yield made
    torch.set_num_threads(threads)


def new_clicks(settings: Settings, count: int = 40) -> None:
    """Something newer than what the live release learned from, of users who are there."""
    at = now()
    events = [Event(f"n{at:%H%M%S%f}-{n}", f"u{n}", f"i{n % 6}-0{n % 9}", "click", at, at) for n in range(count)]
    publish(settings, events)


def test_hashing_cannot_be_tuned_and_an_empty_home_neither(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="only a transformer has weights"):
        tune_text(settings.model_copy(update={"text_encoder": "hashing"}))
    answered = CliRunner().invoke(app, ["--home", str(tmp_path), "tune-text"])
    assert answered.exit_code != 0


def test_where_tuning_does_not_help_nothing_changes(settings: Settings) -> None:
    before = live_of(settings)
    with pytest.raises(BadRequest, match="nothing is changed"):
        tune_text(settings, config=replace(FAST, learning_rate=0.0, epochs_max=1))
    assert live_of(settings) == before
    assert not (settings.home / "encoders").exists()


@pytest.mark.parametrize(
    ("moment", "statement"),
    [
        ("published", "CREATE TRIGGER crash BEFORE INSERT ON releases BEGIN SELECT RAISE(ABORT, 'killed'); END"),
        ("promoted", "CREATE TRIGGER crash BEFORE UPDATE ON releases BEGIN SELECT RAISE(ABORT, 'killed'); END"),
    ],
)
def test_a_run_that_dies_just_before_it_leaves_the_old_release_as_it_was(
    settings: Settings, moment: str, statement: str
) -> None:
    before = live_of(settings)
    with closing(sqlite3.connect(settings.home / "meta.db")) as database:
        database.execute(statement)
    try:
        with pytest.raises((BadRequest, IntegrityError)):
            tune_text(settings, config=FAST)
    finally:
        with closing(sqlite3.connect(settings.home / "meta.db")) as database:
            database.execute("DROP TRIGGER crash")
    assert live_of(settings) == before
    with open_home(settings) as home:
        instance = Instance(home, MemorySlateLog())
        instance.start()
        try:
            assert instance.stages().release_id == before.release_id
            assert "late" in newest(instance).cold_ids
        finally:
            instance.stop()
        assert home.text_vectors._encoder.name == encoder_of(Path(before.path))


def test_encoder_vectors_and_models_go_live_together(settings: Settings) -> None:
    """A server that answers all the while: with either release, the vector of an item that was never learned from is
    what that release makes of its own encoder's text vector."""
    before = live_of(settings)
    with open_home(settings) as home:
        instance = Instance(home, MemorySlateLog())
        instance.start()
        try:
            old = newest(instance).of(["late"])
            verdict = tune_text(settings, config=FAST)
            assert verdict.promoted, verdict.reason
            after = live_of(settings)
            assert after.release_id == verdict.release_id
            until(lambda: instance.stages().release_id == after.release_id, "the new release serves")
            olds, news = instance._vectors.values()
            np.testing.assert_array_equal(olds.of(["late"]), old)
            name = encoder_of(Path(after.path))
            assert name != encoder_of(Path(before.path))
            text = instance.items.vector("late", name)
            assert text is not None
            np.testing.assert_allclose(news.of(["late"]), news._release.new_item_vectors(text[None]), atol=1e-6)
            put(settings, {"later": "w13 w14 w15"})
            until(lambda: "later" in news.cold_ids, "what comes now is embedded by the release's encoder")
            assert instance.items.vector("later", encoder_of(Path(before.path))) is None
            assert "later" not in olds.cold_ids
        finally:
            instance.stop()


def test_training_goes_on_with_the_tuned_encoder_and_the_next_tuning_removes_what_nobody_names(
    settings: Settings,
) -> None:
    tuned = encoder_of(Path(tuned_live(settings).path))
    new_clicks(settings)
    verdict = retrain(settings)
    with open_home(settings) as home:
        made = next(each for each in home.registry.all() if each.release_id == verdict.release_id)
    assert encoder_of(Path(made.path)) == tuned
    stray = settings.home / "encoders" / "stray-tuned@0"
    stray.mkdir()
    new_clicks(settings)
    with pytest.raises(BadRequest):
        tune_text(settings, config=replace(FAST, learning_rate=0.0, epochs_max=1))
    assert not stray.exists()
    assert (settings.home / "encoders" / tuned).is_dir()


def test_a_release_of_before_brings_its_encoder_back(settings: Settings) -> None:
    tuned_live(settings)
    put(settings, {"later": "w13 w14 w15"})
    with open_home(settings) as home:
        first = min(home.registry.all(), key=lambda each: each.created_at)
        home.registry.promote(first.release_id)
        vectors = home.text_vectors
        embedded = vectors.drain()
        assert vectors._encoder.name == encoder_of(Path(first.path))
        assert embedded > 100  # taken from the feed, all but what came since
        instance = Instance(home, MemorySlateLog())
        instance.start()
        try:
            until(lambda: {"late", "later"} <= set(newest(instance).cold_ids), "both by the first encoder")
        finally:
            instance.stop()
