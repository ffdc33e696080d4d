"""load_weights: every tensor is accounted for, too little or contradictory weights are refused, and a failure changes
nothing."""

import copy

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import nn

from maskrcnn_plus.checkpoints import Checkpointer, WeightsError, load_weights, read_classes
from maskrcnn_plus.checkpoints.mismatch import find_contradiction
from maskrcnn_plus.checkpoints.report import LoadReport, grouped
from maskrcnn_plus.config import detectron2_config
from maskrcnn_plus.data import Classes

CLASSES = ["Cat", "dog", "owl"]


def _resnet(blocks=(1, 2), width=8, norm="FrozenBN"):
    stages, channels = [], width
    for index, count in enumerate(blocks):
        options = dict(num_groups=1, norm=norm, bottleneck_channels=width)
        stride = [1 if index == 0 else 2] + [1] * (count - 1)
        stages.append(
            ResNet.make_stage(
                BottleneckBlock,
                count,
                stride_per_block=stride,
                in_channels=channels,
                out_channels=2 * width,
                **options,
            )
        )
        channels = 2 * width
    return ResNet(BasicStem(3, width, norm), stages, out_features=["res2", "res3"])


def _model(num_classes=3, *, seed=0, channels=8, fpn_norm="", **backbone):
    """A tiny Mask R-CNN of Detectron2's parts, every number of it random."""
    cfg = detectron2_config("common/models/mask_rcnn_fpn.py").model
    cfg.backbone.bottom_up = L(_resnet)(**backbone)
    cfg.backbone.in_features = ["res2", "res3"]
    cfg.backbone.out_channels = channels
    cfg.backbone.norm = fpn_norm
    cfg.backbone.top_block = None
    cfg.proposal_generator.in_features = ["p2", "p3"]
    cfg.proposal_generator.head.in_channels = channels
    cfg.proposal_generator.anchor_generator.sizes = [[32], [64]]
    cfg.proposal_generator.anchor_generator.strides = [4, 8]
    heads = cfg.roi_heads
    heads.num_classes = num_classes
    heads.box_in_features = heads.mask_in_features = ["p2", "p3"]
    heads.box_pooler.scales = heads.mask_pooler.scales = [1 / 4, 1 / 8]
    heads.box_head.input_shape = L(ShapeSpec)(channels=channels, height=7, width=7)
    heads.box_head.fc_dims = [16, 16]
    heads.box_predictor.input_shape = L(ShapeSpec)(channels=16)
    heads.mask_head.input_shape = L(ShapeSpec)(channels=channels, width=14, height=14)
    heads.mask_head.conv_dims = [8, 8, 8]
    model = instantiate(cfg)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


def _save(model, path, **metadata):
    torch.save({"model": model if isinstance(model, dict) else model.state_dict(), **metadata}, path)
    return str(path)


