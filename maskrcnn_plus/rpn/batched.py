"""Detectron2's RPN (Ren et al., Faster R-CNN, 2015) with the proposals of all images and levels suppressed together.

Only the boxes of the best anchors of a level are decoded.

Shorthand: N images, L levels, A anchors a place, [N, H_l * W_l * A] predictions of level l.
"""

from __future__ import annotations

import torch
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.structures import Boxes, Instances
from torch import Tensor

from maskrcnn_plus.rpn.nms import batched_nms


@PROPOSAL_GENERATOR_REGISTRY.register()
class BatchedRPN(RPN):
    """Drop-in for Detectron2's RPN: same arguments, weights, losses and proposals; faster on CPUs."""

    @torch.no_grad()
    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Decode and choose the proposals of each image.

        Args:
            anchors: L sets of [H_l * W_l * A] boxes.
            pred_objectness_logits: L tensors [N, H_l * W_l * A].
            pred_anchor_deltas: L tensors [N, H_l * W_l * A, 4].
            image_sizes: (height, width) in pixels of each image.

        Returns:
            N Instances with `proposal_boxes` and `objectness_logits`, the best first.

        Raises:
            FloatingPointError: in training, where a prediction is not finite.
        """
        limit = self.pre_nms_topk[self.training]
        boxes, scores, levels = [], [], []
        for level, predictions in enumerate(zip(anchors, pred_objectness_logits, pred_anchor_deltas, strict=True)):
            anchors_l, logits_l, deltas_l = predictions
            logits_l, order = logits_l.sort(descending=True, dim=1)
            logits_l, order = logits_l[:, :limit], order[:, :limit]
            deltas_l = deltas_l.gather(1, order[..., None].expand(-1, -1, 4))  # [N, topk, 4]
            boxes_l = self.box2box_transform.apply_deltas(
                deltas_l.flatten(0, 1), anchors_l.tensor[order].flatten(0, 1)
            )  # [N * topk, 4]
            boxes.append(boxes_l.view(*order.shape, 4))  # [N, topk, 4]
            scores.append(logits_l)
            levels.append(torch.full_like(order, level))
        boxes, scores, levels = torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(levels, 1)  # [N, K, ...]

        usable = torch.isfinite(boxes).all(dim=2) & torch.isfinite(scores)
        if self.training and not usable.all():
            raise FloatingPointError("Predicted boxes or scores contain Inf/NaN. Training has diverged.")
        bounds = boxes.new_tensor([[w, h, w, h] for h, w in image_sizes])  # [N, 4]
        boxes = torch.minimum(boxes.clamp(min=0), bounds[:, None])
        sides = boxes[..., 2:] - boxes[..., :2]
        usable &= (sides > self.min_box_size).all(dim=2)

        images, places = usable.nonzero(as_tuple=True)
        boxes, scores, levels = boxes[images, places], scores[images, places], levels[images, places]
        keep = batched_nms(boxes, scores, images * len(anchors) + levels, self.nms_thresh)
        results = []
        for image, size in enumerate(image_sizes):
            chosen = keep[images[keep] == image][: self.post_nms_topk[self.training]]
            results.append(Instances(size, proposal_boxes=Boxes(boxes[chosen]), objectness_logits=scores[chosen]))
        return results
