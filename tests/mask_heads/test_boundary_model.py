"""The boundary-preserving head as a drop-in for Detectron2's mask head: configs, weights, inference, compilation."""

import copy
import math

import pytest
import torch
from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead, build_mask_head, mask_rcnn_inference
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from maskrcnn_plus.config import get_config, skip_pretrained
from maskrcnn_plus.inference.optimize import optimize_for_inference
from maskrcnn_plus.mask_heads import BoundaryMaskHead
from maskrcnn_plus.masks.label_masks import LabelMapMasks
from maskrcnn_plus.ops.winograd import WinogradConv2d, is_fast
from maskrcnn_plus.roi import PyramidROIAlign

SIZE = (60, 80)
LAYERS = [
    "mask_fcn1",
    "mask_fcn2",
    "boundary_input",
    "mask_to_boundary",
    "boundary_fcn1",
    "boundary_fcn2",
    "boundary_to_mask",
    "mask_fusion",
    "deconv",
    "predictor",
    "boundary_deconv",
    "boundary_predictor",
]


def make(side=14, channels=6, num_classes=3, conv_dims=(8, 8, 8), seed=0, **options):
    torch.manual_seed(seed)
    shape = ShapeSpec(channels=channels, height=side, width=side)
    head = BoundaryMaskHead(shape, num_classes=num_classes, conv_dims=list(conv_dims), **options)
    for name, parameter in head.named_parameters():
        if "predictor" in name:  # logits far from 0
            torch.nn.init.normal_(parameter, std=0.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return head


def features(count, side=14, channels=6, dtype=torch.float32, seed=1):
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def training_instances(counts):
    """Squares of random pixels, one image a count."""
    random = torch.Generator().manual_seed(0)
    images = []
    for count in counts:
        corners = torch.rand(count, 2, generator=random) * 40
        boxes = Boxes(torch.cat([corners, corners + 17], dim=1))
        masks = BitMasks(torch.rand(count, *SIZE, generator=random) < 0.5)
        classes = torch.randint(0, 3, (count,), generator=random)
        images.append(Instances(SIZE, proposal_boxes=boxes, gt_masks=masks, gt_classes=classes))
    return images


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("counts", [[3, 2], [0, 4], [0, 0]], ids=str)
def test_inference_is_detectron2s(num_classes, counts):
    head = make(num_classes=num_classes).eval()
    x = features(sum(counts))

    def detections():
        classes = torch.arange(sum(counts)) % num_classes
        return [Instances(SIZE, pred_classes=part) for part in classes.split(counts)]

    with torch.no_grad():
        results, expected = head(x, detections()), detections()
        mask_rcnn_inference(head.mask_outputs(x)["pred_mask_logits"], expected)
    for result, wanted in zip(results, expected, strict=True):
        assert result.pred_masks.shape == (len(result), 1, 28, 28)
        assert torch.equal(result.pred_masks, wanted.pred_masks)
        assert ((result.pred_masks > 0) & (result.pred_masks < 1)).all()
    assert "pred_boundary_logits" not in head.mask_outputs(x)


def test_mask_logits_in_training_and_evaluation_are_the_same():
    head = make()
    x = features(3)
    assert torch.equal(head.mask_outputs(x)["pred_mask_logits"], head.eval().mask_outputs(x)["pred_mask_logits"])


@torch.no_grad()
def test_features_of_the_finer_pooler_average_to_those_of_the_coarser():
    maps = [torch.randn(1, 6, 32, 32, generator=torch.Generator().manual_seed(0))]
    boxes = [Boxes(torch.tensor([[3.0, 5, 60, 47], [20, 30, 41, 44]]))]
    fine, coarse = (PyramidROIAlign(size, (1 / 4,), ratio)(maps, boxes) for size, ratio in ((28, 1), (14, 2)))
    torch.testing.assert_close(F.avg_pool2d(fine, 2), coarse, atol=1e-5, rtol=0)


def test_state_dict_names_are_stable():
    names = [f"{layer}.{kind}" for layer in LAYERS for kind in ("weight", "bias")]
    assert sorted(make().state_dict()) == sorted(names)
    longer = sorted(set(make(num_upsamples=2).state_dict()) - set(names))
    assert longer == ["boundary_deconv2.bias", "boundary_deconv2.weight", "deconv2.bias", "deconv2.weight"]
    normed = make(conv_dims=(32, 32, 32), conv_norm="GN").state_dict()
    plain = ("deconv", "predictor", "boundary_deconv", "boundary_predictor")
    expected = [
        f"{layer}.{kind}"
        for layer in LAYERS
        for kind in (("weight", "bias") if layer in plain else ("weight", "norm.weight", "norm.bias"))
    ]
    assert sorted(normed) == sorted(expected)


def test_takes_the_weights_of_detectron2s_head():
    shape = ShapeSpec(channels=6, height=14, width=14)
    theirs = MaskRCNNConvUpsampleHead(shape, num_classes=3, conv_dims=[8, 8, 8])
    head = make()
    missing, unexpected = head.load_state_dict(theirs.state_dict(), strict=False)
    assert unexpected == []
    assert {name.partition(".")[0] for name in missing} == {*LAYERS} - {"mask_fcn1", "mask_fcn2", "deconv", "predictor"}
    # With the fusion switched off the mask branch is theirs.
    torch.nn.init.zeros_(head.boundary_to_mask.weight)
    torch.nn.init.zeros_(head.boundary_to_mask.bias)
    torch.nn.init.dirac_(head.mask_fusion.weight)
    torch.nn.init.zeros_(head.mask_fusion.bias)
    x, instances = features(5), training_instances([2, 3])
    torch.testing.assert_close(head.mask_outputs(x)["pred_mask_logits"], theirs.layers(x), atol=1e-6, rtol=1e-5)
    with EventStorage():
        expected = theirs(x, instances)["loss_mask"]
    torch.testing.assert_close(head(x, instances)["loss_mask"], expected, atol=1e-6, rtol=0)


def yacs(**changes):
    cfg = get_cfg()
    cfg.MODEL.ROI_MASK_HEAD.NAME = "BoundaryMaskHead"
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 2
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    options = dict(
        NUM_CONV=2, STRIDE=1, NUM_UPSAMPLES=1, MASK_LOSS_WEIGHT=1.0, BOUNDARY_LOSS_WEIGHT=1.0, DICE_WEIGHT=1.0
    )
    cfg.MODEL.BOUNDARY_MASK_HEAD = CfgNode({**options, **changes})
    return cfg


def test_builds_from_a_yacs_config_by_name():
    cfg = yacs(NUM_CONV=3, STRIDE=2, NUM_UPSAMPLES=2, MASK_LOSS_WEIGHT=0.5, BOUNDARY_LOSS_WEIGHT=2.0, DICE_WEIGHT=0.1)
    cfg.MODEL.ROI_MASK_HEAD.NORM = "GN"
    head = build_mask_head(cfg, ShapeSpec(channels=6, height=28, width=28))
    assert type(head) is BoundaryMaskHead
    assert (head.loss_weight, head.boundary_loss_weight, head.dice_weight) == (0.5, 2.0, 0.1)
    assert head.mask_outputs(features(1, 28))["pred_mask_logits"].shape == (1, 5, 56, 56)
    assert head.boundary_fcn3.norm.num_groups == 32
    assert not hasattr(head, "mask_fcn3")
    cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = True
    agnostic = build_mask_head(cfg, ShapeSpec(channels=6, height=28, width=28))
    assert agnostic.predictor.out_channels == agnostic.boundary_predictor.out_channels == 1


def test_same_head_from_lazy_and_yacs_configs():
    shape = L(ShapeSpec)(channels=6, height=14, width=14)
    lazy = instantiate(L(BoundaryMaskHead)(input_shape=shape, num_classes=5, conv_dims=[32, 32, 32]))
    built = build_mask_head(yacs(), ShapeSpec(channels=6, height=14, width=14))
    assert str(lazy) == str(built)
    plain = {key: value for key, value in vars(lazy).items() if isinstance(value, int | float | list)}
    assert len(plain) >= 8
    assert plain == {key: vars(built)[key] for key in plain}


def test_shipped_variant_trains_and_detects():
    cfg = get_config("nuclei/variants/boundary")
    skip_pretrained(cfg)
    cfg.model.roi_heads.box_predictor.test_score_thresh = 0.0
    cfg.model.roi_heads.box_predictor.test_topk_per_image = 5
    cfg.model.proposal_generator.post_nms_topk = (20, 20)
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    assert type(model.roi_heads.mask_head) is BoundaryMaskHead
    label_map = torch.zeros(64, 64, dtype=torch.int32)
    label_map[10:40, 12:36] = 1
    masks = LabelMapMasks(label_map, torch.tensor([1]))
    truth = Instances((64, 64), gt_boxes=masks.get_bounding_boxes(), gt_classes=torch.tensor([0]), gt_masks=masks)
    example = {"image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), "height": 64, "width": 64}
    with EventStorage():
        losses = model([{**example, "instances": truth}])
    assert losses["loss_mask"].item() == pytest.approx(math.log(2), abs=0.02)  # logits near 0 at the start
    assert losses["loss_boundary"].item() > 0.5
    with torch.no_grad():
        (result,) = model.eval()([example])
    assert len(result["instances"].pred_masks_rle) == len(result["instances"]) > 0


@torch.no_grad()
@pytest.mark.parametrize(("norm", "stride"), [("", 2), ("BN", 1), ("GN", 2)])
def test_optimised_for_inference_equals_the_plain_head(norm, stride):
    side = 14 * stride
    head = make(side=side, channels=16, conv_dims=(32, 32, 32), conv_norm=norm, boundary_stride=stride)
    for module in head.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    plain = copy.deepcopy(head).eval()
    optimised = optimize_for_inference(head)
    x = features(7, side, channels=16)
    found, expected = (each(x, [Instances(SIZE, pred_classes=torch.arange(7) % 3)])[0] for each in (optimised, plain))
    assert (found.pred_masks - expected.pred_masks).abs().max() < 1e-4
    assert expected.pred_masks.std() > 0.1
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in optimised.modules())
    if is_fast():
        assert isinstance(optimised.mask_fusion, WinogradConv2d)
        assert isinstance(optimised.boundary_fcn2, WinogradConv2d)


@pytest.mark.parametrize("training", [True, False])
def test_compiles_as_one_graph(training):
    head = make(side=28, boundary_stride=2).train(training)
    x = features(3, 28)
    compiled = torch.compile(head.mask_outputs, fullgraph=True, backend="aot_eager")(x)
    expected = head.mask_outputs(x)
    assert set(compiled) == set(expected)
    for name in expected:
        torch.testing.assert_close(compiled[name], expected[name], atol=1e-5, rtol=1e-5)
