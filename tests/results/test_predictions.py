"""Results know the names of their classes and the size of a pixel, through all that is done with them."""

import csv
import json

import cv2
import numpy as np
import pytest
import tifffile
import torch
from detectron2.config import LazyCall as L
from detectron2.structures import Boxes, Instances
from omegaconf import OmegaConf
from torch import nn

from maskrcnn_plus.data.channels import get_rule
from maskrcnn_plus.data.mapper import InstanceMapper
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.masks.rle_masks import RLEMasks, add_dense_masks, encode_masks
from maskrcnn_plus.results import figures, write_results
from maskrcnn_plus.results.overlay import draw_overlay
from maskrcnn_plus.results.predictions import Predictions
from maskrcnn_plus.results.supervision import to_supervision

NAMES = ["cell", "debris"]


class Blind(nn.Module):
    """Finds nothing."""

    def forward(self, batch):
        return [{"instances": Instances((e["height"], e["width"]), scores=torch.zeros(0))} for e in batch]


def fields(count=3):
    masks = torch.zeros(count, 20, 30, dtype=torch.bool)
    for k in range(count):
        masks[k, 4 * k : 4 * k + 4, :5] = True
    boxes = Boxes(torch.tensor([[0.0, 4 * k, 5, 4 * k + 4] for k in range(count)]).reshape(count, 4))
    classes = torch.arange(count) % 2
    return dict(pred_boxes=boxes, scores=torch.full((count,), 0.9), pred_classes=classes, pred_masks=masks)


def known(count=3):
    return Predictions((20, 30), class_names=NAMES, category_ids=[4, 9], pixel_size=0.5, **fields(count))


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found[found.pred_classes == 1],
        lambda found: found[0],
        lambda found: found[[2, 0]],
        lambda found: found.to("cpu"),
        lambda found: Predictions.cat([found, found]),
        lambda found: Predictions.cat([found]),
        encode_masks,
        lambda found: add_dense_masks(encode_masks(found)),
    ],
)
@pytest.mark.parametrize("count", [3, 4])
def test_facts_stay_with_the_fields_that_detectron2_would_give(change, count):
    plain = Instances((20, 30), **fields(count))
    found = change(known(count))
    expected = change(plain)
    assert (found.class_names, found.category_ids, found.pixel_size) == (NAMES, [4, 9], 0.5)
    assert type(expected) is Instances
    assert set(found.get_fields()) == set(expected.get_fields())
    assert len(found) == len(expected)
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.pred_classes, expected.pred_classes)


def test_facts_are_no_fields():
    found = known()
    assert set(found.get_fields()) == set(fields())
    found.pixel_size = 2.0
    assert found[:1].pixel_size == 2.0
    with pytest.raises(AttributeError):
        found.nothing  # noqa: B018 - asks for a field


