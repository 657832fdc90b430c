"""A release directory: what is loaded answers as what was saved, and any damage is refused by the name of the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from model_world import ITEMS, START_S, TINY, tiny_release

from models.batches import History
from models.calibration import Calibration
from models.release import INDEX, MANIFEST, VECTORS, VOCABULARY, WEIGHTS, ModelRelease, ReleaseDamaged

NOW_S = START_S + 86_400


@pytest.fixture(scope="module")
def fresh() -> ModelRelease:
    return tiny_release()


@pytest.fixture(params=["fresh", "loaded"])
def release(request: pytest.FixtureRequest, fresh: ModelRelease, tmp_path: Path) -> ModelRelease:
    if request.param == "fresh":
        return fresh
    fresh.save(tmp_path / "r1")
    return ModelRelease.load(tmp_path / "r1", "cpu")


def _history(release: ModelRelease, length: int = 4) -> History:
    rows = np.arange(1, length + 1)
    return History(release.item_vectors[rows], np.ones(length, np.int64), NOW_S - 60 * np.arange(length, 0, -1))


def _ranked(release: ModelRelease, rows: list[int]) -> np.ndarray:
    features = np.arange(3 * ITEMS + 3, dtype=np.float32).reshape(-1, 3)[rows] / ITEMS
    vectors = release.item_vectors[rows]
    user = release.user_vector(_history(release), NOW_S)
    return release.rerank(_history(release), NOW_S, vectors, features, vectors @ user)


def test_it_answers_as_the_fresh_one(release: ModelRelease, fresh: ModelRelease) -> None:
    user = release.user_vector(_history(release), NOW_S)
    assert np.array_equal(user, fresh.user_vector(_history(fresh), NOW_S))
    assert release.search(user, 5)[0].tolist() == fresh.search(user, 5)[0].tolist()
    assert np.array_equal(_ranked(release, [1, 5, 9]), _ranked(fresh, [1, 5, 9]))
    text = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    assert np.array_equal(release.new_item_vectors(text), fresh.new_item_vectors(text))
    assert release.vocabulary == fresh.vocabulary
    assert release.manifest == fresh.manifest


def test_index_vocabulary_and_vectors_agree_in_size(release: ModelRelease) -> None:
    assert len(release.vocabulary) == len(release.item_vectors) == len(release.index) + 1 == ITEMS + 1
    assert release.width == TINY.width
    assert release.item_vectors[0].tolist() == [0.0] * release.width


def test_scoring_one_alone_equals_scoring_it_among_many(release: ModelRelease) -> None:
    among = _ranked(release, [3, 7, 11])
    alone = np.concatenate([_ranked(release, [row]) for row in (3, 7, 11)])
    assert np.allclose(among, alone, atol=1e-6)
    assert among.dtype == np.float32
    assert ((among > 0) & (among < 1)).all()


def test_many_histories_are_scored_as_each_alone(release: ModelRelease) -> None:
    nobody = History(np.zeros((0, release.width), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64))
    histories = [nobody, *(_history(release, length) for length in (4, 1, 3))]
    vectors = release.item_vectors[[2, 9]]
    features = np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 2, 3)
    users = release.user_vectors(histories, NOW_S)
    alone = [release.user_vector(each, NOW_S) for each in histories]
    assert np.allclose(users, np.stack(alone), atol=1e-5)
    scores = users @ vectors.T
    found = release.rerank_rows(histories, NOW_S, vectors, features, scores)
    one_by_one = [
        release.rerank(*each) for each in zip(histories, [NOW_S] * 4, [vectors] * 4, features, scores, strict=True)
    ]
    assert np.allclose(found, np.stack(one_by_one), atol=1e-6)


def test_attention_is_a_share_of_every_event_and_nothing_of_what_is_not_known(release: ModelRelease) -> None:
    known = _history(release)
    vectors = np.concatenate([np.zeros((1, release.width), np.float32), known.vectors])
    mixed = History(vectors, np.append(1, known.actions), np.append(NOW_S - 999, known.times_s))
    shares = release.attention(mixed, NOW_S, release.item_vectors[[3, 7]])
    assert shares.shape == (2, 6)
    assert np.allclose(shares.sum(axis=1), 1, atol=1e-5)
    assert shares[:, 1].tolist() == [0.0, 0.0]
    assert np.array_equal(shares[:, [0, 2, 3, 4, 5]], release.attention(known, NOW_S, release.item_vectors[[3, 7]]))


def test_calibrated_or_not_the_order_is_the_same_and_without_reranker_it_is_the_retrieval_scores(
    fresh: ModelRelease, tmp_path: Path
) -> None:
    rows = list(range(1, ITEMS + 1))
    low = Calibration(0.5, (0.0,), (-3.0,), 7, True)
    manifest = replace(fresh.manifest, chances=low, retrieval_chances=Calibration(2.0, (0.0,), (-1.0,)))
    changed = replace(fresh, manifest=manifest)
    plain, calibrated = _ranked(fresh, rows), _ranked(changed, rows)
    assert np.array_equal(np.argsort(plain), np.argsort(calibrated))
    assert np.allclose(calibrated, 1 / (1 + np.exp(3 - 0.5 * np.log(plain / (1 - plain)))), atol=1e-5)
    changed.ordered_by(False).save(tmp_path / "r1")
    loaded = ModelRelease.load(tmp_path / "r1", "cpu")
    assert loaded.manifest == changed.ordered_by(False).manifest
    retrieval = fresh.item_vectors[rows] @ fresh.user_vector(_history(fresh), NOW_S)
    assert np.allclose(_ranked(loaded, rows), 1 / (1 + np.exp(1 - 2 * retrieval)), atol=1e-5)


def test_a_release_from_before_chances_were_calibrated_is_read(fresh: ModelRelease, tmp_path: Path) -> None:
    fresh.save(tmp_path / "r1")
    said = json.loads((tmp_path / "r1" / MANIFEST).read_text())
    for name in ("rerank", "chances", "retrieval_chances"):
        del said[name]
    (tmp_path / "r1" / MANIFEST).write_text(json.dumps(said))
    assert ModelRelease.load(tmp_path / "r1", "cpu").manifest == fresh.manifest


def test_a_stranger_and_an_empty_list_are_answered(release: ModelRelease) -> None:
    nothing = History(np.zeros((0, release.width), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert np.linalg.norm(release.user_vector(nothing, NOW_S)) == pytest.approx(1, abs=1e-5)
    found = release.rerank(
        nothing, NOW_S, release.item_vectors[1:3], np.zeros((2, 3), np.float32), np.zeros(2, np.float32)
    )
    assert np.isfinite(found).all()
    none = np.zeros((0, release.width), np.float32)
    assert len(release.rerank(nothing, NOW_S, none, np.zeros((0, 3), np.float32), np.zeros(0, np.float32))) == 0
    assert release.new_item_vectors(np.zeros((0, 6), np.float32)).shape == (0, release.width)


def test_an_event_of_an_item_of_which_nothing_is_known_changes_nothing(release: ModelRelease) -> None:
    known = _history(release)
    vectors = np.concatenate([known.vectors, np.zeros((1, release.width), np.float32)])
    mixed = History(vectors, np.append(known.actions, 1), np.append(known.times_s, NOW_S - 1))
    assert np.array_equal(release.user_vector(mixed, NOW_S), release.user_vector(known, NOW_S))


def test_only_the_newest_events_count_when_there_are_more_than_it_was_fitted_to(release: ModelRelease) -> None:
    long = _history(release, length=TINY.history + 5)
    short = History(long.vectors[5:], long.actions[5:], long.times_s[5:])
    assert np.array_equal(release.user_vector(long, NOW_S), release.user_vector(short, NOW_S))


def test_an_item_is_most_related_to_itself(release: ModelRelease) -> None:
    rows, scores = release.related(release.item_vectors[4] * 3, 3)
    assert rows[0] == 4
    assert scores[0] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", [MANIFEST, VOCABULARY, WEIGHTS, VECTORS, INDEX])
@pytest.mark.parametrize("how", ["missing", "cut", "changed"])
def test_damage_is_refused_by_the_name_of_the_file(fresh: ModelRelease, tmp_path: Path, name: str, how: str) -> None:
    folder = tmp_path / "r1"
    fresh.save(folder)
    raw = bytearray((folder / name).read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    (folder / name).unlink()
    if how != "missing":
        (folder / name).write_bytes(raw if how == "changed" else raw[: len(raw) // 2])
    with pytest.raises(ReleaseDamaged, match=name):
        ModelRelease.load(folder, "cpu")


def _rewritten(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    said = json.loads((folder / MANIFEST).read_text())
    change(said["config"])
    (folder / MANIFEST).write_text(json.dumps(said))


def test_a_manifest_from_before_blocks_could_be_chosen_is_one_of_ligr(fresh: ModelRelease, tmp_path: Path) -> None:
    fresh.save(tmp_path / "r1")
    _rewritten(tmp_path / "r1", lambda config: config.pop("block"))
    loaded = ModelRelease.load(tmp_path / "r1", "cpu")
    assert loaded.manifest.config.block == "ligr"
    assert np.array_equal(loaded.user_vector(_history(fresh), NOW_S), fresh.user_vector(_history(fresh), NOW_S))


def test_a_block_that_does_not_exist_is_refused(fresh: ModelRelease, tmp_path: Path) -> None:
    fresh.save(tmp_path / "r1")
    _rewritten(tmp_path / "r1", lambda config: config.update(block="perceptron"))
    with pytest.raises(ReleaseDamaged, match="there is no block 'perceptron'; there are ligr, sasrec, hstu"):
        ModelRelease.load(tmp_path / "r1", "cpu")


def test_files_of_two_releases_do_not_make_one(fresh: ModelRelease, tmp_path: Path) -> None:
    fresh.save(tmp_path / "a")
    tiny_release("r2", seed=2).save(tmp_path / "b")
    (tmp_path / "b" / WEIGHTS).replace(tmp_path / "a" / WEIGHTS)
    with pytest.raises(ReleaseDamaged, match=WEIGHTS):
        ModelRelease.load(tmp_path / "a", "cpu")


def test_a_format_from_the_future_is_refused(fresh: ModelRelease, tmp_path: Path) -> None:
    fresh.save(tmp_path / "r1")
    said = json.loads((tmp_path / "r1" / MANIFEST).read_text())
    (tmp_path / "r1" / MANIFEST).write_text(json.dumps({**said, "format": 99}))
    with pytest.raises(ReleaseDamaged, match="format 99"):
        ModelRelease.load(tmp_path / "r1", "cpu")


def test_a_directory_is_never_overwritten_and_leaves_nothing_beside_it(fresh: ModelRelease, tmp_path: Path) -> None:
    fresh.save(tmp_path / "r1")
    with pytest.raises(FileExistsError, match="r1"):
        fresh.save(tmp_path / "r1")
    assert [each.name for each in tmp_path.iterdir()] == ["r1"]


def test_a_release_that_cannot_be_written_whole_leaves_nothing_behind(fresh: ModelRelease, tmp_path: Path) -> None:
    unwritable = replace(fresh, manifest=replace(fresh.manifest, notes={"no number": object()}))  # type: ignore[dict-item]
    with pytest.raises(TypeError):
        unwritable.save(tmp_path / "r1")
    assert list(tmp_path.iterdir()) == []
