"""How much larger or smaller than in its file the network sees an image of a given size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from maskrcnn_plus.data.channels import ChannelRule, get_rule
from maskrcnn_plus.data.windows import ImageWindows
from maskrcnn_plus.inference.examples import make_example


class InputScale:
    """Pixels of the network's input for one of an image (of the longer side), as a mapper resizes it."""

    def __init__(self, mapper: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Keep `dataloader.test.mapper` of a config; it is asked once for each size, with a black image."""
        self.mapper = mapper
        self._known: dict[tuple[int, int], float] = {}

    def __call__(self, height: int, width: int) -> float:
        """The scale of images of height x width pixels."""
        if (height, width) not in self._known:
            self._known[height, width] = self._measure(height, width)
        return self._known[height, width]

    def _measure(self, height: int, width: int) -> float:
        channels = get_rule(self.mapper).count or 3
        blank = ImageWindows("the image", np.zeros((height, width, channels), dtype=np.uint8)).pick(ChannelRule(None))
        example = make_example(self.mapper, blank, "the image", None)
        return max(example["image"].shape[1:]) / max(height, width)


def find_fixed_scale(get_scale: Callable[[int, int], float]) -> float | None:
    """The scale of every image but huge ones; None where images of all sizes are brought to one."""
    large, small = (get_scale(side, side) for side in (1024, 512))
    return small if math.isclose(large, small, rel_tol=0.01) else None
