"""Box and mask AP by the rules of COCO that drop no detection above 100 an image.

COCO's reference tools (Lin et al., 2014; cocodataset.org, "Detection Evaluation") look at the 100 best detections of an
image, which caps the recall on images with hundreds of objects. Here the limit follows the model. The figures come from
hotcoco, or from pycocotools where hotcoco is not installed; both give the same ones.

Shape shorthand: T IoU thresholds (0.5, 0.55, ..., 0.95), R recall levels, K classes, A area ranges (all, small, medium,
large).
"""

import contextlib
import importlib.util
import io
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
from maskrcnn_plus.data.stream import SKIPPED
from maskrcnn_plus.evaluation.ground_truth import ground_truth_rles, image_name, load_ground_truth
from maskrcnn_plus.evaluation.predictions import LeftOut, gather_images, predicted_rles, prediction_of
from maskrcnn_plus.masks.measure import rle_areas
from maskrcnn_plus.rle import canonical_rles

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
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
        for entry, output in zip(inputs, outputs, strict=True):
            truth = self._ground_truth.get(entry["image_id"])
            if truth is None:
                raise ValueError(f"{image_name(entry)} is not in the data set {self._dataset_name!r} under evaluation.")
            if SKIPPED in entry:
                self._predictions[entry["image_id"]] = LeftOut(entry[SKIPPED])
                continue
            instances, classes, scores = prediction_of(output, truth)
            detections = [
                {"image_id": entry["image_id"], "category_id": category, "score": score}
                for category, score in zip(classes, scores, strict=True)
            ]
            if "segm" in self._tasks:
                rles = predicted_rles(instances, truth)
                for detection, rle in zip(detections, rles, strict=True):
                    detection["segmentation"] = rle
            if "bbox" in self._tasks:
                for detection, box in zip(detections, _boxes_xywh(instances, truth), strict=True):
                    detection["bbox"] = box
            self._predictions[entry["image_id"]] = detections

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


def coco_dataset(dataset_dicts: list[dict[str, Any]], class_names: Sequence[str]) -> dict[str, Any]:
    """Build the content of a COCO json from Detectron2 data set dicts.

    Args:
        dataset_dicts: one an image; the n-th image gets the id n, counted from 1.
        class_names: K names; a category's id is its index.

    Returns:
        {"images", "categories", "annotations"}; masks as RLEs, areas in pixels of the mask, boxes as XYWH.

    Raises:
        ValueError: naming image and annotation, where a mask is missing or malformed.
    """
    images, annotations = [], []
    for number, entry in enumerate(dataset_dicts, start=1):
        images.append({"id": number, "height": entry["height"], "width": entry["width"]})
        rles = ground_truth_rles(entry)
        areas = rle_areas(rles).tolist()
        for annotation, rle, area in zip(entry.get("annotations", []), rles, areas, strict=True):
            box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYWH_ABS)
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools takes 0 for "unmatched"
                    "image_id": number,
                    "category_id": int(annotation["category_id"]),
                    "iscrowd": int(annotation.get("iscrowd", 0)),
                    "bbox": [float(side) for side in box],
                    "area": float(area),
                    "segmentation": rle,
                }
            )
    categories = [{"id": index, "name": name} for index, name in enumerate(class_names)]
    return {"images": images, "categories": categories, "annotations": annotations}


def precision_and_recall(
    dataset: dict[str, Any],
    detections: list[dict[str, Any]],
    task: str,
    max_detections: int,
    library: str | None = None,
) -> tuple[np.ndarray, np.ndarray, str]:
    """Run COCO's matching and accumulation.

    Args:
        dataset: ground truth as the content of a COCO json (`coco_dataset`).
        detections: dicts with image_id and category_id of `dataset`, score, and "bbox" (XYWH) or "segmentation" (RLE).
        task: "bbox" or "segm".
        max_detections: the number of best detections of a class and image that count.
        library: "hotcoco" or "pycocotools"; None for hotcoco where it is installed.

    Returns:
        precision [T, R, K, A], recall [T, K, A], -1 where there is no ground truth, and the library's name.
    """
    library = library or ("hotcoco" if importlib.util.find_spec("hotcoco") else "pycocotools")
    if library == "hotcoco":
        from hotcoco import COCO, COCOeval
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    # The area decides on small, medium and large: of the mask for masks, of the box for boxes.
    if task == "bbox":
        shapes = [{"bbox": each["bbox"], "area": each["bbox"][2] * each["bbox"][3]} for each in detections]
    else:
        shapes = _canonical_masks(detections)
        masks = _canonical_masks(dataset["annotations"])
        truth = [{**own, **mask} for own, mask in zip(dataset["annotations"], masks, strict=True)]
        dataset = {**dataset, "annotations": truth}
    found = []
    for number, (detection, shape) in enumerate(zip(detections, shapes, strict=True), start=1):
        kept = {key: detection[key] for key in ("image_id", "category_id", "score")}
        found.append({"id": number, "iscrowd": 0, **kept, **shape})
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        apis = []
        for annotations in (dataset["annotations"], found):
            api = COCO()
            # Copies, as pycocotools writes into the annotations; loadRes would fail without a detection.
            api.dataset = {**dataset, "annotations": [dict(annotation) for annotation in annotations]}
            api.createIndex()
            apis.append(api)
        evaluation = COCOeval(*apis, task)
        evaluation.params.iouThrs = IOU_THRESHOLDS
        evaluation.params.maxDets = [max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])[..., 0], np.asarray(evaluation.eval["recall"])[..., 0], library


def _canonical_masks(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Masks and areas of annotations or detections in the form that both libraries can be given."""
    rles = canonical_rles([entry["segmentation"] for entry in entries])
    return [
        {"segmentation": rle, "area": float(area)} for rle, area in zip(rles, rle_areas(rles).tolist(), strict=True)
    ]


def summarize(precision: np.ndarray, recall: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
    """Average precision and recall to COCO's figures.

    Args:
        precision: [T, R, K, A], -1 where there is no ground truth.
        recall: [T, K, A], likewise.
        class_names: K names.

    Returns:
        AP, AP50, AP75, APs, APm, APl, AR and, for K > 1, "AP-<class name>", in percent; NaN without ground truth.
    """
    results = {
        "AP": _mean_percent(precision[..., 0]),
        "AP50": _mean_percent(precision[0, ..., 0]),
        "AP75": _mean_percent(precision[5, ..., 0]),
        "APs": _mean_percent(precision[..., 1]),
        "APm": _mean_percent(precision[..., 2]),
        "APl": _mean_percent(precision[..., 3]),
        "AR": _mean_percent(recall[..., 0]),
    }
    if len(class_names) > 1:
        results |= {f"AP-{name}": _mean_percent(precision[:, :, k, 0]) for k, name in enumerate(class_names)}
    return results


def _mean_percent(values: np.ndarray) -> float:
    """Mean of the values that exist, in percent."""
    existing = values[values > -1]
    return float(100 * existing.mean()) if existing.size else float("nan")


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
