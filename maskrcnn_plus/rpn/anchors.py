"""Anchors of torchvision's detectors: rounded to whole pixels, at strides that follow from the sizes of the maps.

Source: torchvision, models/detection/anchor_utils.py, `AnchorGenerator`.

Shorthand: L levels, A anchors a place, [H_l, W_l] map of level l.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY, DefaultAnchorGenerator
from detectron2.structures import Boxes
from torch import Tensor


@ANCHOR_GENERATOR_REGISTRY.register()
class TorchvisionAnchorGenerator(DefaultAnchorGenerator):
    """Drop-in for `DefaultAnchorGenerator` with the anchors that torchvision's weights were trained on."""

    @configurable
    def __init__(
        self,
        *,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[float] | Sequence[Sequence[float]],
        strides: Sequence[int],
    ) -> None:
        """Compute the anchors of one place.

        Args:
            sizes: square roots of the anchors' areas of each level, pixels; one list for all levels where it is alone.
            aspect_ratios: height / width, for all levels or a list a level.
            strides: of the L maps; only the first counts, the others follow from the sizes of the maps.
        """
        super().__init__(sizes=sizes, aspect_ratios=aspect_ratios, strides=strides, offset=0.0)

    @classmethod
    def from_config(cls, cfg, input_shape: list[ShapeSpec]) -> dict:
        """The arguments from `cfg.MODEL.ANCHOR_GENERATOR`, but for OFFSET, which torchvision does not have."""
        return {key: value for key, value in super().from_config(cfg, input_shape).items() if key != "offset"}

    def generate_cell_anchors(self, sizes: Sequence[float], aspect_ratios: Sequence[float]) -> Tensor:
        """The anchors around the origin.

        Returns:
            [A, 4] xyxy in whole pixels: all sizes of the first aspect ratio, then those of the next.
        """
        heights = torch.tensor([float(ratio) for ratio in aspect_ratios]).sqrt()[:, None]  # [ratios, 1], for size 1
        sides = torch.tensor([float(size) for size in sizes])
        width, height = ((1 / heights) * sides).flatten(), (heights * sides).flatten()  # [A]
        return (torch.stack([-width, -height, width, height], dim=1) / 2).round()

    def forward(self, features: list[Tensor]) -> list[Boxes]:
        """Shift the anchors to every place of the maps.

        Args:
            features: L maps [N, C, H_l, W_l], the finest first, of images padded to a multiple of its stride.

        Returns:
            L sets of [H_l * W_l * A] boxes, xyxy in pixels of the padded image.
        """
        height, width = (side * self.strides[0] for side in features[0].shape[-2:])
        anchors = []
        for feature, cell in zip(features, self.cell_anchors, strict=True):
            rows, columns = feature.shape[-2:]
            # A pooled map of 7 rows, of an image 416 pixels high, has stride 59 and not 64.
            y = torch.arange(rows, device=cell.device) * (height // rows)
            x = torch.arange(columns, device=cell.device) * (width // columns)
            y, x = torch.meshgrid(y, x, indexing="ij")
            shifts = torch.stack([x, y, x, y], dim=-1)[:, :, None]  # [H_l, W_l, 1, 4]
            cell = cell.float()  # a model in half precision has such buffers, too coarse for coordinates
            anchors.append(Boxes((shifts + cell).reshape(-1, 4)))  # [H_l * W_l * A, 4]
        return anchors
