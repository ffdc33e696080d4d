"""Frames of videos, as OpenCV decodes them, of animations, as Pillow does, and of DICOM files."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import cv2
from PIL import Image

from maskrcnn_plus.data.channels import ChannelRule
from maskrcnn_plus.data.dicom_files import count_frames, decode_dicom, is_dicom, open_dicom
from maskrcnn_plus.data.images import reading
from maskrcnn_plus.data.limits import check_size
from maskrcnn_plus.data.pillow_files import Decoded, decode_frame, is_animated, open_pillow
from maskrcnn_plus.data.pixel_size import tiff_calibration
from maskrcnn_plus.data.read_error import ImageReadError
from maskrcnn_plus.data.tiff_planes import Opener
from maskrcnn_plus.data.windows import open_decoded

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
ANIMATION_SUFFIXES = (".gif", ".webp", ".png", ".apng")

_TRUNCATED = 0.9  # of the frames that a video says it has; the figure is often a little off
_CONTAINERS = (
    *((0, magic) for magic in (b"RIFF", b"\x1aE\xdf\xa3", b"0&\xb2u", b"\0\0\1\xba", b"\0\0\1\xb3", b"\x47")),
    *((4, box) for box in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")),
)
"""How videos begin. What OpenCV would take for a playlist of other files and addresses does not."""


def list_animation_frames(image: Image.Image, path: str, rule: ChannelRule) -> list[Opener]:
    """Openers of the frames of an open animation.

    Raises:
        ImageReadError: it says that it has more of them than bytes.
    """
    if image.n_frames > os.path.getsize(path):
        raise ImageReadError(f"{path}: it says that it has {image.n_frames} frames. Copy it again or remove it.")
    return [
        partial(open_decoded, partial(_decode_animation_frame, image, path, number), path, rule)
        for number in range(image.n_frames)
    ]


def list_dicom_frames(path: str, rule: ChannelRule) -> list[Opener]:
    """Openers of the frames of a DICOM file; none where it has one, or the rule makes one image of them.

    Raises:
        ImageReadError: the file cannot be read.
    """
    with reading(path):
        if not is_dicom(path) or rule.projection is not None or count_frames(open_dicom(path, path, header=True)) == 1:
            return []
        data = open_dicom(path, path)
    numbers = range(count_frames(data))
    return [
        partial(open_decoded, partial(_decode_dicom_frame, data, path, rule, number), path, rule) for number in numbers
    ]


def _decode_dicom_frame(data: Any, path: str, rule: ChannelRule, number: int) -> Decoded:
    with reading(path):
        return decode_dicom(path, data, rule, frame=number)


def _decode_animation_frame(image: Image.Image, path: str, number: int) -> Decoded:
    with reading(path):
        image.seek(number)
        return decode_frame(image)


def iterate_video_frames(path: str) -> Iterator[tuple[int, Opener]]:
    """Openers of the frames of a video in turn, each until the next is asked for, with their number as the file has it.

    Raises:
        ImageReadError: the file is missing or is no video; or it breaks off early, after its last frame.
    """
    capture = _open_video(path)
    try:
        sides = [max(int(capture.get(side)), 0) for side in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH)]
        check_size(path, *sides, pixel_bytes=8)
        count, number = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0), 0
        while capture.grab():
            number += 1
            yield count, partial(open_decoded, partial(_decode_video_frame, capture, path), path)
        if number < _TRUNCATED * count or number == 0:
            raise ImageReadError(
                f"{path}: only {number} of {count or 'its'} frames can be read. The video is truncated, damaged "
                "or in a format that OpenCV does not know: convert it to MP4 (H.264)."
            )
    finally:
        capture.release()


def read_frame_rate(path: str) -> float | None:
    """Frames a second of a video or animation, as its file says; None of other files, and where it does not say.

    Of a video with frames of different length it is the mean, of an animation that of the first frame.

    Raises:
        ImageReadError: the file is missing or damaged.
    """
    if path.lower().endswith(VIDEO_SUFFIXES):
        capture = _open_video(path)
        rate = float(capture.get(cv2.CAP_PROP_FPS))
        capture.release()
    elif path.lower().endswith(ANIMATION_SUFFIXES):
        with reading(path), open_pillow(path, path) as image:
            duration = image.info.get("duration") if is_animated(image) else None  # milliseconds
        rate = 1000 / duration if duration else 0.0
    else:
        interval = tiff_calibration(path).interval
        rate = 1 / interval if interval else 0.0
    return rate if 0 < rate < math.inf else None


def _open_video(path: str) -> cv2.VideoCapture:
    """A video as OpenCV reads it; closed where the file is none.

    Raises:
        ImageReadError: the file is missing.
    """
    with reading(path), open(path, "rb") as content:
        start = content.read(16)
    known = any(start[at : at + len(magic)] == magic for at, magic in _CONTAINERS)
    # The whole path, which nothing takes for an address or a pipeline.
    return cv2.VideoCapture(os.path.abspath(path)) if known else cv2.VideoCapture()


def _decode_video_frame(capture: cv2.VideoCapture, path: str) -> Decoded:
    decoded, frame = capture.retrieve()
    if not decoded:
        raise ImageReadError(f"{path}: a frame cannot be decoded. The video is damaged: convert it again.")
    return Decoded(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
