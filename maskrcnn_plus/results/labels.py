"""Label images: value k marks the image's k-th object, 0 is background."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import IO, TYPE_CHECKING

import cv2
import numpy as np
import tifffile

from maskrcnn_plus.arrays import as_array
from maskrcnn_plus.masks.label_map import label_bands, label_type, rles_to_label_map
from maskrcnn_plus.results.overlay import MAX_PIXELS

if TYPE_CHECKING:
    from detectron2.structures import Instances

TILE = 512
"""Side of the tiles of a TIFF, pixels."""


def encode_labels(instances: Instances) -> tuple[str, bytes | Callable[[IO[bytes]], None]]:
    """Label image of N objects, in which the highest score has a pixel that several have.

    Args:
        instances: with `scores` and `pred_masks_rle`.

    Returns:
        Suffix of the file and its content, or a function that writes it to a file object: 16-bit PNG; of more than
        65535 objects a TIFF of 32 bits; of an image of more than 8192 x 8192 pixels a TIFF of 16 or 32 bits, which is
        written tile by tile and read so by viewers.
    """
    height, width = instances.image_size
    if height * width > MAX_PIXELS or label_type(len(instances)) != np.uint16:
        return ".tif", partial(_write_tiff, instances=instances)
    labels = rles_to_label_map(instances.pred_masks_rle, as_array(instances.scores), height, width)
    return ".png", encode_png(labels)


def encode_png(image: np.ndarray) -> bytes:
    """PNG file of an array: [H, W, 3] uint8 RGB, or [H, W] uint8 or uint16.

    Raises:
        ValueError: OpenCV cannot encode it.
    """
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    encoded, content = cv2.imencode(".png", image)
    if not encoded:
        raise ValueError(f"OpenCV cannot encode an image {image.shape} of {image.dtype} as PNG")
    return content.tobytes()


def label_tiles(instances: Instances) -> Iterator[np.ndarray]:
    """Tiles [TILE, TILE] of the label image in turn, row by row, of which a row is in memory at a time."""
    height, width = instances.image_size
    for band in label_bands(instances.pred_masks_rle, as_array(instances.scores), height, width, TILE):
        padded = np.pad(band, ((0, TILE - len(band)), (0, -width % TILE)))
        yield from np.split(padded, padded.shape[1] // TILE, axis=1)


def _write_tiff(file: IO[bytes], instances: Instances) -> None:
    """Write the label image as a TIFF of compressed tiles, a row of tiles in memory at a time."""
    height, width = instances.image_size
    dtype = label_type(len(instances))
    tifffile.imwrite(
        file,
        label_tiles(instances),
        shape=(height, width),
        dtype=dtype,
        tile=(TILE, TILE),
        compression="zlib",
        photometric="minisblack",
        bigtiff=height * width * np.dtype(dtype).itemsize >= 2**31,  # as if it could not be compressed
    )
