"""Which device the models use."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one, else the CPU; otherwise the device named. Raises ValueError."""
    _leave_out_kernels()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is none: use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} is wanted and this machine has no usable GPU: use auto or cpu")
    return device


def moved(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array on a device. To a GPU through memory that it may read while the program goes on."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def half_precision(device: torch.device, wanted: bool | None = None) -> AbstractContextManager[Any]:
    """Products of matrices in bfloat16 as long as this lasts: on GPUs that can, unless it is said."""
    if wanted is None:
        wanted = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16) if wanted else nullcontext()


def compiled(blocks: Iterable[nn.Module], device: torch.device) -> None:
    """Compile each block for lengths that vary. On GPUs alone: for a CPU the machine would need a C++ compiler."""
    if device.type == "cuda":
        for block in blocks:
            block.compile(dynamic=True)


@contextmanager
def fast_products(device: torch.device) -> Iterator[None]:
    """Products of float32 matrices in TensorFloat-32 on a GPU as long as this lasts."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _leave_out_kernels() -> None:
    """Keep triton out of a process without a GPU. PyTorch and transformers load it on the way to other things, and
    it compiles kernels for GPUs only: 66 MB."""
    if not torch.cuda.is_available():
        sys.modules.setdefault("triton", None)  # type: ignore[arg-type]
