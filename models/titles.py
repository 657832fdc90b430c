"""Titles into what the news model learns from: word numbers, or the states of a pretrained transformer at a depth.

A pretrained transformer is cut in two. Its lower part is frozen: every title goes through it once, and what comes out
is kept. Its upper part is learned. Where nothing of it is learned, a title is one state: its text vector. Without a
pretrained one a small transformer learns from the words themselves, numbered by how often they stand in the titles.
"""

from __future__ import annotations

import copy
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.text import WORD, EncoderMissing

TOKENS_MAX = 30
WORDS_MAX = 30_000
WORD_COUNT_MIN = 2
RARE_BUCKETS = 512
READ_AT_ONCE = 64
Texts = Sequence[str]


@dataclass(frozen=True, slots=True)
class Titles:
    """V titles, row 0 none. Title v has the tokens `offsets[v]:offsets[v + 1]` (int64 [V + 1]) of `tokens`: word
    numbers int32 [N], or states float16 [N, W]."""

    tokens: NDArray[Any]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def padded(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The tokens of n titles [n, L] or [n, L, W], and which are real [n, L]; L is the longest, at least 1."""
        starts, lengths = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        steps = np.arange(max(int(lengths.max(initial=1)), 1))
        real = steps[None, :] < lengths[:, None]
        places = np.where(real, starts[:, None] + steps[None, :], 0)
        found = self.tokens[places] if len(self.tokens) else np.zeros((*places.shape, *self.tokens.shape[1:]), np.int32)
        found[~real] = 0
        return found, real

    @staticmethod
    def of(parts: Iterable[NDArray[Any]]) -> Titles:
        """Of the tokens of each title, row 0 (which has none) first."""
        given = list(parts)
        offsets = np.concatenate([[0], np.cumsum([len(each) for each in given])]).astype(np.int64)
        return Titles(np.concatenate(given), offsets)


class TitleReader(Protocol):
    """Turns texts into the tokens that one kind of body takes. A text's tokens do not depend on its neighbours."""

    def read(self, texts: Texts, told: Callable[[int], None]) -> Titles:
        """Row n + 1 is text n; row 0 is none. `told` hears how many have been read."""

    def said(self) -> dict[str, Any]:
        """What has to be written down (as JSON) to open it again."""


class TitleBody(nn.Module):
    """What is learned of the titles: tokens [n, L] or [n, L, W] and which are real [n, L] into states [n, L, W]."""

    pretrained = False
    """Learned already, and to be learned on with care."""

    def token_parameters(self) -> int:
        """How many parameters every token is multiplied with; two operations each."""
        return 0


# ------------------------------------------------------------------------------------------------ words


@dataclass(frozen=True, slots=True)
class WordReader:
    """Words by number: 1 to `len(words)` the known ones, above them RARE_BUCKETS for all others; 0 is padding."""

    words: tuple[str, ...]
    numbers: dict[str, int]

    @staticmethod
    def fitted(texts: Texts) -> WordReader:
        """On the words that stand in the titles at least WORD_COUNT_MIN times, the WORDS_MAX most frequent."""
        counted = Counter(word for text in texts for word in _words(text))
        frequent = [(word, n) for word, n in counted.items() if n >= WORD_COUNT_MIN]
        return WordReader.of(word for word, _ in sorted(frequent, key=lambda each: (-each[1], each[0]))[:WORDS_MAX])

    @staticmethod
    def of(words: Iterable[str]) -> WordReader:
        """Of given words, in their order."""
        known = tuple(words)
        return WordReader(known, {word: n for n, word in enumerate(known, start=1)})

    @property
    def numbers_max(self) -> int:
        """The highest number that a word may get."""
        return len(self.words) + RARE_BUCKETS

    def read(self, texts: Texts, told: Callable[[int], None]) -> Titles:
        """TitleReader."""
        parts = [np.zeros(0, dtype=np.int32)]
        parts += [np.array([self._number(word) for word in _words(text)], dtype=np.int32) for text in texts]
        told(len(texts))
        return Titles.of(parts)

    def said(self) -> dict[str, Any]:
        """TitleReader."""
        return {"kind": "words", "words": self.words}

    def _number(self, word: str) -> int:
        return self.numbers.get(word) or len(self.words) + 1 + zlib.crc32(word.encode()) % RARE_BUCKETS


class WordBody(TitleBody):
    """Word numbers [n, L] into states [n, L, W]: word and place vectors, then pre-norm transformer layers."""

    def __init__(self, numbers_max: int, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.words = nn.Embedding(numbers_max + 1, width, padding_idx=0)
        self.places = nn.Parameter(torch.randn(TOKENS_MAX, width) * 0.02)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 2 * width, dropout, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )  # fmt: skip
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.words.weight, std=0.1)

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        """[n, L, W]"""
        states = self.dropout(self.words(tokens.long()) + self.places[: tokens.shape[1]])
        padding = ~real
        padding[:, 0] = False  # an empty title would have nothing to look at; the pool passes over it
        for layer in self.layers:
            states = layer(states, src_key_padding_mask=padding)
        normed: Tensor = self.norm(states)
        return normed

    def token_parameters(self) -> int:
        """See TitleBody."""
        return sum(each.numel() for each in self.layers.parameters())


# ------------------------------------------------------------------------------------- pretrained, one state


