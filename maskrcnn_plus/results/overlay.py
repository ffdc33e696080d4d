"""Instances drawn over their image: translucent masks with crisp outlines, in colours that tell neighbours apart.

Drawing is by supervision on crops of each object, so that no N x H x W array is made here.
Shape shorthand: N objects of one image of H x W pixels, K colours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
import supervision as sv

from maskrcnn_plus.arrays import as_array
from maskrcnn_plus.data.channels import ChannelRule
from maskrcnn_plus.data.pixels import prepare_image
from maskrcnn_plus.data.windows import ImageWindows
from maskrcnn_plus.masks.measure import reduce_rles, rle_areas, rle_boxes
from maskrcnn_plus.masks.rle_masks import RLEMasks, instance_masks
from maskrcnn_plus.results.facts import known_class_names

if TYPE_CHECKING:
    from detectron2.structures import Instances

MAX_PIXELS = 2**26
"""Larger images are drawn on reduced ones: few viewers open larger pictures, and few machines have the memory."""

MAX_SIDE = 2**15
"""The same of a side, in pixels: supervision's masks allow no more."""

MAX_LABELS = 15
"""With more objects than this, score labels would hide the image and are left out."""

BASE_COLOURS = (
    *("#ff5964", "#18c5f4", "#ffd23f", "#5be37d", "#b98cff", "#ff9233"),
    *("#2fe0c2", "#f56cc3", "#c3f04a", "#6f8cff", "#ffb3a7", "#9be7ff"),
)
SHADES = (0.0, 0.35, -0.25)
"""Of each class colour with several classes: as it is, mixed with white, mixed with black."""


