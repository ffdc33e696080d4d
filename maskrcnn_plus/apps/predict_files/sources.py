"""The images of an input file: the file itself, the pages of a TIFF stack, or the frames of a video or an animation.

Shape shorthand: H, W image height and width, C channels (RGB order for colour).
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import tifffile
from PIL import Image

from maskrcnn_plus.apps.predict_files.inputs import ANIMATION_SUFFIXES, VIDEO_SUFFIXES, InputFile
from maskrcnn_plus.data.channels import ChannelRule, as_rule
from maskrcnn_plus.data.images import ImageReadError, reading
from maskrcnn_plus.data.limits import check_size
from maskrcnn_plus.data.pillow_files import Decoded, decode_frame, is_animated, open_pillow
from maskrcnn_plus.data.tiff_files import (
    alpha_of_page,
    channel_names,
    check_segments,
    image_of_axes,
    is_tiff,
    open_tiff,
    stacked_axes,
)
from maskrcnn_plus.data.windows import ImageWindows, open_windows

_TRUNCATED = 0.9  # of the frames that a video says it has; the figure is often a little off
_CONTAINERS = (
    *((0, magic) for magic in (b"RIFF", b"\x1aE\xdf\xa3", b"0&\xb2u", b"\0\0\1\xba", b"\0\0\1\xb3", b"\x47")),
    *((4, box) for box in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")),
)
"""How files of `VIDEO_SUFFIXES` begin. What OpenCV would take for a playlist of other files and addresses does not."""


@dataclass(frozen=True)
class SourceImage:
    """One image of an input file.

    Attributes:
        name: of its results.
        path: the file.
        part: which page or frame it is, for people; "" where it is the whole file.
        number: of the page or frame, from 1; 0 where it is the whole file.
        count: images of the file, as far as known beforehand.
        open: context manager of its pixels, see `open_windows`; of a video only until the next frame is asked for.
    """

    name: str
    path: str
    part: str
    number: int
    count: int
    open: Callable[[], AbstractContextManager[ImageWindows]]


def images_of(file: InputFile, channels: int | ChannelRule = 3) -> Iterator[SourceImage]:
    """Images of a file in turn; none is decoded before it is opened.

    The pages of a TIFF are images of their own, but for pages that are the channels of one image (so says its metadata
    by axis C, or see `stacked_axes`) and planes of a z stack that the rule projects. Thumbnails, reduced copies and, in
    whole-slide files, all but the slide are left out. So are the frames of an animated GIF, WebP or PNG.

    Args:
        file: the file. Results of page 3 are named NAME_p0003, of frame 3 of a video NAME/frame_000003.
        channels: C of the model, or the rule by which its channels are chosen.

    Raises:
        ImageReadError: the file is missing or damaged; for a video that breaks off early, after its last frame.
    """
    rule = as_rule(channels)
    remote = "://" in file.path
    if file.path.lower().endswith(VIDEO_SUFFIXES) and not remote:
        yield from _frames(file)
        return
    if file.path.lower().endswith(ANIMATION_SUFFIXES) and not remote:
        with reading(file.path), open_pillow(file.path, file.path) as image:
            if is_animated(image):
                yield from _animation(file, image, rule)
                return
    planes = [] if remote else _planes(file.path, rule)
    if len(planes) < 2:
        yield SourceImage(file.name, file.path, "", 0, 1, partial(open_windows, file.path, rule=rule))
        return
    for number, plane in enumerate(planes, start=1):
        yield SourceImage(f"{file.name}_p{number:04d}", file.path, f"page {number}", number, len(planes), plane)


def _animation(file: InputFile, image: Image.Image, rule: ChannelRule) -> Iterator[SourceImage]:
    """Frames of an open animation."""
    count = image.n_frames
    for number in range(1, count + 1):
        frame = partial(_open_array, partial(_animation_frame, image, file.path, number), file.path, rule)
        yield SourceImage(f"{file.name}/frame_{number:06d}", file.path, f"frame {number}", number, count, frame)


def _animation_frame(image: Image.Image, path: str, number: int) -> Decoded:
    with reading(path):
        image.seek(number - 1)
        return decode_frame(image)


def _frames(file: InputFile) -> Iterator[SourceImage]:
    """Frames of a video as OpenCV decodes them."""
    _check_readable(file.path)
    with open(file.path, "rb") as content:
        start = content.read(16)
    known = any(start[at : at + len(magic)] == magic for at, magic in _CONTAINERS)
    # The whole path, which nothing takes for an address or a pipeline.
    capture = cv2.VideoCapture(os.path.abspath(file.path)) if known else cv2.VideoCapture()
    try:
        sides = [max(int(capture.get(side)), 0) for side in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH)]
        check_size(file.path, *sides, pixel_bytes=8)
        count, number = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0), 0
        while capture.grab():
            number += 1
            name = f"{file.name}/frame_{number:06d}"
            frame = partial(_open_array, partial(_frame, capture, file.path), file.path)
            yield SourceImage(name, file.path, f"frame {number}", number, count, frame)
        if number < _TRUNCATED * count or number == 0:
            raise ImageReadError(
                f"{file.path}: only {number} of {count or 'its'} frames can be read. The video is truncated, damaged "
                "or in a format that OpenCV does not know: convert it to MP4 (H.264)."
            )
    finally:
        capture.release()


def _frame(capture: cv2.VideoCapture, path: str) -> Decoded:
    decoded, frame = capture.retrieve()
    if not decoded:
        raise ImageReadError(f"{path}: a frame cannot be decoded. The video is damaged: convert it again.")
    return Decoded(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))


def _check_readable(path: str) -> None:
    """Raise an ImageReadError that says why a file cannot be opened."""
    with reading(path), open(path, "rb"):
        pass


def _planes(path: str, rule: ChannelRule) -> list[Callable[[], AbstractContextManager[ImageWindows]]]:
    """Openers of the images in a TIFF; none where the file is no TIFF."""
    with reading(path):
        if not is_tiff(path):
            return []
        with open_tiff(path, path) as tiff:
            series = list(enumerate(tiff.series))
            if series and series[0][1].name == "Baseline":  # a slide scanner's; the others are label and overview
                series = series[:1]
            kept = [(index, each) for index, each in series if index == 0 or not each.keyframe.is_reduced]
            return [plane for index, each in kept for plane in _planes_of_series(path, index, each, rule, tiff)]


def _planes_of_series(
    path: str, index: int, series: tifffile.TiffPageSeries, rule: ChannelRule, tiff: tifffile.TiffFile
) -> list[Callable[[], AbstractContextManager[ImageWindows]]]:
    """Openers of the images in a series of pages that belong together, the `index`-th of the file."""
    sizes = dict(zip(series.axes, series.shape, strict=True))
    stacked, projected = stacked_axes(series, rule)
    stacked += [axis for axis in sizes if axis not in ("Y", "X", "S", "C", *stacked, *projected) and sizes[axis] == 1]
    inner = series.keyframe.axes
    leading = series.axes.removesuffix(inner) if series.axes.endswith(inner) else ""
    shape = [sizes[axis] for axis in leading]
    in_pages = set(leading) >= set(stacked) and len(series.pages) == math.prod(shape) and not series.is_multifile
    names, planes = channel_names(tiff, index), []
    whole: list[np.ndarray] = []  # read at first need, for all planes
    for place in itertools.product(*(range(sizes[axis]) for axis in stacked)):
        at = dict(zip(stacked, place, strict=True))
        if in_pages and not projected:
            numbers = np.arange(len(series.pages)).reshape(shape)[tuple(at.get(axis, slice(None)) for axis in leading)]
            pages = [series.pages[number].index for number in numbers.ravel().tolist()]
            planes.append(partial(_open_pages, path, pages, names, rule))
        else:
            read = partial(_read_from_array, path, index, series.axes, at, whole, rule)
            planes.append(partial(_open_array, read, path, rule))
    return planes


@contextmanager
def _open_array(read: Callable[[], Decoded], name: str, rule: ChannelRule | None = None) -> Iterator[ImageWindows]:
    """Open what `read` gives."""
    decoded = read()
    yield ImageWindows(name, decoded.pixels, decoded.alpha, names=decoded.names).pick(rule or ChannelRule())


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
    path: str, index: int, axes: str, at: dict[str, int], whole: list[np.ndarray], rule: ChannelRule
) -> Decoded:
    """Pixels of one place in a stack that is projected or not stored as a page a plane, as ImageJ's large ones."""
    with reading(path), open_tiff(path, path) as tiff:
        if not whole:
            series = tiff.series[index]
            for page in series.pages:
                if page is not None:
                    check_segments(path, page, tiff.filehandle.size)
            whole.append(tiff.series[index].asarray(out="memmap"))
        names, alpha = channel_names(tiff, index), alpha_of_page(tiff.series[index].keyframe)
    plane = whole[0][tuple(at.get(axis, slice(None)) for axis in axes)]
    rest = "".join(axis for axis in axes if axis not in at)
    pixels = np.ascontiguousarray(image_of_axes(path, plane, rest, rule))
    return Decoded(pixels, alpha if "S" in axes and "C" not in axes else (), names)
