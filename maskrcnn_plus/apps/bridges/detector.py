"""A model that predicts images as tools/predict.py does: what is large by tiles, at the size of its objects."""

from __future__ import annotations

import copy
import os

import numpy as np
from detectron2.structures import Instances

from maskrcnn_plus.apps.predict_files.image_predictor import ImagePredictor
from maskrcnn_plus.data.windows import open_windows
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.masks.rle_masks import encode_masks


class Detector:
    """Weights that know their config, ready to predict.

    Attributes:
        class_names: a name a class.
        score_threshold: least score of the objects; None where the model's own decides.
    """

    def __init__(
        self,
        weights: str,
        score_threshold: float | None = None,
        device: str | None = None,
        diameter: float | None = None,
        tile: int | str = "auto",
    ) -> None:
        """Load the model.

        Args:
            weights: a checkpoint of a training, the folder of an exported model, or "maskrcnn_plus://nuclei".
            score_threshold, device, diameter: see `Predictor`.
            tile: see `TileChoice`.

        Raises:
            ValueError: as of `Predictor` and `TileChoice`.
        """
        self.predictor = Predictor(weights, score_threshold=score_threshold, device=device, diameter=diameter)
        self.images = ImagePredictor(self.predictor, tile)
        self.class_names, self.score_threshold = self.predictor.class_names, self.predictor.score_threshold

    def __call__(self, image: np.ndarray | str | os.PathLike, score_threshold: float | None = None) -> Instances:
        """Predict an image.

        Args:
            image: a file, or an array [H, W] or [H, W, C] in RGB order.
            score_threshold: in place of that of the model.

        Returns:
            `Predictions` with `pred_boxes`, `scores` in falling order, `pred_classes` and `pred_masks_rle`.

        Raises:
            ImageReadError: the image cannot be used.
        """
        images = copy.copy(self.images)
        images.predictor = predictor = copy.copy(self.predictor)
        if score_threshold is not None:
            predictor.score_threshold = score_threshold
        with open_windows(image, rule=images.rule) as windows:
            diameter, options = images.find_scale(windows)
            if options is None:
                found = encode_masks(predictor.predict(windows, diameter=diameter))
            else:
                found = images.predict_tiled(windows, diameter, {**options, "progress": False})
        found.image = image if isinstance(image, np.ndarray) else os.fspath(image)
        return found
