"""Polygons of masks: they cover the pixels of the mask, no more and no less, and are simple."""

import cv2
import numpy as np
import pytest

from maskrcnn_plus.masks.label_map import masks_to_rles
from maskrcnn_plus.results.outlines import mask_polygons, rle_polygons


def shoelace(ring):
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]], strict=True)) / 2


def covers(ring, x, y):
    """Whether a point is inside, by the number of vertical pieces to its right."""
    pieces = zip(ring, [*ring[1:], ring[0]], strict=True)
    return sum(x0 == x1 and x0 > x and min(y0, y1) < y < max(y0, y1) for (x0, y0), (x1, y1) in pieces) % 2 == 1


def assert_outlined(mask):
    polygons = [[ring.tolist() for ring in polygon] for polygon in mask_polygons(mask)]
    assert len(polygons) == cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[0] - 1
    painted = np.zeros(mask.shape, dtype=int)
    for outer, *holes in polygons:
        assert shoelace(outer) > 0
        assert all(shoelace(hole) < 0 for hole in holes)
        for ring in (outer, *holes):
            assert len({tuple(corner) for corner in ring}) == len(ring) >= 4  # does not touch itself
            steps = np.diff([*ring, ring[0]], axis=0)
            assert ((steps != 0).sum(axis=1) == 1).all()  # along pixel edges
            assert (np.sign(steps[:-1]) * np.sign(steps[1:])).sum() == 0  # every corner is one
        for y, x in np.ndindex(mask.shape):
            inside = [covers(ring, x + 0.5, y + 0.5) for ring in (outer, *holes)]
            assert inside[0] or not any(inside)  # holes lie in their own polygon
            assert sum(inside[1:]) <= 1
            painted[y, x] += inside[0] and not any(inside[1:])
    assert np.array_equal(painted, mask)


@pytest.mark.parametrize("seed", range(60))
def test_random_masks(seed):
    rng = np.random.default_rng(seed)
    assert_outlined(rng.random(rng.integers(1, 8, 2)) < rng.uniform(0.2, 0.95))


@pytest.mark.parametrize(
    "rows",
    [
        ["#"],
        ["#####"],
        ["#.", ".#"],
        [".#.", "#.#", ".#."],
        ["###", "#.#", "###"],
        ["####", "#.##", "##.#", "####"],  # two holes that touch at a corner
        ["###.", "#.##", "####", "####"],
        ["###", "#.#", "##."],  # a hole that touches the outside at a corner
        ["#####", "#...#", "#.#.#", "#...#", "#####"],  # an island in a lake
    ],
)
def test_awkward_masks(rows):
    assert_outlined(np.array([[pixel == "#" for pixel in row] for row in rows]))


def test_a_pixel_is_a_square_with_its_corners_in_order():
    mask = np.zeros((4, 5), dtype=bool)
    mask[2, 3] = True
    ((ring,),) = mask_polygons(mask)
    first = ring.tolist().index([3, 2])
    assert np.roll(ring, -first, axis=0).tolist() == [[3, 2], [4, 2], [4, 3], [3, 3]]


def test_polygons_of_rles_are_those_of_their_masks_in_place():
    rng = np.random.default_rng(0)
    masks = np.zeros((6, 20, 30), dtype=bool)
    masks[0, 3:9, 4:11] = rng.random((6, 7)) < 0.7
    masks[1, 19, 29] = True
    masks[3, :, 7] = True
    masks[4] = True
    found = list(rle_polygons(masks_to_rles(masks)))
    assert len(found) == 6
    assert found[2] == found[5] == []
    for polygons, mask in zip(found, masks, strict=True):
        rings = sorted(ring.tolist() for polygon in polygons for ring in polygon)
        assert rings == sorted(ring.tolist() for polygon in mask_polygons(mask) for ring in polygon)
    assert list(rle_polygons([])) == []
