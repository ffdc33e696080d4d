"""Whole-slide files: which TIFFs are such, and the size of their pixels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tifffile

SLIDE_SUFFIXES = (".svs", ".ndpi", ".scn")
"""What whole-slide files are named, besides .tif and .tiff."""

_KINDS = ("svs", "ndpi", "scn", "bif", "philips")


def is_slide(tiff: tifffile.TiffFile) -> bool:
    """Whether a slide scanner wrote a TIFF, by its metadata."""
    return any(getattr(tiff, f"is_{kind}") for kind in _KINDS)


@contextmanager
def open_slide(local_path: str) -> Iterator[Any]:
    """Open a slide as `tiffslide.TiffSlide`.

    Raises:
        ImportError: tiffslide is not installed.
    """
    from tiffslide import TiffSlide

    with open(local_path, "rb") as file, TiffSlide(file) as slide:  # a path could be taken for an address
        with warnings.catch_warnings():  # of fields that are not used here
            warnings.simplefilter("ignore")
            _ = slide.properties
        yield slide


def slide_sides(tiff: tifffile.TiffFile, local_path: str) -> tuple[float, float] | None:
    """Width and height of a slide's pixel in micrometres; None where its metadata or a missing package do not tell.

    Resolution tags, which the files of some scanners have, are not looked at.
    """
    if tiff.is_svs:
        side = tifffile.tifffile.svs_description_metadata(tiff.pages[0].description).get("MPP")
        return None if side is None else (float(side), float(side))
    if not (tiff.is_scn or tiff.is_philips):
        return None
    try:
        with open_slide(local_path) as slide:
            sides = [slide.properties.get(f"tiffslide.mpp-{axis}") for axis in "xy"]
    except ImportError:
        return None
    return None if None in sides else tuple(map(float, sides))
