"""The images of an input file: the file itself, pages of a TIFF stack, the frames of a video, animation or DICOM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from maskrcnn_plus.apps.predict_files.inputs import InputFile
from maskrcnn_plus.data.channels import ChannelRule, as_rule
from maskrcnn_plus.data.frames import (
    ANIMATION_SUFFIXES,
    VIDEO_SUFFIXES,
    iterate_video_frames,
    list_animation_frames,
    list_dicom_frames,
)
from maskrcnn_plus.data.images import reading
from maskrcnn_plus.data.pillow_files import is_animated, open_pillow
from maskrcnn_plus.data.tiff_planes import list_planes
from maskrcnn_plus.data.windows import ImageWindows, open_windows


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


def iterate_images(file: InputFile, channels: int | ChannelRule = 3) -> Iterator[SourceImage]:
    """Images of a file in turn; none is decoded before it is opened.

    The planes of a TIFF (`list_planes`) and the frames of a DICOM file, a video or an animated GIF, WebP or PNG are
    images of their own.

    Args:
        file: the file. Results of page 3 are named NAME_p0003, of frame 3 of a video NAME/frame_000003.
        channels: C of the model, or the rule by which its channels are chosen.

    Raises:
        ImageReadError: the file is missing or damaged; for a video that breaks off early, after its last frame.
    """
    rule = as_rule(channels)
    remote = "://" in file.path
    if file.path.lower().endswith(VIDEO_SUFFIXES) and not remote:
        for number, (count, frame) in enumerate(iterate_video_frames(file.path), start=1):
            yield _get_frame(file, number, count, frame)
        return
    if file.path.lower().endswith(ANIMATION_SUFFIXES) and not remote:
        with reading(file.path), open_pillow(file.path, file.path) as image:
            if is_animated(image):
                frames = list_animation_frames(image, file.path, rule)
                for number, frame in enumerate(frames, start=1):
                    yield _get_frame(file, number, len(frames), frame)
                return
    planes = [] if remote else list_planes(file.path, rule) or list_dicom_frames(file.path, rule)
    if len(planes) < 2:
        yield SourceImage(file.name, file.path, "", 0, 1, partial(open_windows, file.path, rule=rule))
        return
    for number, plane in enumerate(planes, start=1):
        yield SourceImage(f"{file.name}_p{number:04d}", file.path, f"page {number}", number, len(planes), plane)


def _get_frame(file: InputFile, number: int, count: int, frame: Callable) -> SourceImage:
    return SourceImage(f"{file.name}/frame_{number:06d}", file.path, f"frame {number}", number, count, frame)
