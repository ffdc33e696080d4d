"""Models after optimize_for_inference give what they gave before, with fewer layers."""

import copy
import warnings

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.layers.batch_norm import NaiveSyncBatchNorm
from detectron2.modeling import FPN, Backbone
from detectron2.structures import Instances
from timm.layers import BatchNormAct2d
from torch import nn

from maskrcnn_plus.backbones import TimmBackbone
from maskrcnn_plus.config import detectron2_config
from maskrcnn_plus.inference.onednn import ActivatedConv2d
from maskrcnn_plus.inference.optimize import fold_batch_norms, optimize_for_inference
from maskrcnn_plus.mask_rcnn import MaskRCNNPlus
from maskrcnn_plus.ops.winograd import WinogradConv2d, is_fast

BATCH_NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)


def count(model, kind):
    return sum(isinstance(module, kind) for module in model.modules())


def randomise_norms(model):
    """Statistics and weights as after training, not those that do nothing."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, (*BATCH_NORMS, nn.GroupNorm)):
            for name in ("weight", "bias", "running_mean", "running_var"):
                tensor = getattr(module, name, None)
                if tensor is not None:
                    positive = name in ("weight", "running_var")
                    values = torch.rand(tensor.shape, generator=generator)
                    tensor.data.copy_(values + 0.5 if positive else values - 0.5)
            if isinstance(getattr(module, "weight", None), torch.Tensor):
                module.weight.data.mul_(0.5)  # features of one magnitude through residual blocks


def mask_rcnn(neck_norm="", mask_norm="", bottom_up=None):
    """A Mask R-CNN with a ResNet-50, or another bottom-up network, and narrow heads that detect at random."""
    model = detectron2_config("common/models/mask_rcnn_fpn.py").model
    model._target_ = MaskRCNNPlus
    if bottom_up is not None:
        model.backbone.bottom_up = bottom_up
    model.backbone.out_channels = 32
    model.backbone.norm = neck_norm
    model.proposal_generator.head.in_channels = 32
    model.proposal_generator.post_nms_topk = (50, 40)
    model.roi_heads.num_classes = 2
    model.roi_heads.box_head.input_shape = L(ShapeSpec)(channels=32, height=7, width=7)
    model.roi_heads.box_head.fc_dims = [32]
    model.roi_heads.box_predictor.input_shape = L(ShapeSpec)(channels=32)
    model.roi_heads.box_predictor.test_score_thresh = 0.0
    model.roi_heads.mask_head.input_shape = L(ShapeSpec)(channels=32, height=14, width=14)
    model.roi_heads.mask_head.conv_dims = [32, 32, 32]
    model.roi_heads.mask_head.conv_norm = mask_norm
    torch.manual_seed(0)
    built = instantiate(model).eval()
    randomise_norms(built)
    built.roi_heads.box_predictor.cls_score.weight.data.mul_(30)
    built.proposal_generator.rpn_head.conv.weight.data.mul_(30)
    return built


FEATURES = ["res2", "res3", "res4", "res5"]
LITE0 = L(TimmBackbone)(name="tf_efficientnet_lite0", out_features=FEATURES)
FROZEN_LITE0 = L(TimmBackbone)(name="tf_efficientnet_lite0", out_features=FEATURES, norm="FrozenBN")
RESNET = L(TimmBackbone)(name="resnet18", out_features=FEATURES)


@pytest.mark.parametrize(
    ("options", "batch_norms", "kept"),
    [
        ({}, 53, 0),
        ({"neck_norm": "BN", "mask_norm": "BN"}, 53 + 8 + 2, 0),
        ({"neck_norm": "GN", "mask_norm": "GN", "bottom_up": LITE0}, 48, 10),
        ({"mask_norm": "naiveSyncBN_N", "bottom_up": FROZEN_LITE0}, 48 + 2, 0),
        ({"bottom_up": RESNET}, 20, 0),
    ],
    ids=["detectron2", "norms in neck and mask head", "lite0 and group norms", "frozen lite0", "timm resnet"],
)
@torch.inference_mode()
def test_same_detections_with_fewer_layers(options, batch_norms, kept):
    model = mask_rcnn(**options)
    assert count(model, BATCH_NORMS) == batch_norms
    image = torch.randint(0, 256, (3, 96, 128), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    example = {"image": image, "height": 96, "width": 128}
    (first,) = model.inference([example], do_postprocess=False)
    model.roi_heads.mask_head.predictor.weight.data.mul_(1.5 / first.pred_masks.logit().std())
    (expected,) = model.inference([example], do_postprocess=False)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimized = optimize_for_inference(model)
    assert optimized is model
    assert count(model, BATCH_NORMS) == 0
    assert count(model, nn.GroupNorm) == kept
    (found,) = model.inference([example], do_postprocess=False)

    assert len(found) == len(expected) >= 20
    # Two detections of nearly equal score may change places.
    distances = (found.pred_boxes.tensor[None] - expected.pred_boxes.tensor[:, None]).abs().amax(dim=2)
    distances[found.pred_classes[None] != expected.pred_classes[:, None]] = torch.inf
    distance, partner = distances.min(dim=1)
    assert sorted(partner.tolist()) == list(range(len(found)))
    assert distance.max() < 1e-4 * 128
    assert (found.scores[partner] - expected.scores).abs().max() < 1e-4
    assert expected.pred_masks.std() > 0.2
    # Masks in the very same boxes: features of random networks are steep, and rounding grows through group norms.
    known = Instances(expected.image_size, pred_boxes=expected.pred_boxes, pred_classes=expected.pred_classes)
    (found,) = model.inference([example], [known], do_postprocess=False)
    assert (found.pred_masks - expected.pred_masks).abs().max() < (2e-4 if kept else 1e-4)


@pytest.mark.skipif(not is_fast(), reason="the convolutions of this processor stay")
def test_convolutions_take_the_activations_of_their_norms_along():
    model = mask_rcnn(bottom_up=LITE0)
    before = sum(type(module.act) is nn.ReLU6 for module in model.modules() if isinstance(module, BatchNormAct2d))
    optimize_for_inference(model)
    fused = [module for module in model.modules() if isinstance(module, ActivatedConv2d)]
    assert len(fused) == before == 32
    # What is left is for maps of odd sides.
    assert count(model, nn.ReLU6) == sum(module.with_odd_sides is not None for module in fused) == 5


@torch.no_grad()
def test_pyramid_equals_itself_and_uses_the_new_convolutions():
    model = mask_rcnn("BN")
    backbone = copy.deepcopy(model.backbone)
    optimize_for_inference(model)
    x = torch.randn(1, 3, 64, 96)
    for name, feature in backbone(x).items():
        change = (model.backbone(x)[name] - feature).abs().max() / feature.abs().max()
        assert change < 2e-5, name
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training
    if is_fast():
        # FPN runs the convolutions of its plain lists.
        assert all(isinstance(conv, WinogradConv2d) for conv in model.backbone.output_convs)
        assert isinstance(model.backbone.fpn_output2, WinogradConv2d)
        assert type(model.roi_heads.mask_head.convs[0]) is WinogradConv2d


class Normed(Backbone):
    """A convolution and a batch norm in an arrangement that decides whether they may become one."""

    size_divisibility = 32

    def __init__(self, arrangement, norm=None):
        super().__init__()
        self.arrangement = arrangement
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=arrangement == "bias")
        self.other = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = norm or nn.BatchNorm2d(8)
        randomise_norms(self)

    def forward(self, x):
        y = self.conv(x)
        z = self.norm(y)
        if self.arrangement == "conv is read twice":
            z = z + y
        if self.arrangement == "conv is read through a view":
            z = z + y[:, :1]
        if self.arrangement == "conv is returned":
            return {"a": y, "b": z}
        if self.arrangement == "conv runs twice":
            z = z + self.conv(x.flip(2))
        if self.arrangement == "norm runs twice":
            z = self.norm(z)
        if self.arrangement == "two convolutions":
            z = self.norm(self.other(z))
        if self.arrangement == "norm of a sum":
            z = self.norm(y + 1)
        if self.arrangement == "random":
            z = z * torch.rand(1)
        return {"b": z}


class Model(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone


class OwnConv(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).abs()


@pytest.mark.parametrize(
    ("arrangement", "folds"),
    [
        ("plain", True),
        ("bias", True),
        ("conv is read twice", False),
        ("conv is read through a view", False),
        ("conv is returned", False),
        ("conv runs twice", False),
        ("norm runs twice", False),
        ("two convolutions", False),
        ("norm of a sum", False),
    ],
)
@torch.no_grad()
def test_norms_fold_only_behind_a_convolution_of_their_own(arrangement, folds):
    model = Model(Normed(arrangement)).eval()
    x = torch.randn(2, 3, 32, 64)
    expected = model.backbone(x)
    assert fold_batch_norms(model) == folds
    assert isinstance(model.backbone.norm, nn.Identity if folds else nn.BatchNorm2d)
    for name, feature in model.backbone(x).items():
        torch.testing.assert_close(feature, expected[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("norm", "folds"),
    [
        (nn.BatchNorm2d(8, affine=False), True),
        (nn.BatchNorm2d(8, eps=0.1), True),
        (NaiveSyncBatchNorm(8), True),
        (BatchNormAct2d(8), True),
        (BatchNormAct2d(8, act_layer=nn.SiLU, drop_layer=nn.Dropout), True),
        (FrozenBatchNorm2d(8), True),
        (nn.BatchNorm2d(8, track_running_stats=False), False),
        (nn.InstanceNorm2d(8, track_running_stats=True), False),
        (nn.GroupNorm(2, 8), False),
    ],
    ids=lambda value: str(value),
)
@torch.no_grad()
def test_kinds_of_norms(norm, folds):
    model = Model(Normed("plain", copy.deepcopy(norm))).eval()
    x = torch.randn(2, 3, 32, 64)
    expected = model.backbone(x)["b"]
    assert fold_batch_norms(model) == folds
    torch.testing.assert_close(model.backbone(x)["b"], expected, atol=1e-5, rtol=1e-5)


def test_convolutions_with_more_to_them_are_left_alone():
    backbone = Normed("plain")
    backbone.conv = OwnConv(3, 8, 3, padding=1)
    assert fold_batch_norms(Model(backbone).eval()) == 0
    assert isinstance(backbone.norm, nn.BatchNorm2d)


@torch.no_grad()
def test_folding_that_changes_the_output_is_undone():
    backbone = Normed("random")
    weight, norm = backbone.conv.weight, backbone.norm
    with pytest.warns(UserWarning, match="stay as they are"):
        assert fold_batch_norms(Model(backbone).eval()) == 0
    assert backbone.conv.weight is weight
    assert backbone.conv.bias is None
    assert backbone.norm is norm


@torch.no_grad()
def test_models_without_a_backbone_or_norms():
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1))
    x = torch.randn(1, 3, 9, 9)
    expected = model(x)
    torch.testing.assert_close(optimize_for_inference(model)(x), expected, atol=1e-5, rtol=1e-4)
    assert isinstance(model[1], WinogradConv2d) == is_fast()
    fpn = mask_rcnn().backbone
    assert isinstance(fpn, FPN)
    assert fold_batch_norms(fpn) == 53


def _tensor_float(tensor):
    """Numbers with the 10 bits after the point that TensorFloat-32 keeps of float32's 23."""
    bits = tensor.contiguous().view(torch.int32)
    return ((bits + (1 << 12)) & -(1 << 13)).view(torch.float32)


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_norms_fold_where_float32_is_computed_in_less(monkeypatch, precision):
    """As on GPUs, whose convolutions round their inputs: folded weights are rounded otherwise than those of before."""
    convolve = torch.nn.functional.conv2d

    def rounded(image, weight, *arguments, **options):
        if image.dtype == torch.float32:
            image, weight = _tensor_float(image), _tensor_float(weight)
        return convolve(image, weight, *arguments, **options)

    torch.manual_seed(0)
    model = nn.Module()
    model.backbone = TimmBackbone("resnet18", out_features=FEATURES)
    model.eval().requires_grad_(False)
    randomise_norms(model)
    image = torch.randn(1, 3, 64, 64)
    expected, kept = model.backbone(image), model.backbone.net.conv1.weight
    monkeypatch.setattr(torch.nn.functional, "conv2d", rounded)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        rough = model.backbone(image)["res5"]
        assert (rough - expected["res5"]).abs().max() > 1e-4 * expected["res5"].abs().max()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert fold_batch_norms(model) == 20
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    monkeypatch.undo()
    assert count(model, nn.BatchNorm2d) == 0
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert model.backbone.net.conv1.weight is not kept
    for name, output in model.backbone(image).items():
        torch.testing.assert_close(output, expected[name], rtol=1e-4, atol=1e-4 * expected[name].abs().max().item())


def test_a_comparison_leaves_the_tensors_that_it_does_not_fold():
    model = nn.Module()
    model.backbone = TimmBackbone("resnet18", out_features=FEATURES)
    model.backbone.net.conv1 = nn.Sequential(model.backbone.net.conv1, nn.ReLU())  # its norm cannot be folded
    model.eval().requires_grad_(False)
    before = {
        name: tensor.data_ptr() for name, tensor in model.state_dict().items() if "conv1.0" in name or ".bn1." in name
    }
    assert fold_batch_norms(model) == 19
    after = model.state_dict()
    kept = {name: place for name, place in before.items() if name in after and "layer" not in name}
    assert len(kept) > 4
    assert {name: after[name].data_ptr() for name in kept} == kept


def test_a_backbone_of_float32_alone_keeps_its_norms_and_its_type():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, image):
            return {"out": self.norm(self.conv(image.float()))}

    model = nn.Module()
    model.backbone = Single()
    model.eval().requires_grad_(False)
    image = torch.randn(1, 3, 32, 32)
    expected = model.backbone(image)["out"]
    with pytest.warns(UserWarning, match="float64"):
        assert fold_batch_norms(model) == 0
    assert torch.equal(model.backbone(image)["out"], expected)
