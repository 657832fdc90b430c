"""A text encoder tuned on clicks, in a world whose titles carry the taste and whose encoder starts by chance: items
that nobody has clicked yet are found by it, and everything becomes one release."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from text_world import saved, taste_world
from training_world import START_US, columns, stages_for

from models.config import ModelConfig
from models.release import ModelRelease
from models.text import TextEncoder, open_encoder
from models.transformer import TransformerEncoder
from models.tuning import Tuned, TuningConfig
from services.candidates.vectors import ItemVectors
from services.catalogue.encoders import complete, encoder_of, keep_tuned
from services.domain import DAY_US, SECOND_US, BadRequest, Query, Verdict, from_us
from services.item_parts import CardPart, ItemChanged
from services.items import ItemTable
from services.memory import MemoryRegistry
from services.retrain import Training, retrain
from services.training.cutoff import ItemsAtCut, rows_at
from services.training.gate import Gate
from services.training.history import EventsHistory
from services.training.parts import Choices, ReleaseParts, Sources
from services.training.tune import Texts, TunedParts

WORLD = taste_world(only_new=True)
EVENTS = columns([(user, item, "click", at * SECOND_US) for user, item, at in WORLD.clicks])
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SMALL = replace(
    ModelConfig(effort="demo"), width=32, text_width=6, history=12, dropout=0.1, id_dropout=0.3, epochs_max=15,
    batch_targets=256, learning_rate=1e-2, warmup_steps=5, reranker_hidden=(32,), reranker_epochs_max=3,
    recency_half_life_days=1e6,
)  # fmt: skip
FAST = TuningConfig(learning_rate=1e-2, warmup_steps=5, batch=128, epochs_max=8, patience=2, pairs_max=2000)


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Instance:
    """What stands in a home: a folder, an encoder, a registry."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.source = str(saved(home / "base", "bert"))
        encoder = open_encoder(self.source)
        assert isinstance(encoder, TransformerEncoder)
        self.encoder = encoder
        self.written: list[str] = []

    def table(self) -> ItemTable:
        table = ItemTable()
        card = (CardPart(title, [], True, False, START_US - DAY_US, 0, START_US) for title in WORLD.titles.values())
        table.apply(ItemChanged(i, each, n) for n, (i, each) in enumerate(zip(WORLD.titles, card, strict=True), 1))
        complete(table, WORLD.titles, self.encoder.name, lambda: self.encoder)
        return table

    def plain(self) -> ReleaseParts:
        history = EventsHistory(EVENTS)
        sources = Sources(
            lambda until: EVENTS, history, ItemsAtCut(self.table, history), stages_for,
            lambda info: ModelRelease.load(Path(info.path), "cpu"),
        )  # fmt: skip
        gate = Gate(share=0.15, users_min=20, users_max=200)
        choices = Choices(
            "demo", 1, self.home / "releases", self.source, "cpu", 1, gate, model=SMALL, embedded_by=self.encoder.name,
            explained_max=5,
        )  # fmt: skip
        return ReleaseParts(sources, choices, lambda *_: None)

    def tuned(self, config: TuningConfig = FAST) -> TunedParts:
        def keep(tuned: Tuned) -> TextEncoder:
            return open_encoder(str(keep_tuned(tuned, self.encoder.name, self.source, self.home)))

        texts = Texts(
            self.encoder, config, lambda: WORLD.titles, keep,
            fill=lambda table, tuned: complete(table, WORLD.titles, tuned.name, lambda: tuned),
            write=lambda tuned: self.written.append(tuned.name),
            forget=lambda: None,
        )  # fmt: skip
        return TunedParts(self.plain(), texts, lambda *_: None)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Verdict, Verdict, Instance, MemoryRegistry]:
    instance, registry = Instance(tmp_path_factory.mktemp("home")), MemoryRegistry()
    plain = retrain(Training(instance.plain(), MemoryRegistry()), NOW - timedelta(hours=1))
    tuned = retrain(Training(instance.tuned(), registry), NOW)
    return plain, tuned, instance, registry


def test_pairs_of_newer_clicks_come_near(both: tuple[Verdict, Verdict, Instance, MemoryRegistry]) -> None:
    _, tuned, _, registry = both
    live = registry.live()
    assert live is not None
    notes = ModelRelease.load(Path(live.path), "cpu").manifest.notes
    assert notes["pair_accuracy"] > notes["pair_accuracy_before"] + 0.1
    assert "was tuned in" in tuned.learned_from


def found_cold(instance: Instance, release: ModelRelease, table: ItemTable) -> float:
    """HR@10 of the index alone, among users whose next item nobody had taken before the cut, seen items left out."""
    examples = instance.plain().build(NOW, None)
    judged, before = examples.judged, examples.corpus.events
    rows = rows_at(EventsHistory(EVENTS), before, judged.user_codes, judged.cut_us)
    vectors = ItemVectors(release, table, release.embedded_by)
    vectors.load()
    hits = []
    for user, target in zip(judged.user_codes.tolist(), judged.target_codes.tolist(), strict=True):
        item_id, state = EVENTS.item_ids[target], rows.read(EVENTS.user_ids[user])
        if item_id not in release.vocabulary:
            taken = {each.item_id for each in state.events}
            reading = vectors.reading(Query("q", state.user_id, 10, from_us(judged.cut_us)), state)
            near = vectors.nearest(reading.user_vector, len(WORLD.titles))
            listed = [item_id for item_id in near.item_ids if item_id not in taken]
            hits.append(item_id in listed[:10])
    assert len(hits) > 20
    return float(np.mean(hits))


def test_items_that_nobody_clicked_yet_are_found(both: tuple[Verdict, Verdict, Instance, MemoryRegistry]) -> None:
    """Chance is 10 of 134; whoever knows the group has 10 of 14 or better."""
    plain, tuned, instance, _ = both
    table = instance.table()
    (folder,) = (instance.home / "encoders").iterdir()
    complete(table, WORLD.titles, folder.name, lambda: open_encoder(str(folder)))
    before, after = (
        found_cold(instance, ModelRelease.load(instance.home / "releases" / each.release_id, "cpu"), table)
        for each in (plain, tuned)
    )
    assert after > before + 0.05, (before, after)


def test_one_release_names_the_encoder_and_its_vectors_were_written_before_it(
    both: tuple[Verdict, Verdict, Instance, MemoryRegistry],
) -> None:
    _, tuned, instance, registry = both
    live = registry.live()
    assert tuned.promoted, tuned.reason
    assert live is not None
    assert len(registry.all()) == 1
    name = encoder_of(Path(live.path))
    assert instance.written == [name]
    assert [each.name for each in (instance.home / "encoders").iterdir()] == [name]
    release = ModelRelease.load(Path(live.path), "cpu")
    assert (release.manifest.text_encoder, release.manifest.embedded_by) == (instance.source, name)


def test_where_tuning_does_not_help_nothing_is_left(tmp_path: Path) -> None:
    instance, registry = Instance(tmp_path), MemoryRegistry()
    with pytest.raises(BadRequest, match="nothing is changed"):
        retrain(Training(instance.tuned(replace(FAST, learning_rate=0.0, epochs_max=1)), registry), NOW)
    assert registry.all() == []
    assert not (tmp_path / "encoders").exists()
