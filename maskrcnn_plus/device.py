"""The device that a config asks for."""

from __future__ import annotations

import torch


def usable_device(name: str) -> torch.device:
    """The device of a config's `train.device`, where "auto" is the GPU if there is one.

    Raises:
        ValueError: PyTorch does not know it, or it is a GPU and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device (config key `train.device`) {name!r} is not one that PyTorch knows") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device (config key `train.device`) {name!r}: no CUDA device is available here, use 'cpu'")
    return device
