"""Which encoder is in effect: the setting's, or one tuned from it that the live release names."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from text_world import saved

from models.text import HashingEncoder, TextEncoder, encoder_name, open_encoder
from models.tuning import Tuned
from services.catalogue.encoders import (
    FollowedEncoder,
    complete,
    encoder_of,
    forget_encoders,
    home_cache,
    in_effect,
    keep_tuned,
    open_cached,
)
from services.domain import ReleaseInfo, SettingsInvalid
from services.item_parts import CardPart, ItemChanged
from services.items import ItemTable
from services.settings import Settings

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
SETTING = "some/folder"


def release(home: Path, encoder: str, number: int = 1) -> ReleaseInfo:
    folder = home / "releases" / f"r{number}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"embedded_by": encoder}))
    return ReleaseInfo(folder.name, str(folder), NOW, NOW)


def tuned(home: Path, seed: int = 0, setting: str = SETTING) -> Path:
    encoder = open_encoder(str(saved(home / f"base{seed}", "bert", seed=seed)))
    found = Tuned(encoder.model, encoder.tokenizer, 1, 0.5, 0.6)  # type: ignore[attr-defined]
    return keep_tuned(found, "mini@123", setting, home)


def test_a_tuned_encoder_is_a_folder_named_by_its_digest_and_embeds_as_it_did(tmp_path: Path) -> None:
    folder = tuned(tmp_path)
    assert folder.parent == tmp_path / "encoders"
    assert folder.name.startswith("mini-tuned@")
    assert encoder_name(str(folder)) == folder.name
    np.testing.assert_allclose(
        open_encoder(str(folder)).embed(["w1 w2"]), open_encoder(str(tmp_path / "base0")).embed(["w1 w2"]), atol=1e-6
    )
    assert [each.name for each in folder.parent.iterdir()] == [folder.name]


def test_it_is_in_effect_while_the_live_release_names_it_and_the_setting_is_what_it_came_from(tmp_path: Path) -> None:
    folder = tuned(tmp_path)
    live = release(tmp_path, folder.name)
    assert encoder_of(Path(live.path)) == folder.name
    assert in_effect(SETTING, tmp_path, None) == SETTING
    assert in_effect(SETTING, tmp_path, live) == str(folder)
    assert in_effect("another", tmp_path, live) == "another"
    assert in_effect(SETTING, tmp_path, release(tmp_path, "mini@123", 2)) == SETTING


def test_what_no_release_names_is_removed(tmp_path: Path) -> None:
    one, other = tuned(tmp_path), tuned(tmp_path, seed=1)
    forget_encoders(tmp_path, {other.name})
    assert not one.exists()
    assert other.exists()


def test_the_follower_goes_where_the_live_release_goes_and_stays_where_it_is_if_that_is_damaged(tmp_path: Path) -> None:
    folder = tuned(tmp_path)
    live: list[ReleaseInfo | None] = [None]
    opened: list[str] = []

    def open_it(source: str) -> TextEncoder:
        opened.append(source)
        if source != SETTING and not (Path(source) / "model.safetensors").exists():
            raise SettingsInvalid(f"{source} is damaged")
        return HashingEncoder(Path(source).name)

    follow = FollowedEncoder(SETTING, tmp_path, lambda: live[0], open_it)
    assert follow().name == "folder"
    live[0] = release(tmp_path, folder.name)
    assert follow().name == follow().name == folder.name
    assert opened == [SETTING, str(folder)]
    live[0] = release(tmp_path, "", 2)
    assert follow().name == "folder"
    (folder / "model.safetensors").unlink()
    live[0] = release(tmp_path, folder.name, 3)
    assert follow().name == "folder"
    fresh = FollowedEncoder(SETTING, tmp_path, lambda: live[0], open_it)
    assert fresh().name == "folder"


def test_only_what_a_table_lacks_is_embedded_and_nothing_is_opened_for_nothing(tmp_path: Path) -> None:
    table = ItemTable()
    table.apply([ItemChanged(i, CardPart(i, [], True, False, 0, 0, 1), 1) for i in ("a", "b")])
    complete(table, {"a": "one", "b": "two"}, "hashing-512", HashingEncoder)
    np.testing.assert_allclose(table.vector("b", "hashing-512"), HashingEncoder().embed(["two"])[0], atol=1e-3)  # type: ignore[arg-type]

    def never() -> TextEncoder:
        raise AssertionError("opened")

    complete(table, {"a": "one"}, "hashing-512", never)


def test_a_transformer_stands_behind_the_cache_of_the_home_and_hashing_does_not(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, device="cpu")
    folder = str(saved(tmp_path / "m", "bert"))
    cache = home_cache(settings, lambda: NOW)
    assert open_cached("hashing", settings, cache).name == "hashing-512"
    open_cached("hashing", settings, cache).embed(["w1"])
    assert not (tmp_path / "embeddings.db").exists()
    open_cached(folder, settings, cache).embed(["w1"])
    assert (tmp_path / "embeddings.db").exists()
    with pytest.raises(SettingsInvalid, match="text_encoder"):
        open_cached(str(tmp_path / "nowhere"), settings, cache)


@pytest.mark.parametrize("device", ["banana", "cuda:99"])
def test_a_device_that_this_machine_lacks_is_refused_even_where_no_encoder_uses_one(
    device: str, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path, device=device)
    with pytest.raises(SettingsInvalid, match=device):
        open_cached("hashing", settings, home_cache(settings, lambda: NOW))
