"""Average recall of box proposals: which part of the objects some proposal covers well, whatever their class.

Source: Hosang et al., "What makes for effective detection proposals?" (2016), Sec. 4, with COCO's IoU thresholds and
area ranges (cocodataset.org, "Detection Evaluation"). Proposals and objects are matched one to one, the best covered
object first, as Detectron2 does. Unlike there, the objects of an image without proposals count as missed.

Shape shorthand: D proposals and G objects of an image, T IoU thresholds (0.5, 0.55, ..., 0.95), R area ranges (all,
small, medium, large), L limits of proposals an image.
"""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import BoxMode, Instances
from detectron2.utils.logger import create_small_table
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from maskrcnn_plus.evaluation.coco_api import IOU_THRESHOLDS
from maskrcnn_plus.evaluation.ground_truth import ground_truth_rles, image_name, load_ground_truth
from maskrcnn_plus.evaluation.predictions import gather_images, match_images
from maskrcnn_plus.masks.measure import rle_areas

# Least and largest area in pixels, both included, by the suffix of a figure's name.
AREA_RANGES = {"": (0, np.inf), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, np.inf)}


class ProposalRecallEvaluator(DatasetEvaluator):
    """Detectron2 evaluator of the average recall (AR) of proposals, from `ProposalNetwork` or `predict_proposals`."""

    def __init__(
        self, dataset_name: str, limits: Sequence[int] = (100, 300, 1000), on_error: str | None = None
    ) -> None:
        """Read the list of images.

        Args:
            dataset_name: a name in Detectron2's DatasetCatalog.
            limits: L numbers of best proposals of an image that count. A model that gives fewer is judged by those: its
                proposal generator's `post_nms_topk` must reach the largest limit for AR at that limit.
            on_error: "raise" or "skip", as of the loader's `checked_dataset`; None takes annotations as they are.

        Raises:
            ValueError: limits that are not different numbers from 1 on, or a data set without images or with ambiguous
                image ids.
        """
        self._limits = tuple(limits)
        if not self._limits or min(self._limits) < 1 or len(set(self._limits)) < len(self._limits):
            raise ValueError(f"limits must be different numbers from 1 on, as (100, 1000), not {self._limits}.")
        self._dataset_name = dataset_name
        self._ground_truth = load_ground_truth(dataset_name, on_error)
        self._counts: dict[Any, tuple[np.ndarray, np.ndarray]] = {}  # image id -> found [R, L, T], objects [R]

    def metric_names(self) -> list[str]:
        """Names of the figures that `evaluate` will give, as in metrics.json."""
        return [f"box_proposals/AR{suffix}@{limit}" for limit in self._limits for suffix in AREA_RANGES]

    def reset(self) -> None:
        """Forget all proposals."""
        self._counts = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Match the proposals of a batch at once; only the counts are kept.

        Args:
            inputs: dicts with "image_id"; one with `SKIPPED` is left out.
            outputs: dicts with "proposals": `proposal_boxes` (xyxy in pixels of the original image) and
                `objectness_logits` [D], in any order.

        Raises:
            ValueError: naming the image, where it is not of the data set or its proposals or ground truth are bad.
        """
        for image_id, truth, output in match_images(inputs, outputs, self._ground_truth, self._counts):
            boxes, areas = _get_objects(truth)
            ious = _pairwise_iou(_get_proposals(output, truth), boxes)
            self._counts[image_id] = count_found(ious, areas, self._limits)

    def evaluate(self) -> OrderedDict:
        """Summarise over all images and processes.

        Returns:
            {"box_proposals": {"AR@100", "ARs@100", "ARm@100", "ARl@100", and so for each limit}} in percent on the main
            process, {} on the others; the names are Detectron2's. s, m and l are objects of up to 32 x 32 pixels, up to
            96 x 96 and from there on. NaN stands for a figure without ground truth.

        Raises:
            ValueError: images of the data set never got proposals.
        """
        counts = gather_images(self._counts, self._ground_truth)
        if counts is None:
            return OrderedDict()
        found = np.sum([found for found, _ in counts.values()], axis=0)  # [images, R, L, T] -> [R, L, T]
        objects = np.sum([objects for _, objects in counts.values()], axis=0)  # [images, R] -> [R]
        figures = {}
        for column, limit in enumerate(self._limits):
            for row, suffix in enumerate(AREA_RANGES):
                recall = found[row, column].mean() / objects[row] if objects[row] else np.nan
                figures[f"AR{suffix}@{limit}"] = float(100 * recall)
        logging.getLogger(__name__).info(
            "Average recall of proposals on %s (%d images, %d objects):\n%s",
            self._dataset_name,
            len(counts),
            objects[0],
            create_small_table(figures),
        )
        return OrderedDict(box_proposals=figures)


def count_found(ious: np.ndarray, areas: np.ndarray, limits: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Count the objects of one image that its proposals cover.

    Args:
        ious: [D, G], the best proposal first.
        areas: [G] in pixels.
        limits: L numbers of best proposals that count.

    Returns:
        Found objects [R, L, T] and all objects [R], int64.
    """
    found = np.zeros((len(AREA_RANGES), len(limits), len(IOU_THRESHOLDS)), dtype=np.int64)
    objects = np.zeros(len(AREA_RANGES), dtype=np.int64)
    for row, (least, largest) in enumerate(AREA_RANGES.values()):
        in_range = (areas >= least) & (areas <= largest)
        objects[row] = np.count_nonzero(in_range)
        for column, limit in enumerate(limits):
            covered = coverage(ious[:limit, in_range], IOU_THRESHOLDS[0])
            found[row, column] = np.count_nonzero(covered[:, None] >= IOU_THRESHOLDS, axis=0)
    return found, objects


