"""Objects cut out of their image, and images without their background, as RGBA pictures.

Shape shorthand: N objects of one image of H x W pixels; m x m mask probabilities of an object in its box; [h, w] a part
of the image.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image
from supervision import Color

from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.data.image_windows import ImageWindows
from maskrcnn_plus.masks.measure import rle_boxes
from maskrcnn_plus.masks.rle_masks import instance_masks
from maskrcnn_plus.results.overlay import class_label, make_picture
from maskrcnn_plus.results.table import as_text

if TYPE_CHECKING:
    from detectron2.structures import Instances

_BLUR = 1.0  # standard deviation in pixels of outlines whose probabilities are not known
_BACKGROUND_BLUR = 0.02  # of the longer side of an image
_NO_FILE_NAME = re.compile(r"[^\w.-]")
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")


def cut_out(image: np.ndarray, instances: Instances, soft: bool = False) -> list[np.ndarray]:
    """Each object alone, in its rectangle.

    Args:
        image: [H, W, 3] uint8 RGB.
        instances: with `pred_boxes`, and `pred_masks_rle` or `pred_masks`.
        soft: edges fade as the probability of the mask falls, see `opacities`; else a pixel is in the object or not.

    Returns:
        An RGBA picture [h, w, 4] uint8 an object; [0, 0, 4] of one without pixels.
    """
    return [_with_alpha(image, *part) for part in opacities(instances, soft)]


def replace_background(
    image: np.ndarray, instances: Instances, by: str = "transparent", soft: bool = False
) -> np.ndarray:
    """The image with what belongs to no object removed.

    Args:
        image, instances, soft: as of `cut_out`.
        by: "transparent", "blur" or a colour as "#rrggbb".

    Returns:
        [H, W, 4] uint8 RGBA for "transparent", else [H, W, 3] uint8 RGB.

    Raises:
        ValueError: another `by`.
    """
    check_background(by)
    alpha = np.zeros(image.shape[:2], np.uint8)
    for (x, y), part in opacities(instances, soft):
        window = alpha[y : y + part.shape[0], x : x + part.shape[1]]
        np.maximum(window, part, out=window)
    if by == "transparent":
        return np.dstack([image, alpha])
    if by == "blur":
        behind = cv2.GaussianBlur(image, (0, 0), max(_BACKGROUND_BLUR * max(image.shape), 1.0)).astype(np.float32)
    else:
        behind = np.array(Color.from_hex(by).as_rgb(), np.float32)
    weight = alpha[:, :, None].astype(np.float32) / 255
    return np.rint(weight * image + (1 - weight) * behind).astype(np.uint8)


def write_cut(
    kind: str,
    output: Path,
    name: str,
    instances: Instances,
    image: ImageWindows,
    channels: int,
    class_names: Sequence[str] | None,
    background: str,
    soft: bool,
) -> Path:
    """Write the pictures of an image of the format "cutouts" or "background", see `write_results`.

    Those of a huge image are reduced by a whole factor, see `make_picture`.

    Returns:
        The picture without background, or the table of the cut-outs: a row an object with its number, class, score,
        file and the pixel of the image that its top left corner is.

    Raises:
        OSError: a file cannot be written.
    """
    pixels, instances = make_picture(image, instances, channels)
    factor = -(-image.shape[0] // pixels.shape[0])
    folder = output / kind
    if kind == "background":
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _encode(replace_background(pixels, instances, background, soft)))
        return path
    pictures = folder / name
    pictures.mkdir(parents=True, exist_ok=True)
    for earlier in pictures.glob("*.png"):  # of a run that found others
        if re.match(r"\d+_", earlier.name):
            earlier.unlink()
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["id", "class", "score", "file", "x", "y"])
    rows = zip(instances.pred_classes.tolist(), instances.scores.tolist(), opacities(instances, soft), strict=True)
    for number, (index, score, ((x, y), alpha)) in enumerate(rows, start=1):
        label, file = class_label(class_names, index), ""
        if alpha.size:
            file = f"{number}_{_NO_FILE_NAME.sub('_', label)}.png"
            write_atomically(pictures / file, _encode(_with_alpha(pixels, (x, y), alpha)))
        writer.writerow([number, as_text(label), f"{score:.8g}", file, factor * x, factor * y])
    path = folder / f"{name}.csv"
    write_atomically(path, table.getvalue().encode("utf-8", errors="replace"))
    return path


def _with_alpha(image: np.ndarray, corner: tuple[int, int], alpha: np.ndarray) -> np.ndarray:
    """The rectangle of an image [H, W, 3] at a corner (x, y), with its opacity [h, w] as the fourth channel."""
    x, y = corner
    return np.dstack([image[y : y + alpha.shape[0], x : x + alpha.shape[1]], alpha])


def _encode(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png", compress_level=3)
    return buffer.getvalue()


def check_background(by: str) -> None:
    """Refuse what `replace_background` cannot put behind objects.

    Raises:
        ValueError: it is none of "transparent", "blur" and "#rrggbb".
    """
    if by not in ("transparent", "blur") and not _COLOUR.fullmatch(by):
        raise ValueError(f"background {by!r}: use transparent, blur or a colour such as #ffffff")


def opacities(instances: Instances, soft: bool) -> list[tuple[tuple[int, int], np.ndarray]]:
    """Where each object is and how much of each pixel it covers.

    Args:
        instances: N, with `pred_boxes`, and `pred_masks_rle` or `pred_masks`; soft edges come from
            `pred_mask_probs` [N, m, m] where there are any, else from a Gaussian over the mask.
        soft: else the opacity is 0 or 255.

    Returns:
        The top left corner (x, y) of a rectangle of whole pixels and the opacity in it, uint8 [h, w], an object. A
        soft edge passes from 0 to 255 between the probabilities 0.25 and 0.75.
    """
    masks = instance_masks(instances)
    height, width = instances.image_size
    probs = instances.pred_mask_probs if soft and instances.has("pred_mask_probs") else None
    found = []
    for k, (x0, y0, x1, y1) in enumerate(rle_boxes(masks).astype(int).tolist()):
        if x1 <= x0 or y1 <= y0:
            found.append(((0, 0), np.zeros((0, 0), np.uint8)))
            continue
        if probs is not None:
            box = instances.pred_boxes.tensor[k].tolist()
            found.append(_from_probabilities(probs[k].float().numpy(), box, height, width))
            continue
        margin = math.ceil(3 * _BLUR) if soft else 0
        left, top = max(x0 - margin, 0), max(y0 - margin, 0)
        right, bottom = min(x1 + margin, width), min(y1 + margin, height)
        inside = masks[[k]].to_array()[0, top:bottom, left:right]
        alpha = inside.astype(np.uint8) * 255
        found.append(((left, top), cv2.GaussianBlur(alpha, (0, 0), _BLUR) if soft else alpha))
    return found


def _from_probabilities(
    probs: np.ndarray, box: list[float], height: int, width: int
) -> tuple[tuple[int, int], np.ndarray]:
    """Opacity from probabilities [m, m] of a box (xyxy), sampled at the centres of pixels as masks are pasted."""
    x0, y0, x1, y1 = box
    left, top = max(math.floor(x0) - 1, 0), max(math.floor(y0) - 1, 0)
    right, bottom = min(math.ceil(x1) + 1, width), min(math.ceil(y1) + 1, height)
    columns = (np.arange(left, right) + 0.5 - x0) / (x1 - x0) * probs.shape[1] - 0.5
    rows = (np.arange(top, bottom) + 0.5 - y0) / (y1 - y0) * probs.shape[0] - 0.5
    grid = np.meshgrid(columns.astype(np.float32), rows.astype(np.float32))
    sampled = cv2.remap(probs, *grid, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    return (left, top), np.rint(255 * ((sampled - 0.25) * 2).clip(0, 1)).astype(np.uint8)
