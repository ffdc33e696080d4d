"""
Reading images and label images from disk.

Detectron2's `read_image` goes through 8-bit RGB. Scientific images are often 16-bit grey, float or multi-channel, so
this reader keeps their depth until they are mapped to 0..255, and says which file it could not read and why.

Shape shorthand: H, W image height and width, C channels (RGB order for colour).
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import tifffile
from detectron2.utils.file_io import PathManager
from PIL import Image

from .pixels import ImageReadError, check_arguments, match_channels, rescale

__all__ = ["IMAGE_SUFFIXES", "ImageReadError", "read_image", "read_image_size", "read_label_map"]

IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION_TAG = 274
MINISWHITE, MINISBLACK, RGB = 0, 1, 2  # TIFF photometric interpretation
_size_limit_lock = threading.Lock()


def read_image(path: str, channels: int | None = 3, percentiles: tuple[float, float] | None = None) -> np.ndarray:
    """
    Read an image with values in 0..255.

    Grey images are repeated into 3 channels, RGB is reduced to 1 channel with the ITU-R BT.601 weights, alpha is
    dropped; any other number of channels must be exactly what the file has. EXIF orientation is applied. Images of
    any size are read: scientific images exceed Pillow's size limit, so do not read files that you do not trust.

    Args:
        path: image file (PNG, TIFF, JPEG, BMP), or any address that Detectron2's PathManager resolves.
        channels: number of channels C of the result; None keeps those of the file.
        percentiles: (low, high), 0 <= low < high <= 100. Each image, jointly over its channels, is mapped linearly
            from these percentiles of its values to 0..255 and clipped. When the two percentiles are equal (few bright
            pixels on a flat background) its minimum and maximum are used; a constant image becomes zeros. None keeps
            8-bit values, divides 16-bit values by 257 and multiplies float values, which must be in 0..1, by 255.

    Returns:
        [H, W, C]: uint8 for 8-bit files without percentiles, else float32.

    Raises:
        ImageReadError: the file is missing, damaged or of zero size, or its channels or values do not fit.
        ValueError: `channels` or `percentiles` is out of range.
    """
    check_arguments(channels, percentiles)
    with reading(path) as local_path:
        pixels, has_alpha = decode(path, local_path)
    if channels is not None:
        pixels = match_channels(path, pixels, has_alpha, channels)
    return np.ascontiguousarray(rescale(path, pixels, percentiles))


def read_label_map(path: str) -> np.ndarray:
    """
    Read a label image: 0 is background, every other value is one object.

    Args:
        path: single-channel 8-, 16- or 32-bit PNG or TIFF (of a palette image the indices are the labels).

    Returns:
        [H, W] int32.

    Raises:
        ImageReadError: the file is missing, damaged, has colour channels, fractions or negative labels.
    """
    with reading(path) as local_path:
        pixels, _ = decode(path, local_path, as_labels=True)
    remedy = "Save label images as single-channel 16-bit PNG or TIFF (0 = background, k = object k)."
    if pixels.shape[2] != 1:
        raise ImageReadError(f"{path}: a label image must have one channel, this file has {pixels.shape[2]}. {remedy}")
    if pixels.dtype.kind not in "iub":
        raise ImageReadError(f"{path}: a label image must hold integers, this file holds {pixels.dtype}. {remedy}")
    lowest, highest = int(pixels.min()), int(pixels.max())
    if lowest < 0 or highest > np.iinfo(np.int32).max:
        raise ImageReadError(f"{path}: labels must be in 0..2147483647, this file has {lowest}..{highest}. {remedy}")
    return pixels[:, :, 0].astype(np.int32)  # [H, W]


def read_image_size(path: str) -> tuple[int, int]:
    """
    Read the size of an image from its header, without decoding the pixels.

    Args:
        path: as for `read_image`.

    Returns:
        (height, width) in pixels, after EXIF orientation.

    Raises:
        ImageReadError: the file is missing or its header is not that of an image.
    """
    with reading(path) as local_path:
        if is_tiff(local_path):
            with tifffile.TiffFile(local_path) as tiff:
                series = first_series(path, tiff)
                width, height = series.sizes.get("width", 0), series.sizes.get("height", 0)
                orientation = tiff_orientation(tiff)
        else:
            with _open_pil(local_path) as image:
                width, height = image.size
                orientation = _pil_orientation(image)
    if width == 0 or height == 0:
        raise ImageReadError(f"{path}: the image has zero size ({width} x {height}). Remove or replace the file.")
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


@contextmanager
def reading(path: str) -> Iterator[str]:
    """Yield the local file of `path`; whatever goes wrong inside becomes an ImageReadError that names `path`."""
    try:
        local_path = PathManager.get_local_path(os.fspath(path))
        if os.path.isfile(local_path) and os.path.getsize(local_path) == 0:
            raise ImageReadError(f"{path}: the file is empty. Copy it again or remove it.")
        yield local_path
    except ImageReadError:
        raise
    except FileNotFoundError as error:
        raise ImageReadError(
            f"{path}: there is no such file. Check the path and the data set's root folder."
        ) from error
    except IsADirectoryError as error:
        raise ImageReadError(f"{path}: this is a folder, an image file is needed.") from error
    except PermissionError as error:
        raise ImageReadError(f"{path}: no permission to read the file. Change its access rights.") from error
    except Exception as error:  # decoders raise all sorts of things on damaged files
        raise ImageReadError(
            f"{path}: cannot be read ({type(error).__name__}: {error}). The file is damaged, truncated or not an "
            "image: open it in an image viewer and save it again as PNG or TIFF, or remove it."
        ) from error


def decode(path: str, local_path: str, as_labels: bool = False) -> tuple[np.ndarray, bool]:
    """Decode a file to [H, W, C] in its own depth, in upright orientation; the flag says that the last C is alpha."""
    decoded = _decode_tiff(path, local_path, as_labels) if is_tiff(local_path) else None
    pixels, has_alpha, orientation = decoded or _decode_pil(local_path, as_labels)
    if pixels.size == 0:
        raise ImageReadError(f"{path}: the image has zero size {pixels.shape}. Remove or replace the file.")
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]  # [H, W, 1]
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    return _upright(pixels, orientation), has_alpha


def is_tiff(local_path: str) -> bool:
    """Whether the file starts like a TIFF, whatever its name ends with."""
    with open(local_path, "rb") as file:
        return file.read(4) in _TIFF_MAGIC


def first_series(path: str, tiff: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    """Return the first image of a TIFF; a z-stack or a film is refused."""
    if not tiff.series:
        raise ImageReadError(f"{path}: the TIFF holds no image. The file is truncated: copy it again or remove it.")
    series = tiff.series[0]
    stacked = {axis: size for axis, size in zip(series.axes, series.shape, strict=True) if size > 1}
    if len(stacked) > 3 or "Z" in stacked or "T" in stacked:
        raise ImageReadError(f"{path}: the TIFF is a stack (sizes {stacked}). Save each plane as a file of its own.")
    return series


def tiff_orientation(tiff: tifffile.TiffFile) -> int:
    """Return the orientation tag of the first page, 1 (upright) where there is none."""
    tag = tiff.pages[0].tags.get(_ORIENTATION_TAG)
    return 1 if tag is None else int(tag.value)


def _decode_tiff(path: str, local_path: str, as_labels: bool) -> tuple[np.ndarray, bool, int] | None:
    """Decode a grey, RGB or multi-channel TIFF; None for palette, CMYK and compressions that are left to Pillow."""
    with tifffile.TiffFile(local_path) as tiff:
        series, page = first_series(path, tiff), tiff.pages[0]
        photometric = page.photometric
        if photometric not in (MINISWHITE, MINISBLACK, RGB):
            return None
        try:
            pixels = series.asarray()
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            if len(series.pages) > 1 or page.samplesperpixel not in (1, 3, 4):
                raise ImageReadError(
                    f"{path}: a multi-channel TIFF with {page.compression!s} compression. Install the Python package "
                    "imagecodecs, or save the file without compression."
                ) from error
            return None
        orientation = tiff_orientation(tiff)
        has_alpha = bool(page.extrasamples) and (photometric == RGB or page.extrasamples[0] != 0)
    if photometric == MINISWHITE and not as_labels and pixels.dtype.kind in "ub":
        pixels = ~pixels
    kept = [(axis, size) for axis, size in zip(series.axes, series.shape, strict=True) if axis in "YX" or size > 1]
    pixels = pixels.reshape([size for _, size in kept])  # [H, W], [H, W, C] or [C, H, W]
    if pixels.ndim == 3 and kept[0][0] not in "YX":
        pixels = np.moveaxis(pixels, 0, 2)  # [H, W, C]
    return pixels, has_alpha, orientation


def _decode_pil(local_path: str, as_labels: bool) -> tuple[np.ndarray, bool, int]:
    """Decode with Pillow (which notices truncated files), or with OpenCV where Pillow would cut 16-bit colour to 8."""
    with _open_pil(local_path) as image:
        wide_colour = image.mode in ("LA", "RGB", "RGBA") and ";16" in str(image.tile)  # before load() empties it
        orientation = _pil_orientation(image)
        image.load()
        if wide_colour:
            pixels = cv2.imdecode(np.fromfile(local_path, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
            if pixels is None:
                raise ValueError("OpenCV cannot decode it")
            order = [2, 1, 0, 3][: pixels.shape[2]]
            return pixels[:, :, order], len(order) == 4, orientation
        if image.mode == "1" or (image.mode == "P" and as_labels):
            return np.array(image), False, orientation
        if image.mode not in ("L", "LA", "RGB", "RGBA", "I", "F") and not image.mode.startswith("I;16"):
            image = image.convert("RGB")  # palette, CMYK, YCbCr
        return np.array(image), image.mode in ("LA", "RGBA"), orientation


def _open_pil(local_path: str) -> Image.Image:
    """Open with Pillow without its size limit, which is below the size of common scientific images."""
    with _size_limit_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(local_path)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _pil_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) where there is none or where it is already heeded."""
    if image.format == "TIFF":
        return 1  # Pillow and OpenCV turn TIFFs while decoding
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # getexif() would decode the whole file in search of a chunk behind the pixels
    return image.getexif().get(_ORIENTATION_TAG, 1)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn [H, W, C] by the EXIF / TIFF orientation tag (1..8)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)  # [W, H, C]
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
