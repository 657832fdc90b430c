"""One of several processes that fit a tower together, as `torchrun` would start it: fits, and writes the item vectors.

Usage: ranks_runner.py OUT BATCH_TARGETS CHECKPOINTS
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from model_world import ITEMS, TINY, VOCABULARY, checkerboard
from numpy.typing import NDArray

from models.fit import fit_tower


def fitted_vectors(targets: int, checkpoints: Path) -> NDArray[np.float32]:
    """Item vectors of a tower that is fitted with batches of so many targets."""
    config = replace(TINY, dropout=0.0, id_dropout=0.0, epochs_max=2, batch_targets=targets)
    texts = np.zeros((ITEMS + 1, 6), dtype=np.float32)
    return fit_tower(checkerboard(), VOCABULARY, texts, config, device="cpu", checkpoints=checkpoints).vectors


if __name__ == "__main__":
    np.save(f"{sys.argv[1]}-{os.environ['RANK']}.npy", fitted_vectors(int(sys.argv[2]), Path(sys.argv[3])))
