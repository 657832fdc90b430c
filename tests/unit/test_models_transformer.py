"""Transformers folders as text encoders: which family is pooled how, by hand; neighbours, blanks, long texts, names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from text_world import FAMILIES, POSITIONS, WORDS, Family, model_of, saved, tokenizer_of

from models.text import EncoderMissing, encoder_name, open_encoder
from models.transformer import TransformerEncoder, UnfitModel, pooling_of

TEXTS = ["w1", "w2 w3 w4 w5 w6 w7 w8 w9", "", "w1 w2", "w5 w4 w3 w2 w1", "   ", "w1"]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


def opened(family: Family, batch_max: int = 64) -> TransformerEncoder:
    return TransformerEncoder("hand", tokenizer_of(WORDS, family), model_of(family, 104), "cpu", batch_max)


def test_a_folder_of_each_family_opens_and_a_text_has_one_vector_whatever_stands_beside_it(
    family: Family, tmp_path: Path
) -> None:
    encoder = open_encoder(str(saved(tmp_path / "m", family)))
    together = encoder.embed(TEXTS)
    assert together.shape == (7, 32) == (7, encoder.width)
    alone = np.concatenate([encoder.embed([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), [1, 1, 0, 1, 1, 0, 1], atol=1e-5)
    assert not np.allclose(together[0], together[3], atol=1e-3)


def test_texts_are_embedded_by_as_many_threads_as_are_wanted_whatever_the_process_has() -> None:
    before = torch.get_num_threads()
    one = TransformerEncoder("hand", tokenizer_of(WORDS, "bert"), model_of("bert", 104), "cpu", 64, threads=1)
    try:
        torch.set_num_threads(2)
        vectors = one.embed(TEXTS)
        assert torch.get_num_threads() == 1
        torch.set_num_threads(2)
        np.testing.assert_allclose(opened("bert").embed(TEXTS), vectors, atol=1e-6)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_encoders_are_pooled_by_the_mean_of_their_real_tokens() -> None:
    """[CLS] w2 w3 [SEP] of the tokenizer are 2, 6, 7, 3: the mean of those four rows, scaled."""
    encoder = opened("bert")
    with torch.inference_mode():
        hidden = encoder.model(input_ids=torch.tensor([[2, 6, 7, 3]])).last_hidden_state[0].numpy()
    mean = hidden.mean(axis=0)
    found = encoder.embed(["w2 w3", "w1 w2 w3 w4 w5"])[0]
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean), atol=1e-5)


def test_a_causal_decoder_is_pooled_by_its_last_real_token() -> None:
    """w2 w3 are 3 and 4 (one special token stands before the words): the row of 4, though longer texts stand beside."""
    encoder = opened("gpt2")
    with torch.inference_mode():
        last = encoder.model(input_ids=torch.tensor([[3, 4]])).last_hidden_state[0, 1].numpy()
    found = encoder.embed(["w9 w8 w7 w6 w5", "w2 w3"])[1]
    np.testing.assert_allclose(found, last / np.linalg.norm(last), atol=1e-5)


def test_the_configuration_says_how_a_model_is_pooled() -> None:
    from transformers import BertConfig, T5Config

    assert [opened(each).pooling for each in FAMILIES] == ["mean", "mean", "last"]
    assert pooling_of(BertConfig(is_decoder=True)) == "last"
    with pytest.raises(UnfitModel, match="t5"):
        pooling_of(T5Config())


def test_texts_of_like_length_go_together_and_long_ones_are_cut(family: Family) -> None:
    encoder, shapes = opened(family, batch_max=2), []
    forward = encoder.model.forward

    def seen(input_ids: torch.Tensor, **rest: object) -> object:
        shapes.append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, **rest)

    encoder.model.forward = seen
    long = " ".join(WORDS)
    vectors = encoder.embed([long, "w1", f"{long} w1", "w2", "w1 w2 w3"])
    special = 0 if family == "gpt2" else 2
    assert shapes == [(2, 1 + special), (2, POSITIONS), (1, POSITIONS)]
    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-5)


def test_the_name_of_a_folder_tells_its_content_apart(tmp_path: Path) -> None:
    one, other = saved(tmp_path / "a" / "m", "bert"), saved(tmp_path / "b" / "m", "bert", seed=1)
    again = saved(tmp_path / "c" / "m", "bert")
    names = [encoder_name(str(each)) for each in (one, other, again)]
    assert names[0] == names[2] != names[1]
    assert names[0].startswith("m@")
    assert open_encoder(str(one)).name == names[0]
    renamed = one.rename(tmp_path / names[0])
    assert encoder_name(str(renamed)) == names[0]
    (renamed / "tokenizer.json").write_text((renamed / "tokenizer.json").read_text() + " ")
    assert encoder_name(str(renamed)) not in names


def test_none_has_no_text_at_all() -> None:
    assert open_encoder("none").embed(["a", "b"]).tolist() == [[0.0], [0.0]]
    assert encoder_name("none") == "none"


def test_an_encoder_with_a_decoder_behind_it_is_refused_by_name(tmp_path: Path) -> None:
    from transformers import T5Config, T5Model

    tokenizer_of(WORDS, "bert").save_pretrained(tmp_path / "t5")
    T5Model(T5Config(vocab_size=104, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(
        tmp_path / "t5"
    )
    with pytest.raises(EncoderMissing, match="decoder behind it"):
        open_encoder(str(tmp_path / "t5"))
