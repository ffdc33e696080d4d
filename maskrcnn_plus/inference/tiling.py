"""Images of any size, predicted by overlapping tiles that are read from disk as they are needed.

    instances = predict_tiled(predictor, "slide.tif")

Every tile is predicted alone, at one scale and normalised by the grey values of the whole image; then
`maskrcnn_plus.masks.merge` makes the objects of the image from those of the tiles. How objects at the borders of tiles
are told to be complete, doubled or cut is drawn and explained there.

What is chosen where it is not given:
- scale (pixels of the network's input for one of the image): that of the config's test mapper where it does not depend
  on the size of the image (`ScaleImage`), else 1. A mapper that shrinks every image to one size (`ResizeShortestEdge`)
  knows no scale, so look at the size that objects had in training. One that brings objects to one diameter
  (`ScaleToDiameter`) has one scale for all tiles, from the diameter that is given or estimated once.
- tile_size: so many pixels that the network's input has about 1024, or those that a mapper shrinks every image to.
- overlap: so large that an object of the size of the largest anchor is complete in some tile, but at most a fifth of a
  tile, since all tiles together cover (tile_size / (tile_size - overlap))^2 times the image. Larger objects are put
  together from their parts. Give a larger overlap if objects above 0.9 * overlap - 4 pixels are many.

Where it can be, tiles begin at multiples of the network's coarsest stride, so that it samples an object in the same way
in each of them, and as in the image as a whole.

Time is linear in the area of the image, memory is that of one tile and of the objects' RLEs.

Shape shorthand: N objects of an image of H x W pixels, C channels.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances
from tqdm import tqdm

from maskrcnn_plus.allocator import HeapLimit
from maskrcnn_plus.data.augmentation import ScaleImage
from maskrcnn_plus.data.channels import get_rule
from maskrcnn_plus.data.pixel_size import tiff_pixel_size
from maskrcnn_plus.data.windows import ImageWindows, open_windows
from maskrcnn_plus.inference.auto_scale import choose_diameter
from maskrcnn_plus.inference.background import find_background
from maskrcnn_plus.inference.examples import find_fixed_scale
from maskrcnn_plus.inference.kept_tiles import KeptTiles
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.masks.merge import TileObjects, merge_tiles
from maskrcnn_plus.masks.rle_masks import RLEMasks
from maskrcnn_plus.results.predictions import Predictions

INPUT_SIDE = 1024
"""Side of a tile in pixels of the network's input, where the config's mapper does not set it."""


@dataclass(frozen=True)
class Tiling:
    """How an image is tiled.

    Attributes:
        tile_size: side of a tile, pixels of the image.
        overlap: pixels that neighbours share at least.
        scale: pixels of the network's input for one of the image.
        grain: tiles begin at multiples of so many pixels.
    """

    tile_size: int
    overlap: int
    scale: float
    grain: int = 1


def predict_tiled(
    predictor: Predictor,
    source: str | os.PathLike | np.ndarray | ImageWindows,
    *,
    tile_size: int | None = None,
    overlap: int | None = None,
    scale: float | None = None,
    diameter: float | None = None,
    skip_background: bool = False,
    kept: KeptTiles | None = None,
    progress: bool = True,
    on_tile: Callable[[int, int], None] | None = None,
) -> Instances:
    """Predict the objects of an image by overlapping tiles.

    An interrupt (Ctrl-C) ends it at once and closes the file; of its results nothing is there but `kept`.

    Args:
        predictor: a predictor of masks.
        source: path, array [H, W] or [H, W, C] in RGB order, or windows from `open_windows` (of a page of a stack).
        tile_size, overlap, scale: see `Tiling` and, for the default, the top of this file.
        diameter: in place of `scale`, of the objects in pixels; see `Predictor.predict`.
        skip_background: tiles with nothing in them, see `maskrcnn_plus.inference.background`, are not predicted.
        kept: keeps tiles as they are predicted, and has those of a call before that was stopped, which are not
            predicted again. The result is that of a call that was not.
        progress: show a progress bar with the time left, where standard error is a terminal.
        on_tile: called before each tile with how many are done and how many there are; what it raises ends the
            prediction.

    Returns:
        `Predictions` as from `Predictor.predict`, in the coordinates of the image: `pred_boxes`, `scores` in falling
        order, `pred_classes` and `pred_masks_rle`.

    Raises:
        ImageReadError: the image cannot be used; the message names it.
        ValueError: sizes or scale out of range, a model without masks, or an image of 2**32 pixels or more.
    """
    is_open, rule = isinstance(source, ImageWindows), get_rule(predictor.mapper)
    with nullcontext(source) if is_open else open_windows(source, rule=rule) as windows:
        height, width, _ = windows.shape
        if height * width >= 2**32:
            raise ValueError(
                f"{windows.name}: {height} x {width} pixels are more than the 2**32 - 1 that an RLE can count"
            )
        windows = windows.pick(rule)
        auto_scale = choose_diameter(getattr(predictor, "auto_scale", None), diameter)
        if auto_scale is not None and scale is None:
            diameter = auto_scale.find_in_windows(windows, lambda: predictor.intensity_range(windows))
            scale = auto_scale.scale(diameter)
        tiling = plan_tiling(predictor, tile_size, overlap, scale)
        predictor = _at_scale(predictor, tiling.scale, *(min(side, tiling.tile_size) for side in (height, width)))
        limits = predictor.intensity_range(windows)
        limit = predictor.max_objects
        lowest: list[float] = []  # score in each tile with as many objects as the model gives at most
        tiles = []
        corners = list(product(tile_starts(height, tiling), tile_starts(width, tiling)))
        if skip_background:
            empty = find_background(windows, corners, tiling.tile_size)
            corners = [corner for corner, is_empty in zip(corners, empty, strict=True) if not is_empty]
            if any(empty):
                _say(f"{windows.name}: {sum(empty)} of {len(empty)} tiles are background and are skipped")
        before = {} if kept is None else kept.begin(f"{tiling} {limits} {windows.shape} {windows.dtype}")
        if before:
            _say(f"{windows.name}: {len(before)} of {len(corners)} tiles are there from an earlier run")
        name = os.path.basename(windows.name)
        limit_heap = HeapLimit()
        bar = tqdm(corners, desc=name, unit="tile", disable=None if progress else True)
        for number, (y, x) in enumerate(bar):
            if on_tile is not None:
                on_tile(number, len(corners))
            tile = before.get((x, y))
            if tile is None:
                part = windows.part(x, y, min(tiling.tile_size, width - x), min(tiling.tile_size, height - y))
                tile = _predict_tile(predictor, part, limits, x, y)
                if kept is not None:
                    kept.add(tile)
                limit_heap()
            if limit is not None and len(tile.scores) >= limit:
                lowest.append(float(tile.scores.min()))
            tiles.append(tile)
    if lowest:
        logging.getLogger(__name__).warning(
            "%s: in %d of %d tiles the model found %d objects, its limit, so that more may be missing (the lowest "
            "score there is %.2f): give a tile_size below %d, or raise the limit (model.roi_heads.box_predictor."
            "test_topk_per_image) of the config.",
            *(windows.name, len(lowest), len(tiles), limit, max(lowest), tiling.tile_size),
        )
    merged = merge_tiles(tiles, height, width, reach=tiling.overlap / 2)
    return Predictions(
        (height, width),
        class_names=getattr(predictor, "class_names", None),
        category_ids=getattr(predictor, "category_ids", None),
        pixel_size=tiff_pixel_size(windows.name),
        image=None if is_open else source if isinstance(source, np.ndarray) else os.fspath(source),
        object_diameter=diameter,
        channel_rule=rule,
        pred_boxes=Boxes(torch.from_numpy(merged.boxes).float()),
        scores=torch.from_numpy(merged.scores).float(),
        pred_classes=torch.from_numpy(merged.classes),
        pred_masks_rle=RLEMasks(merged.rles, (height, width)),
    )


def plan_tiling(
    predictor: Predictor, tile_size: int | None = None, overlap: int | None = None, scale: float | None = None
) -> Tiling:
    """Choose what is not given, see the top of this file.

    Raises:
        ValueError: a tile of less than 32 px, an overlap that is negative or above half of the tile, or a scale that is
            not above 0.
    """
    fixed = find_fixed_scale(predictor.get_scale)
    if scale is None:
        scale = fixed or 1.0
    if not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}, it must be a finite number above 0")
    grain = _grain(predictor.model, scale)
    if tile_size is None:
        tile_size = (INPUT_SIDE if fixed else 1024 * predictor.get_scale(1024, 1024)) / scale
        tile_size = max(round(tile_size / grain) * grain, 32)
    if tile_size < 32:
        raise ValueError(f"tile_size is {tile_size}, it must be at least 32 pixels")
    if overlap is None:
        overlap = tile_size // 5
        largest = _largest_anchor(predictor.model)
        if largest is not None:
            overlap = min(overlap, math.ceil((largest / scale + 4) / 0.9))
    if not 0 <= overlap <= tile_size // 2:
        raise ValueError(f"overlap is {overlap}, it must be 0 to {tile_size // 2}, half of the tile's {tile_size} px")
    worthwhile = 4 * grain <= tile_size - overlap  # else rounding to it would cost many more tiles
    return Tiling(int(tile_size), int(overlap), float(scale), grain if worthwhile else 1)


def tile_starts(length: int, tiling: Tiling) -> list[int]:
    """First pixels of the tiles along a side of an image of `length` pixels: as few as do, spread evenly.

    Returns:
        Rising; [0] where one tile covers the side. The last tile ends with the image, up to `grain` - 1 px smaller than
        the others.
    """
    if length <= tiling.tile_size:
        return [0]
    last = math.ceil((length - tiling.tile_size) / tiling.grain)  # all in grains
    steps = math.ceil(last / ((tiling.tile_size - tiling.overlap) // tiling.grain))
    return [index * last // steps * tiling.grain for index in range(steps + 1)]


def _predict_tile(
    predictor: Predictor, part: ImageWindows, limits: tuple[float, float] | None, x: int, y: int
) -> TileObjects:
    """Objects of the tile whose upper left pixel is at x, y."""
    found = predictor.predict(part, intensity_range=limits)
    if not found.has("pred_masks_rle"):
        raise ValueError("prediction by tiles needs masks to tell objects apart at the borders, the model has none")
    boxes, scores = found.pred_boxes.tensor.detach().numpy(), found.scores.detach().numpy()
    classes = found.pred_classes.numpy()
    return TileObjects(x, y, *found.image_size, boxes, scores, classes, found.pred_masks_rle)


def _say(line: str) -> None:
    """Show a line beside the progress bar."""
    tqdm.write(line, file=sys.stderr)


def _at_scale(predictor: Predictor, scale: float, height: int, width: int) -> Predictor:
    """The predictor, or a copy (of the same model) that magnifies images of [height, width] by `scale`."""
    auto_scale = getattr(predictor, "auto_scale", None)
    if auto_scale is None and math.isclose(predictor.get_scale(height, width), scale, rel_tol=0.01):
        return predictor
    scaled = copy.copy(predictor)
    scaled.auto_scale = None
    scaled.mapper = copy.copy(predictor.mapper)
    scaled.mapper.augmentations = T.AugmentationList([ScaleImage(scale, max_size=2**30)])
    return scaled


def _grain(model: torch.nn.Module, scale: float) -> int:
    """Pixels of the image that are a whole multiple of the network's coarsest stride at `scale`; 1 without any."""
    stride = max(getattr(getattr(model, "backbone", None), "size_divisibility", 0), 1)
    multiples = (stride * count / scale for count in range(1, 9))
    return next((round(pixels) for pixels in multiples if abs(pixels - round(pixels)) < 1e-6 <= pixels), 1)


def _largest_anchor(model: torch.nn.Module) -> float | None:
    """Square root of the largest anchor's area in pixels of the network's input; None for a model without anchors."""
    generator = getattr(getattr(model, "proposal_generator", None), "anchor_generator", None)
    anchors = [level for level in getattr(generator, "cell_anchors", []) if len(level)]
    return max((float(Boxes(level).area().max()) ** 0.5 for level in anchors), default=None)
