"""The images of a TIFF: pages that are images of their own, channels of one image in several pages, projected z stacks.

Shape shorthand: H, W image height and width, C channels (RGB order for colour).
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial

import numpy as np
import tifffile

from maskrcnn_plus.data.channels import ChannelRule
from maskrcnn_plus.data.image_windows import ImageWindows
from maskrcnn_plus.data.images import reading
from maskrcnn_plus.data.limits import check_size
from maskrcnn_plus.data.pillow_files import Decoded, decode_frame, open_pillow
from maskrcnn_plus.data.read_error import ImageReadError
from maskrcnn_plus.data.slide_files import is_slide
from maskrcnn_plus.data.tiff_files import (
    channel_names,
    check_segments,
    check_series,
    finish_tiff,
    is_tiff,
    open_tiff,
    stacked_axes,
)
from maskrcnn_plus.data.windows import open_decoded, open_windows

logger = logging.getLogger(__name__)

Opener = Callable[[], AbstractContextManager[ImageWindows]]


def list_planes(path: str, rule: ChannelRule) -> list[Opener]:
    """Openers of the images in a TIFF; none where the file is no TIFF.

    Pages are images of their own, but for those that are the channels of one image (so says its metadata by axis C, or
    see `stacked_axes`) and planes of a z stack that the rule projects. Thumbnails, reduced copies and, in whole-slide
    files, all but the slide are left out.

    Args:
        path: the file.
        rule: picks the channels, and says what stacks become.

    Raises:
        ImageReadError: the file is missing or damaged.
    """
    with reading(path):
        if not is_tiff(path):
            return []
        with open_tiff(path, path) as tiff:
            series = list(enumerate(tiff.series))
            if is_slide(tiff):  # the others are label and overview
                series = series[:1]
            kept = [(index, each) for index, each in series if index == 0 or not each.keyframe.is_reduced]
            return [plane for index, each in kept for plane in _planes_of_series(path, index, each, rule, tiff)]


def _planes_of_series(
    path: str, index: int, series: tifffile.TiffPageSeries, rule: ChannelRule, tiff: tifffile.TiffFile
) -> list[Opener]:
    """Openers of the images in a series of pages that belong together, the `index`-th of the file."""
    check_series(path, series, tiff)
    sizes = dict(zip(series.axes, series.shape, strict=True))
    stacked, projected = stacked_axes(series, rule)
    stacked += [axis for axis in sizes if axis not in ("Y", "X", "S", "C", *stacked, *projected) and sizes[axis] == 1]
    inner = series.keyframe.axes
    leading = series.axes.removesuffix(inner) if series.axes.endswith(inner) else ""
    shape = [sizes[axis] for axis in leading]
    in_pages = set(leading) >= set(stacked) and len(series.pages) == math.prod(shape) and not series.is_multifile
    names, planes, missing = channel_names(tiff, index), [], 0
    order = np.arange(len(series.pages)).reshape(shape) if in_pages else None
    stack: list[np.ndarray] = []  # read at first need, for all planes
    for place in itertools.product(*(range(sizes[axis]) for axis in stacked)):
        at = dict(zip(stacked, place, strict=True))
        if in_pages and not projected:
            numbers = order[tuple(at.get(axis, slice(None)) for axis in leading)]
            pages = [series.pages[number] for number in numbers.ravel().tolist()]
            if None in pages:  # named by OME metadata, as of a recording that was stopped
                missing += 1
            else:
                planes.append(partial(_open_pages, path, [page.index for page in pages], names, rule))
        else:
            read = partial(_read_from_array, path, index, series.axes, at, stack, rule)
            planes.append(partial(open_decoded, read, path, rule))
    if missing:
        total = missing + len(planes)
        logger.warning("%s: %d of %d images that its metadata name are not in it.", path, missing, total)
    return planes


@contextmanager
def _open_pages(path: str, pages: list[int], names: Sequence[str], rule: ChannelRule) -> Iterator[ImageWindows]:
    """Open an image whose channels are in the given pages."""
    with ExitStack() as stack:
        try:
            windows = stack.enter_context(open_windows(path, pages))
        except ImageReadError as error:
            parts = [_read_page_with_pillow(path, page) for page in pages]
            if any(part is None for part in parts):
                raise error
            pixels = np.concatenate([part.pixels for part in parts], axis=2)
            windows = ImageWindows(path, pixels, parts[0].alpha if len(parts) == 1 else ())
        windows.channel_names = tuple(names)
        yield windows.pick(rule)


def _read_page_with_pillow(path: str, page: int) -> Decoded | None:
    """A page in compressions and colours that tifffile alone does not decode; None where Pillow does not either."""
    try:
        with open_pillow(path, path) as image:
            image.seek(page)
            if ";16" in str(image.tile) and image.mode in ("RGB", "RGBA"):
                return None  # Pillow would cut it to 8 bits
            check_size(path, image.height, image.width, pixel_bytes=4 + len(image.getbands()))
            return decode_frame(image)
    except Exception:  # of any decoder; the caller has a message already
        return None


def _read_from_array(
    path: str, index: int, axes: str, at: dict[str, int], stack: list[np.ndarray], rule: ChannelRule
) -> Decoded:
    """Pixels of one place in a stack that is projected or not stored as a page a plane, as ImageJ's large ones."""
    with reading(path), open_tiff(path, path) as tiff:
        if not stack:
            series = tiff.series[index]
            check_segments(path, series.pages, tiff)
            stack.append(tiff.series[index].asarray(out="memmap"))
        plane = stack[0][tuple(at.get(axis, slice(None)) for axis in axes)]
        rest = "".join(axis for axis in axes if axis not in at)
        decoded = finish_tiff(path, tiff, index, plane, rest, rule)
    return Decoded(np.ascontiguousarray(decoded.pixels), decoded.alpha, decoded.names)
