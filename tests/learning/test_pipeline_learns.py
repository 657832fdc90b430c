"""A whole training run on a world whose next click is known (items stand in a round, users walk on): build, fit,
judge, publish, promote, with the real models. What is learned must be found, beat popularity (which knows nothing here)
and be gone when the order of the clicks is destroyed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from training_world import START_US, TEXT_WIDTH, item_table, rounds, stages_for

from models.batches import History
from models.blank import with_random_reranker
from models.config import ModelConfig
from models.release import ModelRelease
from services import sharing
from services.domain import DAY_US, BadRequest, Metric, Verdict, from_us
from services.memory import MemoryRegistry
from services.retrain import Training, retrain
from services.training.columns import EventColumns
from services.training.cutoff import ItemsAtCut
from services.training.gate import Gate
from services.training.history import EventsHistory
from services.training.parts import Choices, ReleaseParts, Sources

SMALL = replace(
    ModelConfig(effort="demo"), width=32, text_width=TEXT_WIDTH, history=12, dropout=0.1, id_dropout=0.1, epochs_max=25,
    batch_targets=256, learning_rate=1e-2, warmup_steps=5, reranker_hidden=(32,), reranker_epochs_max=5,
    recency_half_life_days=1e6,
)  # fmt: skip
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def parts_over(events: EventColumns, folder: Path, seed: int = 1, threads: int = 1) -> ReleaseParts:
    history = EventsHistory(events)
    sources = Sources(
        lambda until: events,
        history,
        ItemsAtCut(lambda: item_table(events), history),
        stages_for,
        lambda info: ModelRelease.load(Path(info.path), "cpu"),
    )
    gate = Gate(share=0.15, users_min=20, users_max=200)
    model, unfinished = replace(SMALL, seed=seed), folder / "unfinished"
    choices = Choices(
        "demo", seed, folder, "noise", "cpu", threads, gate, model=model, checkpoints=unfinished, explained_max=40
    )
    return ReleaseParts(sources, choices, lambda *_: None)


def shuffled(events: EventColumns, seed: int = 9) -> EventColumns:
    """The same users, items and times, but which click came when is drawn by lot."""
    order = np.random.default_rng(seed).permutation(len(events))
    return EventColumns(
        events.user_ids, events.item_ids, events.kinds, events.user_codes, events.item_codes[order],
        events.kind_codes, events.occurred_us, events.weight,
    )  # fmt: skip


def value(metrics: tuple[Metric, ...], model: str, name: str, part: str = "known users") -> float:
    return next(m.value for m in metrics if (m.model, m.part, m.name) == (model, part, name))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Verdict, MemoryRegistry, Path]:
    folder = tmp_path_factory.mktemp("releases")
    registry = MemoryRegistry()
    verdict = retrain(Training(parts_over(rounds(), folder), registry), NOW)
    return verdict, registry, folder


def test_the_first_release_is_promoted_published_and_exactly_what_was_judged(
    trained: tuple[Verdict, MemoryRegistry, Path],
) -> None:
    verdict, registry, folder = trained
    live = registry.live()
    assert verdict.promoted, verdict.reason
    assert live is not None
    assert live.path == str(folder / verdict.release_id)
    release = ModelRelease.load(Path(live.path), "cpu")
    assert release.manifest.data_until_us == int(live.data_until.timestamp() * 1e6 + 0.5)
    parts = parts_over(rounds(), folder)
    assert value(parts.measure(live, NOW), "pipeline", "ndcg@10") == value(verdict.metrics, "pipeline", "ndcg@10")


def test_two_processes_judge_as_one_does(trained: tuple[Verdict, MemoryRegistry, Path]) -> None:
    _, registry, folder = trained
    live = registry.live()
    assert live is not None
    one = parts_over(rounds(), folder).measure(live, NOW)
    with patch("services.sharing.SHARE_MIN", 10), patch("services.sharing._copy", wraps=sharing._copy) as copies:
        two = parts_over(rounds(), folder, threads=2).measure(live, NOW)
    assert copies.call_count >= 2  # for the orders and for the lists, at least
    assert [(m.model, m.part, m.name, m.users) for m in two] == [(m.model, m.part, m.name, m.users) for m in one]
    assert [m.value for m in two] == pytest.approx([m.value for m in one], abs=1e-6)


def test_the_known_next_click_is_found_far_above_popularity(trained: tuple[Verdict, MemoryRegistry, Path]) -> None:
    metrics = trained[0].metrics
    found = value(metrics, "pipeline", "ndcg@10")
    assert found > 0.5
    assert found > 2 * value(metrics, "popularity 7d", "ndcg@10")


def test_the_reasons_stand_on_what_the_scores_hang_on(trained: tuple[Verdict, MemoryRegistry, Path]) -> None:
    found = {each.name: each.value for each in trained[0].metrics if each.model == "reasons"}
    # The next item of the round follows from the last ones: erasing those costs more than erasing any.
    for k in (1, 3):
        assert found[f"comprehensiveness@{k}"] > 1.5 * found[f"comprehensiveness@{k} random"]
    assert found["picks with a reason"] > 0.3
    assert found["reasons that move the rank"] > 0.5
    assert found.get("random weights against erasure", 0.0) < 0.8  # none where the retrieval score orders
    assert any(each.startswith("Reasons, over") for each in trained[0].told)


def test_a_score_is_the_chance_that_the_item_is_taken(trained: tuple[Verdict, MemoryRegistry, Path]) -> None:
    metrics = trained[0].metrics
    assert 0.5 < value(metrics, "chances", "pcoc", "all") < 2.0
    assert value(metrics, "chances", "ece", "all") < 0.05
    assert any("sampled lists that nobody saw" in each for each in trained[0].told)


def test_a_reranker_of_noise_is_not_served(trained: tuple[Verdict, MemoryRegistry, Path], tmp_path: Path) -> None:
    verdict, _, folder = trained
    parts = parts_over(rounds(), tmp_path)
    release = ModelRelease.load(folder / verdict.release_id, "cpu")
    noise = with_random_reranker(release, seed=1)
    examples = parts.build(NOW, None)
    judged = parts.judge(noise, None, examples)
    assert not judged.rerank
    assert value(judged.metrics, "reranker", "ndcg@10 gain high", "all") < 0
    assert any("served without it" in each for each in judged.told)
    stored = ModelRelease.load(Path(parts.store(noise, judged).path), "cpu")
    assert not stored.reranks
    features = np.zeros((8, len(stored.manifest.feature_names)), dtype=np.float32)
    user = stored.item_vectors[3]
    nobody = History(np.zeros((0, stored.width), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64))
    scores = stored.rerank(nobody, 0, stored.item_vectors[1:9], features, stored.item_vectors[1:9] @ user)
    assert np.argsort(scores).tolist() == np.argsort(stored.item_vectors[1:9] @ user).tolist()


def test_without_the_order_of_the_clicks_the_gain_is_gone(tmp_path: Path) -> None:
    events = shuffled(rounds())
    verdict = retrain(Training(parts_over(events, tmp_path), MemoryRegistry()), NOW)
    assert value(verdict.metrics, "pipeline", "ndcg@10") < 0.25


def test_a_second_run_without_new_events_is_refused(trained: tuple[Verdict, MemoryRegistry, Path]) -> None:
    _, registry, folder = trained
    events = rounds()
    live = registry.live()
    assert live is not None
    old = events.before(int(live.data_until.timestamp() * 1e6))
    with pytest.raises(BadRequest, match="newer"):
        retrain(Training(parts_over(old, folder), registry), NOW)


def test_how_far_a_tower_came_is_kept_until_its_release_is_stored(
    trained: tuple[Verdict, MemoryRegistry, Path], tmp_path: Path
) -> None:
    assert list((trained[2] / "unfinished").iterdir()) == []
    parts = parts_over(rounds(users=40), tmp_path)
    parts.fit(parts.build(NOW, None))
    assert [each.name for each in (tmp_path / "unfinished").iterdir()] == ["tower.safetensors"]


def test_equal_seeds_make_equal_releases(tmp_path: Path) -> None:
    events = rounds(users=40)
    one, other = (
        parts.fit(parts.build(NOW, None)) for parts in (parts_over(events, tmp_path), parts_over(events, tmp_path))
    )
    np.testing.assert_array_equal(one.item_vectors, other.item_vectors)
    for name, weight in one.networks.state_dict().items():
        assert torch.equal(weight, other.networks.state_dict()[name]), name


def test_nothing_after_the_cut_is_learned_from(tmp_path: Path) -> None:
    events = rounds(users=40)
    parts = parts_over(events, tmp_path)
    examples = parts.build(NOW, None)
    cut = examples.judged.cut_us
    assert from_us(cut) < from_us(START_US + 14 * DAY_US)
    assert int(examples.corpus.events.occurred_us[-1]) < cut
    assert examples.corpus.sequences.times_s.max() <= cut // 1_000_000
