"""What every reader gives: images with their objects, what was assumed, and what cannot be used."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_plus.data.annotations import polygon_area
from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats.files import list_tree
from maskrcnn_plus.data.formats.image_finder import ImageFinder
from maskrcnn_plus.data.formats.image_frames import UPRIGHT, ImageFrame, find_frame
from maskrcnn_plus.data.formats.masks import polygon_annotation, rle_annotation
from maskrcnn_plus.data.formats.shapes import NoAreaError, OutsideError, Shape, is_rectangle, unite
from maskrcnn_plus.data.images import ImageReadError, read_stored_size
from maskrcnn_plus.errors import printable
from maskrcnn_plus.masks.polygons import clip_polygon

__all__ = ["Annotated", "ImageFinder"]

BOX = "a box"
BOXES_ONLY = "images on which every object is a box, and which were left out: they are not without objects"
UNUSED_ONLY = "images on which no object could be used, and which were left out: they are not without objects"

_NO_OBJECTS = ("a tag ", "a region to ignore", "a polygon ")  # what says nothing of objects, and slips
_SHOWN = 3
_MANY = 20  # objects
_MAX_SCALE = 4
_ALWAYS_FINE = 1 << 24  # pixels
_CLIPPED = "polygons that reach beyond their image, and were cut at its border"


@dataclass
class Annotated:
    """Images and annotations of a folder.

    Attributes:
        class_names: name of each category id.
        splits: Detectron2 dataset dicts by split: "train", "val", "test", or `files.WHOLE`. Annotations have
            `segmentation` (polygons [x0, y0, x1, y1, ...] in pixels or COCO RLE), `bbox` (with `bbox_mode`) and
            `category_id`.
        notes: what was assumed or left out, a sentence each.
        problems: what cannot be used, a line each with file and annotation.
        format: name of the format that was read.
        missing: images that are annotated and not there.
        num_boxes: how many objects are drawn rectangles.
    """

    class_names: list[str] = field(default_factory=list)
    splits: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    format: str = ""
    missing: list[str] = field(default_factory=list)
    num_boxes: int = 0
    _assumed: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    _left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    _images: dict[Path, str] = field(default_factory=dict)
    _twice: list[str] = field(default_factory=list)
    _stored: dict[Path, tuple[int, int, int]] = field(default_factory=dict)

    def category(self, name: str) -> int:
        """Index of a class, which becomes known with this call."""
        name = printable(name)
        if name not in self.class_names:
            self.class_names.append(name)
        return self.class_names.index(name)

    def contents(
        self,
        path: Path,
        suffixes: Sequence[str],
        read: Callable[[Path], Any],
        fits: Callable[[Any], bool],
        looked_for: str,
        companions: Sequence[str] = (),
        files: Sequence[Path] | None = None,
    ) -> Iterator[tuple[Path, Any]]:
        """The files of a format in a folder and what they hold; those that cannot be read are problems, others noted.

        Args:
            path: folder, or a file.
            suffixes: of the files.
            read: gives the content of a file, or raises a DataError.
            fits: whether a content is of the format.
            looked_for: what the files are, for the error.
            companions: names of files that belong to the format and hold no annotations.
            files: those that are read, in this order; by default all with one of the suffixes.

        Raises:
            DataError: at the end, where there was no such file.
        """
        found = False
        for file in list_tree(path, suffixes) if files is None else files:
            try:
                content = read(file)
            except DataError as error:
                self.problems.append(str(error))
                continue
            if fits(content):
                found = True
                yield file, content
            elif file.name not in companions:
                self.assume("files of other things, which were left out", str(file))
        if not found:
            raise DataError(self.problems[0] if self.problems else f"{path}: none was found of {looked_for}.")

    def assume(self, what: str, where: str) -> None:
        """Note an assumption of which there may be many, told with their number and the first of them."""
        self._assumed[what].append(where)

    def leave_out(self, what: str, where: str) -> None:
        """Note what has no mask and is left out: "a point"."""
        self._left_out[what].append(where)

    def read_size(self, path: Path) -> tuple[int, int] | None:
        """(height, width) of an image file; None, and a problem, where it cannot be read."""
        try:
            height, width, orientation = self._read_stored(path)
            return (width, height) if orientation in (5, 6, 7, 8) else (height, width)
        except ImageReadError as error:
            self.problems.append(str(error))
            return None

    def drawn_size(self, image: Path, stated: tuple[int, int] | None, where: str) -> tuple[int, int] | None:
        """(height, width) of the image that a tool showed: what its file states, else the image's.

        None, and a problem, where the image cannot be read or is far smaller than stated, so that masks of the stated
        size would take memory without need.
        """
        size = self.read_size(image)
        if size is None or stated is None:
            return size
        if stated[0] * stated[1] > max(_MAX_SCALE**2 * size[0] * size[1], _ALWAYS_FINE) or min(stated) < 1:
            self.problems.append(
                f"{where}: it says {stated[0]} x {stated[1]}, the image {image} is {size[0]} x {size[1]}."
            )
            return None
        return stated

    def is_new(self, image: Path, where: str) -> bool:
        """Whether an image has not been annotated before; a problem, one for all images, where it has.

        Args:
            image: the file.
            where: the annotation file that asks.
        """
        other = self._images.setdefault(image.resolve(), where)
        if other != where:
            self._twice.append(f"{where}: {other} annotates {image} too")
        return other == where

    def has_image(self, image: Path) -> bool:
        """Whether an image was given to `is_new`."""
        return image.resolve() in self._images

    def add_image(self, split: str, path: Path, size: tuple[int, int], annotations: list[dict[str, Any]]) -> None:
        """Add an image with the (height, width) that `read_size` gave."""
        record = {"file_name": str(path), "height": size[0], "width": size[1], "image_id": str(path)}
        self.splits[split].append({**record, "annotations": annotations})

    def read_shapes(
        self, entries: Iterable[Any], where: str, read: Callable[[Any, str], Shape | None]
    ) -> list[Shape] | None:
        """The shapes that `read` makes of the entries of an image; what it raises is noted or becomes a problem.

        Args:
            entries: as they stand in the file.
            where: the file and image in messages.
            read: makes a shape of an entry and its place in messages, or None where there is nothing to say.

        Returns:
            The shapes; None where there are objects, and none of them could be used.
        """
        shapes, unused = [], 0
        for number, entry in enumerate(entries):
            place = f"{where}, shape {number}"
            try:
                shape = read(entry, place)
            except NoAreaError as error:
                self.leave_out(str(error), place)
                unused += not str(error).startswith(_NO_OBJECTS)
                continue
            except (ValueError, TypeError, AttributeError, LookupError, OverflowError, OSError, zlib.error) as error:
                is_missing = isinstance(error, KeyError)
                self.problems.append(f"{place}: {f'it has no {error}. Redraw or remove it.' if is_missing else error}")
                unused += 1
                continue
            if shape is not None:
                shapes.append(shape)
        return None if unused and not shapes else shapes

    def add_shapes(
        self, split: str, image: Path, shapes: Sequence[Shape] | None, where: str, stated: tuple[int, int] | None = None
    ) -> None:
        """Add an image with what was drawn on it, in pixels of the file; unless nothing of it could be used.

        Args:
            split: of the image.
            image: the file.
            shapes: in pixels of the image that the tool showed; None as of `read_shapes`.
            where: the annotation file in messages.
            stated: (height, width) of that image; None where the file does not say.
        """
        if shapes is None:
            self.assume(UNUSED_ONLY, str(image))
            return
        points = [points for shape in shapes for points in shape.polygons]
        extent = tuple(np.concatenate(points).max(axis=0)[::-1].tolist()) if points else None
        try:
            frame, assumed = find_frame(self._read_stored(image), stated, extent)
        except ImageReadError as error:
            self.problems.append(str(error))
            return
        except ValueError as error:
            self.problems.append(f"{where}: of {image} {error}")
            return
        if assumed:
            self.assume(assumed, str(image))
        annotations, outside = [], []
        for shape in shapes:
            try:
                annotations.append(self._annotation(shape, frame))
            except OutsideError as error:
                outside.append((shape, error))
            except ValueError as error:
                self.problems.append(f"{shape.where}: {error}")
            else:
                self.num_boxes += shape.is_box
                if shape.is_line:
                    self.assume("lines that end near their start, which were taken as outlines", shape.where)
        if 2 * len(outside) > len(shapes):  # it may be another image
            self.problems += [f"{shape.where}: {error}" for shape, error in outside]
        else:
            for shape, _ in outside:
                self.leave_out("an object outside of its image", shape.where)
        if shapes and not annotations:
            self.assume(UNUSED_ONLY, str(image))
        else:
            self.add_image(split, image, frame.size, annotations)

    def note_orientation(self, image: Path) -> None:
        """Say of a readable image that is turned by EXIF that its annotations are those of the upright image."""
        if self._read_stored(image)[2] != 1:
            self.assume(UPRIGHT, str(image))

    def _read_stored(self, path: Path) -> tuple[int, int, int]:
        if path not in self._stored:
            self._stored = {path: read_stored_size(str(path))}  # of the last image, which is asked for twice
        return self._stored[path]

    def _annotation(self, shape: Shape, frame: ImageFrame) -> dict[str, Any]:
        height, width = frame.size
        polygons = []
        for points in map(frame.move_points, shape.polygons):
            inside = clip_polygon(points, width, height)
            if len(inside) == len(points) and (inside == points).all():
                polygons.append(inside)
            elif len(inside) and polygon_area(inside.reshape(-1)):
                self.assume(_CLIPPED, shape.where)
                polygons.append(inside)
        if shape.polygons and not polygons and shape.rle is None:
            raise OutsideError(f"it is outside of the image of {height} high x {width} wide. Redraw or remove it.")
        rle = None if shape.rle is None else frame.move_rle(shape.rle)
        holes = [frame.move_points(points) for points in shape.holes]
        moved = unite(Shape(shape.label, shape.where, polygons, holes, rle), frame.size)
        category, crowd = self.category(shape.label), int(shape.is_crowd)
        if moved.rle is not None:
            return rle_annotation(moved.rle, category, crowd)
        return polygon_annotation([points.reshape(-1) for points in moved.polygons], category, crowd)

    def finish(self, path: Path) -> None:
        """Tell what was assumed and left out, in `notes` and `problems`.

        Raises:
            DataError: no object has a mask, though there are objects.
        """
        left_out = "; ".join(f"{what} ({len(where)})" for what, where in self._left_out.items())
        entries = [each for records in self.splits.values() for record in records for each in record["annotations"]]
        count = len(entries)
        masks = "Draw or export polygons or masks."
        if left_out and not count:
            raise DataError(f"{path}: no object has a mask. There are: {left_out}. {masks}")
        if self.num_boxes and self.num_boxes == count:
            raise DataError(f"{path}: all {count} objects are boxes, and none has a mask. {masks}")
        if count >= _MANY and all(is_rectangle(each.get("segmentation")) for each in entries):
            self.notes.append(f"all {count} masks are upright rectangles: they may have been made of boxes.")
        if self.num_boxes:
            self.notes.append(f"{self.num_boxes} of {count} objects are drawn as boxes: the whole box is their mask.")
        for what, where in self._left_out.items():
            self.notes.append(f"left out: {what} ({_some(where)}).")
        self.notes += [f"{what} ({_some(where)})." for what, where in self._assumed.items()]
        if self._twice:
            others = f", and {len(self._twice) - 1} more images have two files" if len(self._twice) > 1 else ""
            self.problems.append(f"{self._twice[0]}{others}. Keep one of them.")
        if self.missing:
            there = sum(map(len, self.splits.values()))
            self.problems.insert(
                0,
                f"{len(self.missing)} of {len(self.missing) + there} images that are annotated are not there "
                f"({_some(self.missing)}). Bring them{', or leave them out with --on-error skip' if there else ''}.",
            )
        self._left_out, self._assumed, self._twice = {}, {}, []


def _some(where: Sequence[str]) -> str:
    shown = ", ".join(where[:_SHOWN])
    return f"{len(where)}: {shown}, ..." if len(where) > _SHOWN else f"{len(where)}: {shown}"
