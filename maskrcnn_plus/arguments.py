"""The checks of arguments, of constructors and of command lines, in one place."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def check_arguments(**checks: tuple[Any, bool, str]) -> None:
    """Refuse the first argument that is out of range.

    Args:
        **checks: by the argument's name: its value, whether it is accepted, and what it must be, in words.

    Raises:
        ValueError: naming the argument, what it must be and what it is.
    """
    for name, (value, accepted, wanted) in checks.items():
        if not accepted:
            raise ValueError(f"{name} must be {wanted}, got {value!r}.")


def check_range(name: str, bounds: Sequence[float], minimum: float, inclusive: bool = True) -> tuple[float, float]:
    """Return (low, high) as floats, or raise a ValueError that names the argument."""
    wanted = f"{name} must be a pair (low, high), low <= high, of finite numbers {'>=' if inclusive else '>'} {minimum}"
    if isinstance(bounds, str) or not isinstance(bounds, Sequence) or len(bounds) != 2:
        raise ValueError(f"{wanted}, got {bounds!r}.")
    low, high = (float(bound) for bound in bounds)
    if not (low <= high < float("inf")) or low < minimum or (low == minimum and not inclusive):
        raise ValueError(f"{wanted}, got {bounds!r}.")
    return low, high


def output_folder(text: str) -> Path:
    """The folder that a command line names for its results, which need not be there: a `type` for argparse."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty; name a folder")
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file; name a folder")
    return path


def output_address(text: str) -> str:
    """As `output_folder`, or an address of an object store."""
    return text if "://" in text else str(output_folder(text))
