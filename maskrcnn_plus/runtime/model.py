"""An exported model of one graph -> objects of images, as the `Predictor` that it was exported from finds them.

Shorthand: N objects of an image of H x W pixels, which the network sees as h x w; S x S mask of an object in its box.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from maskrcnn_plus.data.pixel_size import tiff_pixel_size
from maskrcnn_plus.masks.measure import rle_areas, suppress_covered
from maskrcnn_plus.masks.rle_masks import RLEMasks
from maskrcnn_plus.model_folder import ModelFolderError, Postprocessing, read_model_folder
from maskrcnn_plus.runtime.graphs import load_graph
from maskrcnn_plus.runtime.objects import ArrayBoxes, Objects
from maskrcnn_plus.runtime.paste import paste_masks
from maskrcnn_plus.runtime.preprocess import prepare_input


class ExportedModel:
    """A folder with `model.json` and one graph, `model.onnx` or `model.xml`, on the CPU.

    Attributes:
        description: what `model.json` says.
        score_threshold: least score of an object.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        score_threshold: float | None = None,
        threads: int | None = None,
        runtime: str | None = None,
    ) -> None:
        """Check the folder and load the graph.

        Args:
            folder: of the model.
            score_threshold: in place of the one of `model.json`.
            threads, runtime: see `load_graph`.

        Raises:
            ModelFolderError: it is no such folder, or damaged.
            UserError: the runtime is not installed.
        """
        self.description = read_model_folder(folder, "whole")
        graphs = [name for name in self.description.files if name.endswith((".onnx", ".xml"))]
        if len(graphs) != 1:
            raise ModelFolderError(f"{folder}: one graph (.onnx or .xml) is needed, there are {len(graphs)}.")
        self._path = Path(folder) / graphs[0]
        self._graph = load_graph(self._path, threads, runtime)
        default = self.description.postprocessing.score_threshold
        self.score_threshold = default if score_threshold is None else score_threshold

    def predict(self, image: str | os.PathLike | np.ndarray) -> Objects:
        """Predict the objects of an image.

        Args:
            image: a path, or an array [H, W] or [H, W, C] in RGB order, of integers or floats as a file holds them.

        Returns:
            Objects in the coordinates of the image, the best first: `pred_boxes` (`tensor` [N, 4] xyxy), `scores`
            [N], `pred_classes` [N] and, of a model with masks, `pred_masks_rle`.

        Raises:
            ImageReadError: the image cannot be used.
            ModelFolderError: the graph does not take it, or gives something else than objects.
        """
        pixels, size = prepare_input(image, self.description.preprocessing)
        try:
            outputs = self._graph(pixels)
            objects = self._to_objects(outputs, size, pixels.shape[2:])
        except (RuntimeError, KeyError, IndexError, TypeError) as error:
            raise ModelFolderError(
                f"{self._path} failed on an image of {size[1]} x {size[0]} pixels: {error}"
            ) from error
        if not isinstance(image, np.ndarray):
            objects.pixel_size = tiff_pixel_size(os.fspath(image))
        return objects

    __call__ = predict

    def _to_objects(
        self, outputs: dict[str, np.ndarray], size: tuple[int, int], network_size: tuple[int, int]
    ) -> Objects:
        rules, count = self.description.postprocessing, int(outputs["count"])
        boxes, scores, classes = (outputs[name][:count] for name in ("boxes", "scores", "classes"))
        boxes = scale_boxes(boxes, network_size, size)
        usable = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        fields = {"pred_boxes": ArrayBoxes(boxes), "scores": scores, "pred_classes": classes.astype(np.int64)}
        facts = {"class_names": self.description.class_names, "category_ids": self.description.category_ids}
        objects = Objects(size, **facts, **fields)[usable]
        if rules.has_masks:
            masks = outputs["masks"][:count][usable]
            rles = paste_masks(masks, objects.pred_boxes.tensor, *size, rules.mask_threshold, rules.mask_pasting)
            objects.pred_masks_rle = RLEMasks(rles, size, check=False)
            objects = _drop_small_and_covered(objects, rules)
        order = np.argsort(-objects.scores, kind="stable")
        if self.score_threshold is not None:
            order = order[objects.scores[order] >= self.score_threshold]
        return objects[order]


def scale_boxes(boxes: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """Boxes [N, 4] xyxy in pixels of an image of size `old` (height, width) in those of `new`, clipped to it."""
    scale = np.array([new[1] / old[1], new[0] / old[0]] * 2, dtype=np.float32)
    return np.clip(boxes * scale, 0, np.array([new[1], new[0]] * 2, dtype=np.float32))


def _drop_small_and_covered(objects: Objects, rules: Postprocessing) -> Objects:
    """As `MaskRCNNPlus` does."""
    if rules.min_mask_area > 0:
        objects = objects[rle_areas(objects.pred_masks_rle) >= rules.min_mask_area]
    if rules.max_covered < 1:
        kept = suppress_covered(list(objects.pred_masks_rle), objects.scores, objects.pred_classes, rules.max_covered)
        objects = objects[kept]
    return objects
