"""Settings: where values come from, what a bad one is told, and that the page in docs says the same as the code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.domain import SettingsInvalid
from services.settings import Settings, load_settings, setting_sources


@contextmanager
def environment(**given: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(given)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("api_port = 9000\nbus_partitions = 8\n")
    with environment(FRESHRANK_CONFIG=str(file), FRESHRANK_API_PORT="9001"):
        settings = load_settings()
        sources = setting_sources(settings)
    assert (settings.api_port, settings.bus_partitions, settings.seed) == (9001, 8, 1)
    assert (sources["api_port"], sources["bus_partitions"], sources["seed"]) == ("environment", str(file), "default")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"FRESHRANK_API_PORT": "many"}, "api_port='many'"),
        ({"FRESHRANK_API_HOST": "0.0.0.0"}, "until access keys exist"),
        ({"FRESHRANK_EFFORT": "huge"}, "effort='huge'"),
        ({"FRESHRANK_BUS_PARTITIONS": "0"}, "bus_partitions='0'"),
        ({"FRESHRANK_PORT": "1"}, "FRESHRANK_PORT"),
        ({"FRESHRANK_HOME": ""}, "home='' is refused: .* name a folder"),
        ({"FRESHRANK_CONFIG": "/no/such.toml"}, "FRESHRANK_CONFIG='/no/such.toml' is refused: there is no such file"),
        ({"FRESHRANK_RETRAIN_EVERY_HOURS": "inf"}, "retrain_every_hours='inf'"),
        ({"FRESHRANK_JUDGE_SHARE": "nan"}, "judge_share='nan'"),
        ({"FRESHRANK_KAFKA_SECURITY": "hunter2"}, '"kafka_security" from .* it must be JSON, as {"name": "value"}'),
    ],
)
def test_a_bad_setting_is_refused_with_its_name_and_value(given: dict[str, str], said: str) -> None:
    with environment(**given), pytest.raises(SettingsInvalid, match=said):
        load_settings()


def test_an_unknown_or_unreadable_file_entry_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    for text, said in (("colour = 1\n", "colour is no setting"), ("api_port = \n", "cannot be read")):
        file.write_text(text)
        with environment(FRESHRANK_CONFIG=str(file)), pytest.raises(SettingsInvalid, match=said):
            load_settings()


def test_what_the_environment_says_to_other_programs_is_no_source_of_a_setting() -> None:
    with environment(SEED="5", HOME="/home/ann"):
        sources = setting_sources(load_settings())
    assert (sources["seed"], sources["home"]) == ("default", "default")


def test_declared_kinds_add_to_the_default_ones() -> None:
    with environment(FRESHRANK_KINDS='{"swipe": {"sign": "negative", "weight": 0.5}}'):
        rules = load_settings().kind_rules()
    assert rules.signed_weight("swipe", None) == -0.5
    assert rules.signed_weight("click", None) == 1.0
    assert rules.signed_weight("unheard-of", None) == 0.0


def test_a_rating_is_positive_from_its_threshold_on() -> None:
    rules = load_settings().kind_rules()
    assert [rules.signed_weight("rating", value) for value in (5.9, 6.0, None)] == [-1.0, 1.0, 1.0]


def test_every_setting_has_a_sentence() -> None:
    for name, field in Settings.model_fields.items():
        assert (field.description or "").endswith((".", ",")), name
