"""What a process keeps in memory: nothing that was freed, and no compiler for a GPU that is not there."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

HELD = """
import numpy, psutil
from services import heap
here = psutil.Process()
blocks = [numpy.ones(8000) for _ in range(4000)]  # 64 kB each: below what the C library maps one by one
kept = [blocks[-1]]
del blocks
held = here.memory_info().rss
heap.give_back()
print((held - here.memory_info().rss) // 2**20)
"""

LOADED = """
import sys
from models.device import pick_device
device = pick_device("auto")
import torch
torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
print(device.type, "torch._dynamo" in sys.modules, sys.modules.get("triton") is not None)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library gives memory back in its own way")
def test_memory_that_was_freed_goes_back_to_the_system() -> None:
    assert int(_said(HELD)) > 100, "250 MB lay free below one block that is still in use"


def test_without_a_gpu_no_kernel_compiler_is_loaded() -> None:
    device, optimizer_looked, loaded = _said(LOADED).split()
    assert optimizer_looked == "True", "what loads the compiler did not run: this test would prove nothing"
    assert (loaded == "True") == (device == "cuda")


def _said(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100)
    return done.stdout.strip()
