"""torchvision's detection weights: every tensor finds its place, the rows of classes their order."""

import pytest
import torch
import torchvision
from detectron2.config import instantiate
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.layers import FrozenBatchNorm2d
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.misc import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

from maskrcnn_plus.backbones import TimmBackbone
from maskrcnn_plus.checkpoints import torchvision as torchvision_format
from maskrcnn_plus.config import get_config
from maskrcnn_plus.weights.conversion import WeightsError, WeightsFile

CLS_SCORE = "roi_heads.box_predictor.cls_score.weight"
BBOX_PRED = "roi_heads.box_predictor.bbox_pred.weight"
MASK_LOGITS = "roi_heads.mask_predictor.mask_fcn_logits.weight"
THINGS = [category for category in COCO_CATEGORIES if category["isthing"]]


def theirs(name="maskrcnn_resnet50_fpn", **arguments):
    """Names and shapes of torchvision's tensors, without memory for them."""
    with torch.device("meta"):
        build = getattr(torchvision.models.detection, name)
        return build(weights=None, weights_backbone=None, **arguments)


def ours(name="zoo/torchvision_mask_rcnn_r50_fpn", **predictor):
    cfg = get_config(name).model
    cfg.roi_heads.box_predictor.update(predictor)
    with torch.device("meta"):
        return instantiate(cfg)


@pytest.fixture(scope="module")
def v1():
    return ours()


@pytest.fixture(scope="module")
def v2():
    return ours("zoo/torchvision_mask_rcnn_r50_fpn_v2")


@pytest.fixture(scope="module")
def without_unused():
    """The model of v1 that does not keep the unused classes."""
    return ours(num_unused_classes=0)


def convert(tensors, model, path="model.pth"):
    return torchvision_format.convert(WeightsFile(path, tensors), model)


def rows(num, per_class=1):
    """A tensor whose rows say which they are."""
    return torch.arange(float(num * per_class))[:, None]


@pytest.mark.parametrize("version", ["", "_v2"])
def test_every_tensor_finds_its_place(version, v1, v2):
    model = v2 if version else v1
    source = theirs(f"maskrcnn_resnet50_fpn{version}").state_dict()
    assert torchvision_format.matches(source)
    converted = convert(source, model)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: each.tensor.shape for name, each in converted.items()} == shapes
    used = [name for each in converted.values() for name in each.sources]
    assert len(used) == len(set(used))
    left = set(source) - set(used)
    assert all(name.endswith("num_batches_tracked") for name in left)  # Detectron2's frozen batch norm has none
    changed = {name for name, each in converted.items() if each.how}
    heads = ("cls_score", "bbox_pred", "mask_head.predictor")
    assert changed == {name for name in converted if any(head in name for head in heads)}


def test_names_of_older_torchvisions(v1):
    network = theirs()
    source = network.state_dict()
    older = {"rpn.head.conv.0.0.": "rpn.head.conv."}
    older |= {f"{kind}_blocks.{i}.0.": f"{kind}_blocks.{i}." for kind in ("inner", "layer") for i in range(4)}
    older |= {f"mask_head.{i}.0.": f"mask_head.mask_fcn{i + 1}." for i in range(4)}
    old_names = {}
    for name in source:
        new_part = next((part for part in older if part in name), None)
        old_names[name.replace(new_part, older[new_part]) if new_part else name] = name
    assert sum(old != new for old, new in old_names.items()) == 2 * len(older)
    old = {name: source[new] for name, new in old_names.items()}
    assert network.load_state_dict(old) == nn.modules.module._IncompatibleKeys([], [])  # torchvision knows them too
    assert torchvision_format.matches(old)
    targets = {each.sources: name for name, each in convert(source, v1).items()}
    assert {(old_names[each.sources[0]],): name for name, each in convert(old, v1).items()} == targets


