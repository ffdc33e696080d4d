"""Images in the formats that Pillow decodes.

A file is tried as one of `FORMATS` alone, whatever its name: of the others, some decoders start another program (EPS,
WMF) and some read no images of this kind.

Shape shorthand: H, W image height and width, C channels.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from maskrcnn_plus.data.limits import check_density, check_size
from maskrcnn_plus.data.read_error import ImageReadError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")
ANIMATED = ("GIF", "WEBP", "PNG")
ORIENTATION_TAG = 274


@dataclass(frozen=True)
class Decoded:
    """Pixels of a file in its own depth.

    Attributes:
        pixels: [H, W, C], upright.
        alpha: indices of the channels that the file says are alpha.
        names: a name a channel, empty where the file has none.
    """

    pixels: np.ndarray
    alpha: tuple[int, ...] = ()
    names: tuple[str, ...] = ()


def open_pillow(name: str, local_path: str) -> Image.Image:
    """Open a file by its header; its pixels are decoded at first use.

    Pillow's own limit of the size, which is below that of common scientific images, is not asked: `check_size` is.

    Raises:
        ImageReadError: the image is too large to be decoded, or the file too small for it.
        OSError: it is in none of `FORMATS`.
    """
    image = _open_without_limit(local_path)
    width, height = image.size
    bands = len(image.getbands())
    try:
        if image.format in ("PNG", "JPEG", "MPO", "BMP", "PPM"):
            least_bits = 1 if image.mode in ("1", "L", "P") and image.format not in ("JPEG", "MPO") else 8 * bands
            check_density(name, height, width, least_bits, os.path.getsize(local_path))
        if image.format == "JPEG2000":
            _check_tiles(name, local_path)
        # Pillow takes 4 bytes a pixel of colour, and numpy has them once more.
        check_size(name, height, width, 2 if bands == 1 else 4 + bands)
    except ImageReadError:
        image.close()
        raise
    return image


def _check_tiles(name: str, local_path: str) -> None:
    """Refuse a JPEG 2000 file without some of the tiles of the size that it claims: decoders leave them black.

    Format: ISO/IEC 15444-1, annex A: the markers SOC and SIZ, the rest of the main header, and SOT before each part of
    a tile.
    """
    found: set[int] = set()
    with open(local_path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place = data.find(b"\xff\x4f\xff\x51") + 2
        try:
            width, height, _, _, tile_width, tile_height, left, top = struct.unpack_from(">8I", data, place + 6)
            while data[place] == 0xFF and data[place + 1] != 0x90:
                place += 2 + int.from_bytes(data[place + 2 : place + 4])
            while data[place : place + 2] == b"\xff\x90":
                tile, length = struct.unpack_from(">HI", data, place + 4)
                found.add(tile)
                place += max(length, 12) if length else len(data)  # 0 in the last one
            claimed = math.ceil((width - left) / tile_width) * math.ceil((height - top) / tile_height)
        except (struct.error, IndexError, ZeroDivisionError):
            return  # which the decoder tells
    if len(found) < claimed:
        raise ImageReadError(
            f"{name}: the header says {width} x {height} pixels in {claimed} tiles, and the file has {len(found)} of "
            "them. The file is truncated or damaged: copy it again or remove it."
        )


def _open_without_limit(local_path: str) -> Image.Image:
    """`Image.open` of `FORMATS` without its limit of the size, which is one of the whole process."""
    Image.init()
    with open(local_path, "rb") as file:
        prefix = file.read(16)
    for name in FORMATS:
        open_as, accepts = Image.OPEN[name]
        if accepts is not None and accepts(prefix) is not True:  # it may be a text that says what is missing
            continue
        try:
            return open_as(local_path)
        except (SyntaxError, IndexError, TypeError, struct.error):  # what plugins raise for files of another format
            continue
    raise UnidentifiedImageError(f"cannot identify image file {local_path!r}")


def is_animated(image: Image.Image) -> bool:
    """Whether an open image is an animation."""
    return image.format in ANIMATED and bool(getattr(image, "is_animated", False))


def decode_pillow(name: str, local_path: str, as_labels: bool = False) -> Decoded:
    """Decode with Pillow (which notices truncated files), or with OpenCV where Pillow would cut 16-bit colour to 8.

    Raises:
        ImageReadError: as `open_pillow`, or the file is an animation.
    """
    with open_pillow(name, local_path) as image:
        if is_animated(image):
            raise ImageReadError(
                f"{name}: an animation of {image.n_frames} frames, where one image is wanted. Save its frames as files "
                "of their own (tools/predict.py takes animations, each frame as an image)."
            )
        wide_colour = image.mode in ("LA", "RGB", "RGBA") and ";16" in str(image.tile)  # before load() empties it
        orientation = pil_orientation(image)
        image.load()
        if wide_colour:
            pixels = cv2.imdecode(np.fromfile(local_path, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
            if pixels is None:
                raise ValueError("OpenCV cannot decode it")
            order = [2, 1, 0, 3][: pixels.shape[2]]
            return Decoded(apply_orientation(pixels[:, :, order], orientation), alpha=(3,)[: len(order) - 3])
        if image.mode == "P" and as_labels:
            return Decoded(apply_orientation(np.array(image)[:, :, None], orientation))
        decoded = decode_frame(image)
        return Decoded(apply_orientation(decoded.pixels, orientation), decoded.alpha)


def decode_frame(image: Image.Image) -> Decoded:
    """Pixels of an open image or of the frame that it stands at, in their own depth; not turned."""
    if image.mode not in ("1", "L", "LA", "RGB", "RGBA", "I", "F") and not image.mode.startswith("I;16"):
        image.info.pop("transparency", None)  # of a palette; Pillow warns that RGB has none
        image = image.convert("RGB")  # palette, CMYK, YCbCr
    pixels = np.array(image)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels  # [H, W, C]
    return Decoded(pixels, alpha=(pixels.shape[2] - 1,) if image.mode in ("LA", "RGBA") else ())


def pil_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) where there is none or where it is already heeded."""
    if image.format == "TIFF":
        return 1  # Pillow and OpenCV turn TIFFs while decoding
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # getexif() would decode the whole file in search of a chunk behind the pixels
    return image.getexif().get(ORIENTATION_TAG, 1)


def apply_orientation(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn [H, W, C] by the EXIF / TIFF orientation tag (1..8)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)  # [W, H, C]
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
