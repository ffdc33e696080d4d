"""SimpleFeaturePyramid: levels as ViTDet defines them, its names, and a whole Mask R-CNN on a plain ViT."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import LazyCall, LazyConfig, get_cfg, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from maskrcnn_plus.config import add_config, get_config, skip_pretrained
from maskrcnn_plus.necks import SimpleFeaturePyramid

TINY_VIT = {"embed_dim": 48, "num_heads": 3}
NAMES_OF_VITDET = {
    "simfp_2.0.weight", "simfp_2.0.bias", "simfp_2.1.weight", "simfp_2.1.bias", "simfp_2.3.weight", "simfp_2.3.bias",
    "simfp_2.4.weight", "simfp_2.4.norm.weight", "simfp_2.4.norm.bias",
    "simfp_2.5.weight", "simfp_2.5.norm.weight", "simfp_2.5.norm.bias",
    "simfp_3.0.weight", "simfp_3.0.bias",
    "simfp_3.1.weight", "simfp_3.1.norm.weight", "simfp_3.1.norm.bias",
    "simfp_3.2.weight", "simfp_3.2.norm.weight", "simfp_3.2.norm.bias",
    "simfp_4.0.weight", "simfp_4.0.norm.weight", "simfp_4.0.norm.bias",
    "simfp_4.1.weight", "simfp_4.1.norm.weight", "simfp_4.1.norm.bias",
    "simfp_5.1.weight", "simfp_5.1.norm.weight", "simfp_5.1.norm.bias",
    "simfp_5.2.weight", "simfp_5.2.norm.weight", "simfp_5.2.norm.bias",
}  # fmt: skip


class OneFeature(Backbone):
    """Gives the image itself, as if at a stride."""

    def __init__(self, channels, stride=16):
        super().__init__()
        self.shape = ShapeSpec(channels=channels, stride=stride)

    def forward(self, x):
        return {"last_feat": x}

    def output_shape(self):
        return {"last_feat": self.shape}


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pyramid(channels=32, *, stride=16, **arguments):
    """A pyramid whose every parameter and statistic is random, in evaluation mode."""
    torch.manual_seed(0)
    neck = SimpleFeaturePyramid(OneFeature(channels, stride), **{"out_channels": 32, **arguments}).double().eval()
    for name, tensor in neck.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(0.5 + random(*tensor.shape).abs())
        elif tensor.is_floating_point():
            tensor.add_(0.2 * random(*tensor.shape, seed=len(name)))
    return neck


def naive_norm(x, state, name, kind):
    """Each norm by its definition, on [N, C, H, W]; `state` may lack it where there is none."""
    if not kind:
        return x
    weight, bias = (state[f"{name}.{key}"].view(-1, 1, 1) for key in ("weight", "bias"))
    if kind == "LN":
        mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
        return (x - mean) / (variance + 1e-6).sqrt() * weight + bias
    if kind == "GN":
        grouped = x.unflatten(1, (32, -1))
        mean = grouped.mean((2, 3, 4), keepdim=True)
        variance = grouped.var((2, 3, 4), unbiased=False, keepdim=True)
        return ((grouped - mean) / (variance + 1e-5).sqrt()).flatten(1, 2) * weight + bias
    mean, variance = (state[f"{name}.running_{key}"].view(-1, 1, 1) for key in ("mean", "var"))
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def naive_deconv(x, weight, bias):
    """Transposed convolution of kernel and stride 2: every pixel becomes a 2 x 2 block."""
    blocks = torch.einsum("nchw,cdij->ndhiwj", x, weight)
    return blocks.flatten(4, 5).flatten(2, 3) + bias.view(-1, 1, 1)


def naive_pyramid(x, state, kind):
    """{"p2": ..., "p5": ...} of [N, C, H, W] at stride 16, from ViTDet's description."""

    def convolve(x, level, index, padding):
        name = f"simfp_{level}.{index}"
        return naive_norm(
            F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), padding=padding),
            state,
            f"{name}.norm",
            kind,
        )

    def deconv(x, level, index):
        return naive_deconv(x, state[f"simfp_{level}.{index}.weight"], state[f"simfp_{level}.{index}.bias"])

    quadruple = naive_norm(deconv(x, 2, 0), state, "simfp_2.1", kind)
    quadruple = deconv(0.5 * quadruple * (1 + torch.erf(quadruple / 2**0.5)), 2, 3)
    half = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))
    resized = {2: (quadruple, 4), 3: (deconv(x, 3, 0), 1), 4: (x, 0), 5: (half, 1)}
    return {
        f"p{level}": convolve(convolve(feature, level, first, 0), level, first + 1, 1)
        for level, (feature, first) in resized.items()
    }


