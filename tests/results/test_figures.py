"""Results that draw themselves: the same picture as the overlay, colours, legends, tables, and unknown images."""

import csv

import matplotlib as mpl
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes
from detectron2.utils.visualizer import Visualizer
from PIL import Image

from maskrcnn_plus.masks.rle_masks import RLEMasks
from maskrcnn_plus.results import write_results
from maskrcnn_plus.results.cutouts import cut_out
from maskrcnn_plus.results.figures import draw, plot
from maskrcnn_plus.results.overlay import draw_overlay
from maskrcnn_plus.results.predictions import Predictions

mpl.use("Agg")
IMAGE = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)


def predictions(classes=(0, 1, 0), image=IMAGE):
    masks = torch.zeros(3, 40, 60, dtype=torch.bool)
    masks[0, 5:15, 5:15], masks[1, 5:15, 20:40], masks[2, 20:38, 10:50] = True, True, True
    boxes = Boxes(torch.tensor([[5.0, 5, 15, 15], [20, 5, 40, 15], [10, 20, 50, 38]]))
    return Predictions(
        (40, 60),
        class_names=["cat", "dog"],
        image=image,
        pred_boxes=boxes,
        scores=torch.tensor([0.9, 0.8, 0.7]),
        pred_classes=torch.tensor(classes),
        pred_masks_rle=RLEMasks.from_dense(masks),
    )


def test_a_drawing_is_the_overlay_whether_from_pixels_or_a_file(tmp_path):
    expected = draw_overlay(IMAGE, predictions())
    assert np.array_equal(predictions().draw(), expected)
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    found = predictions(image=str(tmp_path / "a.png"))
    assert np.array_equal(found.draw(), expected)
    found.save(tmp_path / "out.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), expected)
    axes = found.plot()
    assert np.array_equal(axes.images[0].get_array(), expected)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["cat", "dog"]
    assert np.array_equal(plot(IMAGE, found).images[0].get_array(), expected)


def test_colours_are_of_classes_or_of_instances():
    masks = predictions().pred_masks.repeat_interleave(10, 1).repeat_interleave(10, 2)  # larger than their labels
    found = Predictions((400, 600), scores=torch.ones(3), pred_classes=torch.zeros(3, dtype=torch.int64))
    found.pred_masks_rle = RLEMasks.from_dense(masks)
    colours = {}
    for colour_by in ("class", "instance"):
        drawn = draw(np.zeros((400, 600, 3), np.uint8), found, ["a", "b"], colour_by)
        colours[colour_by] = {tuple(drawn[y, x]) for y, x in ((140, 140), (140, 390), (370, 490))}
    hues = {each: {int(np.argmax(colour)) for colour in found} for each, found in colours.items()}
    assert len(hues["class"]) == 1  # shades of one colour
    assert len(colours["instance"]) == 3
    assert plot(IMAGE, predictions(), colour_by="instance").get_legend() is None
    with pytest.raises(ValueError, match="colour_by is 'score'"):
        predictions().draw("score")


def test_the_table_is_that_of_the_csv_file(tmp_path):
    pandas = pytest.importorskip("pandas")
    found = predictions()
    table = found.to_df()
    with open(write_results(tmp_path, "a", found, IMAGE, formats=["csv"])["csv"], newline="") as file:
        rows = list(csv.DictReader(file))
    assert isinstance(table, pandas.DataFrame)
    assert list(table.columns) == list(rows[0])
    assert table["class"].tolist() == ["cat", "dog", "cat"]
    assert np.allclose(table["mean_intensity"], [float(row["mean_intensity"]) for row in rows])
    assert len(found[:0].to_df()) == 0


def test_cut_outs_are_those_of_the_image():
    for cut, expected in zip(predictions().cutouts(soft=False), cut_out(IMAGE, predictions()), strict=True):
        assert np.array_equal(cut, expected)


def test_detectron2_draws_them_too():
    found = predictions()
    assert found.has("pred_masks")
    assert found.pred_masks.dtype == torch.bool
    assert torch.equal(found[1:].pred_masks, found.pred_masks[1:])
    drawn = Visualizer(IMAGE, MetadataCatalog.get("figures_test")).draw_instance_predictions(found).get_image()
    assert not np.array_equal(drawn, IMAGE)
    boxes = Predictions((40, 60), pred_boxes=found.pred_boxes)
    assert not boxes.has("pred_masks")
    with pytest.raises(AttributeError):
        boxes.pred_masks  # noqa: B018 - asks for the field


def test_what_cannot_be_drawn_says_why(tmp_path):
    unknown = predictions(image=None)
    for action in (unknown.draw, unknown.plot, unknown.cutouts):
        with pytest.raises(ValueError, match="do not know their image"):
            action()
    with pytest.raises(ValueError, match=r"out\.xyz: give the picture a name"):
        predictions().save(tmp_path / "out.xyz")
    with pytest.raises(ValueError, match=r"\(20, 20\).*\(40, 60\)"):
        draw(IMAGE[:20, :20], predictions())
    with pytest.raises(ValueError, match=r"gone\.png"):
        predictions(image="gone.png").draw()
