"""The size of a TIFF's pixels in micrometres, and the distance of its planes, as its metadata have them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import tifffile

from maskrcnn_plus.data.slide_files import slide_sides
from maskrcnn_plus.data.tiff_files import find_elements, is_tiff, open_tiff

_MICROMETRES = {
    **dict.fromkeys(("um", "µm", "μm", "micron", "microns", "micrometer", "micrometre", "\\u00b5m"), 1.0),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-3),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), 1e3),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 1e4),
    **dict.fromkeys(("inch", "in"), 25400.0),
    "m": 1e6,
    "å": 1e-4,
}
_NOT_MEASURED = (25.4, 72, 96, 100, 150, 200, 240, 300)
"""Dots an inch that programs write for screens and printers without having measured anything; libvips one a mm."""

_SAME = 0.01  # relative difference up to which pixels are square


@dataclass(frozen=True)
class Calibration:
    """How large the pixels of a stack are; None where it is not known.

    Attributes:
        width, height: of a pixel, micrometres.
        depth: distance of the planes of a z stack, micrometres.
        interval: time between images, seconds.
    """

    width: float | None = None
    height: float | None = None
    depth: float | None = None
    interval: float | None = None

    @property
    def side(self) -> float | None:
        """Side of square pixels; None where they are not square, or their size is not known."""
        if self.width is None or self.height is None or abs(self.width - self.height) > _SAME * self.width:
            return None
        return self.width


def tiff_pixel_size(path: str) -> float | None:
    """Side of a pixel in micrometres, by OME, ImageJ or slide metadata or the resolution tags of a TIFF.

    Returns:
        None for other files, without a resolution, with one for print (72, 96, 100, 150, 200, 240 or 300 dots an inch,
        also in cm) or of one dot a mm, and where pixels are not square.
    """
    return tiff_calibration(path).side


def tiff_calibration(path: str) -> Calibration:
    """Size of pixels and distance of planes by the metadata of a TIFF; nothing known of other files."""
    try:
        if not is_tiff(path):
            return Calibration()
        with open_tiff(path, path) as tiff:
            images = find_elements(ElementTree.fromstring(tiff.ome_metadata).iter(), "Pixels") if tiff.is_ome else []
            attributes = images[0].attrib if images else {}
            sides = _ome_sides(attributes) or slide_sides(tiff, path) or _tag_sides(tiff) or (None, None)
            steps = _ome_steps(attributes) if attributes else _imagej_steps(tiff)
    except Exception:  # not a TIFF, or a damaged one: whoever reads the pixels has something to say about that
        return Calibration()
    values = [value if value is not None and math.isfinite(value) and value > 0 else None for value in (*sides, *steps)]
    return Calibration(*([None, None] if None in values[:2] else values[:2]), *values[2:])


def _ome_length(attributes: dict[str, str], axis: str) -> float | None:
    """Micrometres of a pixel along an axis."""
    unit = _MICROMETRES.get(attributes.get(f"PhysicalSize{axis}Unit", "µm").lower())
    length = attributes.get(f"PhysicalSize{axis}")
    return None if unit is None or length is None else float(length) * unit


def _ome_sides(attributes: dict[str, str]) -> tuple[float, float] | None:
    """Width and height of a pixel from OME-XML, square ones where it tells one side."""
    if "PhysicalSizeX" not in attributes:
        return None
    x = _ome_length(attributes, "X")
    y = _ome_length(attributes, "Y") if "PhysicalSizeY" in attributes else x
    return (x or math.nan, y or math.nan)  # a unit that is not known is none of the tags either


def _ome_steps(attributes: dict[str, str]) -> tuple[float | None, float | None]:
    """Distance of planes and time between images from OME-XML."""
    interval = attributes.get("TimeIncrement")
    seconds = {"s": 1.0, "ms": 1e-3, "min": 60.0, "h": 3600.0}.get(attributes.get("TimeIncrementUnit", "s"))
    return _ome_length(attributes, "Z"), None if interval is None or seconds is None else float(interval) * seconds


def _imagej_steps(tiff: tifffile.TiffFile) -> tuple[float | None, float | None]:
    """Distance of planes and time between images as ImageJ writes them."""
    metadata = tiff.imagej_metadata or {}
    unit = _imagej_unit(metadata)
    spacing, interval = metadata.get("spacing"), metadata.get("finterval")
    return (
        None if spacing is None or unit is None else abs(float(spacing)) * unit,  # negative from below upward
        None if interval is None else float(interval),
    )


def _imagej_unit(metadata: dict[str, Any]) -> float | None:
    """Micrometres of ImageJ's unit of length."""
    return _MICROMETRES.get(str(metadata.get("unit", "")).strip().lower())


def _tag_sides(tiff: tifffile.TiffFile) -> tuple[float, float] | None:
    """Width and height of a pixel from the resolution tags, in ImageJ's unit where there is one."""
    page = tiff.pages[0]
    tags = [page.tags.get(name) for name in ("XResolution", "YResolution")]
    if None in tags:
        return None
    per_unit = [tag.value[0] / tag.value[1] if tag.value[1] else math.nan for tag in tags]
    unit = page.tags.get("ResolutionUnit")
    unit = 2 if unit is None else int(unit.value)  # 1 none, 2 inch, 3 cm
    metadata = tiff.imagej_metadata or {}
    if str(metadata.get("unit", "")).strip():
        micrometres = _imagej_unit(metadata)
    else:
        micrometres = {2: 25400.0, 3: None if tiff.is_imagej else 1e4}.get(unit)
        per_inch = per_unit[0] * 25400.0 / (micrometres or math.inf)
        if any(abs(per_inch - dots) < 2e-3 * dots for dots in _NOT_MEASURED):  # in cm they are rounded
            return None
    if micrometres is None or not all(value > 0 for value in per_unit):
        return None
    return micrometres / per_unit[0], micrometres / per_unit[1]
