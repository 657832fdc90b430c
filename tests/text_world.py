"""Tiny transformers made on the spot: random (seeded) weights, a tokenizer of whole words, saved as folders. And a
world whose titles carry the taste."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

if TYPE_CHECKING:  # a worker that runs none of these tests does without it: seven seconds
    from transformers import PreTrainedTokenizerFast as FastTokenizer

Family = Literal["bert", "distilbert", "gpt2"]
FAMILIES: tuple[Family, ...] = ("bert", "distilbert", "gpt2")
WORDS = tuple(f"w{n}" for n in range(100))
POSITIONS = 20


def tokenizer_of(words: tuple[str, ...], family: Family) -> FastTokenizer:
    """Whole words; BERT's kin put [CLS] before and [SEP] behind a text, GPT-2 adds nothing and has no padding token."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast as FastTokenizer

    bare = {"<|endoftext|>": 0} if family == "gpt2" else {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
    unknown = "<|endoftext|>" if family == "gpt2" else "[UNK]"
    tokenizer = Tokenizer(WordLevel({**bare, **{w: n for n, w in enumerate(words, len(bare))}}, unk_token=unknown))
    tokenizer.pre_tokenizer = Whitespace()
    if family == "gpt2":
        return FastTokenizer(tokenizer_object=tokenizer, unk_token=unknown, eos_token=unknown)
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return FastTokenizer(
        tokenizer_object=tokenizer, unk_token=unknown, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )


def model_of(family: Family, vocabulary: int, width: int = 32, layers: int = 2, seed: int = 0) -> Any:
    from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel, GPT2Config, GPT2Model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        match family:
            case "bert":
                return BertModel(
                    BertConfig(
                        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2,
                        intermediate_size=2 * width, max_position_embeddings=POSITIONS,
                    )
                ).eval()  # fmt: skip
            case "distilbert":
                return DistilBertModel(
                    DistilBertConfig(
                        vocab_size=vocabulary, dim=width, n_layers=layers, n_heads=2, hidden_dim=2 * width,
                        max_position_embeddings=POSITIONS,
                    )
                ).eval()  # fmt: skip
            case "gpt2":
                return GPT2Model(
                    GPT2Config(vocab_size=vocabulary, n_embd=width, n_layer=layers, n_head=2, n_positions=POSITIONS)
                ).eval()


def saved(folder: Path, family: Family, words: tuple[str, ...] = WORDS, width: int = 32, seed: int = 0) -> Path:
    """A transformers folder."""
    tokenizer = tokenizer_of(words, family)
    tokenizer.save_pretrained(folder)
    model_of(family, len(tokenizer), width, seed=seed).save_pretrained(folder)
    return folder


GROUPS, GROUP_WORDS, GROUP_ITEMS = 6, 12, 24
DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class TasteWorld:
    """`titles` by item; `clicks` of (user, item, seconds after the start), in order of time."""

    titles: dict[str, str]
    clicks: list[tuple[str, str, int]]


def taste_world(users: int = 150, clicks: int = 12, seed: int = 3, only_new: bool = False) -> TasteWorld:
    """Every user likes one of six groups of items and clicks within it at random, about once a day; a third of the
    items comes for the last two clicks (`only_new`: which are on these alone). A title is three words of its
    group's twelve: what they have to do with each other is known from clicks alone."""
    rng = np.random.default_rng(seed)
    items = [(group, n) for group in range(GROUPS) for n in range(GROUP_ITEMS)]
    titles = {
        f"i{group}-{n:02d}": " ".join(f"w{group * GROUP_WORDS + w}" for w in rng.choice(GROUP_WORDS, 3, replace=False))
        for group, n in items
    }
    made: list[tuple[str, str, int]] = []
    new_from = GROUP_ITEMS * 2 // 3
    for user in range(users):
        group, at = user % GROUPS, int(rng.integers(DAY_S))
        old = rng.permutation(new_from).tolist()
        known = [] if only_new else old[clicks - 2 :]
        late = rng.permutation([*known, *range(new_from, GROUP_ITEMS)])[:2].tolist()
        steps = enumerate([*old[: clicks - 2], *late])
        made += [(f"u{user}", f"i{group}-{n:02d}", at + step * DAY_S) for step, n in steps]
    return TasteWorld(titles, sorted(made, key=lambda each: each[2]))
