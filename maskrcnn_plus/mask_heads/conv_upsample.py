"""Detectron2's mask head with a predictor that learns what is outside objects as fast as what is inside.

Shorthand: R RoIs of all images, C channels, D channels before the predictor, K classes, S side of the pooled features.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead
from torch import nn

__all__ = ["PREDICTOR_STD", "ConvUpsampleMaskHead"]

PREDICTOR_STD = 0.01
"""Of the weights of a mask predictor before training; see `ConvUpsampleMaskHead`."""


@ROI_MASK_HEAD_REGISTRY.register()
class ConvUpsampleMaskHead(MaskRCNNConvUpsampleHead):
    """`MaskRCNNConvUpsampleHead`, [R, C, S, S] -> [R, K, 2S, 2S] logits, whose predictor starts with larger weights.

    Of Detectron2's, whose standard deviation is 0.001, the first steps of Adam (some 1e-4 for each weight) decide the
    signs, and decide them alike: most pixels of a RoI are the object's, so all become positive. What is outside is then
    where no unit fires, and its logit the bias, which such small steps leave near 0: a probability of 0.5, with which a
    short training may end. With 0.01 both signs are there from the start.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        conv_dims: list[int],
        predictor_std: float = PREDICTOR_STD,
        **kwargs: Any,
    ) -> None:
        """Build the layers.

        Args:
            input_shape: of the pooled features.
            num_classes: K; 1 for class-agnostic masks.
            conv_dims: channels of the convolutions, then D.
            predictor_std: standard deviation of the predictor's weights before training.
            kwargs: as `MaskRCNNConvUpsampleHead`'s.
        """
        super().__init__(input_shape, num_classes=num_classes, conv_dims=conv_dims, **kwargs)
        nn.init.normal_(self.predictor.weight, std=predictor_std)
