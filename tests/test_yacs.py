"""This package's parts by name in yacs configs, with its keys and without."""

import re
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import build_roi_heads
from detectron2.structures import Boxes, Instances
from torch import nn

from maskrcnn_plus.components import REGISTRIES
from maskrcnn_plus.config import add_config, detectron2_config, with_defaults
from maskrcnn_plus.mask_rcnn import MaskRCNNPlus
from maskrcnn_plus.roi import DenseROIHeads, PyramidROIAlign
from maskrcnn_plus.rpn import BatchedRPN

GUIDE = Path(__file__).parents[1] / "docs" / "in_your_project.md"
LEVELS = {f"p{level}": ShapeSpec(channels=256, stride=2**level) for level in (2, 3, 4, 5, 6)}
SHAPES = {
    "BACKBONE": ShapeSpec(channels=3),
    "ANCHOR_GENERATOR": list(LEVELS.values()),
    "RPN_HEAD": list(LEVELS.values()),
    "PROPOSAL_GENERATOR": LEVELS,
    "ROI_MASK_HEAD": ShapeSpec(channels=256, width=14, height=14),
    "ROI_HEADS": LEVELS,
}
PARTS = {
    name: (part, LEVELS if name == "PointRendHead" else SHAPES.get(kind))
    for kind, registry in REGISTRIES.items()
    for name, part in registry
    if part.__module__.startswith("maskrcnn_plus.") and "from_config" in dir(part)
}


def fpn_config():
    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.MASK_ON = "cpu", True
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RPN.IN_FEATURES = [*LEVELS]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = ["p2", "p3", "p4", "p5"], 0.0
    cfg.MODEL.ROI_BOX_HEAD.NAME, cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = "FastRCNNConvFCHead", True
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 1, 8
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    return cfg


def plain(value):
    """A value, or the names and shapes of what a module is made of."""
    if isinstance(value, nn.Module):
        return [(name, tuple(tensor.shape)) for name, tensor in value.state_dict().items()]
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return plain(vars(value)) if hasattr(value, "__dict__") else value


@pytest.mark.parametrize("name", PARTS)
def test_every_part_takes_a_config_without_our_keys_for_one_with_their_defaults(name):
    part, shape = PARTS[name]
    without, given = fpn_config(), fpn_config()
    add_config(given)
    before = without.dump()
    arguments = []
    for cfg in (without.freeze() or without, given):
        with torch.device("meta"):
            arguments.append(part.from_config(cfg, *([shape] if shape else [])))
    assert plain(arguments[0]) == plain(arguments[1])
    assert len(arguments[0]) > 2
    assert without.dump() == before


def test_what_a_config_sets_wins_over_the_defaults():
    cfg = get_cfg()
    cfg.MODEL.MAX_COVERED = 0.5
    cfg.MODEL.RPN.NMS_THRESH = 0.1
    whole = with_defaults(cfg)
    assert (whole.MODEL.MAX_COVERED, whole.MODEL.RPN.NMS_THRESH, whole.MODEL.DENSE_MASKS) == (0.5, 0.1, True)
    assert "DENSE_MASKS" not in cfg.MODEL


@pytest.mark.parametrize("key", ["MODEL.DENSE_MASK", "MODEL.ROI_HEADS.SOFT_TARGETS", "MODEL.TIMM.NAEM"])
def test_a_misspelt_key_is_refused(key):
    cfg = get_cfg()
    add_config(cfg)
    with pytest.raises(AssertionError, match=f"Non-existent key: {key}"):
        cfg.merge_from_list([key, "x"])


def heads_of(name, pooler_type="ROIAlignV2", keypoints=False):
    """RoI heads from seed 0, and the state of the generator after them."""
    cfg = fpn_config()
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.KEYPOINT_ON = name, keypoints
    for head in (cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.ROI_KEYPOINT_HEAD):
        head.POOLER_TYPE, head.POOLER_SAMPLING_RATIO = pooler_type, 2
    torch.manual_seed(0)
    return build_roi_heads(cfg, LEVELS).eval(), torch.get_rng_state()


