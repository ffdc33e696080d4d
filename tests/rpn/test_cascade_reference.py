"""Cascade RPN's losses and proposals against the paper's formulas written out, a place and an object at a time."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

from maskrcnn_plus.rpn.cascade import CascadeRPN, CascadeRPNHead, square_anchors
from maskrcnn_plus.rpn.cascade_targets import paint_regions

STRIDES = {"p2": 4, "p3": 8}
SIZES = [(32, 32), (32, 28)]
TRUTH = [[[2.0, 3, 14, 17], [13, 12, 31, 30], [4, 20, 12, 29]], [[1.0, 1, 26, 27]]]
INITIAL_WEIGHTS, FINAL_WEIGHTS = (10.0, 10.0, 2.0, 2.0), (20.0, 20.0, 10.0, 10.0)


class ExactTransform:
    """The box transform as in the papers, in the precision of its input; Detectron2's is float32."""

    def __init__(self, weights):
        self.weights = weights

    def apply_deltas(self, deltas, boxes):
        dx, dy, dw, dh = (delta / weight for delta, weight in zip(deltas.unbind(1), self.weights, strict=True))
        x1, y1, x2, y2 = boxes.unbind(1)
        x, y, w, h = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1), x2 - x1, y2 - y1
        w, h = w * dw.exp(), h * dh.exp()
        return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=1)


def make(transform, offset=0.0):
    """A network whose boxes move from the start, and which samples and proposes every place."""
    torch.manual_seed(0)
    rpn = CascadeRPN(
        in_features=list(STRIDES),
        head=CascadeRPNHead(6),
        anchor_generator=square_anchors(list(STRIDES.values()), 4.0, offset),
        anchor_matcher=Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        initial_box2box_transform=transform(INITIAL_WEIGHTS),
        box2box_transform=transform(FINAL_WEIGHTS),
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_topk=(1000, 1000),
        post_nms_topk=(1000, 1000),
        nms_thresh=1.0,
    )
    for parameter in rpn.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return rpn


