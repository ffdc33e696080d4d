# The stages of ResNeXt-101 32x8d (Xie et al., 2017). ResNet.make_default_stages has ResNet's bottleneck widths only.
from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import BottleneckBlock, ResNet
from omegaconf import ListConfig

stages = ListConfig(
    [
        L(ResNet.make_stage)(
            block_class=BottleneckBlock,
            num_blocks=3,
            stride_per_block=[1] * 3,
            in_channels=64,
            out_channels=256,
            bottleneck_channels=256,
            num_groups=32,
            stride_in_1x1=False,
            norm="FrozenBN",
        ),
        L(ResNet.make_stage)(
            block_class=BottleneckBlock,
            num_blocks=4,
            stride_per_block=[2] + [1] * 3,
            in_channels=256,
            out_channels=512,
            bottleneck_channels=512,
            num_groups=32,
            stride_in_1x1=False,
            norm="FrozenBN",
        ),
        L(ResNet.make_stage)(
            block_class=BottleneckBlock,
            num_blocks=23,
            stride_per_block=[2] + [1] * 22,
            in_channels=512,
            out_channels=1024,
            bottleneck_channels=1024,
            num_groups=32,
            stride_in_1x1=False,
            norm="FrozenBN",
        ),
        L(ResNet.make_stage)(
            block_class=BottleneckBlock,
            num_blocks=3,
            stride_per_block=[2] + [1] * 2,
            in_channels=1024,
            out_channels=2048,
            bottleneck_channels=2048,
            num_groups=32,
            stride_in_1x1=False,
            norm="FrozenBN",
        ),
    ],
    flags={"allow_objects": True},
)
