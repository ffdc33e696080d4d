"""Merging across tiles, with a stand-in that cuts the true objects of a label image at the borders of its tiles."""

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from scipy import ndimage

from maskrcnn_plus.inference.tiling import Tiling, tile_starts
from maskrcnn_plus.masks.label_map import label_map_to_rles
from maskrcnn_plus.masks.measure import move_rles, rle_boxes
from maskrcnn_plus.masks.merge import TileObjects, merge_tiles


def ellipses(rng, side, count, radii, num_classes):
    """A label image [side, side] of ellipses, and the class of each label; later ones cover earlier ones."""
    labels = np.zeros((side, side), dtype=np.int32)
    y, x = np.mgrid[:side, :side]
    for label in range(1, count + 1):
        cx, cy = rng.uniform(0, side, 2)
        a, b = rng.uniform(*radii, 2)
        t = rng.uniform(0, np.pi)
        u, v = (x - cx) * np.cos(t) + (y - cy) * np.sin(t), (y - cy) * np.cos(t) - (x - cx) * np.sin(t)
        labels[(u / a) ** 2 + (v / b) ** 2 <= 1] = label
    # what others cut into pieces becomes several objects, as a detector's objects are in one piece
    pieces, number = np.zeros_like(labels), 0
    for label in range(1, count + 1):
        found, parts = ndimage.label(labels == label)
        pieces[found > 0] = found[found > 0] + number
        number += parts
    return pieces, rng.integers(0, num_classes, number + 1)


def cut_into_tiles(labels, classes, tile_size, overlap, noise=None):
    """The objects of every tile, cut at its border; `noise` may change or drop an object."""
    tiling = Tiling(tile_size, overlap, 1.0)
    tiles = []
    for y in tile_starts(labels.shape[0], tiling):
        for x in tile_starts(labels.shape[1], tiling):
            crop = labels[y : y + tile_size, x : x + tile_size]
            found = []
            for label in np.unique(crop[crop > 0]):
                mask, score = crop == label, 0.9
                if noise is not None:
                    mask, score = noise(mask, score, x, y, np.count_nonzero(labels == label))
                if mask is not None:
                    found.append((mask, score, classes[label]))
            rles = [encode(mask) for mask, _, _ in found]
            scores, kinds = np.array([s for _, s, _ in found]), np.array([k for _, _, k in found], dtype=np.int64)
            tiles.append(TileObjects(x, y, *crop.shape, rle_boxes(rles), scores, kinds, rles))
    return tiles


def encode(mask):
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def as_set(rles, classes):
    return sorted((rle["counts"], int(kind)) for rle, kind in zip(rles, classes, strict=True))


def truth_of(labels, classes):
    ids = np.unique(labels[labels > 0])
    return label_map_to_rles(labels, ids), classes[ids]


# object radii against an overlap of 24: smaller, about as large, larger, larger than the tile of 64
@pytest.mark.parametrize("radii", [(1, 6), (5, 11), (10, 20), (20, 50)])
@pytest.mark.parametrize("num_classes", [1, 3])
def test_objects_cut_at_tile_borders_come_back_exactly(radii, num_classes):
    objects = 0
    for seed in range(3):
        rng = np.random.default_rng(seed)
        labels, classes = ellipses(rng, 200, int(6000 / np.mean(radii) ** 1.7), radii, num_classes)
        tiles = cut_into_tiles(labels, classes, 64, 24)
        rng.shuffle(tiles)
        merged = merge_tiles(tiles, *labels.shape, reach=12)
        rles, kinds = truth_of(labels, classes)
        assert as_set(merged.rles, merged.classes) == as_set(rles, kinds)
        np.testing.assert_allclose(merged.boxes, rle_boxes(merged.rles))
        objects += len(rles)
    assert objects > 20


@pytest.mark.parametrize(("tile_size", "overlap"), [(64, 32), (50, 10), (97, 41), (40, 3)])
def test_any_tiling_gives_the_same_objects(tile_size, overlap):
    rng = np.random.default_rng(tile_size)
    labels, classes = ellipses(rng, 170, 60, (3, 18), 2)
    merged = merge_tiles(cut_into_tiles(labels, classes, tile_size, overlap), *labels.shape, reach=overlap / 2)
    assert as_set(merged.rles, merged.classes) == as_set(*truth_of(labels, classes))


def test_an_object_on_the_corner_of_four_tiles():
    for radius in (4, 9, 15, 40):  # overlap 20: complete in all four, in one, in none, larger than the tile
        for cx, cy in ((50, 50), (41, 58), (58, 42)):
            y, x = np.mgrid[:100, :100]
            labels = ((x - cx) ** 2 + (y - cy) ** 2 <= radius**2).astype(np.int32)
            tiles = cut_into_tiles(labels, np.array([0, 2]), 60, 20)
            assert len(tiles) == 4
            assert sum(len(tile.rles) for tile in tiles) == 4
            merged = merge_tiles(tiles, 100, 100, reach=10)
            assert as_set(merged.rles, merged.classes) == [(encode(labels)["counts"], 2)]
            assert merged.scores.tolist() == pytest.approx([0.9])


