"""Soft-NMS against the loop of the paper, and against NMS where the two meet."""

import math
import time

import pytest
import torch
from torchvision.ops import batched_nms, nms

from maskrcnn_plus.roi.soft_nms import soft_nms


def crowd(num, seed, side=60.0, dtype=torch.float64):
    """Boxes that overlap one another much, and scores in (0, 1)."""
    random = torch.Generator().manual_seed(seed)
    corners = torch.rand(num, 2, generator=random, dtype=dtype) * side
    boxes = torch.cat([corners, corners + torch.rand(num, 2, generator=random, dtype=dtype) * 40 + 2], dim=1)
    return boxes, torch.rand(num, generator=random, dtype=dtype)


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0.0) * max(height, 0.0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def paper(boxes, scores, method, threshold, sigma):
    """Fig. 2 line by line, in Python's floats: (index, score) of every box in the order in which it is chosen."""
    boxes, scores = boxes.tolist(), scores.tolist()
    left, chosen = list(range(len(boxes))), []
    while left:
        best = max(left, key=lambda i: scores[i])
        chosen.append((best, scores[best]))
        left.remove(best)
        for i in left:
            overlap = iou(boxes[best], boxes[i])
            if method == "gaussian":
                scores[i] *= math.exp(-(overlap**2) / sigma)
            elif overlap >= threshold:
                scores[i] *= 1 - overlap
    return chosen


@pytest.mark.parametrize("score_threshold", [0.0, 0.05, 0.3])
@pytest.mark.parametrize(
    ("method", "threshold", "sigma"),
    [("linear", 0.3, 0.5), ("linear", 0.0, 0.5), ("linear", 0.5, 0.5), ("gaussian", 0.3, 0.5), ("gaussian", 0.3, 0.1)],
)
def test_equals_the_loop_of_the_paper(method, threshold, sigma, score_threshold):
    boxes, scores = crowd(70, seed=1)
    expected = [each for each in paper(boxes, scores, method, threshold, sigma) if each[1] > score_threshold]
    before = scores.clone()
    keep, lowered = soft_nms(
        boxes, scores, method=method, iou_threshold=threshold, sigma=sigma, score_threshold=score_threshold
    )
    assert keep.tolist() == [index for index, _ in expected]
    assert lowered.tolist() == pytest.approx([score for _, score in expected], rel=1e-12)
    assert torch.equal(scores, before)
    assert (lowered < scores[keep]).any()


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_groups_are_as_alone(method):
    boxes, scores = crowd(90, seed=2)
    groups = torch.randint(0, 4, (90,), generator=torch.Generator().manual_seed(3))
    keep, lowered = soft_nms(boxes, scores, groups, method=method, iou_threshold=0.3, score_threshold=0.05)
    assert (lowered.diff() <= 0).all()
    for group in range(4):
        members = (groups == group).nonzero()[:, 0]
        alone, alone_scores = soft_nms(
            boxes[members], scores[members], method=method, iou_threshold=0.3, score_threshold=0.05
        )
        mine = groups[keep] == group
        assert torch.equal(keep[mine], members[alone])
        assert torch.allclose(lowered[mine], alone_scores, rtol=1e-12)


@pytest.mark.parametrize("max_kept", [0, 1, 7, 1000])
def test_limit_keeps_the_best_of_all_groups(max_kept):
    boxes, scores = crowd(60, seed=4)
    groups = torch.arange(60) % 3
    keep, lowered = soft_nms(boxes, scores, groups, score_threshold=0.01)
    few, few_scores = soft_nms(boxes, scores, groups, score_threshold=0.01, max_kept=max_kept)
    assert torch.equal(few, keep[:max_kept])
    assert torch.equal(few_scores, lowered[:max_kept])


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.8])
def test_linear_is_nms_where_one_overlap_drops_a_box_below_the_score_threshold(threshold):
    boxes, scores = crowd(400, seed=5, dtype=torch.float32)
    scores = 0.5 + scores / 2  # 0.5 (1 - threshold) and less is left of 1
    keep, lowered = soft_nms(boxes, scores, method="linear", iou_threshold=threshold, score_threshold=0.4999)
    expected = nms(boxes, scores, threshold)
    assert torch.equal(keep, expected)
    assert torch.equal(lowered, scores[expected])
    assert 20 < len(keep) < 400


