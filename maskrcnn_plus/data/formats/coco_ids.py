"""Ids of COCO files: numbers, or text that stands for them."""

from __future__ import annotations

import math
from typing import Any


def canonical_id(value: Any) -> int | float | str | None:
    """What an id is looked up by: 1, 1.0 and "1" are the same; None of what is no id."""
    if isinstance(value, str):
        value = value.strip()
        return int(value) if value.lstrip("-").isdecimal() and str(_int(value)) == value else value or None
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, float) or not math.isfinite(value):
        return None
    return int(value) if value.is_integer() else value


def _int(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:  # "--1", or thousands of digits
        return None


def id_order(key: Any) -> tuple[bool, Any]:
    """Numbers first, as ids of both kinds cannot be compared."""
    return isinstance(key, str), key
