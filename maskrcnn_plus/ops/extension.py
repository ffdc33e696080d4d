"""The compiled operators: loads `maskrcnn_plus._C` and knows why it is missing where it is.

Callers ask `is_available()` and fall back to plain PyTorch or torchvision; the first fallback warns once.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

_REBUILD = "build it with `pip install --no-build-isolation .` in the environment that holds PyTorch"


def _load() -> str:
    """Load the operators; returns why that failed, "" where it did not."""
    folder = Path(__file__).parents[1]
    libraries = sorted(folder.glob("_C*.so")) + sorted(folder.glob("_C*.pyd"))
    if not libraries:
        return f"it was left out of this installation; {_REBUILD}"
    try:
        torch.ops.load_library(str(libraries[0]))
    except OSError as error:
        return f"it cannot be loaded ({error}), often because PyTorch changed since it was built; {_REBUILD}"
    return ""


_why_missing = _load()
_warned = False


def is_available() -> bool:
    """True where the operators of `torch.ops.maskrcnn_plus` are loaded."""
    return not _why_missing


def why_missing() -> str:
    """Why the compiled operators are missing and what to do; "" where they are loaded."""
    return _why_missing


def warn_once(feature: str) -> None:
    """Say once a process that `feature` runs without the compiled operators, and why."""
    global _warned
    if _why_missing and not _warned:
        _warned = True
        warnings.warn(f"maskrcnn_plus runs without its compiled operators ({feature}): {_why_missing}.", stacklevel=3)
