"""CVAT: an auto-annotation function, which cvat-cli runs on a task or offers as an agent.

    cvat-cli task auto-annotate 137 --function-module maskrcnn_plus.apps.bridges.cvat -p weights=str:model_best.pth

The interface is `cvat_sdk.auto_annotation.DetectionFunction` (CVAT's documentation, "Auto-annotation API").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from detectron2.structures import Instances
from PIL import Image

from maskrcnn_plus.apps.bridges.detector import Detector
from maskrcnn_plus.errors import UserError
from maskrcnn_plus.masks.measure import rle_boxes
from maskrcnn_plus.results.cvat import row_runs
from maskrcnn_plus.results.outlines import rle_crops, rle_polygons

if TYPE_CHECKING:
    from cvat_sdk.auto_annotation import DetectionFunctionContext
    from cvat_sdk.models import LabeledShapeRequest

_AS_THEY_ARE = ("L", "RGB", "RGBA", "I", "F", "I;16", "I;16L", "I;16B")  # modes of Pillow whose arrays are images


class MaskFunction:
    """Finds masks, or polygons where CVAT asks for them.

    Attributes:
        spec: the labels, which CVAT matches with those of the task by their names.
    """

    def __init__(self, detect: Callable[[np.ndarray, float | None], Instances], class_names: list[str]) -> None:
        """Take what finds the objects of an array [H, W] or [H, W, C] with at least a score, such as a `Detector`.

        Raises:
            UserError: cvat-sdk is not installed.
        """
        try:
            import cvat_sdk.auto_annotation
        except ImportError as error:
            raise UserError('CVAT needs its SDK: pip install "maskrcnn_plus[cvat]"') from error
        self._detect, self._cvat = detect, cvat_sdk.auto_annotation
        self.spec = self._cvat.DetectionFunctionSpec(
            labels=[self._cvat.label_spec(name, index, type="mask") for index, name in enumerate(class_names)]
        )

    def detect(self, context: DetectionFunctionContext, image: Image.Image) -> list[LabeledShapeRequest]:
        """Shapes of the objects in an image, the best first."""
        if image.mode not in _AS_THEY_ARE:
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        found = self._detect(_get_pixels(image), context.conf_threshold)
        facts = {"labels": found.pred_classes.tolist(), "scores": found.scores.tolist()}
        shapes = self._polygons(found, **facts) if context.conv_mask_to_poly else self._masks(found, **facts)
        return list(shapes)

    def _masks(self, found: Instances, labels: list[int], scores: list[float]) -> Iterator[LabeledShapeRequest]:
        boxes = rle_boxes(found.pred_masks_rle).astype(int).tolist()
        crops = rle_crops(found.pred_masks_rle)
        for (_, _, mask), (x0, y0, x1, y1), label, score in zip(crops, boxes, labels, scores, strict=True):
            if mask.size:
                yield self._cvat.mask(label, [*row_runs(mask), x0, y0, x1 - 1, y1 - 1], score=score)

    def _polygons(self, found: Instances, labels: list[int], scores: list[float]) -> Iterator[LabeledShapeRequest]:
        for group, (polygons, label, score) in enumerate(
            zip(rle_polygons(found.pred_masks_rle), labels, scores, strict=True), start=1
        ):
            parts = {"group": group} if len(polygons) > 1 else {}  # holds the parts of an object together
            for outer, *_ in polygons:
                yield self._cvat.polygon(label, outer.ravel().astype(float).tolist(), score=score, **parts)


def _get_pixels(image: Image.Image) -> np.ndarray:
    """The array of an image, of 8 or 16 bits where its values are such, as readers take files."""
    pixels = np.asarray(image)
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if image.mode not in ("I", "F") or not pixels.size:
        return pixels
    low, high = pixels.min(), pixels.max()
    if image.mode == "F" and low >= 0 and high <= 1:
        return pixels
    fitting = next((kind for kind in (np.uint8, np.uint16) if low >= 0 and high <= np.iinfo(kind).max), None)
    return pixels if fitting is None else np.rint(pixels).astype(fitting)


def create(
    weights: str,
    score_threshold: float | None = None,
    device: str | None = None,
    diameter: float | None = None,
    tile: str = "auto",
) -> MaskFunction:
    """The function of weights, as cvat-cli makes it of its `-p NAME=TYPE:VALUE`; see `Detector`."""
    tile = int(tile) if str(tile).isdecimal() else tile
    detector = Detector(weights, score_threshold, device, diameter, tile)
    return MaskFunction(detector, detector.class_names)
