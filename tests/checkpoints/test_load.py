"""load_weights: every tensor is accounted for, rows of classes go by name, and the same model is loaded whole."""

import pytest
import torch
from tiny_detector import assert_unchanged, copy_tensors, make_model, save
from torch import nn

from maskrcnn_plus.checkpoints import Checkpointer, WeightsError, load_weights, read_classes
from maskrcnn_plus.data import Classes

CLASSES = ["Cat", "dog", "owl"]


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
    source, model = make_model(seed=1), make_model(seed=2)
    report = load_weights(model, save(source, tmp_path / "w.pth"), strict=True)
    assert_unchanged(model, source.state_dict())
    _assert_partition(report, model, source.state_dict())
    assert (report.fraction, report.tensor_fraction, report.incomplete, report.left_over) == (1, 1, [], [])
    assert len(str(report).splitlines()) == 1


def test_every_tensor_is_reported_when_heads_and_anchors_differ(tmp_path):
    source, model = make_model(num_classes=5, seed=1), make_model(num_classes=3, seed=2)
    weights = copy_tensors(source)
    weights["extra.weight"] = torch.ones(2)
    del weights["roi_heads.mask_head.mask_fcn2.bias"]
    before = copy_tensors(model)
    report = load_weights(model, save(weights, tmp_path / "w.pth"))
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
    source, model = make_model(num_classes=4, seed=1), make_model(num_classes=3, seed=2)
    path = save(source, tmp_path / "w.pth", class_names=["owl", "bee", "CAT", "fly"])
    report = load_weights(model, path, class_names=CLASSES)
    _assert_partition(report, model, source.state_dict())
    stored, now = source.state_dict(), model.state_dict()
    name = "roi_heads.box_predictor.cls_score.weight"
    assert torch.equal(now[name][[0, 2, 3]], stored[name][[2, 0, 4]])
    torch.testing.assert_close(now[name][1], stored[name][:4].mean(dim=0))
    assert "2 of 3 classes by name; kept: Cat, owl; new, from the mean of the file's: dog" in report.rows[name]
    assert len(report.rows) == 6


@pytest.mark.parametrize("strict", [False, True])
def test_classes_in_another_order_are_put_in_the_models(tmp_path, strict):
    source, model = make_model(seed=1), make_model(seed=2)
    path = save(source, tmp_path / "w.pth", class_names=["owl", "cat", "dog"])
    report = load_weights(model, path, class_names=CLASSES, strict=strict)
    name = "roi_heads.mask_head.predictor.weight"
    assert torch.equal(model.state_dict()[name], source.state_dict()[name][[1, 2, 0]])
    assert "order" in report.transformed[name]
    assert not report.incomplete


def test_classes_of_other_names_are_taken_by_position_for_prediction_with_a_warning(tmp_path, caplog):
    source, model = make_model(seed=1), make_model(seed=2)
    path = save(source, tmp_path / "w.pth", class_names=["Katze", "Hund", "Eule"])
    load_weights(model, path, class_names=CLASSES, strict=True)
    assert_unchanged(model, source.state_dict())
    assert "Katze, Hund, Eule" in caplog.text
    with pytest.raises(ValueError, match=r"2 class names .* 3 classes"):
        load_weights(model, path, class_names=CLASSES[:2])


@pytest.mark.parametrize(("there", "refused"), [(["cat", "wolf", "owl"], False), (["owl", "cat", "bee"], True)])
def test_prediction_refuses_classes_of_which_some_are_at_other_places(tmp_path, there, refused):
    """Renamed ones are taken by position, as above; these would be read as other classes."""
    source, model = make_model(seed=1), make_model(seed=2)
    path, before = save(source, tmp_path / "w.pth", class_names=there), copy_tensors(model)
    if refused:
        with pytest.raises(WeightsError, match=r"owl, cat, bee.*Cat, dog, owl"):
            load_weights(model, path, class_names=CLASSES, strict=True)
        assert_unchanged(model, before)
    else:
        load_weights(model, path, class_names=CLASSES, strict=True)
        assert_unchanged(model, source.state_dict())


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
    assert read_classes(save(make_model(), tmp_path / "w.pth", **metadata)) == expected


def test_averaged_weights_are_preferred(tmp_path):
    model = nn.Linear(2, 2)
    average = torch.optim.swa_utils.AveragedModel(model)
    with torch.no_grad():
        average.module.weight.fill_(7)
    torch.save({"model": model.state_dict(), "ema": average.state_dict()}, tmp_path / "w.pth")
    load_weights(model, str(tmp_path / "w.pth"), strict=True)
    assert torch.equal(model.weight, torch.full((2, 2), 7.0))


def test_our_checkpoints_carry_the_class_names(tmp_path):
    source, model = make_model(seed=1), make_model(num_classes=2, seed=2)
    Checkpointer(source, str(tmp_path), class_names=CLASSES).save("w")
    report = load_weights(model, str(tmp_path / "w.pth"), class_names=["owl", "cat"])
    name = "roi_heads.box_predictor.bbox_pred.bias"
    assert torch.equal(model.state_dict()[name], source.state_dict()[name][[8, 9, 10, 11, 0, 1, 2, 3]])
    assert name in report.transformed
