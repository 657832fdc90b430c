"""`freshrank evaluate` of tower and pipeline, on files of a small world whose next click is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from training_world import RULES, rounds

from models.config import ModelConfig
from services import sharing
from services.evaluation.cases import Protocol
from services.evaluation.impressions import evaluate_impressions
from services.evaluation.run import Line, Means, Wanted, evaluate
from services.evaluation.variants import variants_of
from services.learning import unrecorded

TINY = replace(
    ModelConfig(effort="demo"), width=32, text_width=8, history=12, dropout=0.1, id_dropout=0.1, epochs_max=25,
    batch_targets=256, learning_rate=1e-2, warmup_steps=5, reranker_hidden=(32,), reranker_epochs_max=5,
    recency_half_life_days=1e6,
)  # fmt: skip
MEANS = Means(unrecorded, "demo", "hashing", "cpu", 1, 64, TINY, explained_max=20)
Found = dict[tuple[str, str, str], Line]


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    e = rounds()
    rows = zip(e.user_codes, e.item_codes, (e.occurred_us // 1_000_000).tolist(), strict=True)
    events = tmp_path / "events.csv"
    lines = [f"{e.user_ids[u]},{e.item_ids[i]},{at}" for u, i, at in rows]
    events.write_text("\n".join(["user_id,item_id,timestamp", *lines]) + "\n")
    items = tmp_path / "items.csv"
    items.write_text("\n".join(["item_id,title", *(f"{i},The title of {i}" for i in e.item_ids)]) + "\n")
    return events, items


def measured(files: tuple[Path, Path], protocol: Protocol, seeds: int) -> Found:
    variants = variants_of([0.0, 0.9], [], ["faiss"]) if protocol == "temporal" else ()
    wanted = Wanted(
        *files, protocol, ("popularity:3d", "tower", "pipeline"), at=(3, 10), seeds=seeds, variants=variants
    )
    report = evaluate(wanted, RULES, MEANS, lambda *_: None)
    return {(line.model, line.slice, line.metric): line for line in report.lines}


def test_what_the_next_click_is_is_learned_and_by_how_much_it_beats_popularity_is_sure(
    files: tuple[Path, Path],
) -> None:
    found = measured(files, "temporal", seeds=2)
    tower, pipeline = found["tower", "all", "hr@3"], found["pipeline", "all", "hr@3"]
    assert (tower.seeds, pipeline.seeds, tower.users) == (2, 2, found["popularity:3d", "all", "hr@3"].users)
    assert tower.value > 0.8
    assert found["tower", "all", "ndcg@10 - popularity:3d"].low > 0.0
    assert found["pipeline", "all", "ndcg@10 - popularity:3d"].low > 0.0
    for name in ("hr@3", "ndcg@10", "ild@10", "coverage@10"):  # nothing but the list may differ, and here it does not
        assert found["pipeline diversity 0", "all", name].value == found["pipeline", "all", name].value
    assert found["pipeline diversity 0.9", "all", "ild@10"].value > found["pipeline", "all", "ild@10"].value
    assert found["pipeline without faiss", "all", "hr@3"].value <= pipeline.value


def test_two_processes_rank_as_one_does(files: tuple[Path, Path]) -> None:
    one = measured(files, "temporal", seeds=1)
    with (
        patch("services.sharing.SHARE_MIN", 5),
        patch.object(Means, "processes", lambda _: 2),
        patch("services.sharing._copy", wraps=sharing._copy) as copies,
    ):
        two = measured(files, "temporal", seeds=1)
    assert copies.call_count >= 4  # for the pipeline and each of its variants, at least
    assert {key: line.value for key, line in two.items()} == pytest.approx({k: line.value for k, line in one.items()})


def test_each_case_of_leave_one_out_is_asked_at_its_own_time(files: tuple[Path, Path]) -> None:
    found = measured(files, "leave-one-out", seeds=1)
    assert found["tower", "all", "hr@3"].users == 90
    assert found["tower", "all", "hr@3"].value > 0.8
    assert found["pipeline", "all", "ndcg@10"].value > found["popularity:3d", "all", "ndcg@10"].value
    assert np.isfinite([line.value for line in found.values()]).all()


def test_of_a_shown_list_the_next_in_the_round_scores_highest(files: tuple[Path, Path], tmp_path: Path) -> None:
    # After its last click every user is shown the item that comes next, and two that stand elsewhere in the round.
    e = rounds()
    last = {e.user_ids[user]: n for n, user in enumerate(e.user_codes.tolist())}
    lines = ["impression_id,user_id,timestamp,item_id,clicked"]
    for user_id, n in last.items():
        place, at = int(e.item_ids[e.item_codes[n]][1:]), int(e.occurred_us[n]) // 1_000_000 + 86_400
        for step, clicked in ((12, 0), (1, 1), (20, 0)):
            lines.append(f"{user_id},{user_id},{at},i{(place + step) % 36:02d},{clicked}")
    shown = tmp_path / "shown.csv"
    shown.write_text("\n".join(lines) + "\n")
    models = ("popularity:3d", "tower", "pipeline")
    wanted = Wanted(*files, "temporal", models, seeds=1, impressions=shown)
    report = evaluate_impressions(wanted, RULES, MEANS, lambda *_: None)
    found = {(line.model, line.metric): line.value for line in report.lines if line.slice == "all"}
    assert found["tower", "gauc"] > 0.9
    assert found["pipeline", "gauc"] > 0.9
    assert found["pipeline", "auc"] > found["popularity:3d", "auc"]
    assert found["pipeline", "f1"] > 0.5
    assert {"ece", "pcoc", "brier", "accuracy", "precision", "recall"} <= {
        m for model, m in found if model == "pipeline"
    }
    assert ("tower", "ece") not in found


def test_a_stream_is_walked_and_live_knowledge_is_worth_more_than_what_was_known_at_the_cut(
    files: tuple[Path, Path],
) -> None:
    found = {}
    for features in ("live", "frozen"):
        wanted = Wanted(
            *files, "replay", ("popularity:3d", "tower", "pipeline"), cut="0.7", at=(3, 10), seeds=1, features=features
        )
        report = evaluate(wanted, RULES, MEANS, lambda *_: None)
        found[features] = {(line.model, line.metric): line for line in report.lines if line.slice == "all"}
        assert "events/s by tower and pipeline" in report.facts["walk"]
    live, frozen = found["live"], found["frozen"]
    assert live["tower", "hr@3"].value > 0.8
    assert live["pipeline", "ndcg@10"].value > live["popularity:3d", "ndcg@10"].value
    # Three days on, a user stands three items further than the frozen row says.
    assert frozen["tower", "hr@3"].value < live["tower", "hr@3"].value
    assert np.isfinite([line.value for line in live.values()]).all()
