"""Boundary-preserving mask head: the mask and its boundary are predicted side by side and inform each other.

Cheng, Wang, Huang and Liu, Boundary-preserving Mask R-CNN (2020), Sec. 3. The paper pools 14 x 14 features for the mask
and 28 x 28 features of p2 for the boundary; here both come from one pooler, so that the head replaces Detectron2's
`MaskRCNNConvUpsampleHead`, whose layer names it keeps.

Shorthand: R RoIs of all images, C channels, K classes (1 if class-agnostic), S side of the pooled features, s boundary
stride, M = S / s * 2^upsamplings side of the masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ConvTranspose2d, ShapeSpec, get_norm
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_plus.config import with_defaults
from maskrcnn_plus.mask_heads.classes import get_class_rows, select_class
from maskrcnn_plus.mask_heads.conv_upsample import PREDICTOR_STD
from maskrcnn_plus.mask_heads.targets import boundary_targets, mask_targets
from maskrcnn_plus.scripting import NotScriptable


@ROI_MASK_HEAD_REGISTRY.register()
class BoundaryMaskHead(NotScriptable, nn.Module):
    """Mask head of BMask R-CNN: a mask branch and a boundary branch, fused in both directions."""

    class_layers: ClassVar[dict[str, int]] = {"predictor": 1, "boundary_predictor": 1}

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        conv_dims: Sequence[int],
        conv_norm: str | Callable[[int], nn.Module] = "",
        num_boundary_convs: int = 2,
        boundary_stride: int = 1,
        num_upsamples: int = 1,
        loss_weight: float = 1.0,
        boundary_loss_weight: float = 1.0,
        dice_weight: float = 1.0,
    ) -> None:
        """Build the two branches.

        Args:
            input_shape: of the pooled features; height and width are checked where they are known.
            num_classes: K; 1 for class-agnostic masks.
            conv_dims: channels of the mask branch's convolutions, then of the upsampling layers. The boundary branch
                is as wide as the last of these convolutions.
            conv_norm: norm of the convolutions, a name of `detectron2.layers.get_norm` or "".
            num_boundary_convs: convolutions of the boundary branch after the fusion.
            boundary_stride: 1 where both branches take the pooled features; 2 where they are pooled at the boundary's
                resolution (28 x 28 in the paper): the mask branch then takes means of 2 x 2.
            num_upsamples: each doubles the side of the masks, 0 to 2.
            loss_weight: weight of the masks' cross-entropy.
            boundary_loss_weight: weight of the boundaries' loss, cross-entropy + dice_weight * dice loss.
            dice_weight: weight of the dice loss within the boundaries' loss.

        Raises:
            ValueError: an option is out of range.
        """
        super().__init__()
        if len(conv_dims) == 0 or num_boundary_convs < 1:
            raise ValueError("BoundaryMaskHead: conv_dims must not be empty and num_boundary_convs at least 1.")
        if boundary_stride not in (1, 2) or num_upsamples not in (0, 1, 2):
            raise ValueError(
                "BoundaryMaskHead: boundary_stride must be 1 or 2 and num_upsamples 0, 1 or 2, "
                f"got {boundary_stride} and {num_upsamples}."
            )
        if any((side or 0) % boundary_stride for side in (input_shape.height, input_shape.width)):
            raise ValueError(
                f"BoundaryMaskHead: boundary_stride=2 needs pooled features of an even side, got {input_shape.height} "
                f"x {input_shape.width}: set mask_pooler.output_size and mask_head.input_shape to 28, for instance."
            )
        if min(loss_weight, boundary_loss_weight, dice_weight) < 0:
            raise ValueError(
                "BoundaryMaskHead: loss_weight, boundary_loss_weight and dice_weight must not be negative."
            )
        self.boundary_stride = boundary_stride
        self.loss_weight = loss_weight
        self.boundary_loss_weight = boundary_loss_weight
        self.dice_weight = dice_weight
        *mask_dims, up_dim = conv_dims

        def conv(c_in: int, c_out: int, kernel_size: int = 3, stride: int = 1) -> Conv2d:
            layer = Conv2d(
                c_in,
                c_out,
                kernel_size=kernel_size,
                stride=stride,
                padding=kernel_size // 2,
                bias=not conv_norm,
                norm=get_norm(conv_norm, c_out),
                activation=nn.ReLU(),
            )
            weight_init.c2_msra_fill(layer)
            return layer

        width = input_shape.channels
        self.mask_convs = [f"mask_fcn{index + 1}" for index in range(len(mask_dims))]
        for name, dim in zip(self.mask_convs, mask_dims, strict=True):
            self.add_module(name, conv(width, dim))
            width = dim
        self.boundary_input = conv(input_shape.channels, width, stride=boundary_stride)
        self.mask_to_boundary = conv(width, width, kernel_size=1)
        self.boundary_convs = [f"boundary_fcn{index + 1}" for index in range(num_boundary_convs)]
        for name in self.boundary_convs:
            self.add_module(name, conv(width, width))
        self.boundary_to_mask = conv(width, width, kernel_size=1)
        self.mask_fusion = conv(width, width)

        # The first is "deconv", as in Detectron2.
        self.deconvs = [f"deconv{index + 1 if index else ''}" for index in range(num_upsamples)]
        for branch in ("", "boundary_"):
            dim = width
            for name in self.deconvs:
                deconv = ConvTranspose2d(dim, up_dim, kernel_size=2, stride=2)
                weight_init.c2_msra_fill(deconv)
                self.add_module(branch + name, deconv)
                dim = up_dim
            predictor = Conv2d(dim, num_classes, kernel_size=1)
            nn.init.normal_(predictor.weight, std=PREDICTOR_STD)
            nn.init.zeros_(predictor.bias)
            self.add_module(f"{branch}predictor", predictor)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Arguments from MODEL.ROI_MASK_HEAD, as for Detectron2's heads, and MODEL.BOUNDARY_MASK_HEAD."""
        common, own = cfg.MODEL.ROI_MASK_HEAD, with_defaults(cfg).MODEL.BOUNDARY_MASK_HEAD
        return {
            "input_shape": input_shape,
            "num_classes": 1 if common.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "conv_dims": [common.CONV_DIM] * (common.NUM_CONV + 1),
            "conv_norm": common.NORM,
            "num_boundary_convs": own.NUM_CONV,
            "boundary_stride": own.STRIDE,
            "num_upsamples": own.NUM_UPSAMPLES,
            "loss_weight": own.MASK_LOSS_WEIGHT,
            "boundary_loss_weight": own.BOUNDARY_LOSS_WEIGHT,
            "dice_weight": own.DICE_WEIGHT,
        }

    def forward(self, x: Tensor, instances: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        """Losses in training, masks in inference.

        Args:
            x: pooled features [R, C, S, S].
            instances: an Instances an image, together R. In training with `proposal_boxes`, `gt_classes` and
                `gt_masks`; in inference with `pred_classes`.

        Returns:
            In training `loss_mask` and `loss_boundary`; in inference the instances with `pred_masks`, probabilities
            [R_i, 1, M, M].

        Raises:
            ValueError: there are no masks to learn from, or not one for each RoI.
        """
        outputs = self.mask_outputs(x)
        if self.training:
            return self.mask_losses(outputs, instances)
        mask_rcnn_inference(outputs["pred_mask_logits"], instances)
        return instances

    def mask_outputs(self, x: Tensor) -> dict[str, Tensor]:
        """Run the layers.

        Args:
            x: pooled features [R, C, S, S].

        Returns:
            `pred_mask_logits` [R, K, M, M] and, in training alone, `pred_boundary_logits` of the same shape.
        """
        mask = F.avg_pool2d(x, 2) if self.boundary_stride == 2 else x  # [R, C, S / s, S / s]
        mask = self._run(self.mask_convs, mask)
        boundary = self.boundary_input(x) + self.mask_to_boundary(mask)  # [R, C, S / s, S / s]
        boundary = self._run(self.boundary_convs, boundary)
        mask = self.mask_fusion(mask + self.boundary_to_mask(boundary))
        outputs = {"pred_mask_logits": self._predict("", mask)}
        if self.training:
            outputs["pred_boundary_logits"] = self._predict("boundary_", boundary)
        return outputs

    def mask_losses(self, outputs: dict[str, Tensor], instances: list[Instances]) -> dict[str, Tensor]:
        """Weighted losses of `mask_outputs`; zeros that reach every parameter where there is no RoI.

        Args:
            outputs: of `mask_outputs`.
            instances: with `proposal_boxes`, `gt_classes` and `gt_masks`, together R.

        Returns:
            `loss_mask` and `loss_boundary`.

        Raises:
            ValueError: there are no masks to learn from, or not one for each RoI.
        """
        mask_logits, boundary_logits = outputs["pred_mask_logits"], outputs["pred_boundary_logits"]
        count = sum(len(each) for each in instances)
        if count != len(mask_logits):
            raise ValueError(f"BoundaryMaskHead: features of {len(mask_logits)} RoIs, instances of {count}.")
        if count == 0:
            return {"loss_mask": mask_logits.sum() * 0, "loss_boundary": boundary_logits.sum() * 0}
        targets = mask_targets(instances, mask_logits.shape[-1]).to(mask_logits.device)  # [R, M, M]
        rows = get_class_rows(instances, "gt_classes", mask_logits.shape[1], mask_logits.device)
        mask_logits, boundary_logits = select_class(mask_logits, rows), select_class(boundary_logits, rows)  # [R, M, M]
        mask_loss = F.binary_cross_entropy_with_logits(mask_logits, targets.to(mask_logits.dtype))
        edges = boundary_loss(boundary_logits, boundary_targets(targets), self.dice_weight)
        return {"loss_mask": self.loss_weight * mask_loss, "loss_boundary": self.boundary_loss_weight * edges}

    def _run(self, names: Sequence[str], x: Tensor) -> Tensor:
        # By name, since whoever exchanges a layer sets the attribute.
        for name in names:
            x = getattr(self, name)(x)
        return x

    def _predict(self, branch: str, x: Tensor) -> Tensor:
        """[R, C, S / s, S / s] -> logits [R, K, M, M]."""
        for name in self.deconvs:
            x = F.relu(getattr(self, branch + name)(x))
        return getattr(self, f"{branch}predictor")(x)


def boundary_loss(logits: Tensor, targets: Tensor, dice_weight: float = 1.0) -> Tensor:
    """Cross-entropy over all pixels plus the dice loss, the mean over RoIs (Cheng et al., Sec. 3).

    Args:
        logits: of the boundaries, [R, M, M] with R > 0.
        targets: 0 or 1, of the same shape.
        dice_weight: of the dice loss.

    Returns:
        A number; float32 where the logits are of a shorter type.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    targets = targets.to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets) + dice_weight * dice_loss(logits, targets)


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over RoIs of 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1), in the form of the authors' code.

    Args:
        logits: [R, M, M] with R > 0; p is their sigmoid.
        targets: t in [0, 1], of the same shape and type.

    Returns:
        A number in [0, 1).
    """
    probs, targets = logits.sigmoid().flatten(1), targets.flatten(1)  # [R, M * M]
    overlap = (probs * targets).sum(1)  # [R]
    return (1 - (2 * overlap + 1) / (probs.sum(1) + targets.sum(1) + 1)).mean()
