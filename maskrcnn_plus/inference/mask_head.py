"""The mask head of a trained model, with less memory read and written, for prediction on CPUs.

Shorthand: R objects of all images, r of them at once, C channels in, D before the predictor, K classes; a RoI has
S x S pixels, a mask 2S x 2S.
"""

from __future__ import annotations

import torch
from detectron2.layers import Conv2d
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference
from detectron2.structures import Instances
from torch import Tensor, nn

from maskrcnn_plus.mask_heads import ConvUpsampleMaskHead
from maskrcnn_plus.mask_heads.classes import get_class_rows
from maskrcnn_plus.ops.replaced_conv import is_float32_on_cpu

_OBJECTS = 36  # few enough for their feature maps to stay in a cache, enough for all threads


class SelectiveMaskHead(nn.Module):
    """`MaskRCNNConvUpsampleHead` for prediction: a few objects at a time, and only the mask of each one's class.

    The memory that it takes beside its input and its masks does not grow with the number of objects.
    """

    def __init__(self, head: MaskRCNNConvUpsampleHead) -> None:
        """Take the layers of a head that `takes` approves of."""
        super().__init__()
        self.convs = nn.ModuleList(head.conv_norm_relus)
        up = head.deconv.weight.detach().permute(2, 3, 1, 0).flatten(0, 2)  # [4 * D, C], D of each of 2 x 2 pixels
        self.up = Conv2d(up.shape[1], len(up), 1, activation=nn.ReLU()).requires_grad_(False)
        self.up.weight.copy_(up[:, :, None, None])
        self.up.bias.copy_(head.deconv.bias.repeat(4))
        self.register_buffer("weight", head.predictor.weight.detach().flatten(1))  # [K, D]
        self.register_buffer("bias", head.predictor.bias.detach().clone())  # [K]

    @staticmethod
    def takes(head: nn.Module) -> bool:
        """Whether a module can be replaced."""
        return (
            type(head) in (MaskRCNNConvUpsampleHead, ConvUpsampleMaskHead)
            and head.deconv.bias is not None
            and head.predictor.bias is not None
            and is_float32_on_cpu(head.deconv)
        )

    def forward(self, x: Tensor, instances: list[Instances]) -> list[Instances]:
        """Add `pred_masks` [N, 1, 2S, 2S], probabilities, to the Instances of each image.

        Args:
            x: [R, C, S, S] of the objects of all images.
            instances: of each image, with `pred_classes` where the masks are of classes.
        """
        classes = get_class_rows(instances, "pred_classes", len(self.bias), x.device)
        logits = x.new_empty(len(x), 1, 2 * x.shape[2], 2 * x.shape[3])
        for start in range(0, len(x), _OBJECTS):
            part = slice(start, start + _OBJECTS)
            logits[part, 0] = self._logits(x[part], classes[part])
        mask_rcnn_inference(logits, instances)
        return instances

    def _logits(self, x: Tensor, classes: Tensor) -> Tensor:
        """[r, C, S, S] and the class of each object -> [r, 2S, 2S]."""
        for conv in self.convs:
            x = conv(x)
        count, _, height, width = x.shape
        raised = self.up(x).permute(0, 2, 3, 1).reshape(count, height * width * 4, -1)
        masks = torch.baddbmm(
            self.bias[classes, None, None], raised, self.weight[classes, :, None]
        )  # [r, S * S * 4, 1]
        masks = masks.view(count, height, width, 2, 2).transpose(2, 3)
        return masks.reshape(count, 2 * height, 2 * width)
