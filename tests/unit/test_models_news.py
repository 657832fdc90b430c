"""The news model: what a candidate sees as a literal, padding, order, heads, readers, fitting, and what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from news_world import news_world

from models.metrics import auc_by_list
from models.news import NewsConfig, NewsLists, NewsModel, NewsNetwork, heads_of
from models.news_fit import depth_affordable, fit_news
from models.text import EncoderMissing
from models.titles import (
    RARE_BUCKETS,
    Pretrained,
    TitleBody,
    TitleReader,
    Titles,
    VectorBody,
    VectorReader,
    WordBody,
    WordReader,
)

TINY = NewsConfig(width=16, layers=1, history=4, hidden=8, dropout=0.0, batch=8, epochs_max=40, warmup_steps=5,
                  learning_rate=1e-2, patience=100)  # fmt: skip


def body(reader: WordReader) -> WordBody:
    torch.manual_seed(0)
    return WordBody(reader.numbers_max, 16, 1, heads_of(16), 0.0)


def network() -> NewsNetwork:
    torch.manual_seed(0)
    made = NewsNetwork(VectorBody(16), 16, TINY).eval()
    torch.nn.init.normal_(made.said_to_logit[-1].weight)
    torch.nn.init.normal_(made.straight.weight)
    return made


def inputs(history: int = 3, candidates: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(1, history, 16, generator=generator),
        torch.ones(1, history, dtype=torch.bool),
        torch.randn(1, candidates, 16, generator=generator),
    ]


# ------------------------------------------------------------------------------------------------ the network


def test_a_candidate_sees_what_was_read_and_itself_and_nothing_else() -> None:
    history, _, candidates = (each.requires_grad_() if each.is_floating_point() else each for each in inputs(3, 3))
    logits = network()(history, torch.tensor([[False, True, True]]), candidates)
    seen = []
    for place in range(3):
        grads = torch.autograd.grad(logits[0, place], (history, candidates), retain_graph=True)
        seen.append([int(g.abs().sum() > 0) for g in (*grads[0][0], *grads[1][0])])
    # Columns: title 0 (padding), titles 1 and 2, candidates 0, 1, 2.
    assert seen == [
        [0, 1, 1, 1, 0, 0],
        [0, 1, 1, 0, 1, 0],
        [0, 1, 1, 0, 0, 1],
    ]


def test_padding_changes_nothing_and_somebody_who_read_nothing_has_the_null_slot() -> None:
    made, (history, real, candidates) = network(), inputs()
    assert made(history, real, candidates).shape == (1, 4)
    wider = torch.cat([torch.zeros(1, 1, 16), history], dim=1), torch.tensor([[False, True, True, True]])
    assert torch.allclose(made(history, real, candidates), made(*wider, candidates), atol=1e-5)
    nothing = made(torch.zeros(1, 0, 16), torch.zeros(1, 0, dtype=torch.bool), candidates)
    blank = made(torch.zeros(1, 2, 16), torch.zeros(1, 2, dtype=torch.bool), candidates)
    assert torch.isfinite(nothing).all()
    assert torch.allclose(nothing, blank, atol=1e-5)
    _, null_share = made._attend(torch.zeros(1, 0, 16), torch.zeros(1, 0, dtype=torch.bool), candidates)
    assert null_share.flatten().tolist() == [1.0] * 4


def test_the_order_of_candidates_permutes_their_scores() -> None:
    made, (history, real, candidates) = network(), inputs()
    order = [2, 0, 3, 1]
    found = made(history, real, candidates[:, order])
    assert torch.allclose(made(history, real, candidates)[:, order], found, atol=1e-6)


def test_an_untrained_network_says_the_same_of_every_title() -> None:
    history, real, candidates = inputs()
    assert NewsNetwork(VectorBody(16), 16, TINY).eval()(history, real, candidates).tolist() == [[0.0] * 4]


@pytest.mark.parametrize(("width", "heads"), [(768, 12), (384, 6), (312, 4), (64, 4), (16, 1), (7, 1)])
def test_heads_divide_the_width(width: int, heads: int) -> None:
    assert heads_of(width) == heads


# ----------------------------------------------------------------------------------------------------- titles


def test_words_are_numbered_by_how_often_they_stand_and_the_rest_shares_buckets() -> None:
    reader = WordReader.fitted(["rain rain sun", "Rain, sun", "snow"])
    assert reader.words == ("rain", "sun")
    titles = reader.read(["sun", "", "snow rain"], lambda _: None)
    assert titles.offsets.tolist() == [0, 0, 1, 1, 3]
    assert titles.tokens[[0, 2]].tolist() == [2, 1]
    assert 3 <= titles.tokens[1] <= 2 + RARE_BUCKETS == reader.numbers_max
    tokens, real = titles.padded(np.array([3, 0, 1]))
    assert real.tolist() == [[True, True], [False, False], [True, False]]
    assert tokens[1].tolist() == [0, 0]


def test_an_empty_title_has_the_zero_vector_and_neighbours_change_nothing() -> None:
    reader = WordReader.fitted(["rain rain sun sun"])
    made = NewsModel(TINY, reader, NewsNetwork(body(reader), 16, TINY), 16, torch.device("cpu"))
    vectors = made.vectors(reader.read(["rain", "", "sun rain rain"], lambda _: None))
    assert (vectors[0] == 0).all()
    assert (vectors[2] == 0).all()
    assert np.allclose(vectors[1], made.vectors(reader.read(["rain"], lambda _: None))[1], atol=1e-5)
    assert not np.allclose(vectors[1], vectors[3])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of random weights with three layers, and its vocabulary."""
    from transformers import BertConfig, BertModel, BertTokenizer

    where = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "rain", "sun", "snow", "##y"]
    (where / "vocab.txt").write_text("\n".join(words) + "\n")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
                        intermediate_size=32)  # fmt: skip
    BertModel(config).save_pretrained(where)
    BertTokenizer(str(where / "vocab.txt")).save_pretrained(where)
    return where


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_transformer_cut_in_two_makes_what_the_whole_one_makes(folder: Path, depth: int) -> None:
    pretrained = Pretrained(str(folder))
    titles = pretrained.reader(depth, "cpu").read(["rain", "snow y sun rain", ""], lambda _: None)
    tokens, real = titles.padded(np.array([1, 2, 3]))
    assert real.sum(axis=1).tolist() == [3, 6, 0]
    upper = pretrained.body(depth).eval()
    given = pretrained.tokenizer(["rain", "snow y sun rain"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        found = upper(torch.from_numpy(tokens), torch.from_numpy(real))
        whole = pretrained.model(**given).last_hidden_state
    kept = given["attention_mask"].bool()
    assert torch.allclose(found[:2][kept], whole[kept], atol=5e-3)  # what is kept is kept as float16
    assert sum(1 for name, _ in upper.named_parameters() if "query.weight" in name) == 3 - depth


def test_more_layers_are_learned_where_the_budget_pays_for_them(folder: Path) -> None:
    world, pretrained = news_world(lists=40), Pretrained(str(folder))
    depths = [depth_affordable(pretrained, world.learned, NewsConfig(effort=e), 400) for e in ("demo", "full")]
    assert depths == [0, 0]
    assert depth_affordable(pretrained, world.learned, NewsConfig(), 10**9) == 3  # the states would not fit
    pretrained.layer_parameters = lambda: 10**9  # type: ignore[method-assign]
    assert depth_affordable(pretrained, world.learned, NewsConfig(effort="demo"), 400) == 3


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EncoderMissing, match="cannot be opened"):
        Pretrained(str(tmp_path))


# ---------------------------------------------------------------------------------------------------- fitting


def small_batch() -> tuple[WordReader, Titles, NewsLists]:
    """Eight lists: who read of rain clicks rain, who read of sun clicks sun."""
    texts = ["rain today", "sun today", "much rain", "much sun"]
    reader = WordReader.fitted(texts * 2)
    history = np.zeros((8, 4), dtype=np.int32)
    history[:, 3] = [1, 2] * 4
    rows = np.array([[3, 4]] * 8, dtype=np.int32)
    clicked = np.array([[True, False], [False, True]] * 4)
    lists = NewsLists(history, rows.ravel(), np.arange(0, 17, 2), clicked.ravel(), np.arange(8))
    return reader, reader.read(texts, lambda _: None), lists


def test_a_small_batch_is_learned_by_heart_and_equal_seeds_are_equal() -> None:
    reader, titles, lists = small_batch()
    fitted = [fit_news(lists, titles, reader, body(reader), 16, TINY, device="cpu") for _ in range(2)]
    scores = [each.model.scores(each.model.vectors(titles), lists) for each in fitted]
    assert auc_by_list(scores[0], lists.clicked, lists.offsets).tolist() == [1.0] * 8
    assert np.array_equal(scores[0], scores[1])
    assert fitted[0].steps == 40


def test_readers_without_a_history_are_learned_from_too() -> None:
    reader, titles, lists = small_batch()
    nobody = NewsLists(np.zeros((8, 4), np.int32), lists.rows, lists.offsets, lists.clicked, lists.asked_s)
    config = NewsConfig(width=16, layers=1, history=4, hidden=8, batch=8, epochs_max=2)
    fitted = fit_news(nobody, titles, reader, body(reader), 16, config, device="cpu").model
    assert np.isfinite(fitted.scores(fitted.vectors(titles), nobody)).all()


def test_auc_within_lists_counts_pairs_and_ties_half() -> None:
    scores = np.array([0.9, 0.4, 0.5, 0.4, 0.1, 3.0, 3.0, 1.0])
    clicked = np.array([1, 1, 0, 0, 0, 1, 0, 0], dtype=np.bool_)
    found = auc_by_list(scores, clicked, np.array([0, 5, 7, 8]))
    assert found[:2].tolist() == pytest.approx([4.5 / 6, 0.5])
    assert np.isnan(found[2])


def test_logits_become_chances_on_the_lists_held_out() -> None:
    world = news_world(lists=300)
    reader = WordReader.fitted(world.titles)
    titles = reader.read(world.titles, lambda _: None)
    config = NewsConfig(width=16, layers=1, history=8, hidden=8, batch=32, epochs_max=1)
    fitted = fit_news(world.learned, titles, reader, body(reader), 16, config, device="cpu").model
    logits = fitted.scores(fitted.vectors(titles), world.judged)
    chances = 1 / (1 + np.exp(-logits))
    assert chances.sum() == pytest.approx(world.judged.clicked.sum(), rel=0.2)


# ---------------------------------------------------------------------------------------------- what is written


def opened(said: dict[str, Any], config: NewsConfig) -> tuple[TitleReader, TitleBody]:
    reader = WordReader.of(said["words"])
    return reader, body(reader)


def test_what_is_loaded_scores_as_what_was_saved(tmp_path: Path) -> None:
    reader, titles, lists = small_batch()
    fitted = fit_news(lists, titles, reader, body(reader), 16, TINY, device="cpu").model
    fitted.save(tmp_path / "news")
    assert sorted(each.name for each in (tmp_path / "news").iterdir()) == ["news.json", "news.safetensors"]
    loaded = NewsModel.load(tmp_path / "news", opened)
    again = loaded.reader.read(["rain today", "sun today", "much rain", "much sun"], lambda _: None)
    assert np.array_equal(loaded.scores(loaded.vectors(again), lists), fitted.scores(fitted.vectors(titles), lists))
    said = json.loads((tmp_path / "news" / "news.json").read_text())
    (tmp_path / "news" / "news.json").write_text(json.dumps({**said, "width": 32}))
    with pytest.raises(ValueError, match="cannot be read"):
        NewsModel.load(tmp_path / "news", opened)


def test_vectors_of_a_frozen_encoder_are_titles_of_one_state() -> None:
    reader = VectorReader("hashing", lambda texts: np.array([[len(t) > 0, 2.0 * bool(t)] for t in texts], np.float32))
    titles = reader.read(["rain", "", "sun"], lambda _: None)
    assert titles.offsets.tolist() == [0, 0, 1, 1, 2]
    assert titles.padded(np.array([1]))[0].tolist() == [[[1.0, 2.0]]]
