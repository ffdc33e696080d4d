"""The predictions of a finished job in place of a predictor, so that they are evaluated as weights are."""

from __future__ import annotations

import os
from collections import defaultdict
from typing import Any

from maskrcnn_plus.apps.cluster.merge import Tables
from maskrcnn_plus.apps.cluster.tables import to_predictions
from maskrcnn_plus.errors import UserError
from maskrcnn_plus.results.predictions import Predictions


class StoredPredictor:
    """Image file -> the predictions that a job made of it.

    Attributes:
        class_names: of the job's weights.
    """

    mapper = auto_scale = None  # what a report shows of images is what their files have

    def __init__(self, address: str) -> None:
        """Read the tables; the predictions of all images are in memory.

        Args:
            address: of the output of a job.

        Raises:
            UserError: see `Tables`.
        """
        tables = Tables(address)
        self.address, self.class_names = address, list(tables.manifest.class_names)
        self._category_ids = tables.manifest.category_ids
        self._images: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
        self._by_name: defaultdict[str, list[str]] = defaultdict(list)
        for image, objects in tables.images():
            key = _key(image["file_name"])
            self._images[key] = image, objects
            self._by_name[os.path.basename(key)].append(key)

    def predict(self, path: str) -> Predictions:
        """Predictions of the file at a path or, where the job had it elsewhere, of the only one with its name.

        Raises:
            UserError: the job has no such file, or several.
        """
        key = _key(path)
        if key not in self._images:
            same = self._by_name[os.path.basename(key)]
            if len(same) != 1:
                what = "no image of this name" if not same else f"several of this name ({', '.join(same[:3])})"
                raise UserError(f"{path}: {self.address} has {what}")
            key = same[0]
        return to_predictions(*self._images[key], self.class_names, self._category_ids)


def _key(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)