def _copy(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _assert_unchanged(model, before):
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def _assert_partition(report, model, file_names):
    """Every tensor of the model and of the file is in the report once."""
    of_model = [
        *report.loaded,
        *report.transformed,
        *report.rows,
        *report.other_shape,
        *report.missing,
        *report.own,
    ]
    assert sorted(of_model) == sorted(model.state_dict())
    assert sorted([*report.used, *report.left_over]) == sorted(file_names)
    table = report.table().splitlines()
    for name in of_model:
        assert any(line.startswith(f"  {name} ") for line in table), name


def test_the_same_model_is_loaded_whole_and_bit_for_bit(tmp_path):
    source, model = _model(seed=1), _model(seed=2)
    report = load_weights(model, _save(source, tmp_path / "w.pth"), strict=True)
    _assert_unchanged(model, source.state_dict())
    _assert_partition(report, model, source.state_dict())
    assert (report.fraction, report.tensor_fraction, report.incomplete, report.left_over) == (1, 1, [], [])
    assert len(str(report).splitlines()) == 1


def test_every_tensor_is_reported_when_heads_and_anchors_differ(tmp_path):
    source, model = _model(num_classes=5, seed=1), _model(num_classes=3, seed=2)
    weights = _copy(source)
    weights["extra.weight"] = torch.ones(2)
    del weights["roi_heads.mask_head.mask_fcn2.bias"]
    before = _copy(model)
    report = load_weights(model, _save(weights, tmp_path / "w.pth"))
    _assert_partition(report, model, weights)
    assert report.other_shape["roi_heads.box_predictor.cls_score.weight"] == ((6, 16), (4, 16))
    assert report.missing == ["roi_heads.mask_head.mask_fcn2.bias"]
    assert set(report.left_over) == {"extra.weight", *report.other_shape}
    assert report.fraction == 1
    for name, tensor in model.state_dict().items():
        expected = weights if name in report.loaded else before
        assert torch.equal(tensor, expected[name]), name
    summary = str(report)
    assert "of another shape" in summary
    assert "extra.weight" in summary
    assert len(summary.splitlines()) < 6
    with pytest.raises(WeightsError, match="every tensor of the model"):
        load_weights(model, str(tmp_path / "w.pth"), strict=True)


def test_rows_of_classes_go_by_name(tmp_path):
    source, model = _model(num_classes=4, seed=1), _model(num_classes=3, seed=2)
    path = _save(source, tmp_path / "w.pth", class_names=["owl", "bee", "CAT", "fly"])
    before = _copy(model)
    report = load_weights(model, path, class_names=CLASSES)
    _assert_partition(report, model, source.state_dict())
    stored, now = source.state_dict(), model.state_dict()
    name = "roi_heads.box_predictor.cls_score.weight"
    assert torch.equal(now[name][[0, 2, 3]], stored[name][[2, 0, 4]])
    assert torch.equal(now[name][1], before[name][1])
    assert "2 of 3 classes by name; kept: Cat, owl; initialised anew: dog" in report.rows[name]
    assert len(report.rows) == 6


@pytest.mark.parametrize("strict", [False, True])
def test_classes_in_another_order_are_put_in_the_models(tmp_path, strict):
    source, model = _model(seed=1), _model(seed=2)
    path = _save(source, tmp_path / "w.pth", class_names=["owl", "cat", "dog"])
    report = load_weights(model, path, class_names=CLASSES, strict=strict)
    name = "roi_heads.mask_head.predictor.weight"
    assert torch.equal(model.state_dict()[name], source.state_dict()[name][[1, 2, 0]])
    assert "order" in report.transformed[name]
    assert not report.incomplete


def test_classes_of_other_names_are_taken_by_position_for_prediction_with_a_warning(tmp_path, caplog):
    source, model = _model(seed=1), _model(seed=2)
    path = _save(source, tmp_path / "w.pth", class_names=["Katze", "Hund", "Eule"])
    load_weights(model, path, class_names=CLASSES, strict=True)
    _assert_unchanged(model, source.state_dict())
    assert "Katze, Hund, Eule" in caplog.text
    with pytest.raises(ValueError, match=r"2 class names .* 3 classes"):
        load_weights(model, path, class_names=CLASSES[:2])


@pytest.mark.parametrize(("there", "refused"), [(["cat", "wolf", "owl"], False), (["owl", "cat", "bee"], True)])
def test_prediction_refuses_classes_of_which_some_are_at_other_places(tmp_path, there, refused):
    """Renamed ones are taken by position, as above; these would be read as other classes."""
    source, model = _model(seed=1), _model(seed=2)
    path, before = _save(source, tmp_path / "w.pth", class_names=there), _copy(model)
    if refused:
        with pytest.raises(WeightsError, match=r"owl, cat, bee.*Cat, dog, owl"):
            load_weights(model, path, class_names=CLASSES, strict=True)
        _assert_unchanged(model, before)
    else:
        load_weights(model, path, class_names=CLASSES, strict=True)
        _assert_unchanged(model, source.state_dict())


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, None),
        ({"class_names": ["a", "b"]}, Classes(["a", "b"])),
        ({"class_names": ["a", "b"], "category_ids": [7, "x"]}, Classes(["a", "b"], [7, "x"])),
        ({"class_names": ["a", "b"], "category_ids": [7]}, Classes(["a", "b"])),
        ({"class_names": ["a", "b"], "category_ids": {"a": 1}}, Classes(["a", "b"])),
        ({"class_names": ["a", "b"], "category_ids": [[], None]}, Classes(["a", "b"])),
    ],
)
def test_classes_of_a_file(tmp_path, metadata, expected):
    assert read_classes(_save(_model(), tmp_path / "w.pth", **metadata)) == expected