def test_gaussian_with_a_narrow_sigma_is_nms_that_allows_no_overlap():
    boxes, scores = crowd(300, seed=6, side=400.0, dtype=torch.float32)
    boxes = boxes.round()  # so that overlaps are whole pixels
    groups = torch.arange(300) % 3
    keep, lowered = soft_nms(boxes, scores, groups, method="gaussian", sigma=1e-12, score_threshold=1e-6)
    expected = batched_nms(boxes, scores, groups, 0.0)
    assert torch.equal(keep, expected)
    assert torch.equal(lowered, scores[expected])
    assert 20 < len(keep) < 300


def test_gaussian_with_a_wide_sigma_keeps_all():
    boxes, scores = crowd(50, seed=7)
    keep, lowered = soft_nms(boxes, scores, method="gaussian", sigma=1e12, score_threshold=0.0)
    assert torch.equal(keep, scores.argsort(descending=True))
    assert torch.allclose(lowered, scores[keep])


def test_copies_and_boxes_without_area():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [5, 5, 5, 5], [5, 5, 5, 5], [7, 3, 7, 9]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    keep, lowered = soft_nms(boxes, scores, method="linear")
    assert keep.tolist() == [0, 2, 3, 4]
    assert torch.equal(lowered, scores[keep])
    keep, lowered = soft_nms(boxes[:2], scores[:2], sigma=0.5)
    assert lowered.tolist() == pytest.approx([0.9, 0.8 * math.exp(-2)])


def test_none_and_one():
    for groups in (None, torch.zeros(0, dtype=torch.int64)):
        keep, lowered = soft_nms(torch.zeros(0, 4), torch.zeros(0), groups)
        assert keep.shape == lowered.shape == (0,)
        assert keep.dtype == torch.int64
    box = torch.tensor([[1.0, 2, 3, 4]])
    assert soft_nms(box, torch.tensor([0.5]))[0].tolist() == [0]
    assert soft_nms(box, torch.tensor([0.5]), score_threshold=0.5)[0].tolist() == []


def test_half_precision_is_worked_on_in_float32():
    boxes, scores = crowd(40, seed=8, dtype=torch.float32)
    boxes, scores = (boxes + 1900).half(), scores.half()
    keep, lowered = soft_nms(boxes, scores)
    expected, expected_scores = soft_nms(boxes.float(), scores.float())
    assert torch.equal(keep, expected)
    assert lowered.dtype == torch.float32
    assert torch.equal(lowered, expected_scores)


def test_two_thousand_boxes_take_less_than_a_second_or_so():
    boxes, scores = crowd(2000, seed=9, side=600.0, dtype=torch.float32)
    begin = time.process_time()
    keep, _ = soft_nms(boxes, scores, torch.zeros(2000, dtype=torch.int64), score_threshold=0.001, max_kept=500)
    assert len(keep) == 500
    assert time.process_time() - begin < 3  # 0.05 s on a quiet core


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(method="hard"), "one of linear, gaussian"),
        (dict(sigma=0.0), "sigma > 0"),
        (dict(score_threshold=-0.1), "at least 0"),
        (dict(boxes=torch.zeros(3, 5)), r"boxes \[N, 4\]"),
        (dict(scores=torch.zeros(2)), r"\(3, 4\), \(2,\)"),
        (dict(groups=torch.zeros(2)), r"\(2,\)"),
        (dict(scores=torch.tensor([0.1, float("nan"), 0.2])), "must be finite"),
        (dict(boxes=torch.full((3, 4), float("inf"))), "must be finite"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        soft_nms(**{"boxes": torch.zeros(3, 4), "scores": torch.full((3,), 0.5), **arguments})
