"""Label Studio: a machine learning backend that proposes polygons or brush masks, with scores.

The `model.py` of a backend:

    from maskrcnn_plus.apps.bridges.label_studio import make_backend

    NewModel = make_backend("model_best.pth")

Predictions are those of Label Studio's documentation ("Import pre-annotated data"): results in per cent of the image.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.structures import Instances

from maskrcnn_plus.apps.bridges.detector import Detector
from maskrcnn_plus.data.formats.brush import encode_brush
from maskrcnn_plus.errors import UserError
from maskrcnn_plus.results.outlines import double_area, rle_polygons
from maskrcnn_plus.results.overlay import class_label

logger = logging.getLogger(__name__)

_KINDS = ("BrushLabels", "PolygonLabels")  # the brush has the masks themselves, polygons their outlines


@dataclass(frozen=True)
class Control:
    """A control of a labeling config that objects are drawn with.

    Attributes:
        kind: "BrushLabels" or "PolygonLabels".
        name: of the control.
        image: name of the image that it labels.
        key: of the image in the data of a task.
        labels: its label for each class of the model; classes without one are left out.
    """

    kind: str
    name: str
    image: str
    key: str
    labels: Mapping[str, str]


def find_control(config: Mapping[str, Any], class_names: Sequence[str]) -> Control:
    """The control for masks in a parsed labeling config, the brush first.

    Labels are those of the same name as a class, whatever their case, or that name it in `predicted_values`. A single
    label is that of a single class.

    Args:
        config: `parsed_label_config` of a backend.
        class_names: of the model.

    Raises:
        UserError: no such control, or none of its labels is a class of the model.
    """
    for kind in _KINDS:
        for name, control in config.items():
            images = [each for each in control.get("inputs", ()) if each.get("type") == "Image"]
            if control.get("type") == kind and images and control.get("to_name"):
                labels = _match(control, class_names)
                return Control(kind, name, control["to_name"][0], images[0]["value"], labels)
    raise UserError(f"the labeling config has no {' or '.join(_KINDS)} of an image: add one")


def _match(control: Mapping[str, Any], class_names: Sequence[str]) -> dict[str, str]:
    known = list(control.get("labels", ()))
    attributes = control.get("labels_attrs") or {}
    by_name = {label.lower(): label for label in known}
    for label, values in attributes.items():
        for value in str(values.get("predicted_values", "")).split(","):
            by_name[value.strip().lower()] = label
    found = {name: by_name[name.lower()] for name in class_names if name.lower() in by_name}
    if not found and len(known) == len(class_names) == 1:
        logger.warning("the only class %r of the model is taken for the only label %r", class_names[0], known[0])
        return {class_names[0]: known[0]}
    if not found:
        raise UserError(
            f"none of the labels {', '.join(known)} is a class of the model ({', '.join(class_names)}): rename one, or "
            'say which it is, <Label value="Cell" predicted_values="nucleus"/>'
        )
    return found


def make_prediction(instances: Instances, class_names: Sequence[str] | None, control: Control) -> dict[str, Any]:
    """The prediction of an image.

    Args:
        instances: with `scores`, `pred_classes` and `pred_masks_rle`.
        class_names: a name a class.
        control: what the objects are drawn with.

    Returns:
        Plain data for JSON: `result`, a region an object, and `score`, the mean of theirs (0 without objects).
    """
    height, width = instances.image_size
    labels = [control.labels.get(class_label(class_names, k)) for k in instances.pred_classes.tolist()]
    values = _brushes(instances) if control.kind == "BrushLabels" else _polygons(instances)
    kind = control.kind.lower()
    results = [
        {
            "id": f"object{index}",
            "from_name": control.name,
            "to_name": control.image,
            "type": kind,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": score,
            "value": {**value, kind: [label]},
        }
        for index, (label, score, value) in enumerate(zip(labels, instances.scores.tolist(), values, strict=True), 1)
        if label is not None and value is not None
    ]
    return {"result": results, "score": float(np.mean([each["score"] for each in results])) if results else 0.0}


def _brushes(instances: Instances) -> Iterator[dict[str, Any] | None]:
    for index in range(len(instances)):
        (mask,) = instances.pred_masks_rle[index : index + 1].to_array()
        yield {"format": "rle", "rle": encode_brush(mask)} if mask.any() else None


def _polygons(instances: Instances) -> Iterator[dict[str, Any] | None]:
    """Outlines of the largest part of each object, without holes, which its polygons do not have."""
    per_cent = 100 / np.array(instances.image_size[::-1])
    for polygons in rle_polygons(instances.pred_masks_rle):
        rings = sorted((polygon[0] for polygon in polygons), key=double_area)
        yield {"points": (rings[-1] * per_cent).tolist(), "closed": True} if rings else None


def make_backend(weights: str | Callable[[str], Instances], **options: Any) -> type:
    """A class for label-studio-ml, whose objects share one model.

    Args:
        weights: as of `Detector`, or what gives the objects of an image file (with `class_names`).
        **options: of `Detector`.

    Raises:
        UserError: label-studio-ml is not installed.
    """
    try:
        from label_studio_ml.model import LabelStudioMLBase
    except ImportError as error:
        raise UserError(
            "Label Studio needs its backend, in an environment of its own as it wants old versions of Flask: pip "
            "install label-studio-ml"
        ) from error
    detector = weights if callable(weights) else Detector(weights, **options)

    class Backend(LabelStudioMLBase):
        """Proposes what the model finds."""

        def predict(self, tasks: list[dict[str, Any]], context: Any = None, **further: Any) -> list[dict[str, Any]]:
            """A prediction a task; one without results where the image cannot be read, which the log tells."""
            control = find_control(self.parsed_label_config, detector.class_names)
            return [self._predict(task, control) for task in tasks]

        def _predict(self, task: dict[str, Any], control: Control) -> dict[str, Any]:
            has_id = "task_id" in inspect.signature(self.get_local_path).parameters  # of version 2
            try:
                path = self.get_local_path(task["data"][control.key], **({"task_id": task.get("id")} if has_id else {}))
                found = detector(path)
            except (ValueError, OSError, KeyError) as error:
                logger.error("task %s cannot be predicted: %s", task.get("id"), error)
                return {"result": [], "score": 0.0}
            return make_prediction(found, detector.class_names, control)

    return Backend
