"""RoI features from a feature pyramid: Detectron2's `ROIPooler` in one operator call.

Lin et al., Feature Pyramid Networks (2017), Eq. 1: a box of the canonical size is pooled from the canonical level, one
of half that size from the level below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.fx
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.structures import Boxes
from torch import Tensor, nn

from maskrcnn_plus.ops.roi_align import boxes_to_rois, pair_of_bins, roi_align_pyramid, whole_number
from maskrcnn_plus.scripting import NotScriptable


class PyramidROIAlign(NotScriptable, nn.Module):
    """Drop-in for `detectron2.modeling.poolers.ROIPooler` with RoIAlign; same arguments, same results."""

    def __init__(
        self,
        output_size: int | Sequence[int],
        scales: tuple[float, ...],
        sampling_ratio: int,
        pooler_type: str = "ROIAlignV2",
        canonical_box_size: int = 224,
        canonical_level: int = 4,
    ) -> None:
        """Check and keep the arguments.

        Args:
            output_size: bins (height, width), or one number for both.
            scales: pixels of each map for one of the image, falling by halves, e.g. (1/4, 1/8, 1/16, 1/32).
            sampling_ratio: samples a bin and axis; 0 or less takes one a pixel of the map, rounded up.
            pooler_type: "ROIAlignV2" (pixel i covers [i, i + 1)) or "ROIAlign" (no shift by half a pixel).
            canonical_box_size: side in pixels of the boxes that are pooled from the canonical level.
            canonical_level: its number, log2 of its stride.

        Raises:
            ValueError: an argument is out of range.
        """
        super().__init__()
        if pooler_type not in ("ROIAlign", "ROIAlignV2"):
            raise ValueError(
                f"pooler_type {pooler_type!r}: PyramidROIAlign knows ROIAlign and ROIAlignV2; for others take "
                "detectron2.modeling.poolers.ROIPooler."
            )
        levels = [-math.log2(scale) for scale in scales]
        if not levels or any(abs(level - round(level)) > 1e-6 for level in levels):
            raise ValueError(f"scales must be powers of 1/2, got {tuple(scales)}.")
        self.min_level, self.max_level = round(levels[0]), round(levels[-1])
        if self.max_level - self.min_level + 1 != len(levels) or self.min_level < 0:
            raise ValueError(f"scales must fall by halves, got {tuple(scales)}.")
        if canonical_box_size <= 0:
            raise ValueError(f"canonical_box_size must be positive, got {canonical_box_size}.")
        self.output_size = pair_of_bins(output_size)
        self.scales = tuple(float(scale) for scale in scales)
        self.sampling_ratio = whole_number(sampling_ratio, "sampling_ratio")
        self.aligned = pooler_type == "ROIAlignV2"
        self.canonical_box_size = canonical_box_size
        self.canonical_level = canonical_level

    @classmethod
    def from_pooler(cls, pooler: nn.Module) -> nn.Module:
        """One that does what a `ROIPooler` does; the pooler itself where that is no RoIAlign of upright boxes."""
        levels = getattr(pooler, "level_poolers", None) if type(pooler) is ROIPooler else None
        if not levels or any(type(level) is not ROIAlign for level in levels):
            return pooler
        return cls(
            pooler.output_size,
            [level.spatial_scale for level in levels],
            levels[0].sampling_ratio,
            "ROIAlignV2" if levels[0].aligned else "ROIAlign",
            pooler.canonical_box_size,
            pooler.canonical_level,
        )

    def extra_repr(self) -> str:
        """Arguments for printing."""
        return f"output_size={self.output_size}, scales={self.scales}, sampling_ratio={self.sampling_ratio}"

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """Pool the features of all boxes.

        Args:
            x: L maps [N, C, H_l, W_l], one a scale.
            box_lists: boxes of each of the N images, xyxy in pixels of the image.

        Returns:
            [K, C, height, width], the boxes of the first image first.

        Raises:
            ValueError: the numbers of maps or images do not fit, or a box is not finite.
        """
        return pool_pyramid(
            x,
            box_lists,
            self.output_size,
            self.scales,
            self.sampling_ratio,
            self.aligned,
            (self.min_level, self.max_level),
            (self.canonical_box_size, self.canonical_level),
        )


@torch.fx.wrap  # one call in a symbolic trace, whose lists have no length yet
def pool_pyramid(
    x: list[Tensor],
    box_lists: list[Boxes],
    output_size: tuple[int, int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    levels: tuple[int, int],
    canonical: tuple[int, int],
) -> Tensor:
    """The work of `PyramidROIAlign`; `levels` are the least and the greatest, `canonical` is a box's size and level."""
    rois = get_rois(x, box_lists, len(scales))
    level_of = assign_boxes_to_levels(box_lists, *levels, *canonical) if len(x) > 1 and box_lists else None
    return roi_align_pyramid(x, rois, level_of, output_size, scales, sampling_ratio, aligned)


def get_rois(x: list[Tensor], box_lists: list[Boxes], num_scales: int) -> Tensor:
    """The boxes of all images as [K, 5], each (image index, x0, y0, x1, y1), at least in float32.

    Raises:
        ValueError: the numbers of maps and scales, or of images, do not fit.
    """
    if len(x) != num_scales:
        raise ValueError(f"RoI features: {len(x)} maps for {num_scales} scales.")
    if len(box_lists) != x[0].shape[0]:
        raise ValueError(f"RoI features: boxes of {len(box_lists)} images, maps of {x[0].shape[0]}.")
    boxes = [each.tensor.to(torch.promote_types(x[0].dtype, torch.float32)) for each in box_lists]
    return boxes_to_rois(boxes, x[0])
