"""Overlays: which pixels they change, and that neighbours can be told apart."""

import numpy as np
import pytest
import supervision as sv
import torch
from detectron2.structures import Boxes, Instances

from maskrcnn_plus.data.pixels import ImageReadError
from maskrcnn_plus.masks.rle_masks import encode_masks
from maskrcnn_plus.results.overlay import (
    class_label,
    class_shades,
    display_image,
    draw_overlay,
)


def make_instances(masks, scores=None, classes=None):
    masks = torch.as_tensor(np.asarray(masks, dtype=bool))
    instances = Instances(tuple(masks.shape[1:]))
    instances.scores = torch.linspace(1, 0.5, len(masks)) if scores is None else torch.tensor(scores)
    instances.pred_classes = torch.zeros(len(masks), dtype=torch.int64) if classes is None else torch.tensor(classes)
    instances.pred_boxes = Boxes(torch.zeros(len(masks), 4))
    instances.pred_masks = masks
    return instances


def grid_of_squares(count, side=6, height=120, width=160):
    """`count` squares of `side` px that touch each other, row after row."""
    masks = np.zeros((count, height, width), dtype=bool)
    for k in range(count):
        y, x = side * (k // (width // side)), side * (k % (width // side))
        masks[k, y : y + side, x : x + side] = True
    return masks


def test_no_objects_leave_the_image_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    overlay = draw_overlay(image, make_instances(np.zeros((0, 20, 30))))
    assert np.array_equal(overlay, image)
    assert overlay is not image
    assert np.array_equal(draw_overlay(image, make_instances(np.zeros((2, 20, 30)))), image)  # two empty masks


def test_exactly_the_mask_pixels_change():
    """Of small objects, which have no label: fill and outline stay inside the mask, the input is not touched."""
    image = np.full((120, 160, 3), 90, dtype=np.uint8)
    rng = np.random.default_rng(1)
    yy, xx = np.mgrid[:120, :160]
    centres = rng.uniform(0, 1, (20, 2)) * (120, 160)
    masks = np.stack([(yy - y) ** 2 + (xx - x) ** 2 < rng.uniform(9, 80) for y, x in centres])
    overlay = draw_overlay(image, make_instances(masks), ["nucleus"])
    assert np.array_equal((overlay != image).any(axis=2), masks.any(axis=0))
    assert (image == 90).all()


def test_outline_is_one_pixel_of_full_colour():
    masks = np.zeros((1, 40, 40), dtype=bool)
    masks[0, 10:20, 10:20] = True
    overlay = draw_overlay(np.zeros((40, 40, 3), dtype=np.uint8), make_instances(masks), ["nucleus"])
    colour = sv.Color.from_hex(class_shades(0)[0]).as_rgb()
    inner = np.zeros((40, 40), dtype=bool)
    inner[11:19, 11:19] = True
    assert (overlay[masks[0] & ~inner] == colour).all()
    assert (overlay[inner] < np.array(colour) * 0.6).all()
    assert (overlay[inner] > 0).any()


def test_touching_objects_of_one_class_differ_in_colour():
    masks = grid_of_squares(300)
    overlay = draw_overlay(np.zeros((120, 160, 3), dtype=np.uint8), make_instances(masks), ["nucleus"])
    centre = overlay[3:115:6, 3:155:6].astype(int)  # [rows, columns, 3]
    rows = 300 // 26
    assert (centre[:rows, 1:] != centre[:rows, :-1]).any(axis=2).all()
    assert (centre[1:rows] != centre[: rows - 1]).any(axis=2).all()


def test_classes_have_their_own_colours_and_neighbours_their_own_shade():
    masks = grid_of_squares(24)
    classes = [k % 2 for k in range(12)] + [0] * 12
    overlay = draw_overlay(np.zeros((120, 160, 3), dtype=np.uint8), make_instances(masks, classes=classes), ["a", "b"])
    outlines = ["#{:02x}{:02x}{:02x}".format(*overlay[0, 6 * k]) for k in range(24)]
    for colour, k in zip(outlines, classes, strict=True):
        assert colour in class_shades(k)
    assert len(set(outlines[12:])) == 3
    assert not set(class_shades(0)) & set(class_shades(1))


def test_labels_only_for_few_and_large_objects():
    def labelled(masks):
        image = np.zeros((*masks.shape[1:], 3), dtype=np.uint8)
        return bool((draw_overlay(image, make_instances(masks), ["cell"]).any(axis=2) & ~masks.any(axis=0)).any())

    large = grid_of_squares(16, side=30, height=200, width=200)
    small = grid_of_squares(3)
    assert labelled(large[8:12])
    assert not labelled(large)
    assert not labelled(small)


def test_dense_and_rle_masks_are_drawn_alike():
    image = np.random.default_rng(2).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    instances = make_instances(grid_of_squares(40))
    assert np.array_equal(draw_overlay(image, instances), draw_overlay(image, encode_masks(instances)))


def test_wrong_input_is_refused():
    instances = make_instances(grid_of_squares(2))
    with pytest.raises(ValueError, match="size"):
        draw_overlay(np.zeros((10, 10, 3), dtype=np.uint8), instances)
    with pytest.raises(ValueError, match="float"):
        draw_overlay(np.zeros((120, 160, 3)), instances)
    with pytest.raises(ValueError, match="uint8"):
        draw_overlay(np.zeros((120, 160), dtype=np.uint8), instances)
    instances.remove("pred_masks")
    with pytest.raises(ValueError, match="no masks"):
        draw_overlay(np.zeros((120, 160, 3), dtype=np.uint8), instances)


def test_class_label_beyond_the_names():
    assert [class_label(["a", "b"], k) for k in (1, 2)] == ["b", "class 2"]
    assert class_label(None, 0) == "class 0"


def test_display_image_keeps_8_bits_and_stretches_the_rest():
    rng = np.random.default_rng(5)
    colour = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert np.array_equal(display_image(colour), colour)
    assert np.array_equal(display_image(np.dstack([colour, colour[:, :, :1]])), colour)  # alpha is dropped

    dim = rng.integers(100, 3000, (20, 30)).astype(np.uint16)  # 12 bits of a camera in a 16-bit file
    shown = display_image(dim, channels=1)
    low, high = np.percentile(dim, (0.5, 99.5))
    expected = np.clip((dim.astype(float) - low) / (high - low) * 255, 0, 255)
    assert shown.shape == (20, 30, 3)
    assert np.abs(shown[:, :, 0] - expected).max() <= 0.51
    assert np.array_equal(display_image(dim.astype(np.float32) * 7 - 500), shown)
    assert np.array_equal(display_image(dim > 1500)[:, :, 1], (dim > 1500) * 255)


@pytest.mark.parametrize("channels", [2, 5])
def test_display_image_of_many_channels_shows_three(channels):
    pixels = np.random.default_rng(6).integers(0, 65536, (20, 30, channels)).astype(np.uint16)
    shown = display_image(pixels, channels=channels)
    assert shown.shape == (20, 30, 3)
    assert shown.dtype == np.uint8
    shades = [np.corrcoef(shown[:, :, c].ravel(), pixels[:, :, c].ravel())[0, 1] for c in range(min(channels, 3))]
    assert min(shades) > 0.99


def test_display_image_error_names_the_image():
    with pytest.raises(ImageReadError, match=r"a\.tif: some pixel values are NaN"):
        display_image(np.full((4, 5), np.nan, dtype=np.float32), name="a.tif")
