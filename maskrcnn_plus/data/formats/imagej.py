"""ImageJ's ROIs beside images: NAME.roi, NAME.zip, NAME_RoiSet.zip, a RoiSet.zip or a folder of .roi files an image.

Coordinates are those of pixel edges; a pixel whose centre lies inside is the object's. The class of an object is the
value of the property `class` of its ROI, where it has one.

ImageJ, RoiDecoder.java; the bytes are read by roifile.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import roifile
from roifile import ROI_SUBTYPE, ROI_TYPE

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats.annotated import UNUSED_ONLY, Annotated
from maskrcnn_plus.data.formats.files import list_tree, split_of
from maskrcnn_plus.data.formats.image_finder import ImageFinder
from maskrcnn_plus.data.formats.masks import rle_annotation
from maskrcnn_plus.data.formats.options import ReadOptions
from maskrcnn_plus.masks.polygons import rings_to_rle
from maskrcnn_plus.special_files import refuse_special_file

LOOKED_FOR = "ROIs of ImageJ (.roi, or .zip of them) beside images"

_CLASS = "object"
_SET_NAME = re.compile(r"^(roi_?sets?|rois?)[_\- ]*|[_\- ]*(roi_?sets?|rois?)$", re.IGNORECASE)
_MAX_ENTRY, _MAX_ARCHIVE, _MAX_ENTRIES = 1 << 26, 1 << 28, 100_000  # bytes, bytes, files
_OVAL_POINTS = 256
_WITHOUT_AREA = {
    ROI_TYPE.POINT: "a point",
    ROI_TYPE.LINE: "a line",
    ROI_TYPE.FREELINE: "a line",
    ROI_TYPE.POLYLINE: "a line",
    ROI_TYPE.ANGLE: "an angle",
    ROI_TYPE.NOROI: "an empty selection",
}
_NO_OBJECTS = {ROI_SUBTYPE.TEXT: "a text", ROI_SUBTYPE.ARROW: "an arrow", ROI_SUBTYPE.IMAGE: "a picture"}
_MALFORMED = (ValueError, TypeError, RuntimeError, IndexError, OverflowError, AssertionError, MemoryError, struct.error)


def matches(path: Path) -> bool:
    """Whether a folder, or a file, has ROIs of ImageJ."""
    return any(True for _ in _roi_files(path))


def read(path: Path, options: ReadOptions) -> Annotated:
    """Read the ROIs of all images of a folder, or those of one file beside its image.

    Raises:
        DataError: there are none.
    """
    data = Annotated()
    root = path if path.is_dir() else path.parent
    finder, by_folder = ImageFinder(root, data), defaultdict(list)
    for image in finder.files:
        by_folder[image.parent].append(image)
    files: dict[Path, list[Path]] = defaultdict(list)
    found_any = False
    for file in _roi_files(path):
        found_any = True
        image = _find_image(file, finder, by_folder, root)
        if image is None:
            example = next((image for image in finder.files if image.parent == file.parent), Path("cells.tif"))
            data.problems.append(
                f"{file}: its image is not there, or nobody can tell which it is. Name the ROIs after it: "
                f"{example.stem}_RoiSet.zip if it is {example.name}."
            )
        else:
            files[image].append(file)
    if not found_any:
        raise DataError(f"{path} holds no ROIs of ImageJ: it needs {LOOKED_FOR}.")
    for image, of_image in files.items():
        size = data.read_size(image)
        if size is None:
            continue
        annotations, planes, unused = [], set(), 0
        for file in of_image:
            for where, content in _read_entries(file, data):
                try:
                    roi = roifile.ImagejRoi.frombytes(content)
                    what = _NO_OBJECTS.get(roi.subtype) or _WITHOUT_AREA.get(roi.roitype)
                    if what is not None:
                        data.leave_out(what, where)
                        unused += roi.subtype not in _NO_OBJECTS
                        continue
                    rings = _rings(roi)
                    points = np.concatenate([np.zeros((0, 2)), *rings])
                    if len(points) and ((points.min(axis=0) >= size[::-1]) | (points.max(axis=0) <= 0)).any():
                        raise ValueError(f"it is outside of the image {image} of {size[0]} high x {size[1]} wide.")
                    rle = rings_to_rle(rings, *size)
                    annotations.append(rle_annotation(rle, data.category(_class_of(roi))))
                    planes.add(_plane(roi))
                except _MALFORMED as error:
                    data.problems.append(f"{where}: {error}")
                    unused += 1
        if len(planes - {(0, 0)}) > 1:
            data.problems.append(
                f"{of_image[0]}: its ROIs lie on {len(planes)} slices of a stack. Save each slice of {image} as a file "
                "of its own, with its ROIs."
            )
            continue
        if unused and not annotations:
            data.assume(UNUSED_ONLY, str(image))
        else:
            data.add_image(split_of(image, root), image, size, annotations)
    if data.class_names == [_CLASS]:
        data.notes.append(f"the ROIs have no property `class`: all objects are of the class {_CLASS!r}.")
    if path.is_dir():
        finder.note_left_out("have no ROIs", [image for image in finder.files if image not in files])
    return data


def _roi_files(path: Path) -> Iterator[Path]:
    """ROIs of ImageJ, and archives with some."""
    for file in list_tree(path, (".roi", ".zip")):
        try:
            refuse_special_file(file)
            if file.suffix.lower() == ".roi":
                with open(file, "rb") as opened:
                    is_roi = opened.read(4) == b"Iout"
            else:
                with zipfile.ZipFile(file) as archive:
                    names = archive.namelist()
                    is_roi = not names or any(map(_is_roi, names))  # without ROIs: an image without objects
        except (OSError, ValueError, zipfile.BadZipFile, *_MALFORMED):
            is_roi = file.suffix.lower() == ".roi"  # it is named when it is read
        if is_roi:
            yield file


def _is_roi(name: str) -> bool:
    return name.lower().endswith(".roi") and not name.rpartition("/")[2].startswith(".")


def _find_image(file: Path, finder: ImageFinder, by_folder: dict[Path, list[Path]], root: Path) -> Path | None:
    """Image of a set: the one of its name, or the only one of its folder; of single ROIs their folder is the set."""
    folder, name = file.parent, file.stem
    if file.suffix.lower() == ".roi":
        beside = by_folder[folder]
        named = [image for image in beside if image.stem == name]
        if named or len(beside) == 1:
            return (named or beside)[0]
        if folder == root:
            return None
        folder, name = folder.parent, folder.name
    for stem in (name, _SET_NAME.sub("", name)):
        if stem and (image := finder.find_stem(stem, folder)):
            return image
    return by_folder[folder][0] if len(by_folder[folder]) == 1 else None


def _read_entries(file: Path, data: Annotated) -> Iterator[tuple[str, bytes]]:
    """ROIs of a file with their places for messages; what is damaged or endless becomes a problem."""
    try:
        if file.suffix.lower() == ".roi":
            if file.stat().st_size > _MAX_ENTRY:
                raise ValueError(f"a ROI of {file.stat().st_size} bytes")
            yield str(file), file.read_bytes()
            return
        with zipfile.ZipFile(file) as archive:
            entries = [entry for entry in archive.infolist() if _is_roi(entry.filename)]
            if len(entries) > _MAX_ENTRIES or sum(entry.file_size for entry in entries) > _MAX_ARCHIVE:
                raise ValueError(f"it holds {len(entries)} ROIs, or more bytes than {_MAX_ARCHIVE}")
            for entry in entries:
                with archive.open(entry) as opened:
                    content = opened.read(min(entry.file_size, _MAX_ENTRY) + 1)
                yield f"{file}, {entry.filename}", content
    except (OSError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error, *_MALFORMED) as error:
        data.problems.append(f"{file} cannot be read ({error}). Save the ROIs from ImageJ again.")


def _rings(roi: roifile.ImagejRoi) -> list[np.ndarray]:
    """Closed rings [K, 2] of a ROI, pixels; even-odd, so that a ring within another is a hole."""
    if roi.roitype in (ROI_TYPE.RECT, ROI_TYPE.OVAL) and not roi.composite:
        x0, y0, x1, y1 = roi.left, roi.top, roi.right, roi.bottom
        if roi.subpixelrect:
            x0, y0, x1, y1 = roi.xd, roi.yd, roi.xd + roi.widthd, roi.yd + roi.heightd
        if roi.roitype == ROI_TYPE.RECT:
            return [np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=np.float64)]
        angles = np.arange(_OVAL_POINTS) * (2 * np.pi / _OVAL_POINTS)
        unit = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return [(unit + 1) / 2 * [x1 - x0, y1 - y0] + [x0, y0]]
    return [np.asarray(ring, dtype=np.float64) for ring in roi.coordinates(multi=True)]


def _class_of(roi: roifile.ImagejRoi) -> str:
    for line in roi.props.splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() == "class" and value.strip():
            return value.strip()
    return _CLASS


def _plane(roi: roifile.ImagejRoi) -> tuple[int, int]:
    """Slice and frame that a ROI lies on, (0, 0) where it lies on all."""
    return (roi.z_position, roi.t_position) if roi.z_position or roi.t_position else (roi.position, 0)