@dataclass(frozen=True, slots=True)
class VectorReader:
    """Text vectors of a frozen encoder (`TextEncoder.embed`): each title is one state, an empty one has none."""

    name: str
    embed: Callable[[Texts], NDArray[np.float32]]

    def read(self, texts: Texts, told: Callable[[int], None]) -> Titles:
        """TitleReader."""
        parts = [np.zeros((0, 1), dtype=np.float16)]
        for start in range(0, len(texts), 16 * READ_AT_ONCE):
            vectors = self.embed(texts[start : start + 16 * READ_AT_ONCE]).astype(np.float16)
            parts += [each[None, :] if each.any() else each[None, :][:0] for each in vectors]
            told(len(parts) - 1)
        parts[0] = np.zeros((0, parts[-1].shape[1]), dtype=np.float16)
        return Titles.of(parts)

    def said(self) -> dict[str, Any]:
        """TitleReader."""
        return {"kind": "vectors", "encoder": self.name}


class VectorBody(TitleBody):
    """Text vectors [n, 1, W], made to have a length that suits attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:  # noqa: ARG002
        """[n, 1, W]"""
        normed: Tensor = self.norm(tokens.float())
        return normed


# -------------------------------------------------------------------------------------- pretrained, cut in two


class Pretrained:
    """A transformers model that can be cut at a depth: the layers from there on are the body, those below the reader.

    Raises EncoderMissing where it cannot be opened or has no layers that it could be cut between.
    """

    def __init__(self, source: str) -> None:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(source)
            self.model: Any = AutoModel.from_pretrained(source, use_safetensors=True).eval()
        except (OSError, ValueError) as error:
            raise EncoderMissing(f"text encoder {source!r} cannot be opened: {str(error).splitlines()[0]}") from error
        self.source = source
        self.width = int(self.model.config.hidden_size)
        self.layers = len(_layers_of(self.model)[1])

    def layer_parameters(self) -> int:
        """Of one layer."""
        return sum(each.numel() for each in _layers_of(self.model)[1][-1].parameters())

    def reader(self, depth: int, device: str) -> StateReader:
        """What lies below a depth."""
        return StateReader(self, depth, device)

    def body(self, depth: int) -> StateBody:
        """What is learned from a depth on."""
        return StateBody(self.model, depth)


class StateReader:
    """The states of every real token at a depth, float16."""

    def __init__(self, pretrained: Pretrained, depth: int, device: str) -> None:
        self._of = pretrained
        self._depth = depth
        self._device = device
        self._model = _cut(pretrained.model, 0, depth).to(device)

    def read(self, texts: Texts, told: Callable[[int], None]) -> Titles:
        """TitleReader. Texts of like length go through together."""
        width = self._of.width
        parts: list[NDArray[np.float16]] = [np.zeros((0, width), dtype=np.float16)] * (len(texts) + 1)
        order = sorted((place for place, text in enumerate(texts) if text.strip()), key=lambda place: len(texts[place]))
        for start in range(0, len(order), READ_AT_ONCE):
            some = order[start : start + READ_AT_ONCE]
            tokens = self._of.tokenizer(
                [texts[place] for place in some], padding=True, truncation=True, max_length=TOKENS_MAX,
                return_tensors="pt",
            )  # fmt: skip
            with torch.inference_mode():
                given = {name: value.to(self._device) for name, value in tokens.items()}
                states = self._model(**given).last_hidden_state
            kept = tokens["attention_mask"].bool().numpy()
            halves = states.to(torch.float16).cpu().numpy()
            for place, state, mask in zip(some, halves, kept, strict=True):
                parts[place + 1] = state[mask]
            told(start + len(some))
        return Titles.of(parts)

    def said(self) -> dict[str, Any]:
        """TitleReader."""
        return {"kind": "states", "source": self._of.source, "depth": self._depth}


class StateBody(TitleBody):
    """The layers from a depth on: states [n, L, W] into states [n, L, W], as the whole model makes them."""

    pretrained = True

    def __init__(self, model: Any, depth: int) -> None:
        super().__init__()
        self.model = _cut(model, depth, None)
        self.model.embeddings = _Given()
        if getattr(self.model, "pooler", None) is not None:
            self.model.pooler = None

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        """[n, L, W]"""
        mask = real.clone()
        mask[:, 0] = True
        states: Tensor = self.model(inputs_embeds=tokens.float(), attention_mask=mask.long()).last_hidden_state
        return states

    def token_parameters(self) -> int:
        """See TitleBody."""
        return sum(each.numel() for each in self.model.parameters())


class _Given(nn.Module):
    """Stands where the embeddings stood, and hands on the states that it is given."""

    def forward(self, *given: Any, **named: Any) -> Tensor:
        return next(each for each in (*given, *named.values()) if isinstance(each, Tensor) and each.ndim == 3)


def _cut(model: Any, first: int, last: int | None) -> Any:
    """A copy of a model with only the layers `first` to `last`."""
    whole = _layers_of(model)[0]
    made = copy.deepcopy(model)
    parent = made
    *way, name = whole.split(".")
    for each in way:
        parent = getattr(parent, each)
    setattr(parent, name, nn.ModuleList(list(getattr(parent, name))[first:last]))
    return made


def _layers_of(model: Any) -> tuple[str, nn.ModuleList]:
    """Where the layers of a model stand in it, and the layers."""
    count = int(model.config.num_hidden_layers)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and hasattr(model, "embeddings"):
            return name, module
    raise EncoderMissing(f"a {type(model).__name__} cannot be cut between its layers; it can only be used frozen")


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())[:TOKENS_MAX]