def test_rows_of_coco_go_by_category_id(v1):
    source = {CLS_SCORE: rows(91), BBOX_PRED: rows(91, 4), MASK_LOGITS: rows(91)[..., None, None]}
    converted = convert(source, v1)
    ids = [category["id"] for category in THINGS]
    scores = converted["roi_heads.box_predictor.cls_score.weight"]
    assert scores.tensor[:, 0].tolist()[:81] == [*ids, 0]
    assert sorted(scores.tensor[81:, 0].tolist()) == sorted(set(range(1, 91)) - set(ids))
    deltas = converted["roi_heads.box_predictor.bbox_pred.weight"]
    assert deltas.tensor[:, 0].tolist() == [4 * row + k for row in ids for k in range(4)]
    masks = converted["roi_heads.mask_head.predictor.weight"]
    assert masks.tensor.shape == (80, 1, 1, 1)
    assert masks.tensor.flatten().tolist() == ids
    assert "10 unused classes behind it" in scores.how
    assert deltas.how == masks.how == "rows of the background and of 10 unused classes dropped"
    names = torchvision_format.class_names(WeightsFile("model.pth", source))
    assert names == [category["name"] for category in THINGS]


def test_unused_classes_are_dropped_where_the_model_has_none(without_unused):
    scores = convert({CLS_SCORE: rows(91)}, without_unused)["roi_heads.box_predictor.cls_score.weight"]
    assert scores.tensor[:, 0].tolist() == [*[category["id"] for category in THINGS], 0]
    assert "10 unused classes dropped" in scores.how


@pytest.mark.parametrize("num_classes", [2, 5, 90])
def test_other_numbers_of_classes_are_a_background_and_classes(v1, num_classes):
    bias = CLS_SCORE.replace("weight", "bias")
    source = {
        CLS_SCORE: rows(num_classes),
        bias: rows(num_classes)[:, 0],
        BBOX_PRED: rows(num_classes, 4),
        MASK_LOGITS: rows(num_classes)[..., None, None],
    }
    converted = convert(source, v1)
    order = [*range(1, num_classes), 0]
    assert converted["roi_heads.box_predictor.cls_score.weight"].tensor[:, 0].tolist() == order
    assert converted["roi_heads.box_predictor.cls_score.bias"].tensor.tolist() == order
    deltas = converted["roi_heads.box_predictor.bbox_pred.weight"].tensor[:, 0]
    assert deltas.tolist() == list(range(4, 4 * num_classes))
    assert converted["roi_heads.mask_head.predictor.weight"].tensor.flatten().tolist() == order[:-1]
    assert torchvision_format.class_names(WeightsFile("model.pth", source)) is None


@pytest.mark.parametrize(
    ("name", "tensor"),
    [(BBOX_PRED, rows(10)), (BBOX_PRED, rows(4)), (CLS_SCORE, rows(1)), (MASK_LOGITS, rows(1)[0, 0])],
)
def test_rows_that_cannot_be_are_refused(v1, name, tensor):
    with pytest.raises(WeightsError, match=rf"/tmp/bad.pth: {name} is .* for the background and as many for each"):
        convert({name: tensor}, v1, "/tmp/bad.pth")


def test_a_faster_rcnn_loads_all_but_the_mask_head(v1):
    with torch.device("meta"):
        source = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    converted = convert(source, v1)
    assert torchvision_format.matches(source)
    missing = set(v1.state_dict()) - set(converted)
    assert missing == {name for name in v1.state_dict() if name.startswith("roi_heads.mask_head.")}


def test_unknown_tensors_are_left_over(v1):
    source = {
        **theirs("keypointrcnn_resnet50_fpn").state_dict(),
        "rpn.head.extra.weight": torch.zeros(1),
        "backbone.fpn.extra_blocks.p6.weight": torch.zeros(1),
        "backbone.body.layer9.0.conv1.weight": torch.zeros(1),
        "backbone.body.0.0.weight": torch.zeros(1),
        "roi_heads.box_head.0.0.weight": torch.zeros(1),
    }
    used = {name for each in convert(source, v1).values() for name in each.sources}
    left = set(source) - used
    assert {"rpn.head.extra.weight", "backbone.body.layer9.0.conv1.weight", "backbone.body.0.0.weight"} <= left
    assert any("keypoint" in name for name in left)
    assert set(convert(source, v1)) <= set(v1.state_dict())


