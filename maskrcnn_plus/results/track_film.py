"""A film with its tracks drawn in: masks in the colour of their identity, its number, and the trail behind it.

Shape shorthand: H x W pixels of a frame.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import IO

import av
import cv2
import numpy as np
import supervision as sv

from maskrcnn_plus.errors import UserError
from maskrcnn_plus.results.overlay import BASE_COLOURS
from maskrcnn_plus.results.tracks import TrackCounts, TrackedFrame, tracked_detections

MAX_SIDE = 3840
"""Pixels of the longer side of a film; a larger one is reduced."""

_CODECS = ("libx264", "libopenh264", "mpeg4")
"""The first that the installed PyAV has: H.264, which browsers show, or MPEG-4 Part 2."""

_OPTIONS = {"libx264": {"crf": "20", "preset": "veryfast", "mbtree": "0"}}
"""Without macroblock-tree rate control, which reads memory that nobody wrote: the same pictures gave other bytes."""


class TrackPainter:
    """Draws the frames of a film in their order."""

    def __init__(self, trail: int = 30, counts: TrackCounts | None = None) -> None:
        """Start a film.

        Args:
            trail: frames over which the way of an object stays visible.
            counts: whose lines and zones are drawn, with what they have counted so far.
        """
        palette = sv.ColorPalette.from_hex(list(BASE_COLOURS))
        drawing = {"color": palette, "color_lookup": sv.ColorLookup.TRACK}
        self._masks = sv.MaskAnnotator(opacity=0.38, **drawing)
        self._outlines = sv.PolygonAnnotator(thickness=1, **drawing)
        self._trails = sv.TraceAnnotator(trace_length=max(trail, 1), thickness=1, **drawing)
        self._labels = sv.LabelAnnotator(
            text_scale=0.35, text_padding=1, text_color=sv.Color.BLACK, text_position=sv.Position.CENTER, **drawing
        )
        self._counts = counts

    def draw(self, image: np.ndarray, frame: TrackedFrame) -> np.ndarray:
        """The picture of a frame.

        Args:
            image: [H, W, 3] uint8 RGB.
            frame: its objects; those without a track are not drawn.

        Returns:
            [H, W, 3] uint8 RGB, a new array.
        """
        detections = tracked_detections(frame)
        canvas = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        if len(detections):
            visible = detections[np.flatnonzero(detections.mask.area)]
            canvas = self._outlines.annotate(self._masks.annotate(canvas, visible), visible)
        canvas = self._trails.annotate(canvas, detections)
        canvas = self._labels.annotate(canvas, detections, labels=[str(k) for k in detections.tracker_id])
        if self._counts is not None:
            for line in self._counts.line_zones:
                start, end = line.vector.start, line.vector.end
                cv2.line(canvas, start.as_xy_int_tuple(), end.as_xy_int_tuple(), (255, 255, 255), 1, cv2.LINE_AA)
                _write(canvas, f"left {line.in_count} right {line.out_count}", start.as_xy_int_tuple())
            for zone in self._counts.polygon_zones:
                cv2.polylines(canvas, [zone.polygon], isClosed=True, color=(255, 255, 255), lineType=cv2.LINE_AA)
                _write(canvas, str(zone.current_count), tuple(zone.polygon[0].tolist()))
        return cv2.cvtColor(canvas, cv2.COLOR_BGR2RGB)


def _write(canvas: np.ndarray, text: str, place: tuple[int, int]) -> None:
    """White on black, its lower left corner at `place` or as near to it as the picture has room."""
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.4
    (width, height), _ = cv2.getTextSize(text, font, scale, 1)
    x = min(max(place[0], 0), max(canvas.shape[1] - width, 0))
    y = min(max(place[1], height + 2), canvas.shape[0] - 2)
    cv2.putText(canvas, text, (x, y), font, scale, (0, 0, 0), 3, cv2.LINE_AA)
    cv2.putText(canvas, text, (x, y), font, scale, (255, 255, 255), 1, cv2.LINE_AA)


def write_film(file: IO[bytes], pictures: Iterable[np.ndarray], rate: float) -> None:
    """Encode an MP4 film, picture by picture.

    Args:
        file: binary, open for writing, seekable.
        pictures: [H, W, 3] uint8 RGB, all of one size; a row or column is repeated where a side is odd, and sides above
            `MAX_SIDE` are reduced.
        rate: frames a second.

    Raises:
        UserError: PyAV has no encoder.
    """
    codec = next((name for name in _CODECS if name in av.codecs_available), None)
    if codec is None:
        raise UserError(f"The installed PyAV has none of the encoders {', '.join(_CODECS)}: pip install --upgrade av")
    with av.open(file, "w", format="mp4") as container:
        stream = None
        for picture in pictures:
            picture = _fitting(picture)
            if stream is None:
                stream = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1001))
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.options = _OPTIONS.get(codec, {})
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        if stream is not None:
            container.mux(stream.encode())


def _fitting(picture: np.ndarray) -> np.ndarray:
    """A picture of even sides of at most `MAX_SIDE`."""
    scale = MAX_SIDE / max(picture.shape[:2])
    if scale < 1:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
