"""Annotations of an image that is turned, cut or scaled: the same pixels as if it were drawn on the file as it is."""

import json

import numpy as np
import pytest
from annotation_folders import masks_of, read_one
from PIL import Image

from maskrcnn_plus.data.formats import read
from maskrcnn_plus.data.formats.image_frames import ImageFrame, find_frame
from maskrcnn_plus.data.images import read_image
from maskrcnn_plus.masks.label_map import masks_to_rles

SQUARE = np.array([[6, 4], [30, 4], [30, 20], [6, 20]], dtype=float)


def write(root, orientation, points, stated, form="labelme", rle=None):
    """A picture of 40 x 60 stored pixels that is white where the square is, and annotations of it."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[4:20, 6:30] = 255
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).save(root / "one.png", exif=exif)
    size = {} if stated is None else {"imageHeight": stated[0], "imageWidth": stated[1]}
    if form == "labelme":
        shapes = [{"label": "cell", "points": points.tolist(), "shape_type": "polygon"}]
        content = {"imagePath": "one.png", "imageData": None, "shapes": shapes, **size}
    else:
        low, high = points.min(axis=0), points.max(axis=0)
        entry = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [*low, *(high - low)]}
        entry["segmentation"] = rle or [points.reshape(-1).tolist()]
        images = [{"id": 1, "file_name": "one.png", "height": stated[0], "width": stated[1]}]
        content = {"images": images, "annotations": [entry], "categories": [{"id": 1, "name": "cell"}]}
    (root / "one.json").write_text(json.dumps(content))
    return root


def white(root):
    """Where the upright picture is white, as training reads it."""
    return read_image(str(root / "one.png"))[:, :, 0] == 255


@pytest.mark.parametrize("form", ["labelme", "coco", "coco rle"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_annotations_of_the_stored_image_are_turned_with_it(tmp_path, orientation, form):
    mask = np.zeros((40, 60), dtype=bool)
    mask[4:20, 6:30] = True
    rle = masks_to_rles(mask[None])[0] if form == "coco rle" else None
    record, data = read_one(write(tmp_path, orientation, SQUARE, (40, 60), form.split()[0], rle))
    assert (record["height"], record["width"]) == (60, 40)
    np.testing.assert_array_equal(masks_of(record)[0], white(tmp_path))
    assert any("fit the image before that" in note for note in data.notes)
    assert not data.problems


@pytest.mark.parametrize(("form", "stated"), [("labelme", (60, 40)), ("coco", (60, 40)), ("labelme", None)])
def test_annotations_of_the_upright_image_stay(tmp_path, stated, form):
    turned = ImageFrame((40, 60), (60, 40), 6).move_points(SQUARE)
    record, data = read_one(write(tmp_path, 6, turned, stated, form))
    np.testing.assert_array_equal(masks_of(record)[0], white(tmp_path))
    assert any("drawn on the upright one" in note for note in data.notes)


def test_points_beyond_the_upright_image_tell_the_stored_one(tmp_path):
    wide = np.array([[6, 4], [58, 4], [58, 20], [6, 20]], dtype=float)
    record, _ = read_one(write(tmp_path, 6, wide, None))
    assert masks_of(record)[0].sum() == 52 * 16


@pytest.mark.parametrize("form", ["labelme", "coco", "coco rle"])
def test_a_resized_image_scales_its_annotations(tmp_path, form):
    mask = np.zeros((80, 120), dtype=bool)
    mask[8:40, 12:60] = True
    rle = masks_to_rles(mask[None])[0] if form == "coco rle" else None
    record, data = read_one(write(tmp_path, 1, 2 * SQUARE, (80, 120), form.split()[0], rle))
    np.testing.assert_array_equal(masks_of(record)[0], white(tmp_path))
    assert any("were scaled" in note for note in data.notes)


@pytest.mark.parametrize("form", ["labelme", "coco", "coco rle"])
@pytest.mark.parametrize("stated", [(41, 60), (40, 61), (39, 60), (38, 62)])
def test_a_size_that_differs_by_a_few_pixels_is_the_files(tmp_path, stated, form):
    mask = np.zeros(stated, dtype=bool)
    mask[4:20, 6:30] = True
    rle = masks_to_rles(mask[None])[0] if form == "coco rle" else None
    record, data = read_one(write(tmp_path, 1, SQUARE, stated, form.split()[0], rle))
    assert (record["height"], record["width"]) == (40, 60)
    np.testing.assert_array_equal(masks_of(record)[0], white(tmp_path))
    assert any("differs by a few pixels" in note for note in data.notes)


def test_points_that_fit_the_file_alone_are_its_pixels(tmp_path):
    record, data = read_one(write(tmp_path, 1, SQUARE, (12, 18)))
    np.testing.assert_array_equal(masks_of(record)[0], white(tmp_path))
    assert any("pixels of the file" in note for note in data.notes)


def test_polygons_are_cut_at_the_border_and_it_is_said(tmp_path):
    beyond = np.array([[6, 4], [70, 4], [70, 20], [6, 20]], dtype=float)
    record, data = read_one(write(tmp_path, 1, beyond, (40, 60)))
    assert np.max(record["annotations"][0]["segmentation"]) == 60
    assert any("cut at its border" in note for note in data.notes)


@pytest.mark.parametrize("form", ["labelme", "coco"])
def test_other_sizes_are_named(tmp_path, form):
    data = read(write(tmp_path, 1, SQUARE, (80, 61), form))
    assert "it says 80 high x 61 wide, the image is 40 x 60" in data.problems[0]
    assert "one.png" in data.problems[0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_points_and_masks_move_alike(orientation):
    turned = orientation > 4
    frame = ImageFrame((40, 60), (60, 40) if turned else (40, 60), orientation)
    mask = np.zeros((40, 60), dtype=bool)
    mask[4:20, 6:30] = True
    moved = frame.move_points(SQUARE)
    low, high = moved.min(axis=0).astype(int), moved.max(axis=0).astype(int)
    expected = np.zeros(frame.size, dtype=bool)
    expected[low[1] : high[1], low[0] : high[0]] = True
    assert frame.move_rle(masks_to_rles(mask[None])[0]) == masks_to_rles(expected[None])[0]


def test_a_frame_of_an_image_that_is_far_smaller_is_refused():
    with pytest.raises(ValueError, match="it says 4000 high"):
        find_frame((40, 60, 1), (4000, 6000), None)
