"""Masks of boxes straight to COCO run-length encodings (RLE) of the image, without an N x H x W array.

The result is text, so the work is done on the CPU: masks and boxes on other devices are moved there, which takes less
time than their pixels in the image would.

Shorthand: N objects, Hm x Wm mask of an object in its box.
"""

from __future__ import annotations

import math
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from maskrcnn_plus.ops import extension
from maskrcnn_plus.ops.paste_masks_rle_reference import paste_masks_rle_reference
from maskrcnn_plus.rle import MAX_PIXELS


@torch.no_grad()
def paste_masks_rle(
    mask_probs: Tensor,
    boxes: Tensor,
    height: int,
    width: int,
    threshold: float = 0.5,
    rule: str = "detectron2",
) -> list[dict[str, Any]]:
    """Paste masks into their boxes and encode them.

    Args:
        mask_probs: [N, Hm, Wm] probabilities of any floating type; the arithmetic is float32.
        boxes: [N, 4] xyxy in pixels of the image; may be sub-pixel and reach outside. Objects of a box without extent
            are empty. A box whose corners are exchanged mirrors its mask, if by less than about two pixels; else it
            holds nothing.
        height, width: of the image in pixels.
        threshold: a pixel belongs to the object from this probability on.
        rule: "detectron2" samples a mask at the centres of the pixels of its box: the pixels of Detectron2's
            `paste_masks_in_image`. "torchvision" resizes it to the whole pixels of its box: those of torchvision's.

    Returns:
        N RLEs `{"size": [height, width], "counts": str}`. An object without a pixel in the image is an empty mask.

    Raises:
        ValueError: wrong shapes; a box that is not finite or, with "torchvision", reaches farther outside the image
            than that is large; an image without pixels or with 2**32 or more.
        TypeError: `mask_probs` or `boxes` are not floating point.
    """
    _check_arguments(mask_probs, boxes, height, width, threshold, rule)
    mask_probs, boxes = (tensor.detach().to("cpu", torch.float32) for tensor in (mask_probs, boxes))
    _check_boxes(boxes, height, width, rule)
    data, offsets = torch.ops.maskrcnn_plus.paste_masks_rle(mask_probs, boxes, height, width, threshold, rule)
    text, edges = data.numpy().tobytes().decode("ascii"), offsets.tolist()
    return [{"size": [height, width], "counts": text[begin:end]} for begin, end in pairwise(edges)]


def _check_arguments(mask_probs: Tensor, boxes: Tensor, height: int, width: int, threshold: float, rule: str) -> None:
    """Raise what `paste_masks_rle` raises, but for the values of the boxes."""
    if mask_probs.dim() != 3 or boxes.shape != (mask_probs.shape[0], 4):
        shapes = f"{tuple(mask_probs.shape)} and {tuple(boxes.shape)}"
        raise ValueError(f"paste_masks_rle: masks must be [N, Hm, Wm] and boxes [N, 4], got {shapes}.")
    if not mask_probs.is_floating_point() or not boxes.is_floating_point():
        types = f"{mask_probs.dtype} and {boxes.dtype}"
        raise TypeError(f"paste_masks_rle: masks and boxes must be floating point, got {types}.")
    if len(mask_probs) and not mask_probs[0].numel():
        raise ValueError(f"paste_masks_rle: masks of {mask_probs.shape[1]} x {mask_probs.shape[2]} hold nothing.")
    if height <= 0 or width <= 0 or height * width > MAX_PIXELS:
        raise ValueError(f"paste_masks_rle: an image of {height} x {width} pixels must have 1 to {MAX_PIXELS}.")
    if not math.isfinite(threshold) or threshold < 0:
        raise ValueError(f"paste_masks_rle: the threshold must be a probability, got {threshold}.")
    if rule not in ("detectron2", "torchvision"):
        raise ValueError(f'paste_masks_rle: the rule must be "detectron2" or "torchvision", got {rule!r}.')


def _check_boxes(boxes: Tensor, height: int, width: int, rule: str) -> None:
    """Raise a ValueError that names the first box that cannot be pasted."""
    size = boxes.new_tensor([width, height, width, height])
    near = (boxes >= -size) & (boxes <= 2 * size)  # torchvision's rule resizes the whole box
    for good, problem in (
        (boxes.isfinite(), "is not finite"),
        (near | (rule != "torchvision"), f"lies far outside the image of {height} x {width} pixels, clip it"),
    ):
        good = good.all(dim=1)
        if not bool(good.all()):
            index = int(good.logical_not().nonzero()[0])
            raise ValueError(f"paste_masks_rle: box {index} {problem}: {boxes[index].tolist()}.")


def paste_by_reference(
    mask_probs: Tensor, boxes: Tensor, height: int, width: int, threshold: float, rule: str
) -> tuple[Tensor, Tensor]:
    """`maskrcnn_plus::paste_masks_rle` where the compiled kernel is missing."""
    extension.warn_once("paste_masks_rle")
    rles = paste_masks_rle_reference(mask_probs, boxes, height, width, threshold, rule)
    counts = [rle["counts"].encode("ascii") for rle in rles]
    offsets = torch.tensor([0, *accumulate(map(len, counts))])
    return torch.tensor(list(b"".join(counts)), dtype=torch.uint8), offsets


@torch.library.register_fake("maskrcnn_plus::paste_masks_rle")
def _(mask_probs, boxes, height, width, threshold, rule):
    length = torch.library.get_ctx().new_dynamic_size()
    data = torch.empty(length, dtype=torch.uint8, device=boxes.device)
    return data, torch.empty(boxes.shape[0] + 1, dtype=torch.int64, device=boxes.device)


extension.LIBRARY.impl("paste_masks_rle", paste_by_reference, "CompositeExplicitAutograd")
