"""Box and mask AP by the rules of COCO that drop no detection above 100 an image.

COCO's reference tools (Lin et al., 2014; cocodataset.org, "Detection Evaluation") look at the 100 best detections of an
image, which caps the recall on images with hundreds of objects. Here the limit follows the model. The figures come from
hotcoco, or from pycocotools where hotcoco is not installed; both give the same ones.

Shape shorthand: T IoU thresholds (0.5, 0.55, ..., 0.95), R recall levels, K classes, A area ranges (all, small, medium,
large).
"""

import itertools
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode
from detectron2.utils.logger import create_small_table

from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.evaluation.coco_api import IOU_THRESHOLDS, coco_dataset, precision_and_recall, summarize
from maskrcnn_plus.evaluation.ground_truth import image_name, load_ground_truth
from maskrcnn_plus.evaluation.predictions import gather_images, get_prediction, match_images, predicted_rles

COCO_MAX_DETECTIONS = 100


class COCOMaskEvaluator(DatasetEvaluator):
    """Detectron2 evaluator of COCO's box and mask AP on any registered data set, label images included."""

    reads_runs = True  # of masks, so that a model need not make dense ones

    def __init__(
        self,
        dataset_name: str,
        max_detections: int | None = None,
        output_dir: str | None = None,
        tasks: Sequence[str] = ("bbox", "segm"),
        on_error: str | None = None,
    ) -> None:
        """Read the list of images and the names of the classes.

        Args:
            dataset_name: a name in Detectron2's DatasetCatalog.
            max_detections: the number of best detections of a class and image that count; None for the largest number
                of detections that the model gave in any image, at least COCO's 100, so that all count.
            output_dir: folder to write the detections to as `coco_instances_results.json`.
            tasks: "bbox", "segm" or both.
            on_error: "raise" or "skip", as of the loader's `checked_dataset`; None takes annotations as they are.

        Raises:
            ValueError: an unknown task, a limit below 1, or a data set without images or with ambiguous image ids.
        """
        self._tasks = tuple(tasks)
        if not self._tasks or not {"bbox", "segm"}.issuperset(self._tasks):
            raise ValueError(f'tasks must be "bbox", "segm" or both, got {self._tasks}.')
        if max_detections is not None and max_detections < 1:
            raise ValueError(f"max_detections must be at least 1, or None for no limit, got {max_detections}.")
        self._max_detections = max_detections
        self._output_dir = output_dir
        self._dataset_name = dataset_name
        self._ground_truth = load_ground_truth(dataset_name, on_error)
        self._metadata = MetadataCatalog.get(dataset_name)
        self._predictions: dict[Any, list[dict[str, Any]]] = {}

    def metric_names(self) -> list[str]:
        """Names of the figures that `evaluate` will give, as in metrics.json."""
        class_names = self._class_names([])
        nothing = np.full((len(IOU_THRESHOLDS), 1, len(class_names), 4), -1.0)  # [T, R, K, A]
        figures = summarize(nothing, nothing[:, 0], class_names)
        return [f"{task}/{name}" for task in self._tasks for name in figures]

    def reset(self) -> None:
        """Forget all predictions."""
        self._predictions = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take the detections of a batch; masks are kept as RLEs.

        Args:
            inputs: dicts with "image_id"; one with `SKIPPED` is left out.
            outputs: dicts with "instances": `scores` [D], `pred_classes` [D], `pred_boxes` (xyxy in pixels, needed for
                "bbox") and, for "segm", `pred_masks_rle` (RLEMasks or a list of D COCO RLEs) or `pred_masks`
                [D, H, W] bool.

        Raises:
            ValueError: naming the image, where it is not of the data set or its predictions are bad.
        """
        for image_id, truth, output in match_images(inputs, outputs, self._ground_truth, self._predictions):
            instances, classes, scores = get_prediction(output, truth)
            detections = [
                {"image_id": image_id, "category_id": category, "score": score}
                for category, score in zip(classes, scores, strict=True)
            ]
            if "segm" in self._tasks:
                rles = predicted_rles(instances, truth)
                for detection, rle in zip(detections, rles, strict=True):
                    detection["segmentation"] = rle
            if "bbox" in self._tasks:
                for detection, box in zip(detections, _boxes_xywh(instances, truth), strict=True):
                    detection["bbox"] = box
            self._predictions[image_id] = detections

    def evaluate(self) -> OrderedDict:
        """Compute AP over all images and processes.

        Returns:
            {task: {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR", and for more than one class "AP-<class name>"}} in
            percent on the main process, {} on the others. NaN stands for a figure without ground truth; without any
            detection the others are 0.

        Raises:
            ValueError: images that never got predictions, malformed ground truth, or a class index out of range.
        """
        predictions = gather_images(self._predictions, self._ground_truth)
        if predictions is None:
            return OrderedDict()
        detections = list(itertools.chain.from_iterable(predictions.values()))
        class_names = self._class_names(detections)
        if self._output_dir:
            os.makedirs(self._output_dir, exist_ok=True)
            content = json.dumps(self._with_dataset_ids(detections)).encode()
            write_atomically(os.path.join(self._output_dir, "coco_instances_results.json"), content)
        limit = self._max_detections
        if limit is None:
            limit = max(COCO_MAX_DETECTIONS, max(len(of_image) for of_image in predictions.values()))
        numbers = {image_id: number for number, image_id in enumerate(predictions, start=1)}
        dataset = coco_dataset([self._ground_truth[image_id] for image_id in predictions], class_names)
        detections = [{**detection, "image_id": numbers[detection["image_id"]]} for detection in detections]
        results = OrderedDict()
        for task in self._tasks:
            precision, recall, library = precision_and_recall(dataset, detections, task, limit)
            results[task] = summarize(precision, recall, class_names)
            logging.getLogger(__name__).info(
                "%s AP on %s by %s, up to %d detections of a class and image:\n%s",
                task,
                self._dataset_name,
                library,
                limit,
                create_small_table({name: value for name, value in results[task].items() if "-" not in name}),
            )
        return results

    def _class_names(self, detections: list[dict[str, Any]]) -> list[str]:
        """The data set's class names, or numbers where it has none; refuses class indices beyond them."""
        annotated = {
            annotation["category_id"]: image_name(entry)
            for entry in self._ground_truth.values()
            for annotation in entry.get("annotations", [])
        }
        detected = {d["category_id"]: image_name(self._ground_truth[d["image_id"]]) for d in detections}
        names = self._metadata.get("thing_classes")
        if names is None:
            return [str(category) for category in range(max([0, *annotated, *detected]) + 1)]
        for source, categories in (("an annotation", annotated), ("a prediction", detected)):
            for category, image in categories.items():
                if not 0 <= category < len(names):
                    raise ValueError(
                        f"{image}: {source} has class {category}, but the data set {self._dataset_name!r} has "
                        f"{len(names)} classes ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''}), from 0 on."
                    )
        return list(names)

    def _with_dataset_ids(self, detections: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The detections with the category ids that the data set's own files use."""
        own_ids = self._metadata.get("thing_dataset_id_to_contiguous_id", {})
        of_index = {index: own for own, index in reversed(own_ids.items())}  # the first of several
        return [{**d, "category_id": of_index.get(d["category_id"], d["category_id"])} for d in detections]


def _boxes_xywh(instances: Any, dataset_dict: dict[str, Any]) -> list[list[float]]:
    """Predicted boxes [D, 4] as XYWH."""
    if not instances.has("pred_boxes"):
        if len(instances) == 0:
            return []
        raise ValueError(f"{image_name(dataset_dict)}: the model predicted no boxes (pred_boxes).")
    boxes = instances.pred_boxes.tensor
    if not boxes.isfinite().all():
        raise ValueError(f"{image_name(dataset_dict)}: the model gave a box that is NaN or infinite; has it diverged?")
    return BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
