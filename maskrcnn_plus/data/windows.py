"""Windows of an image, read from its file as they are asked for, so that a huge image is never in memory.

A TIFF is read by its tiles or strips (through tifffile's decoder of single segments), or mapped into memory where it is
neither compressed nor split; a whole-slide file with the smaller images of its pyramid (`slide_windows`). Other
formats, and TIFFs that tifffile cannot decode by segments, cannot be entered in the middle: they are decoded as a
whole, in their own depth.

Shape shorthand: H, W image height and width, C channels (RGB order for colour).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np

from maskrcnn_plus.data.channels import ChannelRule
from maskrcnn_plus.data.image_windows import ImageWindows
from maskrcnn_plus.data.images import decode, reading
from maskrcnn_plus.data.pillow_files import Decoded
from maskrcnn_plus.data.read_error import ImageReadError
from maskrcnn_plus.data.slide_windows import open_slide_windows
from maskrcnn_plus.data.tiff_files import is_tiff, open_tiff
from maskrcnn_plus.data.tiff_windows import get_tiff_windows

__all__ = ["ImageWindows", "open_decoded", "open_windows"]


@contextmanager
def open_windows(
    source: str | os.PathLike | np.ndarray, page: int | Sequence[int] | None = None, rule: ChannelRule | None = None
) -> Iterator[ImageWindows]:
    """Open an image for reading by windows; a context manager, which closes the file.

    Args:
        source: image file as for `read_image`, upright as there, or an array [H, W] or [H, W, C] in RGB order.
        page: index of the page of a TIFF stack, or of the pages that are its channels; None takes a file that is one
            image.
        rule: picks the channels, and says what stacks become; None takes an image with all its channels.

    Raises:
        ImageReadError: the file is missing, damaged, of zero size, a stack without `page`, or has no such page; or the
            channels cannot be picked.
    """
    if isinstance(source, np.ndarray):
        pixels = source[:, :, None] if source.ndim == 2 else source  # [H, W, C]
        windows = ImageWindows("the image", pixels, alpha=None)
        yield windows if rule is None else windows.pick(rule)
        return
    name = os.fspath(source)
    with ExitStack() as stack:
        with reading(name) as local_path:
            if is_tiff(local_path):
                tiff = stack.enter_context(open_tiff(name, local_path))
                slide = None if page is not None else stack.enter_context(open_slide_windows(name, local_path, tiff))
                windows = slide or get_tiff_windows(name, tiff, page, rule or ChannelRule(None))
            elif page is not None:
                raise ImageReadError(f"{name}: only a TIFF has pages, but page {page} is wanted.")
            else:
                windows = None
            if windows is None:
                decoded = decode(name, local_path, rule)
                windows = ImageWindows(name, decoded.pixels, decoded.alpha, names=decoded.names)
        yield windows if rule is None else windows.pick(rule)


@contextmanager
def open_decoded(
    decode_image: Callable[[], Decoded], name: str, rule: ChannelRule | None = None
) -> Iterator[ImageWindows]:
    """Open an image that is decoded as a whole when it is opened, such as a frame; a context manager.

    Args:
        decode_image: gives the image.
        name: of the image in errors.
        rule: picks the channels.

    Raises:
        ImageReadError: it cannot be decoded, or the channels cannot be picked.
    """
    decoded = decode_image()
    yield ImageWindows(name, decoded.pixels, decoded.alpha, names=decoded.names).pick(rule or ChannelRule())
