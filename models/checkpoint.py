"""How far a fit of a tower has come, as one file that is replaced after every epoch. It can run no code.

tower.safetensors      weights, the best weights, the optimizer's moments, the states of chance; in its header, as
                       JSON: which epoch, what was best, and a fingerprint of all that went in
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.batches import HeldOut, Sequences
from models.config import ModelConfig
from models.vocabulary import Vocabulary

NAME = "tower.safetensors"


@dataclass(frozen=True, slots=True)
class Reached:
    """Where a run stands after so many epochs: tensors by part and name, steps taken, the best epoch and its NDCG@10,
    and the state of the generator that orders the batches."""

    parts: Mapping[str, Mapping[str, Tensor]]
    epoch: int
    taken: int
    best_epoch: int
    best_ndcg: float
    order: Any


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoint of one fit, in a folder of its own. `fingerprint`: of what it is fitted to (`fingerprint_of`)."""

    folder: Path
    fingerprint: str

    def read(self, device: torch.device) -> Reached | None:
        """Where a run with this fingerprint came to, and torch's chance as it was then; None where there is none, or a
        file that cannot be read."""
        try:
            with safe_open(self.folder / NAME, framework="pt") as file:
                said = json.loads(file.metadata()["reached"])
                if said.pop("fingerprint") != self.fingerprint:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None
        torch.set_rng_state(tensors.pop("chance"))
        if "chance_gpu" in tensors:
            torch.cuda.set_rng_state(tensors.pop("chance_gpu"), device)
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            part, _, rest = name.partition("/")
            parts.setdefault(part, {})[rest] = value.to(device)
        return Reached(parts, **said)

    def write(self, reached: Reached) -> None:
        """Replace the file, whole or not at all."""
        tensors = {f"{part}/{name}": value for part, of in reached.parts.items() for name, value in of.items()}
        tensors["chance"] = torch.get_rng_state()
        if any(value.is_cuda for value in tensors.values()):
            tensors["chance_gpu"] = torch.cuda.get_rng_state()
        said = {field.name: getattr(reached, field.name) for field in fields(reached) if field.name != "parts"}
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self.folder / f".{NAME}.writing"
        # Copies: the best weights may be the same memory as the newest, which the format does not take.
        whole = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
        save_file(whole, beside, {"reached": json.dumps({**said, "fingerprint": self.fingerprint})})
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, self.folder / NAME)


def forget(folder: Path) -> None:
    """Remove what a fit left in its folder: nothing is to be resumed."""
    (folder / NAME).unlink(missing_ok=True)


def fingerprint_of(
    sequences: Sequences, validation: HeldOut, text_vectors: NDArray[np.float32], vocabulary: Vocabulary,
    config: ModelConfig,
) -> str:  # fmt: skip
    """Of all that a fit depends on but the machine: equal inputs have equal ones."""
    digest = hashlib.sha256(torch.__version__.encode())
    ids = [vocabulary.item_ids, vocabulary.kinds]
    digest.update(json.dumps([asdict(config), ids]).encode())
    prefixes = validation.prefixes
    for array in (
        sequences.rows, sequences.actions, sequences.positive, sequences.times_s, sequences.offsets, text_vectors,
        validation.target_rows, prefixes.rows, prefixes.actions, prefixes.times_s, prefixes.now_s,
    ):  # fmt: skip
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