@pytest.mark.parametrize(
    ("ours", "theirs"), [("DenseROIHeads", "StandardROIHeads"), ("DenseCascadeROIHeads", "CascadeROIHeads")]
)
@pytest.mark.parametrize("pooler_type", ["ROIAlign", "ROIAlignV2", "ROIPool"])
def test_roi_heads_have_detectron2s_first_weights_and_results_and_our_poolers(ours, theirs, pooler_type):
    (ours, state), (theirs, expected_state) = heads_of(ours, pooler_type), heads_of(theirs, pooler_type)
    assert torch.equal(state, expected_state)  # whatever is built next draws the same weights too
    weights, expected = ours.state_dict(), theirs.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert all(parameter.requires_grad for parameter in ours.parameters())

    pooler = ROIPooler if pooler_type == "ROIPool" else PyramidROIAlign
    assert type(ours.box_pooler) is type(ours.mask_pooler) is pooler
    features = {name: torch.randn(1, 256, 256 // shape.stride, 256 // shape.stride) for name, shape in LEVELS.items()}
    corners = torch.rand(30, 2) * 200
    boxes = Boxes(torch.cat([corners, corners + 4 + torch.rand(30, 2) * 200], dim=1))
    proposals = Instances((256, 256), proposal_boxes=boxes, objectness_logits=torch.zeros(30))
    with torch.no_grad():
        (found,), (wanted,) = (each(None, features, [proposals])[0] for each in (ours, theirs))
    assert len(found) == len(wanted) > 0
    torch.testing.assert_close(found.pred_boxes.tensor, wanted.pred_boxes.tensor, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.scores, wanted.scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.pred_masks, wanted.pred_masks, atol=1e-5, rtol=0)


def test_keypoint_heads_have_our_pooler_and_other_poolers_stay():
    module, _ = heads_of("DenseROIHeads", keypoints=True)
    assert type(module.keypoint_pooler) is PyramidROIAlign
    assert PyramidROIAlign.from_pooler(module.keypoint_pooler) is module.keypoint_pooler
    pooler = ROIPooler(7, (1 / 4, 1 / 8), 2, "ROIAlignRotated")
    assert PyramidROIAlign.from_pooler(pooler) is pooler


def test_the_lines_of_the_guide_build_our_parts():
    yacs, lazy = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    cfg, model = fpn_config(), detectron2_config("common/models/mask_rcnn_fpn.py").model
    exec(yacs, {"cfg": cfg})
    exec(lazy, {"model": model})
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        built = [build_model(cfg), instantiate(model)]
    for network in built:
        assert type(network) is MaskRCNNPlus
        assert type(network.proposal_generator) is BatchedRPN
        assert type(network.roi_heads.box_pooler) is type(network.roi_heads.mask_pooler) is PyramidROIAlign
        assert network.dense_masks
    assert type(built[0].roi_heads) is DenseROIHeads


def test_the_keys_and_defaults_of_the_guide_are_those_of_add_config():
    cells = re.findall(r"^\| (`MODEL\.[^|]*) \| (`[^|]*) \|", GUIDE.read_text(), re.MULTILINE)
    told = {}
    for keys, defaults in cells:
        told.update(zip(re.findall(r"`(.*?)`", keys), re.findall(r"`(.*?)`", defaults), strict=True))
    before, cfg = get_cfg(), get_cfg()
    add_config(cfg)
    groups = {"MODEL": cfg.MODEL, "MODEL.ROI_HEADS": cfg.MODEL.ROI_HEADS}
    stock = {"MODEL": before.MODEL, "MODEL.ROI_HEADS": before.MODEL.ROI_HEADS}
    added = {f"{group}.{key}" for group, node in groups.items() for key in node if key not in stock[group]}
    assert told.keys() == added - {f"MODEL.{key}" for key, node in cfg.MODEL.items() if isinstance(node, CfgNode)}
    for key, default in told.items():
        node = cfg
        for name in key.split("."):
            node = node[name]
        assert repr(node) == default.replace('"', "'"), key
