"""Where a release lies: relative to its home, so a backup stands alone; nothing outside the home is ever removed."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from model_world import tiny_release
from sqlalchemy import insert, select

from models.release import ModelRelease
from services.cli import main
from services.domain import ReleaseInfo, ReleaseInvalid
from services.settings import Settings
from services.tables import releases
from services.wiring import Home, load_release, open_home

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def settings_at(home: Path) -> Settings:
    return Settings(home=home)


def publish(home: Home, release_id: str, folder: Path) -> None:
    tiny_release(release_id).save(folder)
    home.registry.publish(ReleaseInfo(release_id, str(folder), NOON, NOON))


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    with open_home(settings_at(path)) as home:
        assert home.view.log_id("freshrank.events")
        publish(home, "r1", path / "releases" / "r1")
        home.registry.promote("r1")
    return path


def test_a_backup_loads_its_own_release_when_the_original_is_gone(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRESHRANK_HOME", str(original))
    with pytest.raises(SystemExit) as ended:
        main(("backup", str(tmp_path / "copy")))
    assert not ended.value.code
    shutil.rmtree(original)
    with open_home(settings_at(tmp_path / "copy")) as copy:
        live = copy.registry.live()
        assert live is not None
        assert live.path == str(tmp_path / "copy" / "releases" / "r1")
        assert ModelRelease.load(Path(live.path)).release_id == "r1"


def test_pruning_a_copy_leaves_the_original_s_releases(original: Path, tmp_path: Path) -> None:
    with open_home(settings_at(original)) as home:
        for number in (2, 3):
            publish(home, f"r{number}", original / "releases" / f"r{number}")
            home.registry.promote(f"r{number}")
    shutil.copytree(original, tmp_path / "copy")
    with open_home(settings_at(tmp_path / "copy")) as copy:
        assert copy.registry.prune(keep=1) == ("r1",)
    assert sorted(each.name for each in (tmp_path / "copy" / "releases").iterdir()) == ["r2", "r3"]
    assert sorted(each.name for each in (original / "releases").iterdir()) == ["r1", "r2", "r3"]


@pytest.mark.parametrize("where", ["releases/r0", "elsewhere/r0", "releases/../elsewhere/r0", "releases"])
def test_a_row_with_an_absolute_path_is_read_and_pruned_only_inside_the_releases(original: Path, where: str) -> None:
    folder = original / where
    folder.mkdir(parents=True, exist_ok=True)
    with open_home(settings_at(original)) as home:
        row = {
            "release_id": "r0", "path": str(folder), "created_us": 1, "data_until_us": 1, "promoted_us": 0,
            "live": False, "reason": "", "metrics": b"[]",
        }  # fmt: skip
        with home.engine.begin() as connection:
            connection.execute(insert(releases).values(row))
        assert [each.path for each in home.registry.all() if each.release_id == "r0"] == [str(folder)]
        assert home.registry.prune(keep=1) == ("r0",)
    assert folder.exists() is (where != "releases/r0")
    assert (original / "releases" / "r1").exists()


def test_an_old_absolute_path_in_a_copy_means_the_copy_s_release(original: Path, tmp_path: Path) -> None:
    with open_home(settings_at(original)) as home, home.engine.begin() as connection:
        connection.execute(releases.update().values(path=str(original / "releases" / "r1")))
    shutil.copytree(original, tmp_path / "copy")
    with open_home(settings_at(tmp_path / "copy")) as copy:
        assert [each.path for each in copy.registry.all()] == [str(tmp_path / "copy" / "releases" / "r1")]


def test_what_is_stored_names_no_home(original: Path) -> None:
    with open_home(settings_at(original)) as home, home.engine.connect() as connection:
        assert connection.execute(select(releases.c.path)).scalar() == "r1"


def test_a_release_of_other_features_is_refused_by_name(original: Path) -> None:
    with open_home(settings_at(original)) as home:
        live = home.registry.live()
        assert live is not None
        assert ModelRelease.load(Path(live.path)).manifest.feature_names == ("a", "b", "c")
        with pytest.raises(ReleaseInvalid, match="release r1 reads other features than this version has"):
            load_release(live)
