"""Mask R-CNN (He et al., 2017) as Detectron2's `GeneralizedRCNN`, with masks as run-length codes of the image.

Shorthand: N objects, m x m mask of an object in its box, image of H x W pixels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling.meta_arch import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from torch import nn

from maskrcnn_plus.arguments import check_arguments
from maskrcnn_plus.config import with_defaults
from maskrcnn_plus.flips import ORIENTATIONS, detect_flipped
from maskrcnn_plus.masks.measure import rle_areas, suppress_covered
from maskrcnn_plus.masks.rle_masks import RLEMasks, add_dense_masks
from maskrcnn_plus.ops.paste_masks_rle import paste_masks_rle
from maskrcnn_plus.ops.paste_masks_rle_reference import paste_masks_dense
from maskrcnn_plus.part_shapes import check_parts
from maskrcnn_plus.scripting import NotScriptable


@META_ARCH_REGISTRY.register()
class MaskRCNNPlus(NotScriptable, GeneralizedRCNN):
    """Drop-in for `GeneralizedRCNN` whose masks are runs, and an N x H x W array only where one is read."""

    @configurable
    def __init__(
        self,
        *,
        mask_pasting: str = "detectron2",
        dense_masks: bool = True,
        max_covered: float = 1.0,
        min_mask_area: int = 0,
        flips: int = 1,
        **kwargs,
    ) -> None:
        """Take the parts.

        Args:
            mask_pasting: "detectron2" samples a mask at the centres of the pixels of its box; "torchvision" resizes it
                to the whole pixels of its box.
            dense_masks: results have `pred_masks` (bool [N, H, W]) beside the runs, for all that reads the results of
                `GeneralizedRCNN`: Detectron2's evaluators, predictor and visualiser. This package's own read the runs
                and switch it off (`without_dense_masks`); so can code of yours.
            max_covered: drops detections of whose masks better ones of their class cover more than this share
                (`suppress_covered`); 1 drops none. For objects that touch but do not hide each other.
            min_mask_area: drops detections whose masks have fewer pixels of the result's image than this.
            flips: orientations in which an image is seen and whose results are averaged (`maskrcnn_plus.flips`): 1, as
                it is; 2, also flipped in x; 4, in x, y and both. The time grows as their number.
            **kwargs: those of `GeneralizedRCNN`.

        Raises:
            ValueError: there is no such `mask_pasting`, `max_covered` is no share, `min_mask_area` is negative,
                `flips` is another number or more than the RoI heads can, or the parts do not fit (`check_parts`).
        """
        super().__init__(**kwargs)
        check_parts(self)
        check_arguments(
            mask_pasting=(mask_pasting, mask_pasting in ("detectron2", "torchvision"), '"detectron2" or "torchvision"'),
            max_covered=(max_covered, 0 <= max_covered <= 1, "in 0..1"),
            min_mask_area=(min_mask_area, min_mask_area >= 0, "at least 0 pixels"),
            flips=(flips, flips in ORIENTATIONS, "1, 2 or 4"),
        )
        if flips > 1 and (self.proposal_generator is None or not hasattr(self.roi_heads, "_forward_box")):
            raise ValueError(f"flips={flips} needs an RPN, and RoI heads that are a kind of StandardROIHeads.")
        self.mask_pasting = mask_pasting
        self.dense_masks = dense_masks
        self.max_covered = max_covered
        self.min_mask_area = min_mask_area
        self.flips = flips
        self.mask_probabilities = False  # of results, see `without_dense_masks`

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of `__init__` from a yacs config; of this package's keys it reads the five below."""
        keys = with_defaults(cfg).MODEL
        return super().from_config(cfg) | {
            "mask_pasting": keys.MASK_PASTING,
            "dense_masks": keys.DENSE_MASKS,
            "max_covered": keys.MAX_COVERED,
            "min_mask_area": keys.MIN_MASK_AREA,
            "flips": keys.FLIPS,
        }

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict[str, Instances]] | list[Instances]:
        """Detect the objects of a batch.

        Args:
            batched_inputs: a dict an image: `image` [C, h, w], and `height` and `width` of the result in pixels.
            detected_instances: boxes and classes that are known, an Instances an image, in pixels of `image`.
            do_postprocess: bring the results to `height` x `width`; else they stay in pixels of `image`.

        Returns:
            {"instances": Instances} an image, or the Instances alone without `do_postprocess`. With it, a model with
            masks gives `pred_masks_rle` (`RLEMasks` of H x W), and `pred_masks` if it has `dense_masks`; without,
            `pred_masks` holds probabilities [N, 1, m, m]. Under `torch.jit.trace`, which knows tensors alone, results
            are Detectron2's: `pred_masks`, bool [N, H, W].

        Raises:
            ValueError: under `torch.jit.trace`, where `mask_pasting`, `max_covered`, `min_mask_area` or `flips` is set.
        """
        if torch.jit.is_tracing() and self.flips > 1:
            raise ValueError("A trace sees an image in one orientation: leave flips at 1.")
        options = (self.mask_pasting, self.max_covered, self.min_mask_area)
        if do_postprocess and torch.jit.is_tracing() and options != ("detectron2", 1, 0):
            raise ValueError(
                'A trace pastes masks by mask_pasting="detectron2" and drops none by max_covered or min_mask_area: '
                "leave these options at their defaults, or trace model.inference(inputs, do_postprocess=False)."
            )
        if self.flips > 1:
            given = detected_instances or [None] * len(batched_inputs)
            results = [detect_flipped(self, self.flips, *each) for each in zip(batched_inputs, given, strict=True)]
        else:
            results = super().inference(batched_inputs, detected_instances, do_postprocess=False)
        if not do_postprocess:
            return results
        outputs = []
        for result, each in zip(results, batched_inputs, strict=True):
            height, width = each["image"].shape[-2:]
            size = each.get("height", height), each.get("width", width)
            result = postprocess(result, *size, self.mask_pasting, self.mask_probabilities)
            if detected_instances is None and result.has("pred_masks_rle"):
                result = self._drop_small_and_covered(result)
            if self.dense_masks and result.has("pred_masks_rle"):
                result = add_dense_masks(result)
            outputs.append({"instances": result})
        return outputs

    def _drop_small_and_covered(self, result: Instances) -> Instances:
        """What `min_mask_area` and `max_covered` leave of the detections of an image."""
        if self.min_mask_area > 0:
            result = result[torch.from_numpy(rle_areas(list(result.pred_masks_rle)) >= self.min_mask_area)]
        if self.max_covered < 1:
            rles, scores, classes = result.pred_masks_rle, result.scores.detach().cpu(), result.pred_classes.cpu()
            kept = suppress_covered(list(rles), scores.numpy(), classes.numpy(), self.max_covered)
            result = result[torch.from_numpy(kept)]
        return result


