"""Label images as TIFFs that ImageJ, Fiji, napari and QuPath open with axes and calibration.

Value k marks the k-th object of its plane, 0 is background; objects are not linked from plane to plane. Up to 65535
objects and 8192 x 8192 pixels a plane and 2 GB in all it is an ImageJ hyperstack of 16 bits; else an OME-TIFF,
compressed, of 16 or 32 bits.

Shape shorthand: T images in time, Z planes, [Y, X] a plane.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import tifffile

from maskrcnn_plus.arrays import as_array
from maskrcnn_plus.data.pixel_size import Calibration
from maskrcnn_plus.masks.label_map import label_type, rles_to_label_map
from maskrcnn_plus.results.labels import TILE, label_tiles
from maskrcnn_plus.results.overlay import MAX_PIXELS

if TYPE_CHECKING:
    from detectron2.structures import Instances

IMAGEJ_BYTES = 2**31


def write_label_tiff(file: IO[bytes], instances: Instances, calibration: Calibration) -> None:
    """Write the label image of one plane; where objects overlap, the highest score has the pixel.

    Args:
        file: binary file to write to.
        instances: with `scores` and `pred_masks_rle`.
        calibration: of the image.
    """
    height, width = instances.image_size
    dtype = label_type(len(instances))
    if height * width > MAX_PIXELS:
        write_planes(file, label_tiles(instances), (height, width), "YX", dtype, calibration, tile=TILE)
        return
    labels = rles_to_label_map(instances.pred_masks_rle, as_array(instances.scores), height, width)
    write_planes(file, iter([labels]), (height, width), "YX", dtype, calibration)


def write_planes(
    file: IO[bytes],
    planes: Iterator[np.ndarray],
    shape: Sequence[int],
    axes: str,
    dtype: type[np.unsignedinteger],
    calibration: Calibration,
    tile: int | None = None,
) -> None:
    """Write label images as one TIFF.

    Args:
        file: binary file to write to.
        planes: [Y, X] each, in the order of the axes; with `tile`, their tiles [tile, tile], row by row.
        shape: length of each axis.
        axes: "YX", "TYX", "ZYX" or "TZYX".
        dtype: uint16 or uint32, in which all values fit.
        calibration: of the images; what it does not know is left out.
        tile: side of the tiles, pixels; None writes whole planes.
    """
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    known = calibration.width is not None and calibration.height is not None
    options: dict[str, Any] = {"shape": tuple(shape), "dtype": dtype, "photometric": "minisblack"}
    metadata: dict[str, Any] = {"axes": axes}
    if dtype == np.uint16 and size < IMAGEJ_BYTES and tile is None:
        options["imagej"] = True
        if known:
            options["resolution"] = (1 / calibration.width, 1 / calibration.height)
            metadata["unit"] = "um"
        if "Z" in axes and calibration.depth is not None:
            metadata |= {"spacing": calibration.depth, "unit": "um"}
        if "T" in axes and calibration.interval is not None:
            metadata["finterval"] = calibration.interval
    else:
        options |= {"tile": None if tile is None else (tile, tile)}
        options |= {"ome": True, "bigtiff": size >= IMAGEJ_BYTES, "compression": "zlib"}
        if known:
            options |= {"resolution": (1e4 / calibration.width, 1e4 / calibration.height), "resolutionunit": 3}  # cm
            for axis, length in (("X", calibration.width), ("Y", calibration.height)):
                metadata |= {f"PhysicalSize{axis}": length, f"PhysicalSize{axis}Unit": "µm"}
        if "Z" in axes and calibration.depth is not None:
            metadata |= {"PhysicalSizeZ": calibration.depth, "PhysicalSizeZUnit": "µm"}
        if "T" in axes and calibration.interval is not None:
            metadata |= {"TimeIncrement": calibration.interval, "TimeIncrementUnit": "s"}
    tifffile.imwrite(file, (plane.astype(dtype, copy=False) for plane in planes), metadata=metadata, **options)
