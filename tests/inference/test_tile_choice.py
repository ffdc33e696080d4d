"""An image is predicted by tiles wherever the network would otherwise see its objects smaller than those of others.

The stand-in finds a square object only if the network sees it with at least as many pixels as in the square image that
the threshold was chosen for.
"""

import json
import logging

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances
from omegaconf import OmegaConf
from torch import nn

from maskrcnn_plus.apps.predict_files.run import predict_files
from maskrcnn_plus.data import InstanceMapper, ScaleImage
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.inference.tile_choice import TileChoice

STEP, SIDE = 50, 10  # pixels: objects of SIDE x SIDE lie in a grid of STEP


class SeesLargeObjects(nn.Module):
    """Finds the bright squares that the network's input has with at least `least` x `least` pixels."""

    def __init__(self, least):
        super().__init__()
        self.least, self.seen = least, []

    def forward(self, batch):
        image, height, width = batch[0]["image"][0].numpy(), batch[0]["height"], batch[0]["width"]
        self.seen.append((height, width))
        count, _, boxes, _ = cv2.connectedComponentsWithStats((image > 128).astype(np.uint8))
        boxes = boxes[1:, :4] if count > 1 else np.zeros((0, 4))
        boxes = boxes[(boxes[:, 2:] >= self.least).all(axis=1)]
        boxes = boxes * np.tile([width / image.shape[1], height / image.shape[0]], 2)
        boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1).round()  # XYWH -> xyxy
        masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int), strict=True):
            mask[y0:y1, x0:x1] = True
        found = Instances((height, width), pred_masks=masks, pred_boxes=Boxes(torch.from_numpy(boxes).float()))
        found.scores, found.pred_classes = torch.ones(len(boxes)), torch.zeros(len(boxes), dtype=torch.int64)
        return [{"instances": found}]


def predictor_of(augmentation, least):
    if augmentation == "fixed":
        mapper = L(InstanceMapper)(is_train=False, augmentations=[L(ScaleImage)(scale=1.0, max_size=1100)], channels=1)
    else:
        resize = L(T.ResizeShortestEdge)(short_edge_length=200, max_size=400, sample_style="choice")
        mapper = L(DatasetMapper)(is_train=False, augmentations=[resize], image_format="RGB")
    config = {"model": L(SeesLargeObjects)(least=least), "dataloader": {"test": {"mapper": mapper}}}
    return Predictor(OmegaConf.create(config, flags={"allow_objects": True}), "random", optimize=False)


def write_image(path, height, width):
    """Bright squares on black; returns how many."""
    image = np.zeros((height, width, 3), np.uint8)
    corners = [(y, x) for y in range(20, height - SIDE, STEP) for x in range(20, width - SIDE, STEP)]
    for y, x in corners:
        image[y : y + SIDE, x : x + SIDE] = 255
    cv2.imwrite(str(path), image)
    return len(corners)


@pytest.mark.parametrize("size", [(100, 2500), (2500, 100)])
@pytest.mark.parametrize(("kind", "least"), [("fixed", 9), ("one size", 17)])
@pytest.mark.parametrize("formats", [["coco"], ["coco", "csv"]])  # one needs the pixels, one does not
def test_no_object_of_a_long_image_is_lost_by_shrinking(tmp_path, caplog, size, kind, least, formats):
    count = write_image(tmp_path / "long.png", *size)
    predictor = predictor_of(kind, least)
    caplog.clear()
    summary = predict_files(predictor, str(tmp_path / "long.png"), tmp_path / "out", formats=formats)
    assert (summary.num_objects, summary.failures) == (count, [])
    boxes = [entry["bbox"] for entry in json.loads((tmp_path / "out/predictions.json").read_bytes())]
    assert {tuple(box[2:]) for box in boxes} == {(SIDE, SIDE)}
    assert len(predictor.model.seen) > 1
    assert caplog.text == ""
    # Whole it is another picture, which is said.
    caplog.set_level(logging.WARNING)
    assert len(predictor.predict(str(tmp_path / "long.png"))) == 0
    assert "long.png" in caplog.text
    assert "tiles" in caplog.text
    whole = predict_files(predictor, str(tmp_path / "long.png"), tmp_path / "whole", formats=formats, tile="off")
    assert whole.num_objects == 0


@pytest.mark.parametrize("kind", ["fixed", "one size"])
@pytest.mark.parametrize("size", [(100, 100), (500, 500), (300, 400)])
def test_usual_images_are_seen_whole_as_before(tmp_path, caplog, kind, size):
    count = write_image(tmp_path / "a.png", *size)
    predictor = predictor_of(kind, 2)
    caplog.clear()
    summary = predict_files(predictor, str(tmp_path / "a.png"), tmp_path / "out", formats=["coco"])
    assert summary.num_objects == count
    assert predictor.model.seen == [size]
    assert caplog.text == ""


def test_huge_squares_are_tiled_where_the_scale_is_fixed_only():
    fixed, one_size = TileChoice(predictor_of("fixed", 2), "auto"), TileChoice(predictor_of("one size", 2), "auto")
    assert fixed.options(4100, 4100) == {"tile_size": None}
    assert one_size.options(4000, 4000) is None
    assert fixed.options(1200, 300) == {"scale": 1.0}  # 1100 px at most
    assert fixed.options(1100, 300) is None
    assert one_size.options(700, 300) is None
    assert one_size.options(10000, 300) == {"scale": pytest.approx(200 / 300)}


def test_a_choice_of_the_user_holds_for_every_size():
    predictor = predictor_of("fixed", 2)
    assert TileChoice(predictor, "off").options(100, 9000) is None
    assert TileChoice(predictor, 64).options(10, 10) == {"tile_size": 64}
    with pytest.raises(ValueError, match="tile is 'no'"):
        TileChoice(predictor, "no")
