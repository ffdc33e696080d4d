"""The check of a constructor's arguments, in one place."""

from __future__ import annotations

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
