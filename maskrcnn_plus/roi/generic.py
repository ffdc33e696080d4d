"""GRoIE: RoI features of every level of the pyramid, fused by learned layers.

Rossi, Karimi and Prati, A novel Region of Interest Extraction Layer for Instance Segmentation (2020), Sec. III, with
RoIAlign of box b on level l, a convolution shared by all levels, a sum, and a layer on the sum:

    output(b) = post(sum over l of pre(RoIAlign_l(b)))

As in the authors' code, `pre` is a 5 x 5 convolution with ReLU. Their code closes with the attention of Zhu et al.
(2019) of content to relative position; here the last layer is the non-local block (Wang et al., Non-local Neural
Networks, 2018), a convolution or nothing.

Shorthand: R boxes of all images, L levels, N images, C channels, P x Q bins.
"""

from __future__ import annotations

from collections.abc import Sequence

import fvcore.nn.weight_init as weight_init
import torch
import torch.fx
from detectron2.layers import Conv2d
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_plus.arguments import check_arguments
from maskrcnn_plus.ops.roi_align import pair_of_bins, roi_align, whole_number
from maskrcnn_plus.roi.pooler import get_rois
from maskrcnn_plus.scripting import NotScriptable

torch.fx.wrap("get_rois")  # one call in a symbolic trace, whose lists have no length yet


class GenericRoIExtractor(NotScriptable, nn.Module):
    """Takes the place of `ROIPooler` and `PyramidROIAlign`; it has weights, and boxes are not assigned to levels.

    `box_pooler` and `mask_pooler` of a LazyConfig name it, either or both. yacs configs cannot: Detectron2's RoI heads
    build a `ROIPooler` there, whatever the config says.
    """

    def __init__(
        self,
        output_size: int | Sequence[int],
        scales: tuple[float, ...],
        sampling_ratio: int,
        pooler_type: str = "ROIAlignV2",
        *,
        in_channels: int,
        pre_kernel: int = 5,
        post: str = "non_local",
        post_kernel: int = 3,
    ) -> None:
        """Build the layers.

        Args:
            output_size: bins (height, width), or one number for both.
            scales: pixels of each map for one of the image, e.g. (1/4, 1/8, 1/16, 1/32).
            sampling_ratio: samples a bin and axis; 0 or less takes one a pixel of the map, rounded up.
            pooler_type: "ROIAlignV2" (pixel i covers [i, i + 1)) or "ROIAlign" (no shift by half a pixel).
            in_channels: C of every map, and of the output.
            pre_kernel: side of the convolution before the sum, odd; 0 for none.
            post: after the sum "non_local", "conv" (with ReLU) or "none".
            post_kernel: side of the convolution of `post="conv"`, odd.

        Raises:
            ValueError: an argument is out of range.
        """
        super().__init__()
        aligns, posts = ("ROIAlign", "ROIAlignV2"), ("non_local", "conv", "none")
        check_arguments(
            scales=(tuple(scales), len(scales) > 0 and min(scales, default=0) > 0, "positive, one a map"),
            pooler_type=(pooler_type, pooler_type in aligns, "ROIAlign or ROIAlignV2 for GenericRoIExtractor"),
            post=(post, post in posts, '"non_local", "conv" or "none"'),
            pre_kernel=(pre_kernel, pre_kernel in (0, *range(1, 99, 2)), "odd, or 0 for no convolution"),
            post_kernel=(post_kernel, post_kernel in range(1, 99, 2), "odd"),
        )
        self.output_size = pair_of_bins(output_size)
        self.scales = tuple(float(scale) for scale in scales)
        self.sampling_ratio = whole_number(sampling_ratio, "sampling_ratio")
        self.aligned = pooler_type == "ROIAlignV2"
        self.pre = _conv(in_channels, pre_kernel) if pre_kernel else nn.Identity()
        if post == "non_local":
            self.post = NonLocalBlock(in_channels)
        else:
            self.post = _conv(in_channels, post_kernel) if post == "conv" else nn.Identity()

    def extra_repr(self) -> str:
        """Arguments for printing."""
        return f"output_size={self.output_size}, scales={self.scales}, sampling_ratio={self.sampling_ratio}"

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """Pool and fuse the features of all boxes.

        Args:
            x: L maps [N, C, H_l, W_l], one a scale.
            box_lists: boxes of each of the N images, xyxy in pixels of the image.

        Returns:
            [R, C, P, Q], the boxes of the first image first.

        Raises:
            ValueError: the numbers of maps or images do not fit, or a box is not finite.
        """
        return self.extract(x, get_rois(x, box_lists, len(self.scales)))

    def extract(self, x: list[Tensor], rois: Tensor) -> Tensor:
        """The same for boxes of all images in one tensor.

        Args:
            x: L maps [N, C, H_l, W_l], one a scale.
            rois: [R, 5], each (image index, x0, y0, x1, y1) in pixels of the image; see `roi_align`.

        Returns:
            [R, C, P, Q].
        """
        # Level by level, since the features of all levels side by side would take L times the memory at inference.
        total = None
        for level, scale in enumerate(self.scales):
            pooled = roi_align(x[level], rois, self.output_size, scale, self.sampling_ratio, self.aligned)
            pooled = self.pre(pooled)  # [R, C, P, Q]
            total = pooled if total is None else total + pooled
        return self.post(total)


class NonLocalBlock(nn.Module):
    """Attention of all positions to all, with a residual: Wang et al., Eq. 1, 5 and 6, embedded Gaussian.

    With t, p and g 1 x 1 convolutions to half the channels, z_i = w(sum over j of softmax_j(t_i . p_j) g_j) + x_i.
    It starts as the identity: w is 0 (Sec. 4.1). The logits are not divided by a root of the channels, as in the paper.
    """

    def __init__(self, channels: int) -> None:
        """Build the four convolutions.

        Args:
            channels: C of input and output, at least 2.

        Raises:
            ValueError: there is less than one channel to attend with.
        """
        super().__init__()
        if channels < 2:
            raise ValueError(f"NonLocalBlock needs at least 2 channels, got {channels}.")
        inner = channels // 2
        self.theta = Conv2d(channels, inner, kernel_size=1)
        self.phi = Conv2d(channels, inner, kernel_size=1)
        self.g = Conv2d(channels, inner, kernel_size=1)
        self.out = Conv2d(inner, channels, kernel_size=1)
        for conv in (self.theta, self.phi, self.g):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[R, C, P, Q] -> [R, C, P, Q]."""
        query, key, value = (
            conv(x).flatten(2).transpose(1, 2) for conv in (self.theta, self.phi, self.g)
        )  # [R, P * Q, C / 2]
        attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)  # [R, P * Q, C / 2]
        return x + self.out(attended.transpose(1, 2).unflatten(2, x.shape[2:]))  # [R, C / 2, P, Q] -> [R, C, P, Q]


def _conv(channels: int, kernel: int) -> Conv2d:
    """Convolution with ReLU that keeps the size."""
    conv = Conv2d(channels, channels, kernel_size=kernel, padding=kernel // 2, activation=nn.ReLU())
    weight_init.c2_msra_fill(conv)
    return conv
