"""A model's predictions on their way to a metric: `Instances` -> checked RLEs, gathered over all processes.

Shape shorthand: D detections in an image of H x W pixels.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import detectron2.utils.comm as comm
import numpy as np
from detectron2.structures import Instances

from maskrcnn_plus.data.stream import SKIPPED
from maskrcnn_plus.evaluation.ground_truth import image_name
from maskrcnn_plus.masks.rle_masks import instance_masks

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeftOut:
    """Stands for the results of an image that could not be read, with the reason; see `gather_images`."""

    reason: str


def match_images(
    inputs: Sequence[dict[str, Any]],
    outputs: Sequence[dict[str, Any]],
    ground_truth: dict[Any, dict[str, Any]],
    results: dict[Any, Any],
) -> Iterator[tuple[Any, dict[str, Any], dict[str, Any]]]:
    """Bring together the images of a batch, what the model found, and their entries in the data set.

    Args:
        inputs: dicts with "image_id"; one with `SKIPPED` is left out.
        outputs: a dict an image, as the model returns them.
        ground_truth: the data set's entries by image id.
        results: an evaluator's results by image id; images that are left out get a `LeftOut`.

    Yields:
        Image id, entry and output of every other image.

    Raises:
        ValueError: naming the image, where it is not of the data set.
    """
    for entry, output in zip(inputs, outputs, strict=True):
        image_id = entry["image_id"]
        if image_id not in ground_truth:
            raise ValueError(f"{image_name(entry)} is not in the data set under evaluation.")
        if SKIPPED in entry:
            results[image_id] = LeftOut(entry[SKIPPED])
        else:
            yield image_id, ground_truth[image_id], output


def get_prediction(output: dict[str, Any], dataset_dict: dict[str, Any]) -> tuple[Instances, list[int], list[float]]:
    """Take and check the detections of one image.

    Args:
        output: what a Detectron2 model returns for an image: "instances" with `scores` [D] and `pred_classes` [D].
        dataset_dict: the image's entry in the data set.

    Returns:
        The instances on the CPU, their classes and their scores.

    Raises:
        ValueError: naming the image, where these fields are missing or a score is not finite.
    """
    instances = output.get("instances")
    if instances is None or not (instances.has("scores") and instances.has("pred_classes")):
        raise ValueError(f"{image_name(dataset_dict)}: the model gave no instances with scores and pred_classes.")
    instances = instances.to("cpu")
    scores = instances.scores.tolist()
    if not np.isfinite(scores).all():
        raise ValueError(
            f"{image_name(dataset_dict)}: the model gave a score that is NaN or infinite; has it diverged?"
        )
    return instances, instances.pred_classes.tolist(), scores


def predicted_rles(
    instances: Instances, dataset_dict: dict[str, Any], indices: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Encode predicted masks of one image.

    Args:
        instances: D detections with `pred_masks_rle` (RLEMasks or a list of D RLEs) or, where it is absent,
            `pred_masks` ([D, H, W] bool).
        dataset_dict: the image's entry in the data set, which says H and W.
        indices: the detections to encode; None for all.

    Returns:
        An RLE of size [H, W] an index, `counts` as str.

    Raises:
        ValueError: naming the image, where there are no masks, or one is malformed or of another size than the image.
    """
    if len(instances) == 0 or (indices is not None and len(indices) == 0):
        return []
    try:
        masks = instance_masks(instances, indices)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{image_name(dataset_dict)}: {error}") from error
    size = [dataset_dict["height"], dataset_dict["width"]]
    if [*masks.image_size] != size:
        raise ValueError(
            f"{image_name(dataset_dict)}: predicted masks are of {[*masks.image_size]} pixels (height, width), "
            f"the data set says {size}: the model must scale its masks to the original image."
        )
    return list(masks)


def gather_images(of_image: dict[Any, Any], ground_truth: dict[Any, dict[str, Any]]) -> dict[Any, Any] | None:
    """Bring what all processes hold of their images to the main process.

    Args:
        of_image: this process's results by image id, `LeftOut` for images that are named in the log and left out. An
            image that several processes saw counts once.
        ground_truth: the data set's entries by image id.

    Returns:
        Results by image id in the data set's order on the main process, None on the others.

    Raises:
        ValueError: on the main process, where images of the data set never got predictions, or all are left out.
    """
    comm.synchronize()
    parts = comm.gather(of_image, dst=0)
    if not comm.is_main_process():
        return None
    gathered = {image_id: result for part in parts for image_id, result in part.items()}
    missing = [image_id for image_id in ground_truth if image_id not in gathered]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(ground_truth)} images never got predictions, the first ids: {missing[:5]}. "
            "The data loader must run over the very data set that is evaluated, and all of it."
        )
    left_out = {image_id: result for image_id, result in gathered.items() if isinstance(result, LeftOut)}
    if left_out:
        reasons = "\n".join(f"  - {result.reason}" for result in left_out.values())
        logger.warning("%d of %d images are left out of the evaluation:\n%s", len(left_out), len(gathered), reasons)
    if len(left_out) == len(gathered):
        raise ValueError("None of the images of the data set could be read: there is nothing to evaluate.")
    return {image_id: gathered[image_id] for image_id in ground_truth if image_id not in left_out}
