"""The images of an input file: the file itself, the pages of a TIFF stack, or the frames of a video.

Shape shorthand: H, W image height and width, C channels (RGB order for colour).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import tifffile
from PIL import Image

from maskrcnn_plus.data.images import ImageReadError
from maskrcnn_plus.data.windows import ImageWindows, open_windows
from maskrcnn_plus.inference.inputs import VIDEO_SUFFIXES, InputFile

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TRUNCATED = 0.9  # of the frames that a video says it has; the figure is often a little off


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


def images_of(file: InputFile, channels: int = 3) -> Iterator[SourceImage]:
    """Images of a file in turn; none is decoded before it is opened.

    The pages of a TIFF are images of their own, but for pages that are the channels of one image: so says its metadata
    (axis C), or there are as many pages as the model has channels and the model takes neither grey nor RGB. Thumbnails,
    reduced copies and, in whole-slide files, all but the slide are left out.

    Args:
        file: the file. Results of page 3 are named NAME_p0003, of frame 3 of a video NAME/frame_000003.
        channels: C of the model.

    Raises:
        ImageReadError: the file is missing or damaged; for a video that breaks off early, after its last frame.
    """
    if file.path.lower().endswith(VIDEO_SUFFIXES) and "://" not in file.path:
        yield from _frames(file)
        return
    planes = _planes(file.path, channels) if "://" not in file.path else []
    if len(planes) < 2:
        yield SourceImage(file.name, file.path, "", 0, 1, partial(open_windows, file.path))
        return
    for number, plane in enumerate(planes, start=1):
        yield SourceImage(f"{file.name}_p{number:04d}", file.path, f"page {number}", number, len(planes), plane)


def _frames(file: InputFile) -> Iterator[SourceImage]:
    """Frames of a video as OpenCV decodes them."""
    _check_readable(file.path)
    capture = cv2.VideoCapture(file.path)
    try:
        count, number = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0), 0
        while capture.grab():
            number += 1
            name = f"{file.name}/frame_{number:06d}"
            frame = partial(_open_array, partial(_frame, capture, file.path))
            yield SourceImage(name, file.path, f"frame {number}", number, count, frame)
        if number < _TRUNCATED * count or number == 0:
            raise ImageReadError(
                f"{file.path}: only {number} of {count or 'its'} frames can be read. The video is truncated, damaged "
                "or in a format that OpenCV does not know: convert it to MP4 (H.264)."
            )
    finally:
        capture.release()


def _frame(capture: cv2.VideoCapture, path: str) -> np.ndarray:
    decoded, frame = capture.retrieve()
    if not decoded:
        raise ImageReadError(f"{path}: a frame cannot be decoded. The video is damaged: convert it again.")
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def _check_readable(path: str) -> None:
    """Raise an ImageReadError that says why a file cannot be opened."""
    try:
        with open(path, "rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise ImageReadError(f"{path}: cannot be opened ({error.strerror}).") from error
    if empty:
        raise ImageReadError(f"{path}: the file is empty. Copy it again or remove it.")


def _planes(path: str, channels: int) -> list[Callable[[], AbstractContextManager[ImageWindows]]]:
    """Openers of the images in a TIFF; none where the file is no TIFF."""
    _check_readable(path)
    with open(path, "rb") as file:
        if file.read(4) not in _TIFF_MAGIC:
            return []
    try:
        with tifffile.TiffFile(path) as tiff:
            series = list(enumerate(tiff.series))
            if series and series[0][1].name == "Baseline":  # a slide scanner's; the others are label and overview
                series = series[:1]
            kept = [(index, each) for index, each in series if index == 0 or not each.keyframe.is_reduced]
            return [plane for index, each in kept for plane in _planes_of_series(path, index, each, channels)]
    except Exception as error:  # decoders raise all sorts of things on damaged files
        raise ImageReadError(
            f"{path}: cannot be read ({type(error).__name__}: {error}). The TIFF is damaged or truncated: copy it "
            "again."
        ) from error


def _planes_of_series(
    path: str, index: int, series: tifffile.TiffPageSeries, channels: int
) -> list[Callable[[], AbstractContextManager[ImageWindows]]]:
    """Openers of the images in a series of pages that belong together, the `index`-th of the file."""
    sizes = dict(zip(series.axes, series.shape, strict=True))
    # Axes I and Q: pages of which no metadata say what they are.
    unknown = [axis for axis in sizes if axis in "IQ" and sizes[axis] == channels and channels not in (1, 3)]
    stacked = [axis for axis in sizes if axis not in ("Y", "X", "S", "C", *unknown)]
    inner = series.keyframe.axes
    leading = series.axes.removesuffix(inner) if series.axes.endswith(inner) else ""
    shape = [sizes[axis] for axis in leading]
    in_pages = set(leading) >= set(stacked) and len(series.pages) == math.prod(shape) and not series.is_multifile
    planes = []
    whole: list[np.ndarray] = []  # read at first need, for all planes
    for place in itertools.product(*(range(sizes[axis]) for axis in stacked)):
        at = dict(zip(stacked, place, strict=True))
        if in_pages:
            numbers = np.arange(len(series.pages)).reshape(shape)[tuple(at.get(axis, slice(None)) for axis in leading)]
            pages = [series.pages[number].index for number in numbers.ravel().tolist()]
            planes.append(partial(_open_pages, path, pages))
        else:
            planes.append(partial(_open_array, partial(_read_from_array, path, index, series.axes, at, whole)))
    return planes


@contextmanager
def _open_array(read: Callable[[], np.ndarray]) -> Iterator[ImageWindows]:
    """Open what `read` gives."""
    with open_windows(read()) as windows:
        yield windows


@contextmanager
def _open_pages(path: str, pages: list[int]) -> Iterator[ImageWindows]:
    """Open an image whose channels are in the given pages."""
    with ExitStack() as stack:
        if len(pages) > 1:
            parts = [stack.enter_context(open_windows(path, page)) for page in pages]
            yield stack.enter_context(open_windows(np.concatenate([part.reduced(1) for part in parts], axis=2)))
            return
        try:
            windows = stack.enter_context(open_windows(path, pages[0]))
        except ImageReadError as error:
            pixels = _read_page_with_pillow(path, pages[0])
            if pixels is None:
                raise error
            windows = stack.enter_context(open_windows(pixels))
        yield windows


def _read_page_with_pillow(path: str, page: int) -> np.ndarray | None:
    """A page in compressions and colours that tifffile alone does not decode; None where Pillow does not either."""
    try:
        with Image.open(path) as image:
            image.seek(page)
            if ";16" in str(image.tile) and image.mode in ("RGB", "RGBA"):
                return None  # Pillow would cut it to 8 bits
            if image.mode not in ("1", "L", "RGB", "RGBA", "I", "F") and not image.mode.startswith("I;16"):
                image = image.convert("RGB")  # palette, CMYK, YCbCr
            pixels = np.array(image)
    except Exception:  # of any decoder; the caller has a message already
        return None
    return pixels[:, :, None] if pixels.ndim == 2 else pixels  # [H, W, C]


def _read_from_array(path: str, index: int, axes: str, at: dict[str, int], whole: list[np.ndarray]) -> np.ndarray:
    """Pixels of one place in a stack that is not stored as a page a plane, such as ImageJ's large ones."""
    if not whole:
        with tifffile.TiffFile(path) as tiff:
            whole.append(tiff.series[index].asarray(out="memmap"))
    plane = whole[0][tuple(at.get(axis, slice(None)) for axis in axes)]
    rest = [axis for axis in axes if axis not in at]
    order = [rest.index("Y"), rest.index("X"), *(k for k, axis in enumerate(rest) if axis not in "YX")]
    plane = plane.transpose(order)
    return np.ascontiguousarray(plane.reshape(*plane.shape[:2], -1))  # [H, W, C]
