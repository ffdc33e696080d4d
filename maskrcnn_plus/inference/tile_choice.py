"""Which images are predicted by tiles: those that the network would otherwise see smaller than others, or all at once.

- Of a config that magnifies every image by one factor, or by one that follows from its objects, images above the area
  of four tiles, and those that the limit of its longer side would shrink.
- Of a config that brings every image to one size (`ResizeShortestEdge`), long images whose longer side's limit would
  shrink them to less than half of the scale of a square image with the same shorter side. Their tiles are such squares.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.inference.tiling import INPUT_SIDE, plan_tiling

TILED_FROM = 4
"""With tile="auto", images of more than so many tiles' pixels are tiled."""

_LEAST_FIXED, _LEAST = 0.95, 0.5


def tile_size(text: str) -> int | str:
    """The `tile` that a command line says."""
    return text if text in ("auto", "off") else int(text)


tile_size.__name__ = "SIZE|auto|off"  # how argparse calls it in an error


class TileChoice:
    """Decides for each image of a run."""

    def __init__(self, predictor: Predictor, tile: int | str) -> None:
        """Plan the tiles.

        Args:
            predictor: the model and its mapper.
            tile: side of the tiles of all images, in pixels; "auto", see above; "off" for none.

        Raises:
            ValueError: another `tile`, or one that is too small.
        """
        if tile not in ("auto", "off") and not isinstance(tile, int):
            raise ValueError(f'tile is {tile!r}, it must be a side in pixels, "auto" or "off"')
        self.tile = tile if isinstance(tile, str) else plan_tiling(predictor, tile_size=tile).tile_size
        self.predictor, self.fixed = predictor, predictor.fixed_scale
        self.area = TILED_FROM * plan_tiling(predictor).tile_size ** 2 if self.fixed else math.inf
        self.options = lru_cache(maxsize=256)(self.options)  # most images of a run have one size

    def options(self, height: int, width: int, diameter: float | None = None) -> dict[str, Any] | None:
        """Arguments of `predict_tiled` for an image; None where it is predicted whole.

        Args:
            height, width: of the image, pixels.
            diameter: `Predictor.find_diameter` of it.
        """
        if self.tile == "off":
            return None
        if self.tile != "auto":
            return {"tile_size": self.tile}
        if self.predictor.auto_scale is not None:
            scaling = self.predictor.auto_scale.scaling
            scale, longest = scaling.scale(diameter), scaling.max_size
            is_large = height * width * scale**2 > TILED_FROM * INPUT_SIDE**2
            is_large |= _LEAST_FIXED * scale * max(height, width) > longest
            return {"tile_size": None} if is_large else None
        if height * width > self.area:
            return {"tile_size": None}
        short, long = sorted((height, width))
        if long <= (512 if self.fixed else 2 * short):
            return None
        scale, least = self.predictor.usual_scale(height, width), _LEAST_FIXED if self.fixed else _LEAST
        return {"scale": scale} if self.predictor.get_scale(height, width) < least * scale else None
