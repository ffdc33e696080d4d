"""The image beside its annotations: linked where annotation tools open it, else written as PNG or TIFF."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import tifffile

from maskrcnn_plus.atomic import link_or_copy, write_atomically
from maskrcnn_plus.data.dicom_files import is_dicom
from maskrcnn_plus.data.image_windows import ImageWindows
from maskrcnn_plus.data.limits import check_size
from maskrcnn_plus.results.labels import encode_png

_OPENED = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")  # by annotation tools


def can_link(file: str | os.PathLike | None) -> bool:
    """Whether an image file is of a kind that annotation tools open."""
    if file is None or "://" in os.fspath(file) or not os.fspath(file).lower().endswith(_OPENED):
        return False
    return not is_dicom(os.fspath(file))


def place_image(path: Path, file: str | os.PathLike | None, image: ImageWindows | None) -> Path:
    """Link or write an image.

    Args:
        path: where it goes, without suffix.
        file: the image file, None for a page or a frame.
        image: its pixels; needed unless `can_link(file)`.

    Returns:
        The path with its suffix. Pixels in 0..1 are written in 16 bits, as they are read again.

    Raises:
        ValueError: there is neither a file that can be linked nor pixels, or these are too many.
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if can_link(file):
        target = path.with_name(path.name + os.path.splitext(file)[1])
        link_or_copy(file, target)
        return target
    if image is None:
        raise ValueError(f"{path.name}: annotations need the image beside them")
    height, width, channels = image.shape
    check_size(image.name, height, width, 2 * channels * image.dtype.itemsize)
    pixels = image.read(0, 0, width, height)  # [H, W, C]
    if pixels.dtype.kind == "f" and pixels.min() >= 0 and pixels.max() <= 1:
        pixels = np.rint(pixels * 65535).astype(np.uint16)
    pixels = pixels[:, :, 0] if channels == 1 else pixels
    if pixels.dtype in (np.uint8, np.uint16) and channels in (1, 3):
        target, content = path.with_name(f"{path.name}.png"), encode_png(pixels)
    else:
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, pixels, photometric="minisblack", planarconfig="contig" if channels > 1 else None)
        target, content = path.with_name(f"{path.name}.tif"), buffer.getvalue()
    write_atomically(target, content)
    return target
