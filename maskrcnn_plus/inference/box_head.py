"""The box heads of a trained model with weights in the order of channels_last memory, for prediction.

Shorthand: R boxes, C channels, S x S pixels of a RoI.
"""

from __future__ import annotations

from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from torch import Tensor, nn

from maskrcnn_plus.roi.pooler import PyramidROIAlign


class FlattenPixels(nn.Module):
    """[R, C, S, S] -> [R, S * S * C]: in channels_last memory no copy, as `nn.Flatten` is none in contiguous memory."""

    def forward(self, x: Tensor) -> Tensor:
        """Flatten the features of RoIs."""
        return x.permute(0, 2, 3, 1).flatten(1)


def flatten_pixels(roi_heads: nn.Module) -> None:
    """Put `FlattenPixels` into each `FastRCNNConvFCHead` of RoI heads, with the same results, in place.

    Only behind a pooler that keeps the memory format of its maps; heads that have one stay as they are.
    """
    pooler, box_head = getattr(roi_heads, "box_pooler", None), getattr(roi_heads, "box_head", None)
    for head in box_head if isinstance(box_head, nn.ModuleList) else [box_head]:  # a cascade has several
        is_known = type(head) is FastRCNNConvFCHead and head.fcs and type(head.flatten) is nn.Flatten
        if isinstance(pooler, PyramidROIAlign) and is_known:
            weight = head.fcs[0].weight.detach().unflatten(1, (-1, *pooler.output_size))  # [F, C, S, S]
            head.fcs[0].weight = nn.Parameter(weight.permute(0, 2, 3, 1).flatten(1), requires_grad=False)
            head.flatten = FlattenPixels()
