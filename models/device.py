"""Which device the models use."""

from __future__ import annotations

import torch


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one, else the CPU; otherwise the device named. Raises ValueError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is none: use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} is wanted and this machine has no usable GPU: use auto or cpu")
    return device
