"""From the image that an annotation tool saw to the image as it is read here.

Tools differ in whether they heed the EXIF orientation, and people resize or crop images after they have annotated them.
What a file of annotations says of the size decides between these.

Shape shorthand: P points; sizes are (height, width) in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as coco_mask

from maskrcnn_plus.data.pillow_files import apply_orientation
from maskrcnn_plus.masks.label_map import masks_to_rles
from maskrcnn_plus.masks.measure import move_rles
from maskrcnn_plus.rle import canonical_rles

UPRIGHT = "the file turns its image by EXIF orientation, and its annotations were taken as drawn on the upright one"
STORED = "the file turns its image by EXIF orientation, its annotations fit the image before that and were turned too"
REACHING = "another size is stated than the file has, which the points fit: they were taken as pixels of the file"
NEAR = "the size that is stated differs by a few pixels from the file's, which was taken"
SCALED = "the size that is stated has the file's proportions, and the annotations were scaled to the file's"

_NEAR = 0.01  # of a side
_NEAR_PIXELS = 2
_MAX_FACTOR = 16
_MAX_PIXELS = 1 << 28  # of a mask that is scaled or turned


@dataclass(frozen=True)
class ImageFrame:
    """How pixels of the image of a tool become those of the file.

    Attributes:
        seen: size of the image that was annotated.
        size: of the file, upright.
        orientation: EXIF orientation by which the annotations are turned; 1 leaves them.
        scales: whether they are scaled from `seen` to `size`.
    """

    seen: tuple[int, int]
    size: tuple[int, int]
    orientation: int = 1
    scales: bool = False

    def move_points(self, points: np.ndarray) -> np.ndarray:
        """Points (x, y) [P, 2] of the tool's image as points of the file's."""
        x, y = points.T[::-1] if self.orientation in (5, 6, 7, 8) else points.T
        height, width = self.size
        x = width - x if self.orientation in (2, 3, 6, 7) else x
        y = height - y if self.orientation in (3, 4, 7, 8) else y
        factors = (width / self.seen[1], height / self.seen[0]) if self.scales else (1, 1)
        return np.stack([x * factors[0], y * factors[1]], axis=1)

    def move_rle(self, rle: dict[str, Any]) -> dict[str, Any]:
        """An RLE of the tool's image as one of the file's.

        Raises:
            ValueError: it is malformed, of another size than the tool's image, or too large to be turned.
        """
        if list(rle["size"]) != list(self.seen):
            raise ValueError(f"its RLE is of {rle['size']} pixels, its image of {list(self.seen)} (height, width).")
        if self.orientation == 1 and not self.scales:
            return canonical_rles([rle])[0] if self.seen == self.size else move_rles([rle], 0, 0, *self.size)[0]
        if self.seen[0] * self.seen[1] > _MAX_PIXELS:
            raise ValueError(f"its mask of {self.seen[0]} x {self.seen[1]} pixels is too large to be turned or scaled.")
        mask = apply_orientation(coco_mask.decode(canonical_rles([rle])[0])[:, :, None], self.orientation)[:, :, 0]
        if self.scales:
            mask = cv2.resize(mask, self.size[::-1], interpolation=cv2.INTER_NEAREST)
        return masks_to_rles(mask[None])[0]


def find_frame(
    stored: tuple[int, int, int], stated: tuple[int, int] | None, extent: tuple[float, float] | None
) -> tuple[ImageFrame, str | None]:
    """Decide which image the annotations are of.

    Args:
        stored: height, width and EXIF orientation of the file, as of `read_stored_size`.
        stated: size in the file of annotations; None where it says none.
        extent: largest y and x of the points of the image; None without points.

    Returns:
        The frame, and what was assumed, None where there was no choice.

    Raises:
        ValueError: the sizes do not fit; the message says which.
    """
    height, width, orientation = stored
    turned = orientation in (5, 6, 7, 8)
    size = (width, height) if turned else (height, width)
    plain = ImageFrame(size, size), UPRIGHT if orientation != 1 else None
    if turned and stated == (height, width) != size:
        return ImageFrame((height, width), size, orientation), STORED
    if stated is None and turned and not _within(extent, size) and _within(extent, (height, width)):
        return ImageFrame((height, width), size, orientation), STORED
    if stated is None or stated == size:
        return plain
    if not _within(extent, stated) and _within(extent, size):
        return ImageFrame(size, size), REACHING
    factors = stated[0] / size[0], stated[1] / size[1]
    if all(abs(a - b) <= max(_NEAR_PIXELS, _NEAR * b) for a, b in zip(stated, size, strict=True)):
        return ImageFrame(stated, size), NEAR
    if 1 / _MAX_FACTOR <= factors[0] <= _MAX_FACTOR and abs(stated[1] - factors[0] * size[1]) <= max(1, factors[0]):
        return ImageFrame(stated, size, scales=True), SCALED
    raise ValueError(
        f"it says {stated[0]} high x {stated[1]} wide, the image is {size[0]} x {size[1]}. Annotate the image as it "
        "is, or bring back the one that was annotated."
    )


def _within(extent: tuple[float, float] | None, size: tuple[int, int]) -> bool:
    return extent is None or all(value <= side + _NEAR_PIXELS for value, side in zip(extent, size, strict=True))
