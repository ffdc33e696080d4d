"""Names of Detectron2 and Caffe2: which tensor goes where, compared with Detectron2's own matching."""

import numpy as np
import pytest
import torch
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import nn

from maskrcnn_plus.checkpoints.detectron2 import class_names, convert, match_by_suffix, matches
from maskrcnn_plus.weights.conversion import WeightsError, WeightsFile

CAFFE2 = {"__author__": "Caffe2"}


def resnet(norm="FrozenBN", stages=("res2", "res3", "res4", "res5")):
    """A ResNet with one narrow block a stage."""
    built, channels = [], 32
    for stage in stages:
        stride = 1 if stage == "res2" else 2
        settings = {"in_channels": channels, "out_channels": channels + 32, "bottleneck_channels": 32, "norm": norm}
        built.append(ResNet.make_stage(BottleneckBlock, 1, stride_per_block=[stride], **settings))
        channels += 32
    return ResNet(BasicStem(3, 32, norm=norm), built, out_features=list(stages))


def detector(norm="FrozenBN"):
    model = nn.Module()
    model.backbone = FPN(resnet(norm), ["res2", "res3", "res4", "res5"], out_channels=8)
    return model


def c4_detector():
    model = nn.Module()
    model.backbone = resnet(stages=("res2", "res3", "res4"))
    model.roi_heads = nn.Module()
    model.roi_heads.res5 = resnet().res5
    return model


def random_state(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(t.shape, generator=generator) for name, t in model.state_dict().items()}


def as_caffe2(state, norm="bn", scale="s", shift="b"):
    """A bare ResNet's names as Detectron's."""
    names = {}
    for name in state:
        new = name.replace("stem.conv1.norm", f"res_conv1_{norm}").replace("stem.conv1", "conv1")
        for old, branch in (("conv1", "2a"), ("conv2", "2b"), ("conv3", "2c"), ("shortcut", "1")):
            new = new.replace(f"0.{old}", f"0.branch{branch}")
        new = new.replace(".norm", f".{norm}").replace(".", "_")
        end = (scale, shift) if f"{norm}_" in new else ("w", "b")
        names[name] = new.replace("_weight", f"_{end[0]}").replace("_bias", f"_{end[1]}")
    return {names[name]: tensor for name, tensor in state.items()}


def same(converted, expected):
    return converted.keys() == expected.keys() and all(torch.equal(converted[k].tensor, expected[k]) for k in expected)


def test_own_names_are_taken_as_they_are():
    model = detector()
    state = random_state(model)
    extra = {
        "proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(3, 4),
        "pixel_mean": torch.zeros(3, 1, 1),
    }
    converted = convert(WeightsFile("x.pth", state | extra), model)
    assert same(converted, state)
    assert all(item.sources == (name,) and not item.how for name, item in converted.items())
    assert matches(state)


@pytest.mark.parametrize("make_model", [detector, c4_detector, resnet])
@pytest.mark.parametrize("author", ["torchvision", "Caffe2"])
def test_a_bare_backbone_goes_where_detectron2_puts_it(make_model, author):
    model = make_model()
    state = random_state(resnet())
    file = state if author == "torchvision" else as_caffe2(state, scale="gamma", shift="beta")
    extra = {"fc1000.weight": torch.ones(2, 2)} if author == "torchvision" else {"fc1000_w": torch.ones(2, 2)}
    expected = align_and_update_state_dicts(model.state_dict(), file | extra, c2_conversion=author == "Caffe2")
    expected = {name: tensor for name, tensor in expected.items() if "fc1000" not in name}  # it keeps what is left over
    converted = convert(WeightsFile("R-50.pkl", file | extra, {"__author__": author}), model)
    assert len(converted) == len(state)
    assert same(converted, expected)
    assert {source for item in converted.values() for source in item.sources} == set(file)


@pytest.mark.parametrize("metadata", [CAFFE2, {}])
def test_folded_batch_norms_get_detectron2_s_statistics(metadata):
    state = {name: t for name, t in random_state(resnet()).items() if "running" not in name}
    file = as_caffe2(state)
    loaded, detectron2_s = resnet(), resnet()
    converted = convert(WeightsFile("R-50.pkl", file, metadata), loaded)
    loaded.load_state_dict({name: item.tensor for name, item in converted.items()}, strict=True)
    detectron2_s.load_state_dict(align_and_update_state_dicts(detectron2_s.state_dict(), file), strict=False)
    expected = detectron2_s.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    assert "folded" in converted["res2.0.conv1.norm.running_var"].how
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(loaded(image)["res5"], detectron2_s(image)["res5"])


def test_group_norms_are_given_no_statistics():
    file = as_caffe2(random_state(resnet("GN")), norm="gn")
    converted = convert(WeightsFile("R-50-GN.pkl", file, CAFFE2), resnet("GN"))
    assert converted.keys() == resnet("GN").state_dict().keys()
    converted = convert(WeightsFile("R-50-GN.pkl", file, CAFFE2), resnet("FrozenBN"))
    assert not [name for name in converted if "running" in name]


def test_the_longest_suffix_wins_and_ambiguous_names_are_not_used():
    targets = ["a.res2.conv1.w", "a.stem.conv1.w", "a.myconv1.w", "b.0.fc.w", "b.1.fc.w", "fc.x", "c.fc.x"]
    names = {"res2.conv1.w", "conv1.w", "fc.w", "fc.x", "unknown"}
    matched = match_by_suffix(targets, names)
    assert matched == {"a.res2.conv1.w": "res2.conv1.w", "a.stem.conv1.w": "conv1.w", "fc.x": "fc.x"}
    assert match_by_suffix([], names) == {}
    assert match_by_suffix(targets, set()) == {}


@pytest.mark.parametrize(
    "file",
    [
        {"conv1_w": torch.ones(1), "conv1.w": torch.ones(1)},  # both become stem.conv1.weight
        {"conv1_w": torch.ones(1), "fpn_resx_w": torch.ones(1)},
        {"conv1_w": torch.ones(1), "cls_score_b": torch.ones(())},
    ],
)
def test_names_that_are_not_caffe2_s_are_an_error(file):
    with pytest.raises(WeightsError, match=r"odd\.pkl: its names are not those of a Caffe2"):
        convert(WeightsFile("odd.pkl", file, CAFFE2), resnet())


def test_an_empty_file_gives_nothing():
    assert convert(WeightsFile("x.pth", {}), resnet()) == {}
    assert not matches({})


def test_class_names():
    coco = [category["name"] for category in COCO_CATEGORIES if category["isthing"]]
    head = "roi_heads.box_predictor.cls_score.weight"
    zoo = {"__author__": "Detectron2 Model Zoo"}

    def names(key, rows, metadata):
        return class_names(WeightsFile("x", {key: torch.zeros(rows, 4)}, metadata))

    assert len(coco) == 80
    assert names(head, 81, zoo) == coco
    assert names("roi_heads.box_predictor.2.cls_score.weight", 81, zoo) == coco
    assert names("cls_score_w", 81, CAFFE2) == coco
    assert names(head, 9, zoo) is None
    assert names("roi_heads.mask_head.predictor.weight", 80, zoo) is None
    assert names(head, 81, {}) is None
    assert names(head, 81, {"__author__": "someone"}) is None
    assert names(head, 3, {"class_names": ["cell", "nucleus"]}) == ["cell", "nucleus"]
    assert names(head, 81, {"class_names": np.array(coco[::-1]).tolist()}) == coco[::-1]
