"""CVAT for video 1.1: XML, <annotations><track label><polygon|box|ellipse|mask frame outside .../></track>.

A shape is of the one frame with its number: CVAT writes one for each frame. The images are those of the frames, in
`images/` or beside the file: frame_000012.png, or any images in their order, as numbers from 1 on are too.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats.annotated import Annotated

_NUMBER = re.compile(r"(\d+)$")


def read_frames(tree: Any, file: Path, images: Sequence[Path], data: Annotated) -> Iterator[tuple[Path, str, Any]]:
    """The frames of a video, as a file of images would have them.

    Args:
        tree: content of the XML file.
        file: it.
        images: of the folder of the data set.
        data: takes problems, what was assumed, and the frames with shapes that have no image.

    Yields:
        An image, its place in messages, and an element <image> with its size and its shapes, each with the label of its
        track.

    Raises:
        DataError: most frames with shapes have no image, or the frames are of several videos.
    """
    tasks = {track.get("task_id") for track in tree.iter("track")}
    if len(tasks) > 1:
        raise DataError(
            f"{file} is of a project of {len(tasks)} videos, whose frames have the same numbers, so that nobody can "
            "tell whose the tracks are. Export each task by itself, or the project as 'CVAT for images 1.1'."
        )
    shapes, unknown = _shapes_of_frames(tree, file, data)
    names = _images_of_frames(tree, file, images, shapes)
    data.missing += [f"frame {frame} of {file}" for frame in sorted(shapes.keys() - names.keys())]
    frames = sorted(names)
    between = (frames[bisect_left(frames, gap.start) : bisect_left(frames, gap.stop)] for gap in unknown)
    gaps = {frame for each in between for frame in each}
    if gaps:
        data.notes.append(
            f"{file}: {len(gaps)} frames between key frames, without outlines of their own, were left out, "
            f"{names[min(gaps)]} among them. Export them as 'CVAT for images 1.1'."
        )
    size = {side: tree.findtext(f".//original_size/{side}", "") for side in ("height", "width")}
    for frame in frames:
        if frame not in gaps:
            element = ElementTree.Element("image", size)
            element.extend(shapes.get(frame, ()))
            yield names[frame], f"{file}, frame {frame}", element


def _shapes_of_frames(tree: Any, file: Path, data: Annotated) -> tuple[dict[int, list[Any]], list[range]]:
    """Shapes by frame, and the frames in which an object is that has no shape there."""
    shapes, unknown = defaultdict(list), []
    for track in tree.iter("track"):
        last = None
        numbered = [(_frame_of(shape), shape) for shape in track]
        for frame, shape in sorted(numbered, key=lambda each: each[0]):
            if frame < 0:
                data.problems.append(f"{file}, track {track.get('id')}: a {shape.tag} has no frame. Remove it.")
                continue
            if last is not None and frame > last + 1:
                unknown.append(range(last + 1, frame))
            is_there = shape.get("outside") != "1"
            last = frame if is_there else None
            if is_there:
                if shape.get("label") is None:
                    shape.set("label", track.get("label", ""))
                shapes[frame].append(shape)
    return shapes, unknown


def _frame_of(shape: Any) -> int:
    """The number of its frame, -1 where it has none."""
    number = shape.get("frame", "")
    return int(number) if number.isdecimal() and len(number) < 10 else -1


def _images_of_frames(tree: Any, file: Path, images: Sequence[Path], frames: Collection[int]) -> dict[int, Path]:
    """Images by frame: by the number that their names end with, else by their order."""
    beside = [image for image in images if image.parent in (file.parent / "images", file.parent)]
    beside = beside or [image for image in images if image.is_relative_to(file.parent)]
    ends = [_NUMBER.search(image.stem) for image in beside]
    numbers = [int(end[1]) for end in ends if end]
    by_number = dict(zip(numbers, beside, strict=True)) if len({*numbers}) == len(beside) else {}
    size, start = tree.findtext(".//size", ""), tree.findtext(".//start_frame", "") or "0"
    is_whole = size == str(len(beside))
    from_one = is_whole and start == "0" and by_number.keys() == {*range(1, len(beside) + 1)}  # ffmpeg's
    if by_number and not from_one and by_number.keys() >= {*frames}:
        return by_number
    by_order = dict(enumerate(sorted(beside)))
    if is_whole and by_order.keys() >= {*frames}:
        return by_order
    missing = sorted({*frames} - by_number.keys())
    if len(missing) < len({*frames}) / 2:
        return by_number
    raise DataError(
        f"{file} is of a video, and the image of frame {missing[0] if missing else 0} is not there ({len(beside)} "
        "images are beside it). Export it from CVAT with 'Save images', or put the frames into a folder images/ as "
        "frame_000000.png and so on."
    )
