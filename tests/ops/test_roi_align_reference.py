"""The reference against a loop over the formula of the paper, and against torchvision."""

import math

import pytest
import torch
from torchvision.ops import roi_align as torchvision_roi_align

from maskrcnn_plus.ops.roi_align_reference import roi_align_reference


def _bilinear(plane, y, x):
    """Value at a continuous position: 0 beyond one pixel outside, the border's value within it."""
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    above = plane[top, left].item() * (1 - dx) + plane[top, right].item() * dx
    below = plane[bottom, left].item() * (1 - dx) + plane[bottom, right].item() * dx
    return above * (1 - dy) + below * dy


def _loop(input, roi, output_size, scale, sampling_ratio, aligned):
    """Mask R-CNN, Sec. 3: the mean of bilinear samples at regular places in each bin."""
    image, x0, y0, x1, y1 = roi.tolist()
    x0, y0, x1, y1 = (v * scale - (0.5 if aligned else 0) for v in (x0, y0, x1, y1))
    height, width = y1 - y0, x1 - x0
    if not aligned:
        height, width = max(height, 1), max(width, 1)
    bin_height, bin_width = height / output_size[0], width / output_size[1]
    rows = sampling_ratio or max(math.ceil(bin_height), 0)
    columns = sampling_ratio or max(math.ceil(bin_width), 0)
    output = torch.zeros(input.shape[1], *output_size, dtype=torch.float64)
    for c in range(input.shape[1]):
        for p in range(output_size[0]):
            for q in range(output_size[1]):
                values = [
                    _bilinear(
                        input[int(image), c],
                        y0 + (p + (i + 0.5) / rows) * bin_height,
                        x0 + (q + (j + 0.5) / columns) * bin_width,
                    )
                    for i in range(rows)
                    for j in range(columns)
                ]
                output[c, p, q] = sum(values) / max(len(values), 1)
    return output


BOXES = torch.tensor(
    [
        [0, 4.0, 6, 20, 25],
        [1, -9.0, -7, 5, 3],  # across the corner
        [0, 20.0, 10, 60, 55],  # beyond the far border
        [1, 100.0, 100, 120, 130],  # outside
        [0, 8.2, 8.4, 8.2, 8.4],  # without extent
        [1, 12.0, 12, 9, 10],  # inverted
        [0, -4.0, -4, 40, 32],  # the whole map
    ],
    dtype=torch.float64,
)


@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("aligned", [True, False])
def test_equals_the_loop_over_the_formula(sampling_ratio, aligned):
    torch.manual_seed(0)
    input = torch.randn(2, 2, 7, 9, dtype=torch.float64)
    output = roi_align_reference(input, BOXES, (2, 3), 0.25, sampling_ratio, aligned)
    for k, roi in enumerate(BOXES):
        expected = _loop(input, roi, (2, 3), 0.25, sampling_ratio, aligned)
        torch.testing.assert_close(output[k], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("aligned", [True, False])
def test_equals_torchvision(aligned):
    torch.manual_seed(0)
    input = torch.randn(2, 3, 11, 8, dtype=torch.float64, requires_grad=True)
    for sampling_ratio in range(5):
        outputs = [
            align(input, BOXES, (5, 4), 0.25, sampling_ratio, aligned)
            for align in (roi_align_reference, torchvision_roi_align)
        ]
        torch.testing.assert_close(*outputs, atol=1e-12, rtol=0)
        gradients = [torch.autograd.grad(output.sin().sum(), input)[0] for output in outputs]
        torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


def test_gradients_to_second_order():
    torch.manual_seed(0)
    input = torch.randn(2, 1, 4, 5, dtype=torch.float64, requires_grad=True)

    def align(x):
        return roi_align_reference(x, BOXES[:4], (2, 2), 0.25)

    assert torch.autograd.gradcheck(align, input)
    assert torch.autograd.gradgradcheck(align, input)


def test_no_boxes():
    input = torch.randn(2, 3, 5, 5, requires_grad=True)
    output = roi_align_reference(input, torch.zeros(0, 5), (4, 6))
    assert output.shape == (0, 3, 4, 6)
    assert torch.equal(torch.autograd.grad(output.sum(), input)[0], torch.zeros_like(input))
