"""Which device the models use."""

from __future__ import annotations

import sys

import torch


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


def _leave_out_kernels() -> None:
    """Keep triton out of a process without a GPU. PyTorch and transformers load it on the way to other things, and
    it compiles kernels for GPUs only: 66 MB."""
    if not torch.cuda.is_available():
        sys.modules.setdefault("triton", None)  # type: ignore[arg-type]
