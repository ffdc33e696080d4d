"""Rows of class heads: by name, against a written-out loop; other heads are left alone."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, FastRCNNOutputLayers, KRCNNConvDeconvUpsampleHead
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from torch import nn

from maskrcnn_plus.checkpoints import classes
from maskrcnn_plus.mask_heads import BoundaryMaskHead, MaskIoUHead, MaskScoringHead

FILE, MODEL = ["person", "Dog", "cell", "cat"], ["cat", "nucleus", "DOG "]
CLS, BOX, MASK = (
    "roi_heads.box_predictor.cls_score.weight",
    "roi_heads.box_predictor.bbox_pred.bias",
    "roi_heads.mask_head.predictor.weight",
)


SHAPE = ShapeSpec(channels=2, height=4, width=4)


def _predictor():
    return FastRCNNOutputLayers(SHAPE, box2box_transform=Box2BoxTransform((1, 1, 1, 1)), num_classes=2)


def _model(box_predictor, mask_head):
    parts = {
        "box_head": FastRCNNConvFCHead(SHAPE, conv_dims=[], fc_dims=[2]),
        "box_predictor": box_predictor,
        "mask_head": mask_head,
        "keypoint_head": KRCNNConvDeconvUpsampleHead(SHAPE, num_keypoints=3, conv_dims=[2]),
    }
    backbone = nn.ModuleDict({"cls_score": nn.Linear(2, 4)})
    return nn.ModuleDict({"backbone": backbone, "roi_heads": nn.ModuleDict(parts)})


LAYERS = {
    **classes.find_class_layers(
        _model(
            nn.ModuleList(_predictor() for _ in range(3)),
            MaskScoringHead(
                mask_head=BoundaryMaskHead(SHAPE, num_classes=2, conv_dims=[2, 2]),
                mask_iou_head=MaskIoUHead(SHAPE, num_classes=2, conv_dims=[2], fc_dims=[2]),
            ),
        )
    ),
    **classes.find_class_layers(_model(_predictor(), MaskRCNNConvUpsampleHead(SHAPE, num_classes=2, conv_dims=[2, 2]))),
    **classes.find_class_layers(nn.ModuleDict({"box_predictor": _predictor()})),
}


def match_rows(name, *args):
    return classes.match_rows(LAYERS[name], *args) if name in LAYERS else None


def test_layers_of_classes_are_found_in_heads_that_say_so_and_in_detectron2s():
    parts = {name.removeprefix("roi_heads.").removesuffix(".weight") for name in LAYERS if name.endswith("weight")}
    stages = {f"box_predictor.{stage}.{layer}" for stage in range(3) for layer in ("cls_score", "bbox_pred")}
    assert parts == stages | {
        "box_predictor.cls_score",
        "box_predictor.bbox_pred",
        "mask_head.predictor",
        "mask_head.mask_head.predictor",
        "mask_head.mask_head.boundary_predictor",
        "mask_head.mask_iou_head.fc_mask_iou",
    }


def _random(*shape, seed):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def _expected(stored, initial, per_class, background):
    """Row by row: {model class: file class}."""
    result = initial.clone()
    for target, name in enumerate(MODEL):
        for source, other in enumerate(FILE):
            if name.strip().lower() == other.lower():
                for k in range(per_class):
                    result[target * per_class + k] = stored[source * per_class + k]
                break
        else:
            for k in range(per_class):
                rows = [stored[source * per_class + k] for source in range(len(FILE))]
                result[target * per_class + k] = sum(rows) / len(rows)
    if background:
        result[len(MODEL)] = stored[len(FILE)]
    return result


@pytest.mark.parametrize(
    ("name", "per_class", "background", "rest"),
    [
        (CLS, 1, 1, (6,)),
        ("roi_heads.box_predictor.2.cls_score.bias", 1, 1, ()),
        (BOX, 4, 0, ()),
        (MASK, 1, 0, (5, 1, 1)),
        ("box_predictor.cls_score.weight", 1, 1, (6,)),
    ],
)
def test_rows_of_the_same_names_are_kept_and_new_ones_are_the_mean(name, per_class, background, rest):
    stored = _random(len(FILE) * per_class + background, *rest, seed=0)
    initial = _random(len(MODEL) * per_class + background, *rest, seed=1)
    rows = match_rows(name, stored, initial, FILE, MODEL)
    torch.testing.assert_close(rows.tensor, _expected(stored, initial, per_class, background))
    assert not rows.complete
    assert rows.how == "2 of 3 classes by name; kept: cat, DOG ; new, from the mean of the file's: nucleus"


def test_unused_rows_behind_the_background_are_dropped_or_kept():
    stored, names = _random(8, 2, seed=0), ["a", "b", "c"]
    dropped = match_rows(CLS, stored, _random(3, 2, seed=1), names, ["c", "a"])
    assert torch.equal(dropped.tensor, stored[[2, 0, 3]])
    kept = match_rows(CLS, stored, _random(8, 2, seed=1), names, ["b", "a", "c"])
    assert torch.equal(kept.tensor, stored[[1, 0, 2, 3, 4, 5, 6, 7]])
    assert kept.complete
    assert dropped.complete


def test_the_same_classes_change_nothing():
    stored = _random(4, 2, seed=0)
    rows = match_rows(CLS, stored, _random(4, 2, seed=1), ["a", "b", "c"], ["A", "B", "C"])
    assert rows.tensor is stored
    assert (rows.how, rows.complete) == ("", True)


@pytest.mark.parametrize(
    ("name", "file_rows", "model_rows"),
    [
        (BOX, 4, 4),  # class-agnostic in both
        (BOX, 4, 12),
        (BOX, 16, 4),
        (MASK, 1, 1),
        ("roi_heads.box_predictor.0.bbox_pred.bias", 4, 4),
        ("roi_heads.box_head.fc1.weight", 5, 4),
        ("roi_heads.keypoint_head.predictor.weight", 4, 3),
        ("backbone.cls_score.weight", 5, 4),
    ],
)
def test_heads_that_do_not_tell_classes_apart_are_left_alone(name, file_rows, model_rows):
    assert match_rows(name, torch.zeros(file_rows, 2), torch.zeros(model_rows, 2), FILE, MODEL) is None


def test_heads_of_other_features_are_left_alone():
    assert match_rows(CLS, torch.zeros(5, 8), torch.zeros(4, 6), FILE, MODEL) is None


def test_no_class_in_common_takes_the_background_and_the_mean():
    stored = _random(5, 2, seed=0)
    rows = match_rows(CLS, stored, _random(3, 2, seed=1), FILE, ["x", "y"])
    mean = stored[:4].mean(dim=0)
    torch.testing.assert_close(rows.tensor, torch.stack([mean, mean, stored[4]]))
    assert rows.how == "0 of 2 classes by name; new, from the mean of the file's: x, y"


def test_one_class_of_another_name_is_the_files():
    stored = _random(1, 5, 1, 1, seed=0)
    rows = match_rows(MASK, stored, _random(1, 5, 1, 1, seed=1), ["nucleus"], ["object"])
    assert torch.equal(rows.tensor, stored)
    assert not rows.complete


def test_means_are_not_rounded_to_the_files_type():
    stored, initial = _random(5, 2, seed=0).half(), _random(4, 2, seed=1)
    rows = match_rows(CLS, stored, initial, FILE, MODEL)
    assert rows.tensor.dtype == torch.float32
    torch.testing.assert_close(rows.tensor[1], stored[:4].float().mean(dim=0))
    assert torch.equal(rows.tensor[3], stored[4].float())


def test_boxes_of_other_classes_throughout_are_the_mean():
    name = "roi_heads.box_predictor.bbox_pred.weight"
    stored = _random(8, 3, seed=0)
    rows = match_rows(name, stored, torch.zeros(4, 3), ["cat", "dog"], ["nucleus"])
    torch.testing.assert_close(rows.tensor, (stored[:4] + stored[4:]) / 2)
