"""COCO's matching and figures, by hotcoco, or by pycocotools where hotcoco is not installed; both give the same ones.

Shape shorthand: T IoU thresholds (0.5, 0.55, ..., 0.95), R recall levels, K classes, A area ranges (all, small, medium,
large).
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from maskrcnn_plus.evaluation.ground_truth import ground_truth_rles
from maskrcnn_plus.masks.measure import rle_areas
from maskrcnn_plus.rle import canonical_rles

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)


def coco_dataset(
    dataset_dicts: list[dict[str, Any]],
    class_names: Sequence[str],
    masks: Sequence[list[dict[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Build the content of a COCO json from Detectron2 data set dicts.

    Args:
        dataset_dicts: one an image; the n-th image gets the id n, counted from 1.
        class_names: K names; a category's id is its index.
        masks: RLEs of the annotations of each image, where they are known already.

    Returns:
        {"images", "categories", "annotations"}; masks as RLEs, areas in pixels of the mask, boxes as XYWH.

    Raises:
        ValueError: naming image and annotation, where a mask is missing or malformed.
    """
    images, annotations = [], []
    for number, entry in enumerate(dataset_dicts, start=1):
        images.append({"id": number, "height": entry["height"], "width": entry["width"]})
        rles = ground_truth_rles(entry) if masks is None else masks[number - 1]
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
    evaluation, library = coco_evaluation(dataset, detections, task, max_detections, library)
    return np.asarray(evaluation.eval["precision"])[..., 0], np.asarray(evaluation.eval["recall"])[..., 0], library


def coco_evaluation(
    dataset: dict[str, Any],
    detections: list[dict[str, Any]],
    task: str,
    max_detections: int,
    library: str | None = None,
) -> tuple[Any, str]:
    """A `COCOeval` that has evaluated and accumulated, and the name of its library; see `precision_and_recall`."""
    library = library or ("hotcoco" if importlib.util.find_spec("hotcoco") else "pycocotools")
    if library == "hotcoco":
        from hotcoco import COCO, COCOeval
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    contents = coco_results(dataset, detections, task)
    return run_evaluation(COCO, COCOeval, dataset, contents, task, max_detections), library


def run_evaluation(
    api_class: type,
    evaluation_class: type,
    dataset: dict[str, Any],
    contents: Iterable[Sequence[dict[str, Any]]],
    task: str,
    max_detections: int,
) -> Any:
    """Evaluate and accumulate annotations and detections (`contents`) by a library's `COCO` and `COCOeval`."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        apis = []
        for annotations in contents:
            api = api_class()
            # Copies, as pycocotools writes into the annotations; loadRes would fail without a detection.
            api.dataset = {**dataset, "annotations": [dict(annotation) for annotation in annotations]}
            api.createIndex()
            apis.append(api)
        evaluation = evaluation_class(*apis, task)
        evaluation.params.iouThrs = IOU_THRESHOLDS
        evaluation.params.maxDets = [max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def coco_results(
    dataset: dict[str, Any], detections: list[dict[str, Any]], task: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Annotations and detections in the form that both libraries can be given.

    The area decides on small, medium and large: of the mask for masks, of the box for boxes.

    Args:
        dataset, detections, task: as for `precision_and_recall`.

    Returns:
        Annotations, and detections with ids from 1 on.
    """
    truth = dataset["annotations"]
    if task == "bbox":
        shapes = [{"bbox": each["bbox"], "area": each["bbox"][2] * each["bbox"][3]} for each in detections]
    else:
        shapes = _canonical_masks(detections)
        truth = [{**own, **mask} for own, mask in zip(truth, _canonical_masks(truth), strict=True)]
    found = []
    for number, (detection, shape) in enumerate(zip(detections, shapes, strict=True), start=1):
        kept = {key: detection[key] for key in ("image_id", "category_id", "score")}
        found.append({"id": number, "iscrowd": 0, **kept, **shape})
    return truth, found


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
