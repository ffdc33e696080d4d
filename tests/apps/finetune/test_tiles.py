"""Which images are cut before a training, and into what."""

import numpy as np
import pytest
from detectron2.structures import BoxMode

from maskrcnn_plus.apps.finetune.tiles import choose_tile_side


def image(side, objects, size):
    """A dataset dict of a square image with square objects."""
    corners = np.random.default_rng(0).integers(0, side - size, (objects, 2)).tolist()
    annotations = [{"bbox": [x, y, size, size], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0} for x, y in corners]
    return {"file_name": "x.png", "height": side, "width": side, "annotations": annotations}


@pytest.mark.parametrize(
    ("side", "size", "expected"),
    [
        (1000, 30, 334),  # a third
        (6000, 30, 1024),  # the most
        (500, 30, 256),  # the least
        (1000, 150, 450),  # three objects
        (1000, 400, None),  # they do not fit into a part
        (256, 20, None),
    ],
)
def test_a_single_image_is_cut_where_it_is_large_enough(side, size, expected):
    found, why = choose_tile_side({"train": [image(side, 20, size)]})
    assert found == expected
    assert bool(why) == (expected is not None)


def test_several_images_stay():
    assert choose_tile_side({"train": [image(4000, 20, 30)], "val": [image(4000, 20, 30)]})[0] is None


def test_large_crowded_images_are_cut():
    several = {"train": [image(300, 20, 30), image(5000, 200, 30)], "val": [image(300, 20, 30)]}
    assert choose_tile_side(several) == (1024, "1 images are large and full of objects")
    assert choose_tile_side({"train": [image(5000, 200, 500)]})[0] == 1500


def test_without_objects_nothing_is_cut():
    assert choose_tile_side({"train": [image(5000, 0, 30)]})[0] is None
    assert choose_tile_side({"train": []})[0] is None
