"""The operators of `torch.ops.maskrcnn_plus`: those compiled in `maskrcnn_plus._C`, or where it is missing their names.

The modules of this package give the same operators kernels for other devices, and fallbacks of torchvision and plain
PyTorch; the first fallback on a CPU warns once.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from pathlib import Path

import torch

# As in csrc/ops.cpp, which explains the arguments.
SCHEMAS = (
    "roi_align(Tensor[] features, Tensor rois, Tensor? levels, float[] spatial_scales, int pooled_height, "
    "int pooled_width, int sampling_ratio, bool aligned, bool channels_last) -> Tensor",
    "roi_align_backward(Tensor grad, Tensor rois, Tensor? levels, float[] spatial_scales, SymInt[] sizes, "
    "int sampling_ratio, bool aligned, bool channels_last) -> Tensor[]",
    "batched_nms(Tensor boxes, Tensor scores, Tensor groups, float iou_threshold) -> Tensor",
    "paste_masks_rle(Tensor mask_probs, Tensor boxes, int height, int width, float threshold, str rule) -> "
    "(Tensor bytes, Tensor offsets)",
    "winograd_conv3x3(Tensor input, Tensor weight, Tensor bias, bool relu) -> Tensor",
    "winograd_conv3x3_backward_weight(Tensor input, Tensor grad) -> Tensor",
)
LIBRARY = torch.library.Library("maskrcnn_plus", "FRAGMENT")

_REBUILD = "build it with `pip install --no-build-isolation .` in the environment that holds PyTorch"


def _load() -> str:
    """Load the operators; returns why that failed, "" where it did not."""
    folder = Path(__file__).parents[1]
    libraries = sorted(folder.glob("_C*.so")) + sorted(folder.glob("_C*.pyd"))
    if not libraries:
        return f"it was left out of this installation; {_REBUILD}"
    try:
        torch.ops.load_library(str(libraries[0]))
    except OSError as error:
        return f"it cannot be loaded ({error}), often because PyTorch changed since it was built; {_REBUILD}"
    return ""


_why_missing = _load()
_warned = False
for _schema in SCHEMAS:  # a library that was built before an operator came lacks it
    if not hasattr(torch.ops.maskrcnn_plus, _schema.partition("(")[0]):
        LIBRARY.define(_schema)


def is_available() -> bool:
    """True where the operators of `torch.ops.maskrcnn_plus` are loaded."""
    return not _why_missing


def why_missing() -> str:
    """Why the compiled operators are missing and what to do; "" where they are loaded."""
    return _why_missing


@functools.cache
def has_triton(device: torch.device) -> bool:
    """Whether a GPU runs this package's Triton kernels, which multiply float32 matrices in steps of TF32."""
    if importlib.util.find_spec("triton") is None:
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


def warn_once(feature: str) -> None:
    """Say once a process that `feature` runs without the compiled operators, and why."""
    global _warned
    if _why_missing and not _warned:
        _warned = True
        warnings.warn(f"maskrcnn_plus runs without its compiled operators ({feature}): {_why_missing}.", stacklevel=3)
