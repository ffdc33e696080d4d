"""The device that a config asks for, and what it can."""

from __future__ import annotations

import platform

import torch
from torch import nn

SATURATES = (
    "This CPU has no VNNI: sums of two products of 8 bits saturate at 16 bits in its instructions (AVX2), which can "
    "falsify results."
)


def default_device() -> str:
    """ "cuda" where there is a GPU, else "cpu": for configs, as Detectron2's tools know no "auto"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def named_device(name: str) -> torch.device:
    """The device of a config's `train.device`, where "auto" is the GPU if there is one; nothing is put there yet.

    Raises:
        ValueError: PyTorch does not know it, or it is a GPU and there is none.
    """
    if name == "auto":
        name = default_device()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"device (config key `train.device`) {name!r} is not one that PyTorch knows: auto, cpu, cuda, cuda:1"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device (config key `train.device`) {name!r}: no CUDA device is available here, use 'cpu'")
    return device


def usable_device(name: str) -> torch.device:
    """The device of `named_device`, after a first tensor there; "cuda" is the current GPU of this process.

    Raises:
        ValueError: PyTorch does not know the device, or cannot use it here.
    """
    device = named_device(name)
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition(". ")[0] or type(error).__name__
        raise ValueError(f"device (config key `train.device`) {name!r} cannot be used here: {reason}") from error
    return device


def use_channels_last(model: nn.Module) -> nn.Module:
    """Bring the kernels of a model's 2D convolutions into channels_last memory, in place, and give the model.

    `Module.to(memory_format=torch.channels_last)` would refuse tensors of five dimensions, which some networks have.
    A model with a head for keypoints stays as it is: Detectron2's loss of them takes contiguous memory alone.
    """
    if getattr(getattr(model, "roi_heads", None), "keypoint_on", False):
        return model
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return model


def emulates_bfloat16(device_type: str) -> bool:
    """Whether bfloat16 costs time here instead of saving it: on an x86 CPU with neither AVX512-BF16 nor AMX."""
    if device_type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    checks = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return all(checks) and not any(check() for check in checks)


def saturates() -> bool:
    """Whether this is an x86 CPU without VNNI, where 8-bit weights must keep to half of their range."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    if hasattr(torch.cpu, "get_capabilities"):
        return not any(torch.cpu.get_capabilities().get(name) for name in ("avx512_vnni", "avx_vnni"))
    return not torch.cpu._is_vnni_supported()
