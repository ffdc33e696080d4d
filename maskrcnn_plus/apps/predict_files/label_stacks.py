"""The label images of a stack's planes in one TIFF with the stack's axes and calibration.

Planes are kept as files of their own in a hidden folder beside it, so that a run that was stopped goes on; the TIFF is
written when all are there.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import tifffile
from detectron2.structures import Instances

from maskrcnn_plus.apps.predict_files.inputs import InputFile
from maskrcnn_plus.apps.predict_files.sources import SourceImage
from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.data.channels import ChannelRule
from maskrcnn_plus.data.images import read_label_map
from maskrcnn_plus.data.pixel_size import Calibration, tiff_calibration
from maskrcnn_plus.data.tiff_files import is_tiff, open_tiff, stacked_axes
from maskrcnn_plus.results import FORMATS
from maskrcnn_plus.results.label_tiff import write_planes
from maskrcnn_plus.results.labels import encode_labels

KIND = "label-tiff"


def write_plane(output: Path, image: SourceImage, instances: Instances) -> Path:
    """Write the label image of a page or frame; returns its file."""
    suffix, content = encode_labels(instances)
    path = output / FORMATS[KIND] / ".planes" / f"{image.name}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    return path


def write_stack(
    output: Path, file: InputFile, planes: list[Path], rule: ChannelRule, pixel_size: float | None = None
) -> Path:
    """Write the planes of a file as one TIFF, unless it is there and newer than they are.

    Args:
        output: folder of the results.
        file: the stack.
        planes: of `write_plane`, all of the file, in its order.
        rule: says which axes are projected.
        pixel_size: micrometres, in place of what the file says.

    Raises:
        ValueError: planes of different sizes.
    """
    path = output / FORMATS[KIND] / f"{file.name}.tif"
    newest = max(plane.stat().st_mtime_ns for plane in planes)
    if path.exists() and path.stat().st_mtime_ns >= newest:
        return path
    sizes = {read_size(plane) for plane in planes}
    if len(sizes) > 1:
        raise ValueError(f"{file.path}: its images have different sizes, which are no stack: {KIND} needs one size")
    axes, lengths, order = _arrange(file.path, rule, len(planes))
    is_large = any(plane.suffix == ".tif" and _dtype(plane) == np.uint32 for plane in planes)
    calibration = get_calibration(file.path, pixel_size)
    write = partial(
        write_planes,
        planes=(read_label_map(str(planes[index])) for index in order),
        shape=(*lengths, *sizes.pop()),
        axes=f"{axes}YX",
        dtype=np.uint32 if is_large else np.uint16,
        calibration=calibration,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, write)
    return path


def get_calibration(path: str | None, pixel_size: float | None) -> Calibration:
    """The calibration of a file, with another size of its pixels where one is given, micrometres."""
    found = Calibration() if path is None else tiff_calibration(path)
    return found if pixel_size is None else Calibration(pixel_size, pixel_size, found.depth, found.interval)


def read_size(plane: Path) -> tuple[int, int]:
    """(height, width) of a plane's file."""
    if plane.suffix == ".tif":
        with tifffile.TiffFile(plane) as tiff:
            return tuple(tiff.pages[0].shape)
    with open(plane, "rb") as file:
        header = file.read(24)  # PNG: signature, length and name of the first chunk, width, height
    return int.from_bytes(header[20:24], "big"), int.from_bytes(header[16:20], "big")


def _dtype(plane: Path) -> np.dtype:
    with tifffile.TiffFile(plane) as tiff:
        return tiff.pages[0].dtype


def stack_axes(path: str, rule: ChannelRule) -> str:
    """The axes of a TIFF along which it holds images of their own, "TZ"; "" of other files, and what cannot be read."""
    try:
        if "://" in path or not is_tiff(path):
            return ""
        with open_tiff(path, path) as tiff:
            return "".join(stacked_axes(tiff.series[0], rule)[0])
    except (ValueError, OSError, LookupError):  # told where it is predicted
        return ""


def _arrange(path: str, rule: ChannelRule, count: int) -> tuple[str, list[int], list[int]]:
    """Axes of a stack of `count` planes (T before Z), their lengths, and the planes' indices in that order.

    Pages of a TIFF of which nothing says what they are, or of further axes, count as one of z, as ImageJ takes them;
    the frames of other files follow each other in time.
    """
    if "://" in path or not is_tiff(path):
        return "T", [count], list(range(count))
    with open_tiff(path, path) as tiff:
        series = tiff.series[0]
        stacked = stacked_axes(series, rule)[0]
        lengths = [series.shape[series.axes.index(axis)] for axis in stacked]
    if not set(stacked) <= set("TZ") or math.prod(lengths) != count:
        return "Z", [count], list(range(count))
    by_axis = np.arange(count).reshape(lengths).transpose(np.argsort(stacked))  # T before Z
    return "".join(sorted(stacked)), list(by_axis.shape), by_axis.ravel().tolist()
