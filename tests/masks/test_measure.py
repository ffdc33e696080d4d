"""Measures from runs against dense loops, SciPy, formulas and pycocotools."""

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import scipy.ndimage

from maskrcnn_plus.masks.label_map import label_map_to_rles, masks_to_rles, rles_to_label_map
from maskrcnn_plus.masks.measure import (
    move_rles,
    reduce_rles,
    rle_areas,
    rle_boxes,
    rle_centroids,
    rle_ious,
    rle_perimeters,
    rle_union,
)

MEASURES = (rle_areas, rle_boxes, rle_centroids, rle_perimeters)


def random_masks(seed, count, height, width):
    """[count, height, width] bool: noise, rectangles, discs, full and empty masks, some along the borders."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    masks = np.zeros((count, height, width), dtype=bool)
    for index, mask in enumerate(masks):
        kind = index % 5
        centre_y, centre_x = rng.random() * height, rng.random() * width
        if kind == 0:
            mask[:] = rng.random((height, width)) < rng.random()
        elif kind == 1:
            mask[int(centre_y) :, int(centre_x) : int(centre_x) + 9] = True
        elif kind == 2:
            mask[:] = (y - centre_y) ** 2 + (x - centre_x) ** 2 < (rng.random() * height / 2) ** 2
        elif kind == 3:
            mask[:] = index % 2
        else:
            mask[:, : int(centre_x)] = True  # runs that go on from column to column
    return masks


def naive_perimeter(mask):
    """Runs along each line of the four directions, pixel by pixel."""
    height, width = mask.shape
    total = 0.0
    for step_y, step_x, spacing in ((0, 1, 1), (1, 0, 1), (1, 1, 2**0.5), (-1, 1, 2**0.5)):
        for y in range(height):
            for x in range(width):
                before_y, before_x = y - step_y, x - step_x
                inside = 0 <= before_y < height and 0 <= before_x < width
                if mask[y, x] and not (inside and mask[before_y, before_x]):
                    total += 1 / spacing
    return np.pi / 4 * total


def test_areas_and_boxes_equal_pycocotools():
    rles = masks_to_rles(random_masks(0, 100, 31, 23)) + masks_to_rles(random_masks(1, 50, 1, 9))
    assert rle_areas(rles).tolist() == [int(coco_mask.area(rle)) for rle in rles]
    x, y, w, h = np.array([coco_mask.toBbox(rle) for rle in rles]).T
    assert np.array_equal(rle_boxes(rles), np.stack([x, y, x + w, y + h], axis=1))


def test_centroids_equal_scipy():
    masks = random_masks(2, 60, 27, 34)
    centroids = rle_centroids(masks_to_rles(masks))
    for mask, (x, y) in zip(masks, centroids, strict=True):
        if mask.any():
            assert np.allclose((y - 0.5, x - 0.5), scipy.ndimage.center_of_mass(mask), rtol=0, atol=1e-9)
        else:
            assert np.isnan(x)
            assert np.isnan(y)


def test_perimeters_equal_a_loop_over_all_lines():
    masks = random_masks(3, 40, 17, 22)
    perimeters = rle_perimeters(masks_to_rles(masks))
    assert np.allclose(perimeters, [naive_perimeter(mask) for mask in masks], rtol=1e-12, atol=1e-12)
    assert (perimeters[~masks.any(axis=(1, 2))] == 0).all()


@pytest.mark.parametrize("angle", [0, 10, 22.5, 30, 45])
def test_perimeter_is_near_the_length_of_the_outline(angle):
    """Within 2 % of a disc and 6 % of a square at any angle; counting pixel edges errs by 27 % and 41 %."""
    y, x = np.mgrid[:400, :400] - 199.7
    disc = x**2 + y**2 < 150**2
    turn = np.deg2rad(angle)
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    square = np.maximum(abs(along), abs(across)) < 90
    perimeters = rle_perimeters(masks_to_rles(np.stack([disc, square, disc & ~square])))
    assert perimeters[0] == pytest.approx(2 * np.pi * 150, rel=0.02)
    assert perimeters[1] == pytest.approx(720, rel=0.06)
    assert perimeters[2] == pytest.approx(perimeters[0] + perimeters[1], rel=1e-9)  # a hole has an outline


def test_ious_equal_dense_ones_also_of_many():
    masks = random_masks(4, 320, 12, 14)
    a, b = masks[:300], masks[20:]
    intersection = np.einsum("ahw,bhw->ab", a.astype(int), b.astype(int))
    union = a.sum((1, 2))[:, None] + b.sum((1, 2)) - intersection
    expected = np.divide(intersection, union, out=np.zeros(union.shape), where=union > 0)
    assert np.allclose(rle_ious(masks_to_rles(a), masks_to_rles(b)), expected, rtol=1e-12, atol=0)
    assert rle_ious([], masks_to_rles(b[:3])).shape == (0, 3)
    assert rle_ious(masks_to_rles(a[:2]), []).shape == (2, 0)


def test_ious_refuse_other_sizes_and_malformed_masks():
    rles = masks_to_rles(np.ones((2, 4, 5), dtype=bool))
    with pytest.raises(ValueError, match="one size"):
        rle_ious(rles, masks_to_rles(np.ones((1, 5, 4), dtype=bool)))
    with pytest.raises(ValueError, match="RLE 2"):
        rle_ious(rles, [{"size": [4, 5], "counts": "P"}])


@pytest.mark.parametrize("offset", [(0, 0), (3, 5), (-4, 2), (-7, -9), (40, 0), (0, -40), (-2, 11)])
@pytest.mark.parametrize("size", [(20, 25), (60, 7), (1, 1)])
def test_moving_equals_cutting_and_placing_dense_masks(offset, size):
    masks = random_masks(5, 25, 20, 25)
    (x, y), (height, width) = offset, size
    expected = np.zeros((25, height, width), dtype=bool)
    for row in range(20):
        for column in range(25):
            if 0 <= row + y < height and 0 <= column + x < width:
                expected[:, row + y, column + x] = masks[:, row, column]
    moved = move_rles(masks_to_rles(masks), x, y, height, width)
    assert moved == masks_to_rles(expected)  # also byte for byte


def test_moving_into_a_huge_image_and_back():
    rles = masks_to_rles(random_masks(6, 30, 40, 30))
    far = move_rles(rles, 55000, 30000, 60000, 60000)
    assert move_rles(far, -55000, -30000, 40, 30) == rles
    assert rle_areas(far).tolist() == rle_areas(rles).tolist()
    assert np.allclose(rle_perimeters(far), rle_perimeters(rles), rtol=1e-12, atol=1e-9)
    boxes, far_boxes = rle_boxes(rles), rle_boxes(far)
    found = rle_areas(rles) > 0
    assert np.array_equal(far_boxes[found], boxes[found] + [55000, 30000, 55000, 30000])
    with pytest.raises(ValueError, match="0 x 5"):
        move_rles(rles, 0, 0, 0, 5)


@pytest.mark.parametrize("factor", [1, 2, 3, 5, 40])
@pytest.mark.parametrize(("height", "width"), [(37, 41), (1, 30), (10, 10)])
def test_reduced_masks_are_every_kth_pixel(factor, height, width):
    masks = random_masks(9, 20, height, width)
    row, column = (min(factor // 2, (side - 1) % factor) for side in (height, width))
    assert reduce_rles(masks_to_rles(masks), factor) == masks_to_rles(masks[:, row::factor, column::factor])


def test_reducing_by_less_than_one_is_refused():
    with pytest.raises(ValueError, match="factor is 0"):
        reduce_rles([], 0)


def test_label_image_there_and_back():
    rng = np.random.default_rng(7)
    masks = random_masks(8, 60, 33, 28)[2::5]  # discs
    label_map = rles_to_label_map(masks_to_rles(masks), rng.random(12), 33, 28)
    ids = sorted(set(label_map.ravel().tolist()) - {0})
    assert len(ids) > 6
    rles = label_map_to_rles(label_map, ids)
    assert rle_areas(rles).tolist() == [(label_map == label).sum() for label in ids]
    assert (rle_ious(rles, rles) == np.eye(len(ids))).all()
    again = rles_to_label_map(rles, np.ones(len(ids)), 33, 28)
    assert np.array_equal(np.append(0, ids)[again], label_map)


def test_no_masks():
    assert [measure([]).shape for measure in MEASURES] == [(0,), (0, 4), (0, 2), (0,)]
    assert move_rles([], 1, 2, 3, 4) == reduce_rles([], 2) == []


@pytest.mark.parametrize(
    "measure", [*MEASURES, lambda rles: move_rles(rles, 0, 0, 4, 4), lambda rles: reduce_rles(rles, 2)]
)
def test_malformed_masks_are_refused(measure):
    with pytest.raises(ValueError, match="RLE 1"):
        measure([{"size": [4, 4], "counts": "`0"}, {"size": [4, 4], "counts": "X"}])


def test_a_union_has_the_pixels_of_any_mask():
    rng = np.random.default_rng(0)
    for share in (0, 0.1, 0.5, 0.9, 1):
        masks = rng.random((5, 7, 9)) < share
        assert rle_union(masks_to_rles(masks)) == masks_to_rles(masks.any(axis=0)[None])[0]
    with pytest.raises(ValueError, match="one size"):
        rle_union([])


def test_a_union_of_very_many_masks():
    """Of a slide; in turn with the union of those before, each would take longer than the last."""
    side, count = 20_000, 12_000
    starts = np.arange(count) * 15_000
    rles = [{"size": [side, side], "counts": [start, 20, side**2 - start - 20]} for start in starts.tolist()]
    assert rle_areas([rle_union(rles + rles)]).tolist() == [20 * count]
