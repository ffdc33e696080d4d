"""Repeating images with rare classes, so that they are seen more often in training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

_SEED = 0


def repeat_rare(records: Sequence[dict[str, Any]], threshold: float) -> list[dict[str, Any]]:
    """Repeat images by their rarest class.

    An image is taken max(1, sqrt(threshold / f)) times, where f is the part of the images that have its rarest class.
    Source: Gupta et al., "LVIS" (2019), Sec. 3.3. Numbers are rounded up or down by chance, once, by a fixed seed.

    Args:
        records: dataset dicts with `annotations`.
        threshold: in 0..1; 0 repeats nothing.

    Returns:
        The dicts, with repeated ones in turn.
    """
    classes = [{each["category_id"] for each in record["annotations"]} for record in records]
    images = Counter(index for found in classes for index in found)
    factors = {index: max(1.0, (threshold * len(records) / count) ** 0.5) for index, count in images.items()}
    draws = np.random.default_rng(_SEED).random(len(records))
    repeats = [
        int(max((factors[index] for index in found), default=1.0) + draw)
        for found, draw in zip(classes, draws, strict=True)
    ]
    return [record for record, count in zip(records, repeats, strict=True) for _ in range(count)]