@pytest.mark.parametrize("norm", ["LN", "BN", "FrozenBN", "", "GN"])
def test_levels_are_those_of_vitdet(norm):
    channels = 128 if norm == "GN" else 32  # 32 groups of the 64 channels between the two steps of p2
    neck = pyramid(channels, norm=norm, top_block=LastLevelMaxPool())
    x = random(1, channels, 32, 64)
    with torch.no_grad():
        features = neck(x)
        expected = naive_pyramid(x, neck.state_dict(), norm)
    expected["p6"] = expected["p5"][:, :, ::2, ::2]
    assert list(features) == ["p2", "p3", "p4", "p5", "p6"]
    for name, feature in features.items():
        assert (feature - expected[name]).abs().max() < 1e-10, name
        shape = neck.output_shape()[name]
        assert feature.shape[1:] == (shape.channels, 32 * 16 // shape.stride, 64 * 16 // shape.stride)


def test_names_are_those_of_vitdet():
    assert set(pyramid().state_dict()) == NAMES_OF_VITDET


def test_padding_that_it_asks_for():
    neck = pyramid(square_pad=64)
    assert neck.size_divisibility == 32
    assert neck.padding_constraints == {"size_divisibility": 32, "square_size": 64}
    assert pyramid(scale_factors=(4, 2)).size_divisibility == 8
    with pytest.raises(ValueError, match="multiple of 32"):
        neck(random(1, 32, 32, 48))
    with pytest.raises(ValueError, match="square_pad"):
        pyramid(square_pad=100)


def test_gradients_reach_every_parameter():
    neck = pyramid(top_block=LastLevelMaxPool()).train()
    x = random(1, 32, 32, 32).requires_grad_()
    sum(feature.square().sum() for feature in neck(x).values()).backward()
    assert x.grad.abs().min() > 0
    assert all(parameter.grad.abs().sum() > 0 for parameter in neck.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stride": 14}, "patch_size=16"),
        ({"scale_factors": (4.0, 1.0)}, "each twice the one before"),
        ({"scale_factors": (0.5, 1.0)}, "each twice the one before"),
        ({"scale_factors": (8.0, 4.0)}, "some of 4, 2, 1 and 0.5"),
        ({"scale_factors": ()}, "some of 4, 2, 1 and 0.5"),
        ({"in_feature": "res5"}, "last_feat"),
        ({"norm": "XN"}, "FrozenBN"),
    ],
)
def test_impossible_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        pyramid(**arguments)


def test_yacs_config_builds_it():
    cfg = get_cfg()
    add_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "SimpleFeaturePyramid"
    cfg.MODEL.FPN.OUT_CHANNELS = 64
    cfg.MODEL.FPN.NORM = "GN"
    cfg.MODEL.VIT.OPTIONS.update({"embed_dim": 128, "depth": 2, "num_heads": 2})
    backbone = build_backbone(cfg)
    features = backbone(torch.zeros(1, 3, 64, 96))
    assert {name: feature.shape[2:] for name, feature in features.items()} == {
        "p2": (16, 24), "p3": (8, 12), "p4": (4, 6), "p5": (2, 3), "p6": (1, 2)
    }  # fmt: skip
    assert all(shape.channels == 64 for shape in backbone.output_shape().values())


def tiny_config():
    cfg = get_config("coco/mask_rcnn_vitb_simple_pyramid")
    skip_pretrained(cfg)
    cfg.model.backbone.net.options = TINY_VIT
    cfg.model.proposal_generator.post_nms_topk = [50, 20]
    cfg.model.roi_heads.batch_size_per_image = 8
    cfg.model.roi_heads.box_head.fc_dims = [32]
    cfg.model.roi_heads.box_predictor.input_shape = LazyCall(ShapeSpec)(channels=32)
    cfg.dataset.num_classes = 3
    cfg.dataset.max_objects = 5
    return cfg


def image_with_objects(height, width):
    masks = torch.zeros(2, height, width, dtype=torch.bool)
    masks[0, 10:60, 20:50] = True
    masks[1, 40:90, 60:100] = True
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor([[20.0, 10, 50, 60], [60, 40, 100, 90]]))
    instances.gt_classes = torch.tensor([0, 2])
    instances.gt_masks = BitMasks(masks)
    image = random(3, height, width, dtype=torch.float32) * 50 + 120
    return {"image": image, "height": height, "width": width, "instances": instances}


def test_mask_rcnn_of_the_config_trains_and_predicts_on_odd_sizes():
    torch.manual_seed(0)
    model = instantiate(tiny_config().model).train()
    batch = [image_with_objects(97, 131), image_with_objects(120, 101)]
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    names = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert not names
    with torch.no_grad():
        results = model.eval()([{key: value for key, value in one.items() if key != "instances"} for one in batch])
    for one, result in zip(batch, results, strict=True):
        predicted = result["instances"]
        assert predicted.image_size == tuple(one["image"].shape[1:])
        assert len(predicted.pred_masks_rle) == 5
        assert predicted.pred_masks_rle.image_size == predicted.image_size


def test_config_round_trips(tmp_path):
    cfg = tiny_config()
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    reloaded = LazyConfig.load(str(tmp_path / "config.yaml"))
    shapes = [
        {name: tensor.shape for name, tensor in instantiate(config.model).state_dict().items()}
        for config in (cfg, reloaded)
    ]
    assert shapes[0] == shapes[1]
    assert shapes[0]["roi_heads.box_predictor.cls_score.weight"] == (4, 32)
    assert "roi_heads.box_head.conv1.norm.weight" in shapes[0]
    assert "roi_heads.mask_head.mask_fcn1.norm.weight" in shapes[0]


def test_optimizer_of_the_config_decays_layer_by_layer():
    cfg = tiny_config()
    model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    lr = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    settings = {name: lr[id(parameter)] for name, parameter in model.named_parameters()}
    assert settings["backbone.net.net.patch_embed.proj.weight"] == (pytest.approx(1e-4 * 0.7**13), 0.1)
    assert settings["backbone.net.net.pos_embed"] == (pytest.approx(1e-4 * 0.7**13), 0.0)
    assert settings["backbone.net.net.blocks.0.attn.qkv.weight"] == (pytest.approx(1e-4 * 0.7**12), 0.1)
    assert settings["backbone.net.net.blocks.11.norm1.weight"] == (pytest.approx(1e-4 * 0.7), 0.0)
    assert settings["backbone.simfp_2.0.weight"] == (1e-4, 0.1)
    assert settings["roi_heads.box_head.conv1.norm.weight"] == (1e-4, 0.0)
    scheduler = instantiate(cfg.lr_multiplier)
    at = [scheduler(step / 184375) for step in (0, 250, 163888, 163890, 177545, 177547)]
    assert at == pytest.approx([0.001, 1.0, 1.0, 0.1, 0.1, 0.01])
