"""The inference of a Mask R-CNN of one image in plain tensor operators, so that a trace of it is a graph for images of
any size.

It says again what RPN, RoI heads and mask head do, with two differences in form. No list depends on the data at the
outputs: they have room for `max_objects`, and a count. Where nothing is found a dummy goes on, since runtimes do not
agree on tensors of no rows. Doubles are suppressed by ONNX's multi-class operator, without moving the classes apart.

Shorthand: L levels, K candidates, R proposals, C classes, D detections (at least 1, the dummy), M `max_objects`,
S x S mask of an object; image of h x w pixels as the network sees it. Boxes are xyxy in its pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_plus.errors import UserError
from maskrcnn_plus.export.describe import get_square_size
from maskrcnn_plus.export.parts import ModelParts, get_parts
from maskrcnn_plus.mask_heads import MaskScoringHead
from maskrcnn_plus.mask_heads.classes import select_class
from maskrcnn_plus.roi.generic import GenericRoIExtractor
from maskrcnn_plus.roi.pooler import PyramidROIAlign

_LARGEST = torch.finfo(torch.float32).max


class WholeGraph(nn.Module):
    """Image -> objects, with the weights of a model."""

    def __init__(self, model: nn.Module, max_objects: int) -> None:
        """Take the parts of a model.

        Args:
            model: in evaluation mode, as its config builds it.
            max_objects: M.

        Raises:
            UserError: a part that cannot be exported; the message has its config key.
        """
        super().__init__()
        if getattr(model, "flips", 1) > 1:
            raise UserError(f"model.flips={model.flips}: one graph sees an image in one orientation. Set it to 1.")
        self.parts: ModelParts = get_parts(model)
        self.model = model
        self.max_objects = max_objects

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Detect.

        Args:
            image: float32 [1, channels, h, w] in 0..255.

        Returns:
            Boxes [M, 4], scores [M], classes int64 [M], of a model with masks probabilities [M, S, S], and the count of
            objects, int64 []. The rows beyond are 0. Scores fall, but for those that mask scoring changed.
        """
        size = torch._shape_as_tensor(image)[2:]  # (h, w)
        bounds = size.flip(0).repeat(2).to(torch.float32)  # (w, h, w, h)
        features = self.model.backbone(self._prepare(image, size))
        proposals, valid = self._propose(features, bounds)
        boxes, probs = self._classify(features, proposals, bounds)
        boxes, scores, classes = self._detect(boxes, probs * valid[:, None], bounds)
        found = scores > 0  # not the dummy
        count = found.sum()
        outputs = [boxes, scores, classes]
        if self.parts.mask_head is not None:
            masks, scores = self._mask(features, boxes, scores, classes)
            outputs = [boxes, scores, classes, masks]
        return (*(self._pad(each * found.view(-1, *[1] * (each.dim() - 1))) for each in outputs), count)

    def _pad(self, rows: Tensor) -> Tensor:
        """[D, ...] -> [M, ...]."""
        missing = self.max_objects - torch._shape_as_tensor(rows)[0]
        padded = F.pad(rows, [0, 0] * (rows.dim() - 1) + [0, missing])
        return padded.reshape(self.max_objects, *rows.shape[1:])

    def _prepare(self, image: Tensor, size: Tensor) -> Tensor:
        """Normalise, and pad right and below."""
        model = self.model
        image = (image - model.pixel_mean) / model.pixel_std
        grain = max(int(getattr(model.backbone, "size_divisibility", 1)), 1)
        target = size.clamp(min=get_square_size(model.backbone))
        bottom, right = (torch.div(target + grain - 1, grain, rounding_mode="floor") * grain - size).unbind()
        return F.pad(image, (0, right, 0, bottom))

    def _propose(self, features: dict[str, Tensor], bounds: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [R, 4], the best first, and 1 for each, or 0 for the dummy at the end."""
        rpn, boxes, logits, levels = self.model.proposal_generator, [], [], []
        limit = torch.tensor(rpn.pre_nms_topk[False])
        for level, (anchors, scores, deltas) in enumerate(self._predict_anchors(features, bounds)):
            scores, places = scores.topk(torch.minimum(torch._shape_as_tensor(anchors)[0], limit))
            boxes.append(rpn.box2box_transform.apply_deltas(deltas[places], anchors[places]))
            logits.append(scores)
            levels.append(torch.full_like(scores, level))
        boxes, logits, levels = torch.cat(boxes), torch.cat(logits), torch.cat(levels)  # [K, 4], [K], [K]
        usable = _is_finite(boxes).all(1) & _is_finite(logits)
        boxes = _clip(torch.where(usable[:, None], boxes, 0.0), bounds)
        usable = usable & ((boxes[:, 2:] - boxes[:, :2]) > rpn.min_box_size).all(1)

        logits = torch.where(usable, logits, -_LARGEST)
        number = torch._shape_as_tensor(logits)[0]
        order = logits.topk(number)[1]
        boxes, levels = boxes[order], levels[order]
        ranks = torch.arange(number, 0, -1) * usable[order]  # [K]: the best has K, one that is not usable 0
        ranks = ranks.to(torch.float32)
        most = rpn.post_nms_topk[False]
        scores = torch.stack([ranks * (levels == level) for level in range(len(rpn.in_features))])  # [L, K]
        kept = _NonMaxSuppression.apply(boxes[None], scores[None], most, rpn.nms_thresh, 0.0)[:, 2]
        boxes, ranks = (torch.cat([each, each[:1] * 0]) for each in (boxes, ranks))
        kept = torch.cat([kept, number.view(1)])
        ranks, places = ranks[kept].topk(torch.minimum(torch._shape_as_tensor(kept)[0], torch.tensor(most)))
        return boxes[kept[places]], (ranks > 0).to(torch.float32)

    def _predict_anchors(self, features: dict[str, Tensor], bounds: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each level the anchors [P, 4], their logits [P] and deltas [P, 4]."""
        rpn = self.model.proposal_generator
        maps = [features[name] for name in rpn.in_features]
        anchors = [each.tensor for each in rpn.anchor_generator(maps)]
        if self.parts.two_stages:
            return self._regress_twice(maps, anchors, bounds)
        logits, deltas, *quality = rpn.rpn_head(maps)
        logits, deltas, *quality = (
            [_flatten_anchors(each, dims) for each in part]
            for part, dims in zip((logits, deltas, *quality), (1, 4, 1), strict=False)
        )
        if quality and rpn.score != "objectness":
            (quality,) = quality
            pairs = zip(logits, quality, strict=True)
            logits = quality if rpn.score == "quality" else [_log_sigmoid(a) + _log_sigmoid(b) for a, b in pairs]
        return [(a, s[:, 0], d) for a, s, d in zip(anchors, logits, deltas, strict=True)]

    def _regress_twice(
        self, maps: Sequence[Tensor], anchors: Sequence[Tensor], bounds: Tensor
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """`_predict_anchors` of a Cascade RPN."""
        rpn, predictions = self.model.proposal_generator, []
        for features, first, stride in zip(maps, anchors, rpn.anchor_generator.strides, strict=True):
            features, deltas = rpn.rpn_head.initial(features)
            refined = _clip(rpn.initial_box2box_transform.apply_deltas(deltas[0], first), bounds)
            origin = (first[0, :2] + first[0, 2:]).repeat(2) / 2
            logits, deltas = rpn.rpn_head(features, ((refined - origin) / stride)[None])
            predictions.append((refined, logits[0], deltas[0]))
        return predictions

    def _classify(self, features: dict[str, Tensor], proposals: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [R, C or 1, 4] and probabilities [R, C] by all stages of the box head."""
        heads = self.model.roi_heads
        maps, stages, total = [features[name] for name in heads.box_in_features], self.parts.box_stages, None
        boxes = proposals[:, None]
        for head, predictor in stages:
            proposals = _clip(boxes[:, 0], bounds)
            logits, deltas = predictor(head(pool(heads.box_pooler, maps, proposals)))
            probs = logits.sigmoid() if getattr(predictor, "use_sigmoid_ce", False) else logits.softmax(1)
            boxes = predictor.box2box_transform.apply_deltas(deltas, proposals).unflatten(1, (-1, 4))
            total = probs if total is None else total + probs
        probs = total * (1.0 / len(stages))
        usable = _is_finite(boxes).flatten(1).all(1) & _is_finite(probs).all(1)
        boxes = torch.where(usable[:, None, None], boxes, 0.0)
        return boxes, torch.where(usable[:, None], probs, 0.0)[:, : heads.num_classes]

    def _detect(self, boxes: Tensor, probs: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes [D, 4], scores [D] and classes [D] of what the suppression leaves; the score of a dummy is 0."""
        predictor = self.parts.box_stages[-1][1]
        boxes = _clip(boxes, bounds)
        if len(self.parts.box_stages) == 1 and getattr(predictor, "min_box_size", 0) > 0:
            large = ((boxes[..., 2:] - boxes[..., :2]) >= predictor.min_box_size).all(2)  # [R, C or 1]
            probs = probs * large
        options = self.max_objects, predictor.test_nms_thresh, max(predictor.test_score_thresh, 0.0)
        if boxes.shape[1] == 1:
            kept = _NonMaxSuppression.apply(boxes[None, :, 0], probs.T[None], *options)  # classes of common boxes
            classes, places = kept[:, 1], kept[:, 2]
            found = boxes[places, 0]
        else:
            kept = _NonMaxSuppression.apply(boxes.transpose(0, 1), probs.T[:, None], *options)  # boxes a class
            classes, places = kept[:, 0], kept[:, 2]
            found = boxes[places, classes]
        scores = probs[places, classes]
        found, scores, classes = (
            torch.cat([each, each.new_zeros(1, *each.shape[1:])]) for each in (found, scores, classes)
        )
        number = torch.minimum(torch._shape_as_tensor(scores)[0], torch.tensor(self.max_objects))
        scores, order = scores.topk(number)
        return found[order], scores, classes[order]

    def _mask(
        self, features: dict[str, Tensor], boxes: Tensor, scores: Tensor, classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Probabilities [D, S, S] and scores [D]."""
        heads, head = self.model.roi_heads, self.parts.mask_head
        pooled = pool(heads.mask_pooler, [features[name] for name in heads.mask_in_features], boxes)
        logits = self.parts.mask_logits(pooled)  # [D, C or 1, S, S]
        masks = select_class(logits, classes).sigmoid()
        if isinstance(head, MaskScoringHead):
            ious = select_class(head.mask_iou_head(pooled, masks[:, None]), classes).clamp(0, 1)
            scores = scores * ious if head.rescore else scores
        return masks, scores


def pool(pooler: nn.Module, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """RoI features [K, channels, P, Q] of boxes [K, 4] of one image."""
    rois = torch.cat([boxes[:, :1] * 0, boxes], dim=1)  # a trace may keep the number of `zeros_like`
    options = pooler.output_size, max(pooler.sampling_ratio, 0), pooler.aligned

    def align(level: int, rois: Tensor) -> Tensor:
        size, ratio, aligned = options
        return torchvision.ops.roi_align(maps[level], rois, size, pooler.scales[level], ratio, aligned)

    if isinstance(pooler, GenericRoIExtractor):
        return pooler.post(sum(pooler.pre(align(level, rois)) for level in range(len(maps))))
    if len(maps) == 1:
        return align(0, rois)
    levels = assign_levels(boxes, pooler)
    members = [(levels == level).nonzero()[:, 0] for level in range(len(maps))]
    pooled = torch.cat([align(level, rois[each]) for level, each in enumerate(members)])
    order = torch.cat(members)
    places = torch.zeros_like(order).scatter(0, order, torch.arange(torch._shape_as_tensor(order)[0]))
    return pooled[places]


def assign_levels(boxes: Tensor, pooler: PyramidROIAlign) -> Tensor:
    """The map of each box [K, 4], int64 [K], as Detectron2's `assign_boxes_to_levels`; without logarithms, which
    runtimes round differently."""
    sides = boxes[:, 2:] - boxes[:, :2]
    ratio = (sides[:, 0] * sides[:, 1]).sqrt() / pooler.canonical_box_size + 1e-8
    levels = range(pooler.min_level + 1, pooler.max_level + 1)
    return sum((ratio >= 2.0 ** (level - pooler.canonical_level)).to(torch.int64) for level in levels)


class _NonMaxSuppression(torch.autograd.Function):
    """ONNX's operator of that name."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, most: int, iou: float, least: float) -> Tensor:
        """Suppress doubles.

        Args:
            ctx: of autograd.
            boxes: [B, N, 4].
            scores: [B, C, N].
            most: boxes of a class that stay.
            iou: a box goes whose IoU with a better one of its class is above it.
            least: scores that are not above it go.

        Returns:
            int64 [kept, 3]: batch, class and box.
        """
        kept = [torch.zeros(0, 3, dtype=torch.int64)]
        for batch, classes in enumerate(scores):
            for index, values in enumerate(classes):
                places = (values > least).nonzero()[:, 0]
                places = places[torchvision.ops.nms(boxes[batch, places], values[places], iou)[:most]]
                kept.append(torch.stack([torch.full_like(places, batch), torch.full_like(places, index), places], 1))
        return torch.cat(kept)

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, most: int, iou: float, least: float) -> Any:
        """The node of the graph."""
        numbers = [torch.tensor([most])] + [torch.tensor([each], dtype=torch.float32) for each in (iou, least)]
        return g.op("NonMaxSuppression", boxes, scores, *(g.op("Constant", value_t=each) for each in numbers))


def _is_finite(x: Tensor) -> Tensor:
    # Not by abs, which OpenVINO (2026.4) computes in place where the input is read again.
    return (x >= -_LARGEST) & (x <= _LARGEST)


def _log_sigmoid(x: Tensor) -> Tensor:
    """Of two logits their sum has the order of `geometric_mean_logits`. ONNX knows neither this nor log1p."""
    small = torch.minimum(x, -x).exp()
    above = 1 + small
    log1p = torch.where(above == 1, small, above.log() * small / (above - 1))  # Kahan's, exact to rounding
    return x.clamp(max=0) - log1p


def _clip(boxes: Tensor, bounds: Tensor) -> Tensor:
    return torch.minimum(boxes.clamp(min=0), bounds)


def _flatten_anchors(predictions: Tensor, dims: int) -> Tensor:
    """[1, A * dims, H, W] -> [H * W * A, dims]."""
    return predictions[0].permute(1, 2, 0).reshape(-1, dims)
