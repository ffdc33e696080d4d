"""Images of a TIFF, as tifffile decodes them.

Axes by tifffile's letters: Y, X rows and columns; S samples and C channels; Z planes of a z stack, T and others stacked
images; I and Q pages of which no metadata say what they are.

Shape shorthand: H, W image height and width, C channels.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from maskrcnn_plus.data.channels import ChannelRule, project
from maskrcnn_plus.data.limits import check_size
from maskrcnn_plus.data.pillow_files import ORIENTATION_TAG, Decoded, apply_orientation
from maskrcnn_plus.data.read_error import ImageReadError
from maskrcnn_plus.data.tiff_directories import TIFF_MAGIC, check_directories, check_ome

logger = logging.getLogger(__name__)

MINISWHITE, MINISBLACK, RGB = 0, 1, 2  # photometric interpretation
_ALPHA = (1, 2)  # of ExtraSamples: with and without colours multiplied by it; 0 is a channel of no stated meaning


def is_tiff(local_path: str) -> bool:
    """Whether the file starts like a TIFF, whatever its name ends with.

    A DICOM file may too: its preamble is free for the head of another format (PS3.10, 7.1).
    """
    with open(local_path, "rb") as file:
        start = file.read(132)
    return start[:4] in TIFF_MAGIC and start[128:] != b"DICM"


def open_tiff(name: str, local_path: str) -> tifffile.TiffFile:
    """Open a TIFF whose directories have been walked; to be closed by the caller.

    Raises:
        ImageReadError: see `check_directories` and `check_ome`.
    """
    check_directories(name, local_path)
    tiff = tifffile.TiffFile(local_path)
    try:
        check_ome(name, local_path, (tiff.is_ome and tiff.ome_metadata) or "")
    except BaseException:
        tiff.close()
        raise
    return tiff


def check_series(name: str, series: tifffile.TiffPageSeries, tiff: tifffile.TiffFile) -> None:
    """Refuse a series that by its metadata has more pixels or pages than the file.

    Planes that OME metadata name and that are not there were never taken.

    Raises:
        ImageReadError: naming the file.
    """
    if series.dataoffset is not None:
        lacks = series.dataoffset + series.nbytes > tiff.filehandle.size
    else:
        lacks = series.kind != "ome" and len(series.pages) > len(tiff.pages)
    if lacks:
        raise ImageReadError(f"{name}: the file is truncated or damaged. Copy it again or remove it.")


def stacked_axes(series: tifffile.TiffPageSeries, rule: ChannelRule) -> tuple[list[str], list[str]]:
    """Axes along which a series holds images of their own, and those that `rule` projects.

    Pages of unknown meaning are channels where `dataset.channels` picks some of them, where the rule takes an image as
    it is, and where there are as many as the network has channels and that takes neither grey nor RGB.
    """
    stacked, projected = [], []
    for axis, size in zip(series.axes, series.shape, strict=True):
        if axis in "YXSC" or size == 1:
            continue
        as_channels = rule.select is not None or (rule.count in (None, size) and size != 3)
        if axis in "ZIQ" and rule.projection is not None:
            projected.append(axis)
        elif not (axis in "IQ" and as_channels):
            stacked.append(axis)
    return stacked, projected


def single_series(
    name: str, tiff: tifffile.TiffFile, rule: ChannelRule | None, as_labels: bool = False
) -> tifffile.TiffPageSeries:
    """Return the first series of a TIFF, which must be one image by the rule (None takes stacks too), or one plane.

    Raises:
        ImageReadError: no image, a stack, or `as_labels` one of several channels.
    """
    if not tiff.series:
        raise ImageReadError(f"{name}: the TIFF holds no image. The file is truncated: copy it again or remove it.")
    series = tiff.series[0]
    if 0 in series.shape:
        raise ImageReadError(f"{name}: the image has zero size {series.shape}. Remove or replace the file.")
    check_series(name, series, tiff)
    sizes = {axis: size for axis, size in zip(series.axes, series.shape, strict=True) if size > 1}
    if as_labels and not sizes.keys() <= {*"YXS"}:
        raise ImageReadError(
            f"{name}: a label image is one plane, this TIFF has several (sizes {sizes}). Save each as a file of its "
            "own, and each plane of its image."
        )
    stacked = [] if rule is None else stacked_axes(series, rule)[0]
    if not stacked:
        return series
    count = math.prod(sizes[axis] for axis in stacked)
    if set(stacked) <= set("IQ"):
        raise ImageReadError(
            f"{name}: the image has {count} channels where {rule.count} are wanted, or is a stack of {count} pages, as "
            "nothing in the TIFF says what they are. dataset.channels picks channels (such as [0, 1, 2]), "
            "dataset.projection makes one image of a z stack (max or mean); else save each page as a file of its own."
        )
    remedy = "dataset.projection (max or mean) makes one image of a z stack. Else save" if "Z" in sizes else "Save"
    raise ImageReadError(f"{name}: the TIFF is a stack (sizes {sizes}). {remedy} each plane as a file of its own.")


def decode_tiff(name: str, local_path: str, rule: ChannelRule, as_labels: bool = False) -> Decoded | None:
    """Decode a grey, RGB or multi-channel TIFF; None for palette, CMYK and compressions that are left to Pillow."""
    with open_tiff(name, local_path) as tiff:
        series, page = single_series(name, tiff, rule, as_labels), tiff.pages[0]
        if not is_grey_or_rgb(page):
            return None
        height, width = series.sizes.get("height", 0), series.sizes.get("width", 0)
        if height and width:
            check_size(name, height, width, series.nbytes / (height * width))
        check_segments(name, series.pages, tiff)
        try:
            pixels = series.asarray()
        except ValueError as error:
            if not lacks_codec(error):
                raise
            if len(series.pages) > 1 or page.samplesperpixel not in (1, 3, 4):
                raise ImageReadError(
                    f"{name}: a multi-channel TIFF with {page.compression!s} compression. Install the Python package "
                    "imagecodecs, or save the file without compression."
                ) from error
            return None
        return finish_tiff(name, tiff, 0, pixels, series.axes, rule, as_labels)


def finish_tiff(
    name: str,
    tiff: tifffile.TiffFile,
    index: int,
    pixels: np.ndarray,
    axes: str,
    rule: ChannelRule,
    as_labels: bool = False,
) -> Decoded:
    """Make an upright image of what tifffile has decoded: [H, W, C] in which 0 is black.

    Args:
        name: of the image in messages.
        tiff: the open file.
        index: of the series that the pixels are of.
        pixels: of the series, or a part of it that is one image.
        axes: tifffile's letters of their axes.
        rule: says what is projected.
        as_labels: keep the values of images whose white is 0.
    """
    page = tiff.series[index].keyframe
    if is_inverted(page) and not as_labels:
        pixels = ~pixels
    pixels = arrange_axes(name, pixels, axes, rule)
    alpha = get_page_alpha(page) if pixels.shape[2] == page.samplesperpixel else ()
    return Decoded(apply_orientation(pixels, tiff_orientation(tiff)), alpha, channel_names(tiff, index))


def is_grey_or_rgb(page: tifffile.TiffPage) -> bool:
    """Whether the samples of a page are grey values or colours as they are; others are left to Pillow."""
    return page.photometric in (MINISWHITE, MINISBLACK, RGB)


def is_inverted(page: tifffile.TiffPage) -> bool:
    """Whether 0 is white in a page."""
    return page.photometric == MINISWHITE and page.dtype.kind in "ub"


def lacks_codec(error: ValueError) -> bool:
    """Whether tifffile has no decoder of a compression here."""
    return "imagecodecs" in str(error)


def check_segments(
    name: str, pages: Iterable[tifffile.TiffPage | tifffile.TiffFrame | None], tiff: tifffile.TiffFile
) -> None:
    """Refuse pages that have fewer tiles or strips than their size needs, or one that is larger than the file.

    Raises:
        ImageReadError: naming the file.
    """
    for page in pages:
        if page is None:
            continue
        key = page.keyframe
        needed = 0 if key.is_contiguous else math.prod(key.chunked)
        if len(page.databytecounts) < needed or any(count > tiff.filehandle.size for count in page.databytecounts):
            raise ImageReadError(f"{name}: the file is truncated or damaged. Copy it again or remove it.")


def arrange_axes(name: str, pixels: np.ndarray, axes: str, rule: ChannelRule) -> np.ndarray:
    """Make [H, W, C] of an array of these axes, of which no more are stacked.

    Args:
        name: of the image in messages.
        pixels: the array.
        axes: tifffile's letters of its axes.
        rule: projects what it has to project, if it does.
    """
    if pixels.size == 0:
        raise ImageReadError(f"{name}: the image has zero size {pixels.shape}. Remove or replace the file.")
    if rule.projection is not None:
        along = [k for k, axis in enumerate(axes) if axis in "ZIQ"]
        pixels = project(pixels, along, rule.projection) if along else pixels
        axes = "".join(axis for k, axis in enumerate(axes) if k not in along)
    unnamed = math.prod(size for axis, size in zip(axes, pixels.shape, strict=True) if axis in "IQ")
    if unnamed > 1 and rule.select is not None and len(set(rule.select)) < unnamed:
        logger.warning(
            "%s: %d pages, of which nothing says what they are, are taken for channels; dataset.channels=%s leaves the "
            "others out.",
            *(name, unnamed, list(rule.select)),
        )
    order = [axes.index("Y"), axes.index("X"), *(k for k, axis in enumerate(axes) if axis not in "YX")]
    pixels = pixels.transpose(order)
    return pixels.reshape(*pixels.shape[:2], -1)  # [H, W, C]


def tiff_orientation(tiff: tifffile.TiffFile) -> int:
    """Return the orientation tag of the first page, 1 (upright) where there is none."""
    tag = tiff.pages[0].tags.get(ORIENTATION_TAG)
    return 1 if tag is None else int(tag.value)


def get_page_alpha(page: tifffile.TiffPage) -> tuple[int, ...]:
    """Indices of the samples that a page says are alpha; where it says so of all, they are what is to be seen."""
    first = page.samplesperpixel - len(page.extrasamples)
    alpha = tuple(first + k for k, kind in enumerate(page.extrasamples) if int(kind) in _ALPHA)
    return alpha if len(alpha) < page.samplesperpixel else ()


def channel_names(tiff: tifffile.TiffFile, index: int) -> tuple[str, ...]:
    """Names of the channels of the `index`-th image by OME or ImageJ metadata; empty where they are not all named."""
    if tiff.is_imagej:
        return _imagej_channel_names(tiff.imagej_metadata or {})
    if not tiff.is_ome:
        return ()
    images = find_elements(ElementTree.fromstring(tiff.ome_metadata).iter(), "Pixels")
    channels = find_elements(images[index], "Channel") if index < len(images) else []
    names = tuple(channel.get("Name", "") for channel in channels)
    return names if all(names) else ()


def find_elements(elements: Iterable[ElementTree.Element], tag: str) -> list[ElementTree.Element]:
    """Those of some elements with a tag, of whatever namespace."""
    return [element for element in elements if element.tag.rsplit("}", 1)[-1] == tag]


def _imagej_channel_names(metadata: dict[str, Any]) -> tuple[str, ...]:
    """Labels of the first slice of each channel without their place ("c:2/3 z:1/9 - GFP"), unless some are alike."""
    labels = metadata.get("Labels")
    count = int(metadata.get("channels", 1))
    if not isinstance(labels, list) or len(labels) < count:
        return ()
    names = tuple(re.sub(r"^(?:[czt]:\d+/\d+\s*)+(?:-\s*)?", "", str(label)).strip() for label in labels[:count])
    return names if all(names) and len(set(names)) == count else ()