def inputs(dtype):
    generator = torch.Generator().manual_seed(1)
    features = {n: torch.randn(2, 6, 32 // s, 32 // s, generator=generator).to(dtype) for n, s in STRIDES.items()}
    truth = []
    for boxes, size in zip(TRUTH, SIZES, strict=True):
        truth.append(Instances(size, gt_boxes=Boxes(torch.tensor(boxes))))
        truth[-1].gt_boxes.tensor = truth[-1].gt_boxes.tensor.to(dtype)
    return ImageList(torch.zeros(2, 3, 32, 32), SIZES), features, truth


def run(rpn, images, features, truth):
    with EventStorage(0):
        return rpn.train()(images, features, truth)


def iou(first, second):
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    overlap = max(width, 0) * max(height, 0)
    union = sum((each[2] - each[0]) * (each[3] - each[1]) for each in (first, second)) - overlap
    return overlap / union if overlap else 0.0


def move(box, deltas, weights):
    """The box regressed by deltas, from numbers."""
    dx, dy, dw, dh = (delta / weight for delta, weight in zip(deltas, weights, strict=True))
    w, h = box[2] - box[0], box[3] - box[1]
    x, y = (box[0] + box[2]) / 2 + dx * w, (box[1] + box[3]) / 2 + dy * h
    w, h = w * math.exp(dw), h * math.exp(dh)
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def sample(features, y, x):
    """Bilinear values [C] of a map [C, H, W], zeros around it."""
    total = torch.zeros(len(features), dtype=features.dtype)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < features.shape[1] and 0 <= column < features.shape[2]:
                total = total + features[:, row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def written_out(rpn, images, features, truth, offset):
    """Losses, and the boxes and logits of every place of each image, a place at a time."""
    head = rpn.rpn_head
    initial, objectness, final, positives, results = 0.0, 0.0, 0.0, 0, []
    for n, (height, width) in enumerate(images.image_sizes):
        gt = truth[n].gt_boxes.tensor.tolist()
        first, refined, boxes, logits, first_deltas = [], [], [], [], []
        for name, stride in STRIDES.items():
            conv = head.initial_conv
            bridged = F.conv2d(features[name][n : n + 1], conv.weight, conv.bias, padding=3, dilation=3).relu()[0]
            for row in range(bridged.shape[1]):
                for column in range(bridged.shape[2]):
                    x, y, half = (column + offset) * stride, (row + offset) * stride, 2 * stride
                    first.append([x - half, y - half, x + half, y + half])
                    layer = head.initial_deltas
                    deltas = layer.weight[:, :, 0, 0] @ bridged[:, row, column] + layer.bias
                    first_deltas.append(deltas)
                    x1, y1, x2, y2 = move(first[-1], deltas.tolist(), INITIAL_WEIGHTS)
                    box = [
                        min(max(each, 0), end) for each, end in zip((x1, y1, x2, y2), (width, height) * 2, strict=True)
                    ]
                    refined.append(box)
                    x1, y1, x2, y2 = (each / stride - offset for each in box)
                    hidden = 0.0
                    for i, py in enumerate((y1, (y1 + y2) / 2, y2)):
                        for j, px in enumerate((x1, (x1 + x2) / 2, x2)):
                            hidden = hidden + head.conv.weight[:, :, i, j] @ sample(bridged, py, px)
                    hidden = hidden.relu()
                    layer = head.anchor_deltas
                    boxes.append(move(box, (layer.weight[:, :, 0, 0] @ hidden + layer.bias).tolist(), FINAL_WEIGHTS))
                    layer = head.objectness_logits
                    logits.append((layer.weight[:, :, 0, 0] @ hidden + layer.bias).item())
        results.append((boxes, logits))

        sizes = [features[name].shape[-2:] for name in STRIDES]
        anchors = torch.tensor(first, dtype=torch.float64).split([height * width for height, width in sizes])
        gt_tensor = truth[n].gt_boxes.tensor
        corners = torch.stack([each[0] for each in anchors]).numpy()
        for place, index in enumerate(paint_regions(gt_tensor.numpy(), corners, sizes, [4, 8], 0.2, 0.5).tolist()):
            if index >= 0:
                positives += 1
                initial += 1 - iou(move(first[place], first_deltas[place].tolist(), INITIAL_WEIGHTS), gt[index])

        overlaps = [[iou(box, each) for each in gt] for box in refined]
        best_of_object = [max(each) for each in zip(*overlaps, strict=True)]
        for place, row in enumerate(overlaps):
            best = max(row)
            is_best = any(each == top for each, top in zip(row, best_of_object, strict=True))
            if best >= 0.7 or (is_best and best >= 0.3):
                objectness += math.log1p(math.exp(-logits[place]))
                final += 1 - iou(boxes[place], gt[row.index(best)])
            elif best < 0.3:
                objectness += math.log1p(math.exp(logits[place]))
    count = 256 * len(results)
    losses = {
        "loss_rpn_initial_loc": 7 * initial / positives,
        "loss_rpn_cls": 0.7 * objectness / count,
        "loss_rpn_loc": 7 * final / count,
    }
    return losses, results


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_losses_and_proposals_equal_the_paper_written_out(offset):
    rpn = make(ExactTransform, offset).double()
    images, features, truth = inputs(torch.float64)
    expected, results = written_out(rpn, images, features, truth, offset)
    proposals, losses = run(rpn, images, features, truth)
    assert set(losses) == set(expected)
    for name, value in losses.items():
        assert value.item() == pytest.approx(expected[name], abs=1e-6), name
        assert value.item() > 0.01
    for mine, (boxes, logits), (height, width) in zip(proposals, results, images.image_sizes, strict=True):
        boxes = torch.tensor(boxes, dtype=torch.float64).clamp(min=0)
        boxes = torch.minimum(boxes, torch.tensor([width, height, width, height]))
        kept = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
        logits, order = torch.tensor(logits, dtype=torch.float64)[kept].sort(descending=True)
        torch.testing.assert_close(mine.objectness_logits, logits, atol=1e-6, rtol=0)
        # `Boxes` holds float32.
        found = by_logits_and_boxes(mine.objectness_logits, mine.proposal_boxes.tensor)
        expected = by_logits_and_boxes(logits, boxes[kept][order].float())
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def by_logits_and_boxes(logits, boxes):
    """`boxes` in the order of their logits, those of equal ones in that of their coordinates."""
    keys = torch.cat([-logits[:, None], boxes], dim=1).tolist()
    return boxes[sorted(range(len(keys)), key=lambda k: [round(value, 3) for value in keys[k]])]


def test_detectron2s_transform_gives_the_same_in_its_precision():
    results = [run(make(each), *inputs(torch.float32)) for each in (ExactTransform, Box2BoxTransform)]
    (exact, exact_losses), (ours, losses) = results
    torch.testing.assert_close(losses, exact_losses, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours[0].objectness_logits, exact[0].objectness_logits, atol=1e-4, rtol=1e-4)
