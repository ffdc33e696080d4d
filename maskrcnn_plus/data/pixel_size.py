"""The size of a TIFF's pixels in micrometres, as its metadata have it."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import tifffile

from maskrcnn_plus.data.tiff_files import is_tiff, open_tiff

_MICROMETRES = {
    **dict.fromkeys(("um", "µm", "μm", "micron", "microns", "micrometer", "micrometre", "\\u00b5m"), 1.0),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-3),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), 1e3),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 1e4),
    **dict.fromkeys(("inch", "in"), 25400.0),
    "m": 1e6,
    "å": 1e-4,
}
_NOT_MEASURED = (72, 96, 100, 150, 200, 240, 300)
"""Dots an inch that programs write for screens and printers without having measured anything."""

_SAME = 0.01  # relative difference up to which pixels are square


def tiff_pixel_size(path: str) -> float | None:
    """Side of a pixel in micrometres, by OME or ImageJ metadata or the resolution tags of a TIFF.

    Returns:
        None for other files, without a resolution, with one for print (72, 96, 100, 150, 200, 240 or 300 dots an inch)
        and where pixels are not square.
    """
    try:
        if not is_tiff(path):
            return None
        with open_tiff(path, path) as tiff:
            sides = _ome_sides(tiff) or _tag_sides(tiff)
    except Exception:  # not a TIFF, or a damaged one: whoever reads the pixels has something to say about that
        return None
    if sides is None or not all(math.isfinite(side) and side > 0 for side in sides):
        return None
    return sides[0] if abs(sides[0] - sides[1]) <= _SAME * sides[0] else None


def _ome_sides(tiff: tifffile.TiffFile) -> tuple[float, float] | None:
    """Width and height of a pixel from OME-XML."""
    if not tiff.is_ome:
        return None
    for element in ElementTree.fromstring(tiff.ome_metadata).iter():
        if element.tag.rsplit("}", 1)[-1] == "Pixels" and "PhysicalSizeX" in element.attrib:
            units = [_MICROMETRES.get(element.get(f"PhysicalSize{axis}Unit", "µm").lower()) for axis in "XY"]
            if None in units:
                return None
            x = element.get("PhysicalSizeX")
            return float(x) * units[0], float(element.get("PhysicalSizeY", x)) * units[1]
    return None


def _tag_sides(tiff: tifffile.TiffFile) -> tuple[float, float] | None:
    """Width and height of a pixel from the resolution tags, in ImageJ's unit where there is one."""
    page = tiff.pages[0]
    tags = [page.tags.get(name) for name in ("XResolution", "YResolution")]
    if None in tags:
        return None
    per_unit = [tag.value[0] / tag.value[1] if tag.value[1] else math.nan for tag in tags]
    unit = page.tags.get("ResolutionUnit")
    unit = 2 if unit is None else int(unit.value)  # 1 none, 2 inch, 3 cm
    imagej = str((tiff.imagej_metadata or {}).get("unit", "")).strip().lower() if tiff.is_imagej else ""
    if imagej:
        micrometres = _MICROMETRES.get(re.sub(r"^\\u00b5", "µ", imagej))
    elif unit == 2 and not any(abs(per_unit[0] - dots) < 0.01 for dots in _NOT_MEASURED):
        micrometres = 25400.0
    else:
        micrometres = 1e4 if unit == 3 and not tiff.is_imagej else None
    if micrometres is None or not all(value > 0 for value in per_unit):
        return None
    return micrometres / per_unit[0], micrometres / per_unit[1]