@contextlib.contextmanager
def without_dense_masks(model: nn.Module, mask_probabilities: bool = False) -> Iterator[None]:
    """Within it a `MaskRCNNPlus` makes no `pred_masks`, for code that reads `pred_masks_rle`; others are left alone.

    Args:
        model: any.
        mask_probabilities: results of a `MaskRCNNPlus` also have `pred_mask_probs`, see `postprocess`.
    """
    wanted = getattr(model, "dense_masks", None)
    if wanted is None:
        yield
        return
    model.dense_masks, model.mask_probabilities = False, mask_probabilities
    try:
        yield
    finally:
        model.dense_masks, model.mask_probabilities = wanted, False


def postprocess(
    results: Instances, height: int, width: int, mask_pasting: str = "detectron2", keep_probabilities: bool = False
) -> Instances:
    """Detectron2's `detector_postprocess`, with masks as RLEs.

    Args:
        results: raw results of RoI heads; its boxes are changed in place, as Detectron2 does.
        height, width: of the image that the results are wanted for, pixels.
        mask_pasting: the rule of `paste_masks_rle`.
        keep_probabilities: add `pred_mask_probs` [N, m, m], of each mask in its box.

    Returns:
        Instances of height x width with boxes scaled and clipped, those without area dropped, and `pred_masks_rle` in
        place of `pred_masks`, where there is any; in a trace, bool `pred_masks` [N, height, width].
    """
    fields = dict(results.get_fields())
    if "pred_masks" not in fields:
        return detector_postprocess(results, height, width)
    # Under another name Detectron2 only drops those of the boxes that it drops.
    fields["mask_probs"] = fields.pop("pred_masks")
    results = detector_postprocess(Instances(results.image_size, **fields), height, width)
    probs, boxes = results.mask_probs[:, 0], results.pred_boxes.tensor  # [N, 1, m, m] -> [N, m, m]
    results.remove("mask_probs")
    if torch.jit.is_tracing():
        results.pred_masks = paste_masks_dense(probs, boxes, height, width)
        return results
    rles = paste_masks_rle(probs, boxes, height, width, rule=mask_pasting)
    results.pred_masks_rle = RLEMasks(rles, (height, width), check=False)
    if keep_probabilities:
        results.pred_mask_probs = probs
    return results