def _without(prefix):
    return lambda weights: {name: tensor for name, tensor in weights.items() if not name.startswith(prefix)}


MISFITS = {
    "shallower": (dict(blocks=(1, 4)), dict(blocks=(1, 2)), None, r"shallower .*res3"),
    "deeper": (dict(blocks=(1, 2)), dict(blocks=(1, 4)), None, r"layers that the model lacks \(.*res3.*deeper"),
    "wider": (dict(width=8), dict(width=16), None, r"wider, narrower .*\[16, 3, 7, 7\] in the file and \[8, 3, 7, 7\]"),
    "no pyramid": ({}, {}, _without("backbone.fpn"), "no feature pyramid"),
    "other pyramid": (dict(channels=8), dict(channels=12), None, r"other channels.*fpn_"),
    "norm in the pyramid": (dict(channels=32, fpn_norm="GN"), dict(channels=32), None, "norms are of another kind"),
    "no norm in the pyramid": ({}, dict(fpn_norm="BN"), None, "norms where the model has none"),
    "group norm": (dict(width=32), dict(width=32, norm="GN"), None, r"norms are of another kind"),
    "batch norm": (dict(width=32, norm="GN"), dict(width=32, norm="BN"), None, "batch norms with running statistics"),
    "nothing": ({}, {}, lambda weights: {"a.weight": torch.ones(1)}, r"none of its names .* a\.weight"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_misfits_are_refused_with_the_cause_and_change_nothing(tmp_path, case):
    of_model, of_file, change, pattern = MISFITS[case]
    model, weights = _model(seed=2, **of_model), _copy(_model(seed=1, **of_file))
    path = _save(change(weights) if change else weights, tmp_path / "w.pth")
    before = _copy(model)
    for strict in (False, True):
        with pytest.raises(WeightsError, match=rf"w\.pth does not fit the model: .*({pattern})"):
            load_weights(model, path, strict=strict)
        _assert_unchanged(model, before)
    if case == "nothing":
        with pytest.raises(WeightsError, match="none of its names"):
            load_weights(model, path, allow_partial=True)
    else:
        report = load_weights(model, path, allow_partial=True)
        assert report.loaded
        for name in report.loaded:
            assert torch.equal(model.state_dict()[name], weights[name])


def test_the_rule_of_95_percent_counts_numbers_outside_the_heads(tmp_path):
    model, weights = _model(seed=2), _copy(_model(seed=1))
    outside = {name: tensor.numel() for name, tensor in weights.items() if not name.startswith("roi_heads.")}
    # One tensor of more, or of less, than a twentieth of all numbers.
    large = max(outside, key=outside.get)
    small = "backbone.bottom_up.stem.conv1.norm.weight"
    for name, allowed in ((large, False), (small, True)):
        path = _save({n: t for n, t in weights.items() if n != name}, tmp_path / "w.pth")
        share = 1 - outside[name] / sum(outside.values())
        assert (share >= 0.95) == allowed
        report = load_weights(model, path, allow_partial=not allowed)
        assert report.fraction == pytest.approx(share)
        assert report.missing == [name]
        if not allowed:
            with pytest.raises(WeightsError, match="95%"):
                load_weights(model, path)
    path = _save({n: t for n, t in weights.items() if not n.startswith("roi_heads.")}, tmp_path / "w.pth")
    assert load_weights(model, path).fraction == 1


@pytest.mark.parametrize("prefix", ["", "bottom_up.", "backbone.bottom_up."])
def test_a_bare_backbone_is_measured_by_the_backbone(tmp_path, prefix):
    source, model = _model(seed=1), _model(seed=2)
    weights = {prefix + name: tensor for name, tensor in source.backbone.bottom_up.state_dict().items()}
    report = load_weights(model, _save(weights, tmp_path / "w.pth"))
    assert report.fraction == 1
    _assert_unchanged(model.backbone.bottom_up, source.backbone.bottom_up.state_dict())
    with pytest.raises(WeightsError, match="backbone or a classification network only"):
        load_weights(model, str(tmp_path / "w.pth"), strict=True)
    del weights[f"{prefix}res3.0.conv2.weight"]
    with pytest.raises(WeightsError, match="95%"):
        load_weights(model, _save(weights, tmp_path / "w.pth"))


def test_counters_and_index_tables_may_be_missing(tmp_path):
    class Indexed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)
            self.register_buffer("relative_position_index", torch.arange(4))

    model = Indexed()
    weights = {name: tensor + 1 for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    report = load_weights(model, _save(weights, tmp_path / "w.pth"), strict=True)
    assert sorted(report.own) == ["norm.num_batches_tracked", "relative_position_index"]
    assert torch.equal(model.norm.running_var, torch.full((3,), 2.0))
    assert torch.equal(model.relative_position_index, torch.arange(4))


@pytest.mark.parametrize(
    ("dtype", "value", "problem"),
    [(torch.float16, 1e5, "too large"), (torch.float32, 1e300, "too large"), (torch.float32, float("nan"), "NaN")],
)
def test_numbers_that_the_model_cannot_hold_are_an_error_and_change_nothing(tmp_path, dtype, value, problem):
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)).to(dtype)
    weights = {name: torch.full(t.shape, 2.0, dtype=torch.float64) for name, t in model.state_dict().items()}
    weights["1.bias"][1] = value
    before = _copy(model)
    with pytest.raises(WeightsError, match=rf"w\.pth: .*1\.bias.*{problem}|w\.pth: 1\.bias holds {problem}"):
        load_weights(model, _save(weights, tmp_path / "w.pth"))
    _assert_unchanged(model, before)
    weights["1.bias"][1] = 3.0
    load_weights(model, _save(weights, tmp_path / "w.pth"), strict=True)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {dtype}
    assert model[1].bias.tolist() == [2.0, 3.0]