def test_files_and_supervision_take_names_and_size_from_the_results(tmp_path):
    found = known()
    image = np.zeros((20, 30, 3), np.uint8)
    files = write_results(tmp_path, "a", found, image, formats=["csv", "geojson", "overlay"])
    with open(files["csv"], newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["cell", "debris", "cell"]
    assert [row["area_um2"] for row in rows] == ["5"] * 3  # 20 px of 0.5 x 0.5 um
    features = json.loads(files["geojson"].read_text())["features"]
    assert [each["properties"]["classification"]["name"] for each in features] == ["cell", "debris", "cell"]
    detections = to_supervision(found)
    assert detections.data["class_name"].tolist() == ["cell", "debris", "cell"]
    assert detections.metadata == {"pixel_size": 0.5}
    named = draw_overlay(image, found, NAMES)
    assert np.array_equal(draw_overlay(image, found), named)


def test_what_is_given_goes_before_what_results_know(tmp_path):
    files = write_results(tmp_path, "a", known(), formats=["csv"], class_names=["x", "y"], pixel_size=2.0)
    with open(files["csv"], newline="") as file:
        row = next(csv.DictReader(file))
    assert (row["class"], row["area_um2"]) == ("x", "80")
    assert to_supervision(known(), ["x", "y"]).data["class_name"].tolist() == ["x", "y", "x"]


def test_plain_instances_know_neither(tmp_path):
    found = Instances((20, 30), **fields())
    files = write_results(tmp_path, "a", found, formats=["csv"])
    with open(files["csv"], newline="") as file:
        row = next(csv.DictReader(file))
    assert (row["class"], row["area_px"]) == ("class 0", "20")
    assert to_supervision(found).metadata == {}


@pytest.mark.parametrize("count", [0, 2])
def test_masks_of_runs_are_kept_by_parts(count):
    found = Predictions((20, 30), class_names=NAMES, pred_masks_rle=RLEMasks.from_dense(fields(count)["pred_masks"]))
    assert isinstance(found[:].pred_masks_rle, RLEMasks)
    assert len(found[:]) == count


@pytest.mark.parametrize(
    "name", ["=1+1", "+A1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", " =1", "\uff1d1+1", '=HYPERLINK("http://x","y")']
)
def test_no_cell_of_a_table_is_a_formula(tmp_path, name):
    found = known()
    found.pred_boxes.tensor[0, 0] = -1.5
    found.class_names = [name, "cell"]
    path = write_results(tmp_path, "a", found, formats=["csv"])["csv"]
    (tmp_path / "csv" / "a.csv").rename(tmp_path / "part.csv")
    with open(tmp_path / "part.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert path.name == "a.csv"
    cell = "'" + name.replace("\t", " ").replace("\r", " ")
    assert [row[2] for row in rows[1:]] == [cell, "cell", cell]
    assert rows[1][4] == "-0.75"  # a number stays one


def test_the_image_s_name_is_no_formula_either(tmp_path):
    with open(write_results(tmp_path, "=cmd", known(), formats=["csv"])["csv"], newline="") as file:
        assert {row["image"] for row in csv.DictReader(file)} == {"'=cmd"}


def test_a_tiff_says_the_size_of_its_pixels(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((20, 30), np.uint8), resolution=(40000, 40000), resolutionunit="CENTIMETER")
    config = {
        "model": L(Blind)(),
        "dataloader": {"test": {"mapper": L(InstanceMapper)(is_train=False, augmentations=[])}},
        "dataset": {"thing_classes": ["cell"]},
    }
    predictor = Predictor(OmegaConf.create(config, flags={"allow_objects": True}), "random")
    found = predictor.predict([str(path), np.zeros((20, 30), np.uint8)])
    assert [each.pixel_size for each in found] == [0.25, None]
    assert [each.class_names for each in found] == [["cell"], ["cell"]]


@pytest.mark.parametrize("how", ["channels", "projection", "five"])
def test_pictures_and_tables_see_the_channels_that_were_predicted(tmp_path, how):
    """As files of the same results do."""
    pandas = pytest.importorskip("pandas")
    planes = np.random.default_rng(0).integers(0, 4000, (5, 20, 30), dtype=np.uint16)
    axes = {"channels": "CYX", "projection": "ZYX", "five": "CYX"}[how]
    tifffile.imwrite(tmp_path / "a.tif", planes, ome=True, metadata={"axes": axes})
    options = {
        "channels": {"channels": 1, "select": [3]},
        "projection": {"channels": 1, "projection": "max"},
        "five": {"channels": 5},
    }[how]
    cfg = {
        "model": L(Blind)(),
        "dataloader": {"test": {"mapper": L(InstanceMapper)(is_train=False, augmentations=[], **options)}},
        "train": {"device": "cpu"},
        "dataset": {"thing_classes": NAMES},
    }
    predictor = Predictor(OmegaConf.create(cfg, flags={"allow_objects": True}), "random")
    rule = get_rule(predictor.mapper)
    found = Predictions((20, 30), class_names=NAMES, image=str(tmp_path / "a.tif"), channel_rule=rule, **fields())
    assert predictor.predict(found.image).channel_rule == rule
    written = write_results(tmp_path, "a", found, found.image, formats=["csv", "overlay", "cutouts"])
    columns = {"columns": "image"}  # a path, and a name
    assert found.to_df().drop(**columns).equals(pandas.read_csv(written["csv"]).drop(**columns))
    np.testing.assert_array_equal(found.draw(), cv2.imread(str(written["overlay"]))[:, :, ::-1])
    assert len(found.cutouts(soft=False)) == 3
    preview = np.zeros((20, 30, 3), dtype=np.uint8)  # another image of the same place has its own channels
    assert figures.draw(preview, found).shape == (20, 30, 3)
    assert write_results(tmp_path, "b", found, preview, formats=["overlay"], channels=3)
    seen = {"channels": planes[3], "projection": planes.max(axis=0)}.get(how)
    if seen is not None:
        assert found.to_df()["mean_intensity"][0] == pytest.approx(seen[:4, :5].mean(), abs=0.01)
