"""Reading images and label images from disk.

Detectron2's `read_image` goes through 8-bit RGB. Scientific images are often 16-bit grey, float or multi-channel, so
this reader keeps their depth until they are mapped to 0..255, and says which file it could not read and why.

Shape shorthand: H, W image height and width, C channels (RGB order for colour).
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from maskrcnn_plus.data.channels import ChannelRule, as_rule
from maskrcnn_plus.data.dicom_files import decode_dicom, is_dicom, open_dicom, refuse_stack
from maskrcnn_plus.data.limits import check_size, is_read_by_parts
from maskrcnn_plus.data.pillow_files import (
    FORMATS,
    Decoded,
    decode_pillow,
    is_animated,
    open_pillow,
    pil_orientation,
)
from maskrcnn_plus.data.pixels import check_percentiles, convert_pixels
from maskrcnn_plus.data.read_error import ImageReadError
from maskrcnn_plus.data.tiff_files import (
    check_segments,
    decode_tiff,
    is_tiff,
    open_tiff,
    single_series,
    tiff_orientation,
)

__all__ = ["IMAGE_SUFFIXES", "ImageReadError", "read_image", "read_image_size", "read_label_map"]

IMAGE_SUFFIXES = (
    *(".png", ".tif", ".tiff", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".gif", ".jp2"),
    *(".ppm", ".pgm", ".apng", ".dcm", ".dicom"),
)

MICROSCOPE_SUFFIXES = (".czi", ".ims", ".lif", ".mrxs", ".nd2", ".oib", ".oif", ".vsi", ".zvi")
"""Of microscopes' and slide scanners' own formats, which are not read."""

MICROSCOPE_REMEDY = "Save it as OME-TIFF, with the microscope's program, QuPath, or Fiji (Plugins > Bio-Formats)."

_POINTER = b"version https://git-lfs"
_POINTER_BYTES = 1024


def read_image(
    path: str, channels: int | ChannelRule | None = 3, percentiles: tuple[float, float] | None = None
) -> np.ndarray:
    """Read an image with values in 0..255.

    Grey images are repeated into 3 channels, RGB is reduced to 1 channel with the ITU-R BT.601 weights, what the file
    says is alpha is dropped; any other number of channels must be exactly what the file has, or be picked by a
    `ChannelRule`. EXIF orientation is applied. An image that is too large is refused before memory is taken for it
    (`maskrcnn_plus.data.limits`).

    Args:
        path: image file (PNG, TIFF, JPEG, BMP, GIF, WebP, JPEG 2000, PPM, DICOM), or any address that Detectron2's
            PathManager resolves.
        channels: number of channels C of the result, or the rule by which they are chosen; None keeps those of the
            file.
        percentiles: (low, high), 0 <= low < high <= 100. Each image, jointly over its channels, is mapped linearly
            from these percentiles of its values to 0..255 and clipped. When the two percentiles are equal (few bright
            pixels on a flat background) its minimum and maximum are used; a constant image becomes zeros. None keeps
            8-bit values, divides 16-bit values by 257 and multiplies float values, which must be in 0..1, by 255.

    Returns:
        [H, W, C]: uint8 for 8-bit files without percentiles, else float32.

    Raises:
        ImageReadError: the file is missing, damaged, of zero size, too large, an animation or a stack, or its channels
            or values do not fit.
        ValueError: `channels` or `percentiles` is out of range.
    """
    rule = as_rule(channels)
    check_percentiles(percentiles)
    with reading(path) as local_path:
        return convert_pixels(path, decode(path, local_path, rule), rule, rule.count, percentiles)


def read_label_map(path: str) -> np.ndarray:
    """Read a label image: 0 is background, every other value is one object.

    Args:
        path: single-channel 8-, 16- or 32-bit PNG or TIFF (of a palette image the indices are the labels).

    Returns:
        [H, W] int32.

    Raises:
        ImageReadError: the file is missing, damaged, has colour channels, fractions or negative labels.
    """
    with reading(path) as local_path:
        pixels = decode(path, local_path, as_labels=True).pixels
    remedy = "Save label images as single-channel 16-bit PNG or TIFF (0 = background, k = object k)."
    if pixels.shape[2] != 1:
        raise ImageReadError(f"{path}: a label image must have one channel, this file has {pixels.shape[2]}. {remedy}")
    if pixels.dtype.kind not in "iub":
        raise ImageReadError(f"{path}: a label image must hold integers, this file holds {pixels.dtype}. {remedy}")
    lowest, highest = int(pixels.min()), int(pixels.max())
    if lowest < 0 or highest > np.iinfo(np.int32).max:
        raise ImageReadError(f"{path}: labels must be in 0..2147483647, this file has {lowest}..{highest}. {remedy}")
    return pixels[:, :, 0].astype(np.int32)  # [H, W]


def read_image_size(path: str, rule: ChannelRule | None = None) -> tuple[int, int]:
    """Read the size of an upright image from its header, without decoding the pixels.

    What is too large to be decoded at once is refused; a TIFF not within `reading_by_parts`.

    Args:
        path: as for `read_image`.
        rule: refuse what cannot be read as one image by it; None takes the size of a stack's images.

    Returns:
        (height, width) in pixels, after EXIF orientation.

    Raises:
        ImageReadError: as `read_stored_size`.
    """
    height, width, orientation = read_stored_size(path, rule)
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def read_stored_size(path: str, rule: ChannelRule | None = None) -> tuple[int, int, int]:
    """Read the size in which the pixels of an image lie in its file, from its header.

    Args:
        path, rule: as for `read_image_size`.

    Returns:
        (height, width, orientation): pixels before EXIF orientation, and its tag (1..8; 1 is upright).

    Raises:
        ImageReadError: the file is missing, too large or an animation, or its header is not that of an image.
    """
    with reading(path) as local_path:
        if is_tiff(local_path):
            with open_tiff(path, local_path) as tiff:
                series = single_series(path, tiff, rule)
                width, height = series.sizes.get("width", 0), series.sizes.get("height", 0)
                if width and height and not is_read_by_parts():
                    check_size(path, height, width, series.keyframe.nbytes / (height * width))
                check_segments(path, [series.keyframe], tiff)
                orientation = tiff_orientation(tiff)
        elif is_dicom(local_path):
            data = open_dicom(path, local_path, header=True)
            if rule is not None:
                refuse_stack(path, data, rule)
            height, width, orientation = int(data.Rows), int(data.Columns), 1
        else:
            with open_pillow(path, local_path) as image:
                width, height = image.size
                orientation = pil_orientation(image)
                if is_animated(image):
                    raise ImageReadError(f"{path}: an animation of {image.n_frames} frames, not one image.")
    if width == 0 or height == 0:
        raise ImageReadError(f"{path}: the image has zero size ({width} x {height}). Remove or replace the file.")
    return height, width, orientation


def _local_path(path: str) -> str:
    """Where a file lies, or a copy of what an address means to Detectron2."""
    if "://" not in path:
        return path
    from detectron2.utils.file_io import PathManager

    return PathManager.get_local_path(path)


@contextmanager
def reading(path: str) -> Iterator[str]:
    """Yield the local file of `path`; whatever goes wrong inside becomes an ImageReadError that names `path`."""
    try:
        local_path = _local_path(os.fspath(path))
        check_file(path, local_path)
        yield local_path
    except ImageReadError:
        raise
    except FileNotFoundError as error:
        if "://" in os.fspath(path):
            raise ImageReadError(
                f"{path}: nothing is read at this address. predict_cluster reads object stores (s3://, gs://, ...); "
                "copy other files to this machine."
            ) from error
        target = os.readlink(path) if os.path.islink(path) else None
        raise ImageReadError(
            f"{path}: there is no such file. Check the path and the data set's root folder."
            if target is None
            else f"{path}: a link to {target}, which is not there. Repair or remove the link."
        ) from error
    except IsADirectoryError as error:
        raise ImageReadError(f"{path}: this is a folder, an image file is needed.") from error
    except PermissionError as error:
        raise ImageReadError(
            f"{path}: no permission to read the file ({error.strerror}). Change its access rights."
        ) from error
    except MemoryError as error:
        raise ImageReadError(
            f"{path}: there is not enough memory to decode it. Save it as a tiled TIFF, which prediction reads by "
            "parts, or in smaller pieces."
        ) from error
    except Exception as error:  # decoders raise all sorts of things on damaged files
        if os.path.splitext(path)[1].lower() in MICROSCOPE_SUFFIXES:
            raise ImageReadError(
                f"{path}: a microscope's or slide scanner's own format, which is not read. {MICROSCOPE_REMEDY}"
            ) from error
        raise ImageReadError(
            f"{path}: cannot be read ({type(error).__name__}: {error}). The file is damaged, truncated or not an "
            f"image of the formats {', '.join(FORMATS)}: open it in an image viewer and save it again as PNG or TIFF, "
            "or remove it."
        ) from error


def check_file(path: str, local_path: str) -> None:
    """Refuse what is no file with something in it; an open of a pipe would wait for ever.

    Raises:
        ImageReadError: an empty file, a pointer of Git LFS, or a pipe or device.
        OSError: there is no such file.
    """
    status = os.stat(local_path)
    if not stat.S_ISREG(status.st_mode):
        if not stat.S_ISDIR(status.st_mode):
            raise ImageReadError(f"{path}: this is a pipe or a device, an image file is needed.")
    elif status.st_size == 0:
        raise ImageReadError(f"{path}: the file is empty. Copy it again or remove it.")
    elif status.st_size < _POINTER_BYTES and Path(local_path).read_bytes().startswith(_POINTER):
        raise ImageReadError(f"{path}: the image itself is not here, only its pointer of Git LFS. Run: git lfs pull.")


def decode(path: str, local_path: str, rule: ChannelRule | None = None, as_labels: bool = False) -> Decoded:
    """Decode a file to [H, W, C] in its own depth, in upright orientation, with all its channels.

    Args:
        path: of the file in errors.
        local_path: the file.
        rule: says what stacks become; None takes an image as it is.
        as_labels: keep the indices of a palette and the values of images whose white is 0.
    """
    rule = rule or ChannelRule(None)
    if is_dicom(local_path):
        decoded = decode_dicom(path, open_dicom(path, local_path), rule, as_labels)
    else:
        decoded = decode_tiff(path, local_path, rule, as_labels) if is_tiff(local_path) else None
    decoded = decoded or decode_pillow(path, local_path, as_labels)
    pixels = decoded.pixels
    if pixels.size == 0:
        raise ImageReadError(f"{path}: the image has zero size {pixels.shape}. Remove or replace the file.")
    if pixels.dtype.kind not in "buif":
        raise ImageReadError(f"{path}: pixels of type {pixels.dtype} are not supported. Save real numbers.")
    return Decoded(pixels.astype(pixels.dtype.newbyteorder("="), copy=False), decoded.alpha, decoded.names)