def test_a_deeper_mask_head_is_refused_for_prediction_only(tmp_path):
    model, weights = _model(seed=2), _copy(_model(seed=1))
    weights["roi_heads.mask_head.mask_fcn4.weight"] = torch.ones(8, 8, 3, 3)
    path = _save(weights, tmp_path / "w.pth")
    assert load_weights(model, path).left_over == ["roi_heads.mask_head.mask_fcn4.weight"]
    with pytest.raises(WeightsError, match=r"layers that the model lacks \(roi_heads\.mask_head\.mask_fcn4\.weight\)"):
        load_weights(model, path, strict=True)


def test_averaged_weights_are_preferred(tmp_path):
    model = nn.Linear(2, 2)
    average = torch.optim.swa_utils.AveragedModel(model)
    with torch.no_grad():
        average.module.weight.fill_(7)
    torch.save({"model": model.state_dict(), "ema": average.state_dict()}, tmp_path / "w.pth")
    load_weights(model, str(tmp_path / "w.pth"), strict=True)
    assert torch.equal(model.weight, torch.full((2, 2), 7.0))


def test_our_checkpoints_carry_the_class_names(tmp_path):
    source, model = _model(seed=1), _model(num_classes=2, seed=2)
    Checkpointer(source, str(tmp_path), class_names=CLASSES).save("w")
    report = load_weights(model, str(tmp_path / "w.pth"), class_names=["owl", "cat"])
    name = "roi_heads.box_predictor.bbox_pred.bias"
    assert torch.equal(model.state_dict()[name], source.state_dict()[name][[8, 9, 10, 11, 0, 1, 2, 3]])
    assert name in report.transformed


def test_numbered_layers_without_a_counterpart_are_no_contradiction(tmp_path):
    report = LoadReport(
        "w.pth", "x", left_over=["layer4.0.conv1.weight", "fc.weight", "layer1.0.bn1.num_batches_tracked"]
    )
    converted = {"backbone.res2.0.conv1.norm.weight": copy.copy(_Item(("layer1.0.bn1.weight",)))}
    assert find_contradiction(report, converted, bare_backbone=True, with_heads=True) == ""
    assert "layer4" in find_contradiction(report, converted, bare_backbone=False, with_heads=True)


class _Item:
    def __init__(self, sources):
        self.sources = sources


def test_names_are_grouped_to_a_short_list():
    names = [f"backbone.res{stage}.{block}.weight" for stage in (2, 3) for block in range(50)] + ["head.bias"]
    assert grouped(names, 3) == "backbone.res2 (50), backbone.res3 (50), head.bias"
    assert grouped([f"m{k}.weight" for k in range(9)], 2) == "m0.weight, m1.weight, ..."
    assert grouped([]) == ""
