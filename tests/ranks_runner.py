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

from models.fit import fit_tower

if __name__ == "__main__":
    config = replace(TINY, dropout=0.0, id_dropout=0.0, epochs_max=2, batch_targets=int(sys.argv[2]))
    texts = np.zeros((ITEMS + 1, 6), dtype=np.float32)
    fitted = fit_tower(checkerboard(), VOCABULARY, texts, config, device="cpu", checkpoints=Path(sys.argv[3]))
    np.save(f"{sys.argv[1]}-{os.environ.get('RANK', 'alone')}.npy", fitted.vectors)
