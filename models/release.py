"""A release: everything that one answer needs of the models, as one directory with one id, read and written as a unit.

    manifest.json          id, shapes, choices, data_until, seed, and the SHA-256 of every other file
    vocabulary.json        item ids and kinds
    weights.safetensors    item encoder, user tower, reranker
    vectors.safetensors    item vectors and the text basis
    items.index            the FAISS index

No file can run code. A directory appears whole (written beside, synced, renamed) or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from torch import Tensor, nn

from models.batches import History
from models.calibration import UNFITTED, Calibration
from models.config import ModelConfig
from models.device import pick_device
from models.index import FaissIndex, Found
from models.items import ItemEncoder, TextBasis
from models.quick import QuickReranker, QuickTower
from models.reranker import Reranker
from models.tower import UserTower
from models.vocabulary import Vocabulary

FORMAT = 1
MANIFEST, VOCABULARY, WEIGHTS, VECTORS, INDEX = (
    "manifest.json", "vocabulary.json", "weights.safetensors", "vectors.safetensors", "items.index",
)  # fmt: skip


class ReleaseDamaged(ValueError):
    """A file of a release is missing, changed or does not fit the others; the message names it."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is said about a release without loading it. `data_until_us`: nothing newer was learned from. `rerank`: the
    reranker orders, else the retrieval score does. `chances` and `retrieval_chances`: the chance that a candidate is
    taken, by the reranker's logit and by the retrieval score."""

    release_id: str
    data_until_us: int
    seed: int
    text_encoder: str
    feature_service: str
    feature_names: tuple[str, ...]
    config: ModelConfig
    rows: int
    actions: int
    text_width: int
    notes: Mapping[str, float]
    format: int = FORMAT
    embedded_by: str = ""
    """The encoder, with its version, whose text vectors it takes; empty in releases from before this was said."""
    rerank: bool = True
    chances: Calibration = UNFITTED
    retrieval_chances: Calibration = UNFITTED


class Networks(nn.Module):
    """The three networks of a release, so that their weights are one state."""

    def __init__(self, items: ItemEncoder, tower: UserTower, reranker: Reranker) -> None:
        super().__init__()
        self.items = items
        self.tower = tower
        self.reranker = reranker