def coverage(ious: np.ndarray, least: float) -> np.ndarray:
    """IoU of each object with the proposal that it gets when the pair with the highest IoU is taken again and again.

    Args:
        ious: [D, G].
        least: pairs below this IoU are not taken.

    Returns:
        [G], 0 for an object without a proposal.
    """
    proposals, objects = np.nonzero(ious >= least)
    values = ious[proposals, objects]
    covered = np.zeros(ious.shape[1])
    used = np.zeros(ious.shape[0], dtype=bool)
    # Of equal pairs that of the first object, then of the better proposal, comes first.
    for pair in np.lexsort((proposals, objects, -values)):
        if not used[proposals[pair]] and not covered[objects[pair]]:
            used[proposals[pair]] = True
            covered[objects[pair]] = values[pair]
    return covered


@torch.no_grad()
def predict_proposals(model: nn.Module, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
    """Run the backbone and the proposal generator of a model, and nothing after them.

    `inference_on_dataset(functools.partial(predict_proposals, model), loader, ProposalRecallEvaluator(name))` measures
    them.

    Args:
        model: a `GeneralizedRCNN` in evaluation mode (`MaskRCNNPlus` is one), or one in `DistributedDataParallel`.
        batched_inputs: a dict an image: `image` [C, h, w], and `height` and `width` of the original image in pixels,
            those of `image` where they are absent.

    Returns:
        {"proposals": Instances} an image, as of Detectron2's `ProposalNetwork`: `proposal_boxes` xyxy in pixels of
        the original image and `objectness_logits`, the best first. Their number is limited by the second number of the
        proposal generator's `post_nms_topk`.

    Raises:
        ValueError: the model is in training mode or has no proposal generator.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module
    if model.training:
        raise ValueError("predict_proposals takes a model in evaluation mode: call model.eval() before.")
    if getattr(model, "proposal_generator", None) is None:
        raise ValueError(f"{type(model).__name__} has no proposal generator; its proposals come with its inputs.")
    images = model.preprocess_image(batched_inputs)
    proposals, _ = model.proposal_generator(images, model.backbone(images.tensor), None)
    outputs = []
    for each, entry in zip(proposals, batched_inputs, strict=True):
        height, width = entry.get("height", each.image_size[0]), entry.get("width", each.image_size[1])
        outputs.append({"proposals": detector_postprocess(each, height, width)})
    return outputs


def _pairwise_iou(proposals: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """IoU [D, G] of boxes [D, 4] and [G, 4], all xyxy."""
    if not len(proposals) or not len(objects):
        return np.zeros((len(proposals), len(objects)))
    as_xywh = [np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]) for boxes in (proposals, objects)]
    return coco_mask.iou(*as_xywh, [0] * len(objects))


def _get_proposals(output: dict[str, Any], dataset_dict: dict[str, Any]) -> np.ndarray:
    """Boxes [D, 4] xyxy of the proposals of one image, the best first."""
    proposals = output.get("proposals")
    if proposals is None or not (proposals.has("proposal_boxes") and proposals.has("objectness_logits")):
        raise ValueError(
            f"{image_name(dataset_dict)}: the model gave no proposals with proposal_boxes and objectness_logits; "
            "maskrcnn_plus.evaluation.proposals.predict_proposals gives those of a whole Mask R-CNN."
        )
    size = (dataset_dict["height"], dataset_dict["width"])
    if tuple(proposals.image_size) != size:
        raise ValueError(
            f"{image_name(dataset_dict)}: proposals are of an image of {tuple(proposals.image_size)} pixels (height, "
            f"width), the data set says {size}: the model must scale its boxes to the original image."
        )
    boxes, scores = proposals.proposal_boxes.tensor.detach().cpu(), proposals.objectness_logits.detach().cpu()
    if not (boxes.isfinite().all() and scores.isfinite().all()):
        raise ValueError(f"{image_name(dataset_dict)}: a proposal is NaN or infinite; has the model diverged?")
    return boxes[torch.argsort(scores, descending=True, stable=True)].double().numpy()


def _get_objects(dataset_dict: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [G, 4] xyxy and areas [G] of the objects of one image without its crowd regions.

    The areas are those of the masks, or of the boxes in an image where an object has no mask.
    """
    annotations = [each for each in dataset_dict.get("annotations", []) if not each.get("iscrowd", 0)]
    boxes = np.zeros((len(annotations), 4))
    for index, annotation in enumerate(annotations):
        try:
            boxes[index] = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
        except (KeyError, TypeError, ValueError, AssertionError) as error:
            raise ValueError(f"{image_name(dataset_dict)}: an object has no box of 4 numbers: {annotation}.") from error
    if not np.isfinite(boxes).all():
        raise ValueError(f"{image_name(dataset_dict)}: the box of an object is NaN or infinite.")
    if all("label_id" in each or "segmentation" in each for each in annotations):
        rles = ground_truth_rles({**dataset_dict, "annotations": annotations})
        return boxes, rle_areas(rles).astype(np.float64)
    sides = boxes[:, 2:] - boxes[:, :2]
    return boxes, sides[:, 0] * sides[:, 1]
