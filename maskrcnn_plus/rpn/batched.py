"""Detectron2's RPN (Ren et al., Faster R-CNN, 2015) with the proposals of all images and levels suppressed together.

Only the boxes of the best anchors of a level are decoded.

Shorthand: N images, L levels, A anchors a place, [N, H_l * W_l * A] predictions of level l.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from maskrcnn_plus.errors import UserError
from maskrcnn_plus.ops.nms import batched_nms
from maskrcnn_plus.scripting import NotScriptable


@PROPOSAL_GENERATOR_REGISTRY.register()
class BatchedRPN(NotScriptable, RPN):
    """Drop-in for Detectron2's RPN: same arguments, weights, losses and proposals; faster on CPUs."""

    @configurable
    def __init__(self, **kwargs: Any) -> None:
        """Take the parts.

        Args:
            **kwargs: those of `RPN`.

        Raises:
            UserError: the anchors are not as many a place as the head predicts, or not for all maps.
        """
        super().__init__(**kwargs)
        made = getattr(self.anchor_generator, "num_anchors", None)
        predicted = getattr(self.rpn_head, "objectness_logits", None)
        if made is None:  # a generator of somebody else's
            return
        if len(made) < len(self.in_features):
            raise UserError(
                f"model.proposal_generator.anchor_generator (sizes, strides) has anchors for {len(made)} maps, but "
                f"in_features has {len(self.in_features)}: {', '.join(self.in_features)}."
            )
        if isinstance(predicted, nn.Conv2d) and set(made) != {predicted.out_channels}:
            raise UserError(
                f"model.proposal_generator.anchor_generator (sizes times aspect_ratios) makes "
                f"{', '.join(map(str, made))} anchors a place of each map, but the head predicts "
                f"{predicted.out_channels} (head.num_anchors): they must agree."
            )

    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Decode and choose the proposals of each image: `select_proposals` of L sets of [H_l * W_l * A] anchors."""
        return self.select_proposals(
            [each.tensor[None] for each in anchors], pred_objectness_logits, pred_anchor_deltas, image_sizes
        )

    @torch.no_grad()
    def select_proposals(
        self,
        anchors: Sequence[Tensor],
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Decode the best anchors, clip them to their images, drop the small and suppress the doubles of each level.

        Args:
            anchors: L tensors [1 or N, P_l, 4] xyxy in pixels, for all images or each its own.
            logits: L tensors [N, P_l], what the proposals are ranked by.
            deltas: L tensors [N, P_l, 4].
            image_sizes: (height, width) in pixels of each image.

        Returns:
            N Instances with `proposal_boxes` and `objectness_logits`, the best first.

        Raises:
            FloatingPointError: in training, where a prediction is not finite; else such boxes are dropped.
        """
        limit, transform = self.pre_nms_topk[self.training], self.box2box_transform
        best = [decode_best(transform, *each, limit) for each in zip(anchors, logits, deltas, strict=True)]
        boxes, scores = zip(*best, strict=True)  # L of [N, k_l, 4], L of [N, k_l]
        levels = torch.cat(
            [torch.full_like(scores_l, index, dtype=torch.int64) for index, scores_l in enumerate(scores)], 1
        )
        num_levels, boxes, scores = len(boxes), torch.cat(boxes, 1), torch.cat(scores, 1)  # [N, K, ...]

        usable = torch.isfinite(boxes).all(dim=2) & torch.isfinite(scores)
        if self.training and not usable.all():
            raise FloatingPointError("Predicted boxes or scores contain Inf/NaN. Training has diverged.")
        boxes = clip_to_images(boxes, image_sizes)
        sides = boxes[..., 2:] - boxes[..., :2]
        usable &= (sides > self.min_box_size).all(dim=2)

        images, places = usable.nonzero(as_tuple=True)
        boxes, scores, levels = boxes[images, places], scores[images, places], levels[images, places]
        num_images = len(image_sizes)
        keep = batched_nms(boxes, scores, images * num_levels + levels, self.nms_thresh)
        results = []
        for size, chosen in zip(image_sizes, _split_by_image(keep, images[keep], num_images), strict=True):
            chosen = chosen[: self.post_nms_topk[self.training]]
            results.append(Instances(size, proposal_boxes=Boxes(boxes[chosen]), objectness_logits=scores[chosen]))
        return results


def decode_best(
    transform: Box2BoxTransform, anchors: Tensor, logits: Tensor, deltas: Tensor, limit: int
) -> tuple[Tensor, Tensor]:
    """Boxes [N, k, 4] of the best anchors of one level and their logits [N, k], the best first; k is P or `limit`.

    The arguments are those of `select_proposals` for the level, and what its deltas mean.
    """
    logits, places = stable_topk(logits, limit)  # [N, k]
    places = places[:, :, None].expand(-1, -1, 4)
    anchors = anchors.expand(len(deltas), -1, -1).gather(1, places)
    boxes = transform.apply_deltas(deltas.gather(1, places).flatten(0, 1), anchors.flatten(0, 1))  # [N * k, 4]
    return boxes.view(anchors.shape), logits  # [N, k, 4]


def stable_topk(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest values of each row, the first of equal ones; NaNs are the largest, as in `torch.sort`.

    A stable sort of [N, P] that is cut off, in less time on CPUs.

    Returns:
        Values and int64 places in their row, [N, min(k, P)], the largest first and equal ones in their order.
    """
    if values.device.type != "cpu" or torch.jit.is_tracing() or k >= values.shape[1] or not values.numel():
        best, places = values.sort(descending=True, stable=True, dim=1)
        return best[:, :k], places[:, :k]
    least = values.topk(k, dim=1).values[:, -1:]  # [N, 1]
    rows = []
    for row, enough in zip(values, ~(values < least), strict=True):
        places = enough.nonzero()[:, 0]  # k or, where others equal the least, more
        rows.append(places[row[places].argsort(descending=True, stable=True)[:k]])
    places = torch.stack(rows)
    return values.gather(1, places), places


def clip_to_images(boxes: Tensor, image_sizes: Sequence[tuple[int, int] | Tensor]) -> Tensor:
    """Cut boxes [N, K, 4], xyxy in pixels, at the borders of their images.

    Sizes are (height, width); tensors in a trace, which then holds for images of other sizes.
    """
    sizes = [torch.stack([torch.as_tensor(side) for side in size]) for size in image_sizes]  # N of [2]
    bounds = torch.stack(sizes).to(boxes).flip(1).repeat(1, 2)  # [N, 4] (w, h, w, h)
    return torch.minimum(boxes.clamp(min=0), bounds[:, None])


def _split_by_image(keep: Tensor, images: Tensor, num_images: int) -> Sequence[Tensor]:
    """`keep` split by the image of each, in its order; one synchronisation with a GPU for all images."""
    if torch.jit.is_tracing():
        return [keep[images == image] for image in range(num_images)]
    counts = (images[:, None] == torch.arange(num_images, device=images.device)).sum(dim=0)
    return keep[images.argsort(stable=True)].split(counts.tolist())
