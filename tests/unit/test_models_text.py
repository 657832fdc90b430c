"""Text encoders: the contract over hashing and a tiny transformer; what hashing holds near; what a missing one says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.device import pick_device
from models.text import EncoderMissing, TextEncoder, minilm_folder, open_encoder

TITLES = ["The Birth of a Nation | Drama, War", "", "Birth of a Legend | Drama", "Zebra crossing", "  "]


@pytest.fixture(scope="module", params=["hashing", "tiny"])
def encoder(request: pytest.FixtureRequest) -> TextEncoder:
    return open_encoder(request.param)


def test_a_text_has_one_vector_of_length_1_whatever_stands_beside_it(encoder: TextEncoder) -> None:
    together = encoder.embed(TITLES)
    assert together.shape == (5, encoder.width)
    assert together.dtype == np.float32
    alone = np.concatenate([encoder.embed([each]) for each in TITLES])
    assert np.allclose(together, alone, atol=1e-5)
    assert np.allclose(np.linalg.norm(together, axis=1), [1, 0, 1, 1, 0], atol=1e-5)


def test_no_texts_are_no_vectors(encoder: TextEncoder) -> None:
    assert encoder.embed([]).shape == (0, encoder.width)


def test_hashing_holds_shared_words_near_and_forgets_case_and_signs() -> None:
    birth, _, legend, zebra, _ = open_encoder("hashing").embed(TITLES)
    assert birth @ legend > 0.3
    assert abs(birth @ zebra) < 0.2
    one, two = open_encoder("hashing").embed(["Zebra, Crossing!", "zebra crossing"])
    assert np.array_equal(one, two)


def test_hashing_is_the_same_everywhere() -> None:
    vector = open_encoder("hashing").embed(["ab"])[0]
    # Features "wab", "l^ab", "lab$": three places, the word 1 / sqrt(1 + 2 * .09) and the pieces .3 of that.
    assert np.sort(np.abs(vector[vector != 0])).tolist() == pytest.approx([0.27617, 0.27617, 0.92057], abs=1e-4)
    # crc32 of each, halved, modulo 512: what was stored once must be found again.
    assert np.flatnonzero(vector).tolist() == [170, 327, 418]


def test_auto_falls_back_to_hashing_only_where_the_package_is_missing() -> None:
    if minilm_folder() is None:
        assert open_encoder("auto").name == "hashing-512"
        return
    encoder = open_encoder("auto")
    assert encoder.width == 384
    king, queen, car = encoder.embed(["a king and his crown", "the queen on her throne", "how to repair a car engine"])
    assert king @ queen > king @ car + 0.1


def test_an_encoder_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "no-such-folder").mkdir()
    with pytest.raises(EncoderMissing, match="no-such-folder"):
        open_encoder(str(tmp_path / "no-such-folder"))


def test_a_device_that_is_not_there_is_named() -> None:
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="toaster"):
        pick_device("toaster")