@dataclass(frozen=True, slots=True)
class ModelRelease:
    """One loaded release; every method may be called from several threads at once."""

    manifest: Manifest
    vocabulary: Vocabulary
    item_vectors: NDArray[np.float32]
    """[V, D], length 1; row 0 is zero."""
    text_basis: TextBasis
    index: FaissIndex
    networks: Networks
    device: torch.device
    _quick: tuple[QuickTower, QuickReranker] | None = field(init=False, repr=False, compare=False)
    """What answers one question, where the networks are on a CPU."""

    def __post_init__(self) -> None:
        on_cpu = self.device.type == "cpu"
        quick = (QuickTower(self.networks.tower), QuickReranker(self.networks.reranker)) if on_cpu else None
        object.__setattr__(self, "_quick", quick)

    @property
    def release_id(self) -> str:
        """The id that every answer made with it names."""
        return self.manifest.release_id

    @property
    def reranks(self) -> bool:
        """Whether the reranker orders; else the retrieval score does."""
        return self.manifest.rerank

    @property
    def width(self) -> int:
        """D, of item and user vectors."""
        return self.manifest.config.width

    @property
    def text_width(self) -> int:
        """T, of the raw text vectors it takes."""
        return self.manifest.text_width

    @property
    def embedded_by(self) -> str:
        """The encoder whose text vectors it takes; empty where it does not say."""
        return self.manifest.embedded_by

    def user_vector(self, history: History, now_s: int) -> NDArray[np.float32]:
        """What a user wants now, by their newest events (a stranger has a vector too). [D], length 1."""
        history = self.newest(history)
        if self._quick is not None:
            return self._quick[0].newest(history.vectors, history.actions, history.times_s, now_s)
        with torch.inference_mode():
            vectors, actions, times_s, real = self._history(history)
            now = torch.tensor([now_s], device=self.device)
            newest = self.networks.tower.newest(vectors, actions, times_s, now, real)
            found: NDArray[np.float32] = newest[0].cpu().numpy()
        return found

    def search(self, user_vector: NDArray[np.float32], k: int) -> Found:
        """The rows that fit a user vector [D] best and their inner products, best first, at most `k`. Never row 0."""
        return self.index.search(user_vector, k)

    def related(self, vector: NDArray[np.float32], k: int) -> Found:
        """The rows most like an item vector [D] and their cosines, best first, at most `k`; the item itself, where it
        is one of the vocabulary, stands first."""
        length = float(np.linalg.norm(vector))
        return self.index.search(vector / length if length > 0 else vector, k)

    def new_item_vectors(self, text_vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors of items outside the vocabulary, by raw text [n, T] alone. [n, D]; without text: 0."""
        if len(text_vectors) == 0:
            return np.zeros((0, self.width), dtype=np.float32)
        assert text_vectors.shape[1] == self.text_width, f"{text_vectors.shape[1]} is not width {self.text_width}"
        with torch.inference_mode():
            reduced = torch.from_numpy(self.text_basis.reduced(text_vectors)).to(self.device)
            found: NDArray[np.float32] = self.networks.items.cold(reduced).cpu().numpy()
        return found

    def user_vectors(self, histories: Sequence[History], now_s: int) -> NDArray[np.float32]:
        """`user_vector` of several histories at once. [B, D]"""
        known = [self.newest(each) for each in histories]
        some = [row for row, each in enumerate(known) if len(each.times_s)]
        found = np.zeros((len(known), self.width), dtype=np.float32)
        if len(some) < len(known):  # the newest token of an empty history is the start, not the padding of others
            nobody = History(found[:0], np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
            found[:] = self.user_vector(nobody, now_s)
        if some:
            with torch.inference_mode():
                vectors, actions, times_s, real = self._padded([known[row] for row in some])
                now = torch.full((len(some),), now_s, device=self.device)
                found[some] = self.networks.tower.newest(vectors, actions, times_s, now, real).cpu().numpy()
        return found

    def rerank(
        self,
        history: History,
        now_s: int,
        candidate_vectors: NDArray[np.float32],
        features: NDArray[np.float32],
        retrieval_score: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """The chance that the user takes each candidate now, in (0, 1). float32 [C]

        candidate_vectors [C, D], features [C, F] as `manifest.feature_names` says, retrieval_score [C]: the user vector
        times the candidate's, whatever source proposed it. The order is the reranker's where `manifest.rerank` says so,
        else that of the retrieval score.
        """
        chances = self.rerank_rows([history], now_s, candidate_vectors, features[None], retrieval_score[None])
        own: NDArray[np.float32] = chances[0]
        return own

    def rerank_rows(
        self,
        histories: Sequence[History],
        now_s: int,
        candidate_vectors: NDArray[np.float32],
        features: NDArray[np.float32],
        retrieval_score: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """`rerank` of the same candidates [C, D] for several histories: features [B, C, F], retrieval_score [B, C]. All
        in one forward. float32 [B, C]"""
        shape = len(histories), len(candidate_vectors), len(self.manifest.feature_names)
        assert features.shape == shape, f"features {features.shape}, not {shape}"
        if not self.manifest.rerank:
            return self.manifest.retrieval_chances.chances(retrieval_score)
        newest = [self.newest(each) for each in histories]
        if self._quick is not None and len(newest) == 1:
            only, rows = newest[0], (features[0], retrieval_score[0])
            found = self._quick[1].logits(only.vectors, only.actions, now_s - only.times_s, candidate_vectors, *rows)
            return self.manifest.chances.chances(found[None])
        with torch.inference_mode():
            vectors, actions, times_s, real = self._padded(newest)
            candidates = self._one(candidate_vectors).expand(shape[0], -1, -1)
            logits = self.networks.reranker(
                vectors, actions, now_s - times_s, real, candidates, self._all(features), self._all(retrieval_score)
            )
            found = logits.cpu().numpy()
        return self.manifest.chances.chances(found)

    def attention(self, history: History, now_s: int, candidate_vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """How much the reranker looks at nothing (first) and at each event of the history, for each candidate; an event
        that it does not see has 0. float32 [C, H + 1]"""
        seen = self._seen(history)
        known = History(history.vectors[seen], history.actions[seen], history.times_s[seen])
        shares = np.zeros((len(candidate_vectors), len(history.times_s) + 1), dtype=np.float32)
        with torch.inference_mode():
            vectors, actions, times_s, real = self._padded([known])
            found = self.networks.reranker.attention(
                vectors, actions, now_s - times_s, real, self._one(candidate_vectors)
            )
            shares[:, np.append(0, seen + 1)] = found[0].cpu().numpy()
        return shares

    def calibrated(self, chances: Calibration, retrieval_chances: Calibration) -> ModelRelease:
        """The same release with chances learned for the logits of its reranker and for the retrieval score."""
        manifest = replace(self.manifest, chances=chances, retrieval_chances=retrieval_chances)
        return replace(self, manifest=manifest)

    def ordered_by(self, rerank: bool) -> ModelRelease:
        """The same release, ordering by its reranker or by the retrieval score."""
        return replace(self, manifest=replace(self.manifest, rerank=rerank))

    def newest(self, history: History) -> History:
        """The newest events of known items, as many as the towers were fitted to."""
        known = self._seen(history)
        if len(known) == len(history.times_s):
            return history
        return History(history.vectors[known], history.actions[known], history.times_s[known])

    def save(self, folder: Path) -> None:
        """Write the directory, whole or not at all. An existing one is never overwritten."""
        if folder.exists():
            raise FileExistsError(f"release folder {folder} exists already")
        beside = folder.with_name(f".{folder.name}.writing")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        try:
            self._write(beside)
            for each in beside.iterdir():
                _sync(each)
            _sync(beside)
            os.replace(beside, folder)
        except BaseException:  # a full disk is not filled further by what was left half written
            shutil.rmtree(beside, ignore_errors=True)
            raise
        _sync(folder.parent)

    @staticmethod
    def load(folder: Path, device: str = "auto") -> ModelRelease:
        """Read and check a directory. Raises ReleaseDamaged, naming the file, when anything is amiss."""
        manifest = read_manifest(folder)
        vocabulary = _read_vocabulary(folder)
        vectors = _arrays(folder, VECTORS)
        networks = _networks(manifest)
        weights = {name: torch.from_numpy(array) for name, array in _arrays(folder, WEIGHTS).items()}
        weights.setdefault(
            "reranker.by_place", torch.zeros_like(networks.reranker.by_place)
        )  # made before it was known
        try:
            networks.load_state_dict(weights)
            basis = TextBasis(vectors["text_mean"], vectors["text_projection"])
            index = FaissIndex.read(folder / INDEX)
            item_vectors = vectors["item_vectors"]
        except (RuntimeError, KeyError, ValueError) as error:
            raise ReleaseDamaged(f"release {folder.name}: its files do not fit each other: {error}") from error
        sizes = {VOCABULARY: len(vocabulary), VECTORS: len(item_vectors), INDEX: len(index) + 1}
        wrong = [f"{name} has {rows}" for name, rows in sizes.items() if rows != manifest.rows]
        if wrong:
            raise ReleaseDamaged(f"release {folder.name}: {manifest.rows} rows are promised, {', '.join(wrong)}")
        where = pick_device(device)
        return ModelRelease(manifest, vocabulary, item_vectors, basis, index, networks.to(where).eval(), where)

    def _write(self, folder: Path) -> None:
        ids = {"item_ids": self.vocabulary.item_ids, "kinds": self.vocabulary.kinds}
        (folder / VOCABULARY).write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
        weights = {name: value.cpu().contiguous().numpy() for name, value in self.networks.state_dict().items()}
        save_arrays(weights, folder / WEIGHTS)
        basis = self.text_basis
        arrays = {"item_vectors": self.item_vectors, "text_mean": basis.mean, "text_projection": basis.projection}
        save_arrays({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / VECTORS)
        self.index.write(folder / INDEX)
        digests = {name: _digest(folder / name) for name in (VOCABULARY, WEIGHTS, VECTORS, INDEX)}
        said = {**asdict(self.manifest), "files": digests}
        (folder / MANIFEST).write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def _seen(self, history: History) -> NDArray[np.int64]:
        """The places of the newest events of known items, as many as the towers were fitted to."""
        return np.flatnonzero(np.any(history.vectors != 0, axis=1))[-self.manifest.config.history :]

    def _history(self, history: History) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        times_s = self._one(history.times_s)
        real = torch.ones(times_s.shape, dtype=torch.bool, device=self.device)
        return self._one(history.vectors), self._one(history.actions), times_s, real

    def _padded(self, histories: Sequence[History]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Vectors [B, H, D], actions, times and what is real [B, H], padded at the front to the longest."""
        if len(histories) == 1:
            return self._history(histories[0])
        longest = max(len(each.times_s) for each in histories)
        vectors = np.zeros((len(histories), longest, self.width), dtype=np.float32)
        actions, times_s = np.zeros((2, len(histories), longest), dtype=np.int64)
        real = np.zeros((len(histories), longest), dtype=np.bool_)
        for row, each in enumerate(histories):
            start = longest - len(each.times_s)
            vectors[row, start:], actions[row, start:], times_s[row, start:] = each.vectors, each.actions, each.times_s
            real[row, start:] = True
        return self._all(vectors), self._all(actions), self._all(times_s), self._all(real)

    def _one(self, array: NDArray[Any]) -> Tensor:
        return self._all(array)[None]

    def _all(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def read_manifest(folder: Path) -> Manifest:
    """What a directory says of itself, after every file was checked against its digest. Raises ReleaseDamaged."""
    path = folder / MANIFEST
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        digests = said.pop("files")
        config = said.pop("config")
        config["reranker_hidden"] = tuple(config["reranker_hidden"])
        said["feature_names"] = tuple(said["feature_names"])
        said |= {name: Calibration.read(said.get(name)) for name in ("chances", "retrieval_chances")}
        manifest = Manifest(config=ModelConfig(**config), **said)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReleaseDamaged(f"release {folder.name}: {MANIFEST} cannot be read: {error}") from error
    if manifest.format != FORMAT:
        raise ReleaseDamaged(f"release {folder.name}: {MANIFEST} is of format {manifest.format}, not {FORMAT}")
    for name in (VOCABULARY, WEIGHTS, VECTORS, INDEX):
        if not (folder / name).is_file():
            raise ReleaseDamaged(f"release {folder.name}: {name} is missing")
        if digests.get(name) != _digest(folder / name):
            raise ReleaseDamaged(f"release {folder.name}: {name} is not what was written: its checksum differs")
    return manifest


def _networks(manifest: Manifest) -> Networks:
    config = manifest.config
    return Networks(
        ItemEncoder(manifest.rows, config),
        UserTower(manifest.actions, config),
        Reranker(manifest.actions, len(manifest.feature_names), config),
    )


def _read_vocabulary(folder: Path) -> Vocabulary:
    try:
        said = json.loads((folder / VOCABULARY).read_text(encoding="utf-8"))
        return Vocabulary(tuple(said["item_ids"]), tuple(said["kinds"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReleaseDamaged(f"release {folder.name}: {VOCABULARY} cannot be read: {error}") from error


def _arrays(folder: Path, name: str) -> dict[str, NDArray[Any]]:
    try:
        arrays: dict[str, NDArray[Any]] = load_arrays(folder / name)
    except (OSError, SafetensorError) as error:
        raise ReleaseDamaged(f"release {folder.name}: {name} cannot be read: {error}") from error
    return arrays


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
