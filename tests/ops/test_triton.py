"""The Triton kernels in Triton's interpreter, on a CPU: against the reference, and deterministic by construction."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]

# The interpreter is chosen where the kernels are decorated, so it has a process of its own.
CODE = """
import torch
from maskrcnn_plus.ops import nms, roi_align_triton
from maskrcnn_plus.ops.nms_triton import batched_nms_triton
from maskrcnn_plus.ops.roi_align_reference import roi_align_reference
from tests.ops.test_roi_align import random_case

def relative(found, expected):
    return ((found.double() - expected).norm() / expected.norm().clamp(min=1e-9)).item() if found.numel() else 0.0

errors, gradient_errors = [], []
for seed in (0, 4, 5, 6):  # of one to three images
    input, rois, options = random_case(seed)
    input, rois = input[:, :20].float(), rois.float()
    given = (options["spatial_scale"],), options["output_size"], options["sampling_ratio"], options["aligned"]
    output = roi_align_triton.roi_align_triton([input], rois, None, *given)
    exact = input.double().requires_grad_()
    expected = roi_align_reference(exact, rois.double(), **options)
    cotangent = torch.randn(output.shape)
    (gradient,) = roi_align_triton.roi_align_backward_triton(
        cotangent, rois, None, given[0], [input.shape], *given[2:]
    )
    errors.append(relative(output, expected))
    gradient_errors.append(relative(gradient, torch.autograd.grad(expected, exact, cotangent.double())[0]))
print("pooled", max(errors))
print("gradient", max(gradient_errors))

torch.manual_seed(0)
maps = [torch.randn(2, 5, 14, 11), torch.randn(2, 5, 7, 6)]
rois = torch.tensor([[0, 1.0, 2, 30, 20], [1, -3, -4, 60, 10], [0, 5, 5, 40, 45], [1, 2, 2, 9, 9]])
levels = torch.tensor([1, 0, 1, 0])
scales = [0.25, 0.125]
pooled = roi_align_triton.roi_align_triton(maps, rois, levels, scales, (3, 2), 0, True)
each = [roi_align_reference(maps[l].double(), r[None].double(), (3, 2), scales[l]) for r, l in zip(rois, levels)]
print("pyramid", relative(pooled, torch.cat(each)))
bad = rois.clone()
bad[0, 0], bad[1, 0], bad[2, 1], bad[3, 4] = 2, -1, torch.nan, torch.inf
values = roi_align_triton.roi_align_triton(maps, bad, levels, scales, (3, 2), 0, True)
lost = roi_align_triton.roi_align_triton(maps, rois, levels + 2, scales, (3, 2), 0, True)
print("unusable", bool(values.isnan().all() and lost.isnan().all()))
gradients = roi_align_triton.roi_align_backward_triton(
    pooled, bad, levels, scales, [m.shape for m in maps], 0, True
)
print("no_gradient", not any(gradient.any() for gradient in gradients))
huge = torch.tensor([[0, -1e6, -1e6, 1e6, 1e6], [0, -3e5, 0, 7e5, 40], [0, -1e30, -1e30, 1e30, 1e30]])
found = roi_align_triton.roi_align_triton(maps[:1], huge, None, scales[:1], (3, 3), 0, True)
expected = roi_align_reference(maps[0].double(), huge.double(), (3, 3), 0.25)
print("huge", relative(found[:2], expected[:2]), bool(found.isfinite().all()))

same = []
for seed in range(5):
    torch.manual_seed(seed)
    count = (0, 1, 32, 33, 90)[seed]
    corner = torch.rand(count, 2) * 60
    boxes = torch.cat([corner, corner + 5 + torch.rand(count, 2) * 20], dim=1)
    scores, groups = (torch.rand(count) * 50).round() / 50, torch.randint(-2, (seed % 3) * 3, (count,))
    for kind in (torch.float32, torch.float64):
        arguments = boxes.to(kind), scores.to(kind), groups, 0.4
        same.append(torch.equal(batched_nms_triton(*arguments), nms.nms_group_by_group(*arguments)))
print("suppressed", all(same))
"""


@pytest.fixture(scope="module")
def results():
    """What the kernels printed: name -> rest of the line."""
    environment = {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-W", "ignore", "-c", CODE]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    return dict(line.split(" ", 1) for line in result.stdout.splitlines())


@pytest.mark.parametrize("name", ["pooled", "gradient", "pyramid"])
def test_roi_align_equals_the_reference(results, name):
    assert float(results[name]) < 1e-6


def test_boxes_of_no_map_are_nan_and_have_no_gradient(results):
    assert (results["unusable"], results["no_gradient"]) == ("True", "True")


def test_boxes_of_any_size_end(results):
    error, finite = results["huge"].split()
    assert float(error) < 1e-5
    assert finite == "True"


def test_suppression_equals_that_of_each_group(results):
    assert results["suppressed"] == "True"
