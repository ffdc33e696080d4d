"""Predictions to files, a format a module: each file whole or not there at all.

    instances = predictor.predict("image.tif")
    write_results("output", "image", instances, "image.tif", formats=["labels", "csv"])

Shape shorthand: N objects of one image of H x W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.data.pixel_size import Calibration, tiff_calibration
from maskrcnn_plus.data.windows import ImageWindows, open_windows
from maskrcnn_plus.masks.rle_masks import encode_masks
from maskrcnn_plus.results.annotation_sets import ANNOTATION_SETS, write_annotated
from maskrcnn_plus.results.coco import coco_results, merge_coco
from maskrcnn_plus.results.counts import count_table, merge_counts
from maskrcnn_plus.results.cutouts import check_background, write_cut
from maskrcnn_plus.results.facts import count_channels, known_class_names, known_pixel_size, rule_of
from maskrcnn_plus.results.geojson import OBJECT_TYPES, write_geojson
from maskrcnn_plus.results.image_files import can_link
from maskrcnn_plus.results.label_tiff import write_label_tiff
from maskrcnn_plus.results.labels import encode_labels, encode_png
from maskrcnn_plus.results.overlay import draw_overlay, make_picture
from maskrcnn_plus.results.table import merge_tables, object_table

if TYPE_CHECKING:
    from detectron2.structures import Instances

FORMATS = {
    "overlay": "overlays",
    "labels": "labels",
    "coco": "coco",
    "csv": "csv",
    "geojson": "geojson",
    "counts": "counts",
    "label-tiff": "label-tiff",
    "cutouts": "cutouts",
    "background": "background",
    **{kind: kind for kind in ANNOTATION_SETS},
}
"""The sub-folder of each format."""

MERGED: dict[str, tuple[str, Callable]] = {
    "coco": ("predictions.json", lambda path, parts, _: merge_coco(path, parts)),
    "csv": ("predictions.csv", lambda path, parts, _: merge_tables(path, parts)),
    "counts": ("counts.csv", lambda path, parts, _: merge_counts(path, parts)),
    **{kind: (f"{kind}/{each.merged}", each.merge) for kind, each in ANNOTATION_SETS.items() if each.merge},
}
"""File below the output folder that brings all images of a format together, and what writes it: a function of the file,
the files of the images and the names of the classes."""

_SUFFIXES = {"coco": ".json", "csv": ".csv", "geojson": ".geojson", "counts": ".csv", "label-tiff": ".tif"}

NEED_IMAGE = {"overlay", "csv", "cutouts", "background"}
"""Formats that are made of the pixels too."""

DEFAULT_FORMATS = ("overlay", "labels", "coco")


def write_results(
    output: str | Path,
    name: str,
    instances: Instances,
    image: np.ndarray | str | os.PathLike | ImageWindows | None = None,
    *,
    formats: Sequence[str] = DEFAULT_FORMATS,
    class_names: Sequence[str] | None = None,
    pixel_size: float | None = None,
    channels: int = 3,
    file_name: str | None = None,
    source: str | os.PathLike | None = None,
    background: str = "transparent",
    soft: bool = False,
    object_type: str = "detection",
) -> dict[str, Path]:
    """Write the predictions of one image below a folder.

    - overlay: `overlays/NAME.png`, the image with its masks drawn in; of more than 8192 x 8192 pixels on a reduced
      image, see `make_picture`.
    - labels: `labels/NAME.png`, 16-bit: 0 background, value k the k-th object; a pixel belongs to the object with the
      highest score. With more than 65535 objects a 32-bit `labels/NAME.tif`; with more than 8192 x 8192 pixels a TIFF.
    - coco: `coco/NAME.json`, a COCO results list, see `coco_results`.
    - csv: `csv/NAME.csv`, a row an object, see `object_table`.
    - geojson: `geojson/NAME.geojson`, polygons for QuPath and others, see `write_geojson`.
    - counts: `counts/NAME.csv`, the number of objects a class, see `count_table`.
    - label-tiff: `label-tiff/NAME.tif`, the label image with the size of its pixels, see `results/label_tiff.py`.
    - cutouts: `cutouts/NAME/K_CLASS.png`, the k-th object with alpha, and `cutouts/NAME.csv`, where each was.
    - background: `background/NAME.png`, the image without what belongs to no object.
    - coco-dataset, yolo, labelme, cvat, imagej: the image and its annotations, which tools open and readers read, see
      `results/annotation_sets.py`.

    Args:
        output: folder, made if it is not there. Files of the same names are replaced.
        name: NAME, which may have sub-folders ("plate1/well7").
        instances: `pred_boxes`, `scores`, `pred_classes` and `pred_masks_rle` or `pred_masks` [N, H, W] bool.
        image: the image [H, W] or [H, W, C] in its own grey values, its file, or windows from `open_windows`, which are
            read in parts. Overlays need it; without it a csv file has no intensities.
        formats: keys of `FORMATS`.
        class_names: name of each class; by default those that the instances know (`Predictions`).
        pixel_size: micrometres a pixel, for measures; by default as the instances know it, else all is in pixels.
        channels: C that the model takes, for images that are neither grey nor colour.
        file_name: `file_name` of the COCO results, NAME by default.
        source: file that is the whole image, which annotations are put beside; by default `image`, where it is a file.
        background: what is put in its place: "transparent", "blur" or a colour as "#rrggbb".
        object_type: of geojson for QuPath, "detection" or "annotation".
        soft: cut-outs and backgrounds have soft edges, see `results/cutouts.py`.

    Returns:
        The file of each format; of the image beside annotations under "FORMAT image".

    Raises:
        ValueError: an unknown format, no image for an overlay, image and instances of different sizes, or no masks.
        OSError: a file cannot be written.
    """
    check_formats(formats)
    check_background(background)
    if object_type not in OBJECT_TYPES:
        raise ValueError(f"object_type is {object_type!r}, it must be of {', '.join(OBJECT_TYPES)}")
    output, instances, written = Path(output), encode_masks(instances), {}
    class_names, pixel_size = known_class_names(instances, class_names), known_pixel_size(instances, pixel_size)
    with ExitStack() as stack:
        if isinstance(image, (str, os.PathLike)):
            source = source or image
            image = image if needs_pixels(formats, source) else None
        if image is not None and not isinstance(image, ImageWindows):
            rule = rule_of(image, instances)
            image = stack.enter_context(open_windows(image, rule=rule))
            channels = count_channels(rule, channels)
        if image is not None and image.shape[:2] != tuple(instances.image_size):
            raise ValueError(
                f"{name}: the image has size {image.shape[:2]} (H, W) but its predictions {instances.image_size}"
            )
        for kind in FORMATS:  # in this order whatever the order of `formats`
            if kind not in formats:
                continue
            if kind in ANNOTATION_SETS:
                written |= write_annotated(kind, output, name, instances, image, source, class_names)
                continue
            suffix = _SUFFIXES.get(kind, ".png")
            if kind in NEED_IMAGE - {"csv"} and image is None:
                raise ValueError(f"{name}: the format {kind} needs the image")
            if kind in ("cutouts", "background"):
                written[kind] = write_cut(kind, output, name, instances, image, channels, class_names, background, soft)
                continue
            if kind == "overlay":
                content = encode_png(draw_overlay(*make_picture(image, instances, channels), class_names))
            elif kind == "labels":
                suffix, content = encode_labels(instances)
            elif kind == "coco":
                content = coco_results(instances, file_name or name, name)
            elif kind == "csv":
                content = object_table(instances, name, image, class_names, pixel_size, channels)
            elif kind == "counts":
                content = count_table(instances, name, class_names, pixel_size)
            elif kind == "label-tiff":
                known = Calibration() if source is None else tiff_calibration(os.fspath(source))
                known = known if pixel_size in (None, known.side) else Calibration(pixel_size, pixel_size)
                content = partial(write_label_tiff, instances=instances, calibration=known)
            else:
                kinds = {"class_names": class_names, "pixel_size": pixel_size, "object_type": object_type}
                content = partial(write_geojson, instances=instances, **kinds)
            written[kind] = output / FORMATS[kind] / f"{name}{suffix}"
            written[kind].parent.mkdir(parents=True, exist_ok=True)
            write_atomically(written[kind], content)
            if kind == "labels":  # of an earlier run with another number of objects
                other = {".png": ".tif", ".tif": ".png"}[suffix]
                (written[kind].parent / f"{written[kind].name.removesuffix(suffix)}{other}").unlink(missing_ok=True)
    return written


def needs_pixels(formats: Sequence[str], source: str | os.PathLike | None) -> bool:
    """Whether formats are made of the pixels of an image, and not of the predictions and its file `source` alone."""
    return bool(NEED_IMAGE & set(formats)) or (bool(ANNOTATION_SETS.keys() & set(formats)) and not can_link(source))


def check_formats(formats: Sequence[str]) -> None:
    """Refuse a format that there is not.

    Raises:
        ValueError: with those that there are.
    """
    unknown = [kind for kind in formats if kind not in FORMATS]
    if unknown:
        raise ValueError(f"there is no format {unknown[0]!r}; choose of {', '.join(FORMATS)}")
