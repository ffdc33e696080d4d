"""CVAT for images 1.1 of predictions: images/ and annotations.xml, masks as runs of their boxes' rows.

CVAT's documentation, "XML annotation format"; a mask's runs alternate, background first, along the rows of its box.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.results.outlines import rle_crops
from maskrcnn_plus.results.overlay import class_label

if TYPE_CHECKING:
    from detectron2.structures import Instances

_FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")  # in XML 1.0


def cvat_part(instances: Instances, image_name: str, class_names: Sequence[str] | None = None) -> bytes:
    """The <image> of one image, to which `merge_cvat` gives its number.

    Args:
        instances: with `pred_classes` and `pred_masks_rle`; empty masks are left out.
        image_name: of the image below images/.
        class_names: name of each class.
    """
    height, width = instances.image_size
    lines = [f'name={_quoted(image_name)} width="{width}" height="{height}">']
    for category, (x, y, mask) in zip(
        instances.pred_classes.tolist(), rle_crops(instances.pred_masks_rle), strict=True
    ):
        if mask.size:
            lines.append(
                f'    <mask label={_quoted(class_label(class_names, category))} source="auto" occluded="0" '
                f'rle="{", ".join(map(str, row_runs(mask)))}" left="{x}" top="{y}" width="{mask.shape[1]}" '
                f'height="{mask.shape[0]}" z_order="0"/>'
            )
    return "\n".join([*lines, "  </image>"]).encode(errors="replace")


def row_runs(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of the row-major pixels of a mask bool [h, w], background first."""
    pixels = mask.reshape(-1)
    borders = np.flatnonzero(np.diff(pixels, prepend=False))
    return np.diff(np.concatenate([[0], borders, [pixels.size]])).tolist()


def merge_cvat(path: Path, parts: Sequence[Path], class_names: Sequence[str] | None) -> None:
    """Write the file of all images.

    Args:
        path: the file to write.
        parts: a file of `cvat_part` an image.
        class_names: name of each class.
    """

    def write(file) -> None:
        labels = "".join(f"<label><name>{escape(_plain(name))}</name></label>" for name in class_names or ())
        head = f"<version>1.1</version>\n  <meta><task><labels>{labels}</labels></task></meta>"
        file.write(f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  {head}\n'.encode(errors="replace"))
        for number, part in enumerate(parts):
            file.write(f'  <image id="{number}" '.encode() + part.read_bytes() + b"\n")
        file.write(b"</annotations>\n")

    write_atomically(path, write, durable=True)


def _plain(text: str) -> str:
    return _FORBIDDEN.sub("_", text)


def _quoted(text: str) -> str:
    return quoteattr(_plain(text), {"\n": "&#10;", "\t": "&#9;", "\r": "&#13;"})