@pytest.mark.parametrize("classes", [(0, 0), (0, 1)])
def test_touching_halves_stay_two(classes):
    for long in (12, 80):  # below and above the overlap
        labels = np.zeros((100, 100), dtype=np.int32)
        labels[40:50, 50 - long // 2 : 50 + long // 2] = 1
        labels[50:60, 50 - long // 2 : 50 + long // 2] = 2
        merged = merge_tiles(cut_into_tiles(labels, np.array([0, *classes]), 60, 20), 100, 100, reach=10)
        assert as_set(merged.rles, merged.classes) == as_set(*truth_of(labels, np.array([0, *classes])))


def test_the_same_pixels_in_two_classes_are_two_objects():
    mask = np.zeros((60, 60), dtype=bool)
    mask[20:30, 45:55] = True
    right = encode(mask[:, 40:].copy())
    tiles = [
        TileObjects(0, 0, 60, 60, np.array([[45, 20, 55, 30]]), np.array([0.9]), np.array([0]), [encode(mask)]),
        TileObjects(40, 0, 60, 20, np.array([[5, 20, 15, 30]]), np.array([0.8]), np.array([1]), [right]),
    ]
    merged = merge_tiles(tiles, 60, 60, reach=10)
    assert merged.classes.tolist() == [0, 1]
    tiles[1].classes[:] = 0
    assert len(merge_tiles(tiles, 60, 60, reach=10).rles) == 1


@pytest.mark.parametrize("radii", [(4, 9), (14, 40)])
def test_noise_neither_loses_nor_doubles_objects(radii):
    """Scores that differ, masks eroded at the border, and cut objects that are missing where another tile has them."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        labels, classes = ellipses(rng, 220, int(7000 / np.mean(radii) ** 1.7), radii, 2)
        sizes = np.bincount(labels.ravel())
        labels[np.isin(labels, np.flatnonzero(sizes < 25))] = 0

        def noise(mask, score, x, y, area, rng=rng):
            whole = np.count_nonzero(mask) == area
            frame = np.zeros_like(mask)
            frame[1:-1, 1:-1] = True
            if not whole:
                mask = mask & (frame | (rng.random(mask.shape) < 0.5))
            small = max(radii) < 12
            if not mask.any() or (small and not whole and rng.random() < 0.3):
                return None, None
            return mask, score * rng.uniform(0.5, 1)

        tiles = cut_into_tiles(labels, classes, 72, 28, noise)
        merged = merge_tiles(tiles, *labels.shape, reach=14)
        rles, kinds = truth_of(labels, classes)
        ious = coco_mask.iou(merged.rles, rles, [0] * len(rles)) * (merged.classes[:, None] == kinds[None])
        assert len(merged.rles) == len(rles)
        assert (ious.max(axis=0) > 0.8).all()
        assert (ious.max(axis=1) > 0.8).all()
        assert (np.diff(merged.scores) <= 0).all()


def test_a_blob_at_the_border_does_not_swallow_the_complete_objects_of_the_neighbour():
    left = np.zeros((60, 60), dtype=bool)
    masks = [left.copy() for _ in range(3)]
    for k, mask in enumerate(masks):
        mask[10 + 12 * k : 20 + 12 * k, 42:52] = True
    blob = np.any(masks, axis=0)[:, 44:]  # tile B begins at 44, sees the three cut and takes them for one
    rles = [encode(mask) for mask in masks]
    scores = np.array([0.6, 0.6, 0.6])
    a = TileObjects(0, 0, 60, 60, rle_boxes(rles), scores, np.zeros(3, dtype=int), rles)
    wide = encode(np.pad(blob, ((0, 0), (0, 40))))
    b = TileObjects(44, 0, 60, 56, rle_boxes([wide]), np.array([0.99]), np.zeros(1, dtype=int), [wide])
    merged = merge_tiles([a, b], 60, 100, reach=8)
    assert as_set(merged.rles, merged.classes) == as_set(move_rles(rles, 0, 0, 60, 100), [0, 0, 0])


def test_a_cut_object_stays_unless_another_tile_sees_its_place_whole():
    """The neighbour begins at 40 and finds nothing."""
    for left, kept in ((30, True), (39, True), (41, True), (44, False), (56, False)):
        mask = np.zeros((60, 60), dtype=bool)
        mask[20:30, left:60] = True
        tiles = [
            TileObjects(0, 0, 60, 60, rle_boxes([encode(mask)]), np.array([0.7]), np.array([0]), [encode(mask)]),
            TileObjects(40, 0, 60, 60, np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=int), []),
        ]
        merged = merge_tiles(tiles, 60, 100, reach=10)
        assert merged.boxes.tolist() == ([[left, 20, 60, 30]] if kept else [])


def test_score_and_box_of_a_merged_object():
    mask = np.ones((10, 60), dtype=bool)
    a = TileObjects(0, 0, 10, 60, np.array([[0.5, 0.0, 59.5, 10.0]]), np.array([0.9]), np.array([1]), [encode(mask)])
    part = encode(mask[:, :30])
    b = TileObjects(40, 0, 10, 30, np.array([[0.25, 0.5, 29.0, 9.0]]), np.array([0.6]), np.array([1]), [part])
    merged = merge_tiles([b, a], 10, 70, reach=10)
    assert merged.scores.tolist() == pytest.approx([(600 * 0.9 + 300 * 0.6) / 900])
    assert merged.boxes.tolist() == [[0.5, 0.0, 69.0, 10.0]]
    assert merged.rles == [encode(np.ones((10, 70), dtype=bool))]


def test_nothing_and_bad_tiles():
    nothing = TileObjects(0, 0, 10, 10, np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=int), [])
    empty = TileObjects(
        0, 0, 10, 10, np.zeros((1, 4)), np.ones(1), np.zeros(1, dtype=int), [encode(np.zeros((10, 10)))]
    )
    for tiles in ([], [nothing], [nothing, empty]):
        merged = merge_tiles(tiles, 10, 20, reach=1)
        assert len(merged.rles) == len(merged.scores) == len(merged.boxes) == 0
    with pytest.raises(ValueError, match="not within 5 x 20"):
        merge_tiles([nothing], 20, 5, reach=1)
    with pytest.raises(ValueError, match=r"2\*\*32"):
        merge_tiles([nothing], 2**16, 2**16, reach=1)


def test_of_equal_scores_the_tile_whose_core_holds_the_centre_wins():
    """Little better scores do not change that, a far better one outweighs the place."""
    mask = np.zeros((40, 60), dtype=bool)
    mask[10:20, 40:48] = True  # its centre is left of the middle of the zone 30..60
    rough = mask.copy()
    rough[10, 40:48] = False
    fine, rough = encode(mask), encode(np.pad(rough[:, 30:], ((0, 0), (0, 30))))
    for score_a, score_b, winner in ((0.8, 0.8, 80), (0.8, 0.85, 80), (0.3, 0.9, 72)):
        a = TileObjects(0, 0, 40, 60, rle_boxes([fine]), np.array([score_a]), np.array([0]), [fine])
        b = TileObjects(30, 0, 40, 60, rle_boxes([rough]), np.array([score_b]), np.array([0]), [rough])
        for tiles in ([a, b], [b, a]):
            merged = merge_tiles(tiles, 40, 90, reach=15)
            assert coco_mask.area(merged.rles).tolist() == [winner]


def test_a_long_object_whose_masks_end_short_of_the_border_is_still_one():
    mask = np.zeros((40, 110), dtype=bool)
    mask[10:20, 20:90] = True
    left, right = mask[:, :70].copy(), mask[:, 40:].copy()
    left[:, -8:] = False  # well over the 2 px and 5 % of its side that count as touching
    right[:, :8] = False
    rles = [encode(left), encode(right)]
    tiles = [
        TileObjects(x, 0, 40, 70, rle_boxes([rle]), np.array([0.9]), np.array([0]), [rle])
        for x, rle in zip((0, 40), rles, strict=True)
    ]
    merged = merge_tiles(tiles, 40, 110, reach=15)
    assert merged.rles == [encode(mask)]


def test_junk_across_an_object_takes_no_part():
    """Two of four tiles have the object whole, a little differently; a third has junk that lies across the border."""
    columns, rows = np.arange(120), np.arange(60)[:, None]
    junk = (columns >= 61) & (columns < 82) & (rows >= 10) & (rows < 46)  # half of it and of the object are not shared
    copies, tiles = [], []
    for y, height in ((0, 56), (4, 56)):
        nucleus = (columns >= 50) & (columns < 71) & (rows >= 10 + y // 4) & (rows < 46 + y // 4)
        copies.append(encode(nucleus)["counts"])
        for x, found in ((0, [(nucleus, 0.99)]), (60, [(nucleus, 0.98), (junk, 0.07)])):
            rles = [encode(mask[y : y + height, x : x + (90 if x == 0 else 60)]) for mask, _ in found]
            scores, width = np.array([score for _, score in found]), rles[0]["size"][1]
            tiles.append(TileObjects(x, y, height, width, rle_boxes(rles), scores, np.zeros(len(rles), int), rles))
    merged = merge_tiles(tiles, 60, 120, reach=15)
    assert len(merged.rles) == 1
    assert merged.rles[0]["counts"] in copies


def test_of_several_that_agree_only_the_best_is_the_other_part():
    mask = np.zeros((40, 110), dtype=bool)
    mask[10:30, 10:100] = True
    left, right = encode(mask[:, :70]), encode(mask[:, 40:])
    junk = mask[:, 40:].copy()
    junk[30:34, 0:30] = True  # agrees with the left part less than the right part does
    junk[:, 30:] = False
    junk[10:18] = False
    junk = encode(junk)
    a = TileObjects(0, 0, 40, 70, rle_boxes([left]), np.array([0.9]), np.array([0]), [left])
    b = TileObjects(40, 0, 40, 70, rle_boxes([right, junk]), np.array([0.9, 0.2]), np.array([0, 0]), [right, junk])
    merged = merge_tiles([a, b], 40, 110, reach=15)
    assert merged.rles == [encode(mask)]
