"""load_weights refuses too little or contradictory weights with the cause, and a failure changes nothing."""

import copy

import pytest
import torch
from tiny_detector import assert_unchanged, copy_tensors, make_model, save
from torch import nn

from maskrcnn_plus.checkpoints import WeightsError, load_weights
from maskrcnn_plus.checkpoints.mismatch import find_contradiction
from maskrcnn_plus.checkpoints.report import LoadReport, grouped


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
    model, weights = make_model(seed=2, **of_model), copy_tensors(make_model(seed=1, **of_file))
    path = save(change(weights) if change else weights, tmp_path / "w.pth")
    before = copy_tensors(model)
    for strict in (False, True):
        with pytest.raises(WeightsError, match=rf"w\.pth does not fit the model: .*({pattern})"):
            load_weights(model, path, strict=strict)
        assert_unchanged(model, before)
    if case == "nothing":
        with pytest.raises(WeightsError, match="none of its names"):
            load_weights(model, path, allow_partial=True)
    else:
        report = load_weights(model, path, allow_partial=True)
        assert report.loaded
        for name in report.loaded:
            assert torch.equal(model.state_dict()[name], weights[name])


def test_the_rule_of_95_percent_counts_numbers_outside_the_heads(tmp_path):
    model, weights = make_model(seed=2), copy_tensors(make_model(seed=1))
    outside = {name: tensor.numel() for name, tensor in weights.items() if not name.startswith("roi_heads.")}
    # One tensor of more, or of less, than a twentieth of all numbers.
    large = max(outside, key=outside.get)
    small = "backbone.bottom_up.stem.conv1.norm.weight"
    for name, allowed in ((large, False), (small, True)):
        path = save({n: t for n, t in weights.items() if n != name}, tmp_path / "w.pth")
        share = 1 - outside[name] / sum(outside.values())
        assert (share >= 0.95) == allowed
        report = load_weights(model, path, allow_partial=not allowed)
        assert report.fraction == pytest.approx(share)
        assert report.missing == [name]
        if not allowed:
            with pytest.raises(WeightsError, match="95%"):
                load_weights(model, path)
    path = save({n: t for n, t in weights.items() if not n.startswith("roi_heads.")}, tmp_path / "w.pth")
    assert load_weights(model, path).fraction == 1


@pytest.mark.parametrize("prefix", ["", "bottom_up.", "backbone.bottom_up."])
def test_a_bare_backbone_is_measured_by_the_backbone(tmp_path, prefix):
    source, model = make_model(seed=1), make_model(seed=2)
    weights = {prefix + name: tensor for name, tensor in source.backbone.bottom_up.state_dict().items()}
    report = load_weights(model, save(weights, tmp_path / "w.pth"))
    assert report.fraction == 1
    assert_unchanged(model.backbone.bottom_up, source.backbone.bottom_up.state_dict())
    with pytest.raises(WeightsError, match="backbone or a classification network only"):
        load_weights(model, str(tmp_path / "w.pth"), strict=True)
    del weights[f"{prefix}res3.0.conv2.weight"]
    with pytest.raises(WeightsError, match="95%"):
        load_weights(model, save(weights, tmp_path / "w.pth"))


def test_counters_and_index_tables_may_be_missing(tmp_path):
    class Indexed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)
            self.register_buffer("relative_position_index", torch.arange(4))

    model = Indexed()
    weights = {name: tensor + 1 for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    report = load_weights(model, save(weights, tmp_path / "w.pth"), strict=True)
    assert sorted(report.own) == ["norm.num_batches_tracked", "relative_position_index"]
    assert torch.equal(model.norm.running_var, torch.full((3,), 2.0))
    assert torch.equal(model.relative_position_index, torch.arange(4))


@pytest.mark.parametrize(
    ("dtype", "value", "problem"),
    [
        (torch.float16, 1e5, "too large"),
        (torch.float32, 1e300, "too large"),
        (torch.float32, float("nan"), "NaN"),
        (torch.float32, float("-inf"), "infinite numbers"),
    ],
)
def test_numbers_that_the_model_cannot_hold_are_an_error_and_change_nothing(tmp_path, dtype, value, problem):
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)).to(dtype)
    weights = {name: torch.full(t.shape, 2.0, dtype=torch.float64) for name, t in model.state_dict().items()}
    weights["1.bias"][1] = value
    before = copy_tensors(model)
    with pytest.raises(WeightsError, match=rf"w\.pth: .*1\.bias.*{problem}|w\.pth: 1\.bias holds {problem}"):
        load_weights(model, save(weights, tmp_path / "w.pth"))
    assert_unchanged(model, before)
    weights["1.bias"][1] = 3.0
    load_weights(model, save(weights, tmp_path / "w.pth"), strict=True)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {dtype}
    assert model[1].bias.tolist() == [2.0, 3.0]


def test_infinities_of_the_models_own_are_taken(tmp_path):
    model = nn.Linear(2, 3)
    model.register_buffer("causal_mask", torch.full((3, 3), float("-inf")).triu(1))
    weights = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    load_weights(model, save(weights, tmp_path / "w.pth"), strict=True)
    assert torch.equal(model.weight, weights["weight"])


def test_a_deeper_mask_head_is_refused_for_prediction_only(tmp_path):
    model, weights = make_model(seed=2), copy_tensors(make_model(seed=1))
    weights["roi_heads.mask_head.mask_fcn4.weight"] = torch.ones(8, 8, 3, 3)
    path = save(weights, tmp_path / "w.pth")
    assert load_weights(model, path).left_over == ["roi_heads.mask_head.mask_fcn4.weight"]
    with pytest.raises(WeightsError, match=r"layers that the model lacks \(roi_heads\.mask_head\.mask_fcn4\.weight\)"):
        load_weights(model, path, strict=True)


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