def test_only_torchvisions_detectors_match():
    assert torchvision_format.matches(theirs("fasterrcnn_mobilenet_v3_large_fpn").state_dict())
    assert not torchvision_format.matches(torchvision.models.resnet18().state_dict())
    assert not torchvision_format.matches(theirs("retinanet_resnet50_fpn").state_dict())
    assert not torchvision_format.matches(["backbone.bottom_up.stem.conv1.weight", "roi_heads.box_head.fc1.weight"])
    assert not torchvision_format.matches(["backbone.layer1.0.conv1.weight", "rpn_head.rpn_conv.weight"])
    assert not torchvision_format.matches([])


class OneNorm(nn.Module):
    """A model with no more than the first norm of a ResNet."""

    def __init__(self, norm):
        super().__init__()
        place = self
        for name in ("backbone", "bottom_up", "stem", "conv1"):
            place.add_module(name, nn.Module())
            place = getattr(place, name)
        place.norm = norm


@pytest.mark.parametrize(
    ("file", "eps"),
    [
        ("maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth", 0.0),
        ("fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", 0.0),
        ("maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth", 1e-5),
        ("my_maskrcnn.pth", 1e-5),
    ],
)
@pytest.mark.parametrize("model_eps", [1e-5, 1e-3])
def test_frozen_norms_compute_the_same_with_another_eps(file, eps, model_eps):
    """Also where a channel hardly varied, far less than the eps."""
    random = torch.Generator().manual_seed(0)
    source = TorchvisionFrozenBatchNorm2d(60, eps=eps)
    source.running_var.copy_(torch.logspace(-14, 3, 60))
    source.running_mean.normal_(generator=random).mul_(source.running_var.sqrt())
    source.weight.normal_(generator=random)
    source.bias.normal_(generator=random)
    names = {f"backbone.body.bn1.{name}": tensor for name, tensor in source.state_dict().items()}
    norm = FrozenBatchNorm2d(60, eps=model_eps)
    model = OneNorm(norm)
    converted = convert(names, model, f"/somewhere/{file}")
    place = "backbone.bottom_up.stem.conv1.norm."
    model.load_state_dict({name: each.tensor for name, each in converted.items()}, strict=False)
    assert {name.removeprefix(place) for name in converted} == {"weight", "bias", "running_mean", "running_var"}
    pixels = torch.randn(2, 60, 3, 3, generator=random) * source.running_var.sqrt()[:, None, None] * 3
    expected = source(pixels)
    assert expected.isfinite().all()
    assert torch.allclose(norm(pixels), expected, rtol=1e-5, atol=1e-5)
    how = converted[place + "weight"].how
    assert (how == "") == (eps == model_eps)
    assert eps == model_eps or f"eps {model_eps:g} to the variance and the file's {eps:g}" in how


def test_a_body_goes_into_timms_resnet():
    torch.manual_seed(0)
    reference = resnet_fpn_backbone(backbone_name="resnet18", weights=None).eval()
    for name, buffer in reference.body.named_buffers():
        if "running_var" in name or ("bn" in name and name.endswith("weight")):
            buffer.uniform_(0.5, 1.5)
    model = nn.Module()
    model.backbone = nn.Module()
    model.backbone.bottom_up = TimmBackbone("resnet18", norm="FrozenBN")
    converted = convert({f"backbone.{name}": tensor for name, tensor in reference.state_dict().items()}, model)
    missing, unexpected = model.load_state_dict({name: each.tensor for name, each in converted.items()}, strict=False)
    assert not unexpected
    # Detectron2's head keeps the counters of the norms that it freezes.
    assert all(name.endswith("num_batches_tracked") for name in missing)
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected, features = reference.body(image), model.backbone.bottom_up.eval()(image)
    for feature, name in zip(features.values(), expected, strict=True):
        assert torch.allclose(feature, expected[name], rtol=1e-4, atol=1e-5)


def test_fine_tuning_keeps_everything_below_the_classes():
    model = ours("nuclei/mask_rcnn_r50_fpn_torchvision")
    converted = convert(theirs().state_dict(), model)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    other = {name.rpartition(".")[0] for name, shape in shapes.items() if converted[name].tensor.shape != shape}
    heads = {"roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred", "roi_heads.mask_head.predictor"}
    assert other == heads