def draw_overlay(
    image: np.ndarray,
    instances: Instances,
    class_names: Sequence[str] | None = None,
    colour_by: str | None = None,
) -> np.ndarray:
    """Draw the masks of an image's instances over it.

    With one class, neighbouring objects differ in colour; with several, the colour is the class's and neighbours of
    the same class differ in shade. Of up to 15 objects, those large enough for it carry a label
    with their score (and class, if several).

    Args:
        image: [H, W, 3] uint8 RGB.
        instances: with `pred_classes`, `pred_masks_rle` or `pred_masks` [N, H, W] bool, and `scores`, without which
            labels have none, as of annotations.
        class_names: name of each class; by default those that the instances know (`Predictions`).

        colour_by: "class" or "instance"; None decides by the number of classes.

    Returns:
        [H, W, 3] uint8 RGB, a new array.

    Raises:
        ValueError: image and instances differ in size, there are no masks, the image is not [H, W, 3] uint8, or
            another `colour_by`.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"an overlay needs an RGB image [H, W, 3] of uint8, not {image.shape} of {image.dtype}")
    if image.shape[:2] != tuple(instances.image_size):
        raise ValueError(f"the image has size {image.shape[:2]} (H, W) but its instances {instances.image_size}")
    if colour_by not in (None, "class", "instance"):
        raise ValueError(f"colour_by is {colour_by!r}: use 'class' or 'instance'")
    class_names = known_class_names(instances, class_names)
    canvas = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    rles = instance_masks(instances)
    visible = np.flatnonzero(rle_areas(rles))
    if len(visible) == 0:
        return image.copy()
    rles = [rles[k] for k in visible]
    classes = as_array(instances.pred_classes)[visible]
    scores = as_array(instances.scores)[visible] if instances.has("scores") else None
    boxes = rle_boxes(rles) - [0, 0, 1, 1]  # the last pixel included, as supervision has it
    several = len(class_names) > 1 if class_names else bool(classes.any())

    detections = sv.Detections(
        xyxy=boxes,
        mask=sv.CompactMask.from_coco_rle(rles, boxes, image.shape[:2]),
        confidence=scores,
        class_id=classes,
    )
    palette = sv.ColorPalette.from_hex([colour for k in range(len(BASE_COLOURS)) for colour in class_shades(k)])
    if several if colour_by is None else colour_by == "class":
        first = classes % len(BASE_COLOURS) * len(SHADES)
        colours = first + _spread_colours(boxes, classes, len(SHADES))
    else:
        colours = _spread_colours(boxes, np.zeros_like(classes), len(BASE_COLOURS)) * len(SHADES)
    drawing = {"color": palette, "color_lookup": sv.ColorLookup.INDEX}
    canvas = sv.MaskAnnotator(opacity=0.38, **drawing).annotate(canvas, detections, custom_color_lookup=colours)
    canvas = sv.PolygonAnnotator(thickness=1, **drawing).annotate(canvas, detections, custom_color_lookup=colours)
    font_size = int(np.clip(max(image.shape[:2]) / 60, 9, 28))
    large = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) > 1.5 * font_size  # a label would hide a smaller object
    if large.any() and len(visible) <= MAX_LABELS and (several or scores is not None):
        labels = [class_label(class_names, k) if several else "" for k in classes[large]]
        if scores is not None:
            labels = [f"{name} {score:.2f}".lstrip() for name, score in zip(labels, scores[large], strict=True)]
        annotator = sv.RichLabelAnnotator(
            font_size=font_size, text_padding=2, text_color=sv.Color.BLACK, smart_position=True, **drawing
        )
        canvas = annotator.annotate(canvas, detections[large], labels=labels, custom_color_lookup=colours[large])
    return cv2.cvtColor(canvas, cv2.COLOR_BGR2RGB)


def reduced_picture(image: ImageWindows, factor: int = 1, channels: int = 3) -> np.ndarray:
    """An image to look at, reduced by a whole factor: [h, w, 3] uint8 RGB; see `make_picture`."""
    picked = image.pick(ChannelRule(3 if channels == 1 else channels))
    return display_image(picked.reduced(factor), channels, image.name)


def make_picture(image: ImageWindows, instances: Instances, channels: int = 3) -> tuple[np.ndarray, Instances]:
    """An image to draw on, and its instances, both reduced by a whole factor where the image is huge.

    Args:
        image: of H x W pixels in its own grey values; a huge one is read in bands.
        instances: with `scores`, `pred_classes` and `pred_masks_rle`.
        channels: as for `display_image`.

    Returns:
        [h, w, 3] uint8 RGB, about `MAX_PIXELS` at most, no side above `MAX_SIDE`, and the instances as `draw_overlay`
        takes them. Of objects smaller than the factor nothing may be left.

    Raises:
        ImageReadError: as `display_image`, or the file is damaged.
    """
    height, width = image.shape[:2]
    factor = max(math.ceil(math.sqrt(height * width / MAX_PIXELS)), math.ceil(max(height, width) / MAX_SIDE))
    shown = reduced_picture(image, factor, channels)
    if factor == 1:
        return shown, instances
    size = shown.shape[:2]
    reduced = instances[:]  # of the same class, with what that knows besides the fields
    reduced._image_size = size
    for name in ("pred_boxes", "pred_mask_probs"):  # of the whole size
        if reduced.has(name):
            reduced.remove(name)
    reduced.pred_masks_rle = RLEMasks(reduce_rles(list(instances.pred_masks_rle), factor), size)
    return shown, reduced


def display_image(pixels: np.ndarray, channels: int = 3, name: str = "the image") -> np.ndarray:
    """An image to look at: 8 bits as they are, other depths stretched from the 0.5 to the 99.5 percentile.

    Args:
        pixels: [H, W] or [H, W, C] in their own grey values, see `prepare_image`.
        channels: number of channels of an image that is neither grey nor colour; the first three are shown.
        name: of the image in errors.

    Returns:
        [H, W, 3] uint8 RGB.

    Raises:
        ImageReadError: pixels that are NaN or infinite, or channels that do not fit.
    """
    stretch = None if pixels.dtype in (np.uint8, bool) else (0.5, 99.5)
    image = prepare_image(pixels, 3 if channels == 1 else channels, stretch, name=name)
    image = image if image.dtype == np.uint8 else np.rint(image).astype(np.uint8)
    missing = max(3 - image.shape[2], 0)
    return np.ascontiguousarray(np.pad(image, ((0, 0), (0, 0), (0, missing)))[:, :, :3])


def class_label(class_names: Sequence[str] | None, index: int) -> str:
    """Name of class `index`, "class 7" where the names do not reach it."""
    return class_names[index] if class_names and index < len(class_names) else f"class {index}"


def class_shades(index: int) -> list[str]:
    """The hex colours that objects of class `index` are drawn in, the plain one first."""
    base = np.array(sv.Color.from_hex(BASE_COLOURS[index % len(BASE_COLOURS)]).as_rgb(), dtype=float)
    mixed = [base + abs(shade) * ((255 if shade > 0 else 0) - base) for shade in SHADES]
    return ["#{:02x}{:02x}{:02x}".format(*np.rint(rgb).astype(int)) for rgb in mixed]


def _spread_colours(boxes: np.ndarray, groups: np.ndarray, num_colours: int, margin: float = 3) -> np.ndarray:
    """Greedy colouring: each object takes the colour that is rarest among its neighbours of the same group.

    boxes [N, 4] xyxy, groups [N] int -> [N] int in 0..num_colours - 1. Boxes nearer than `margin` px are neighbours.
    """
    colours = np.zeros(len(boxes), dtype=np.int64)
    low, high = boxes[:, :2] - margin, boxes[:, 2:]
    for k in range(1, len(boxes)):
        near = ((low[:k] <= high[k]) & (high[:k] >= low[k])).all(axis=1) & (groups[:k] == groups[k])
        used = np.bincount(colours[:k][near], minlength=num_colours)
        order = (np.arange(num_colours) + k) % num_colours  # ties: go round the palette
        colours[k] = order[used[order].argmin()]
    return colours
