"""What mask scoring learns from: the true IoUs of pasted masks."""

import numpy as np
import pytest
import torch
from detectron2.layers import paste_masks_in_image
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from scipy import ndimage
from torch.nn import functional as F

from maskrcnn_plus.mask_heads.targets import areas_in_boxes, mask_iou_targets, mask_targets
from maskrcnn_plus.masks.bit_crops import IndexedBitMasks
from maskrcnn_plus.masks.label_masks import LabelMapMasks
from maskrcnn_plus.masks.soft_masks import SoftMasks

HEIGHT, WIDTH = 120, 150


def blobs(seed=0, sigma=6):
    """A label image of objects of irregular outline, and the ids of those with more than one pixel."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((HEIGHT, WIDTH)), sigma)
    labels, count = ndimage.label(noise > 0.3 * noise.std())
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    ids = torch.from_numpy(1 + np.flatnonzero(sizes > 1)).int()
    return LabelMapMasks(torch.from_numpy(labels.astype(np.int32)), ids)


def jittered(boxes, seed=0, amount=0.4):
    """Boxes that miss parts of their objects, within the image."""
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    shift = torch.rand(boxes.shape, generator=torch.Generator().manual_seed(seed)) - 0.5
    moved = boxes + amount * shift * sides
    return torch.minimum(moved.clamp(min=0), moved.new_tensor([WIDTH, HEIGHT] * 2))


def as_polygons(bitmaps):
    """Each mask as the outlines of its pixels' rows: polygons that cover exactly its pixels, up to rasterisation."""
    polygons = []
    for mask in bitmaps:
        parts = []
        for y, row in enumerate(mask.numpy()):
            edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
            parts += [np.array([a, y, b, y, b, y + 1, a, y + 1], float) for a, b in edges.reshape(-1, 2)]
        polygons.append(parts)
    return PolygonMasks(polygons)


def predicted_masks(targets, seed=0, noise=1.0):
    """Probabilities [R, S, S]: the targets with an error that is smooth."""
    random = torch.Generator().manual_seed(seed)
    errors = torch.randn(len(targets), 1, 4, 4, generator=random)
    errors = F.interpolate(errors, size=targets.shape[1:], mode="bicubic")[:, 0]
    return (3 * (2 * targets - 1 + noise * errors)).sigmoid()


def targets_and_truth(masks, boxes, size, noise=1.0, bitmaps=None):
    """IoU targets of masks with errors, and the IoUs of these masks pasted into the image with the whole objects."""
    instances = Instances((HEIGHT, WIDTH), proposal_boxes=Boxes(boxes), gt_masks=masks)
    crops = mask_targets([instances], size)
    probs = predicted_masks(crops, noise=noise)
    targets = mask_iou_targets(probs >= 0.5, crops >= 0.5, *areas_in_boxes(masks, boxes))
    pasted = paste_masks_in_image(probs, Boxes(boxes), (HEIGHT, WIDTH), threshold=0.5)
    whole = masks.to_bitmasks().tensor if bitmaps is None else bitmaps
    truth = (pasted & whole).sum((1, 2)) / (pasted | whole).sum((1, 2)).clamp(min=1)
    return targets, truth


class TestTargets:
    def test_equal_true_ious_of_pasted_masks_within_the_grids_resolution(self):
        errors = {}
        for size in (14, 28, 56):
            pairs = []
            for seed in range(4):
                masks = blobs(seed, sigma=8)
                pairs.append(targets_and_truth(masks, jittered(masks.get_bounding_boxes().tensor, seed), size))
            targets, truth = (torch.cat(each) for each in zip(*pairs, strict=True))
            assert 0.2 < truth.quantile(0.1) < 0.8 < truth.max()
            errors[size] = (targets - truth).abs()
        # A wrong band of half a cell along the outline, which is some 4 sides long, is 2 / size of the box.
        assert all(error.mean() < 1 / size + 0.01 for size, error in errors.items())
        assert all(error.quantile(0.9) < 2 / size + 0.02 for size, error in errors.items())
        assert errors[56].mean() < 0.5 * errors[14].mean()

    @pytest.mark.parametrize("kind", ["label map", "bitmaps", "polygons"])
    def test_are_exact_where_cells_are_pixels(self, kind):
        masks = blobs(1)
        bitmaps = masks.to_bitmasks().tensor
        corners = masks.get_bounding_boxes().tensor[:, :2].sub(3).clamp(min=0)
        boxes = torch.cat([corners, corners + 20], dim=1)  # many objects are larger
        masks = {"label map": masks, "bitmaps": BitMasks(bitmaps), "polygons": as_polygons(bitmaps)}[kind]
        targets, truth = targets_and_truth(masks, boxes, 20, bitmaps=bitmaps)
        whole, inside = areas_in_boxes(masks, boxes)
        assert (inside < whole).sum() >= 3
        assert truth.std() > 0.1
        assert torch.allclose(targets, truth, atol=1e-6)

    @pytest.mark.parametrize("size", [14, 28])
    def test_one_pixel_objects(self, size):
        labels = torch.zeros(HEIGHT, WIDTH, dtype=torch.int32)
        labels[40, 50] = 1
        masks = LabelMapMasks(labels, torch.ones(5, dtype=torch.int32))
        boxes = torch.tensor(
            [[50, 40, 51, 41], [49.0, 39, 52, 42], [49.6, 39.6, 51.4, 41.4], [50.6, 40.6, 60, 60], [0, 0, 10, 10]]
        )
        targets, truth = targets_and_truth(masks, boxes, size, noise=0)
        assert targets[:3].tolist() == truth[:3].tolist() == [1, 1, 1]
        assert targets[4] == truth[4] == 0
        assert areas_in_boxes(masks, boxes).tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
        assert 0 <= targets[3] <= 1

    def test_against_a_loop(self):
        random = torch.Generator().manual_seed(0)
        pred, gt = (torch.rand(40, 9, 9, generator=random) > 0.5 for _ in range(2))
        pred[:3] = False
        gt[2:5] = False
        inside = torch.randint(0, 30, (40,), generator=random).double()
        areas = inside + torch.randint(0, 30, (40,), generator=random)
        found = mask_iou_targets(pred, gt, areas, inside)
        for r in range(40):
            intersection = sum(pred[r, y, x] & gt[r, y, x] for y in range(9) for x in range(9)).item()
            whole = gt[r].sum().item() / max(inside[r].item(), 1) * max(areas[r].item(), 1)
            union = pred[r].sum().item() + whole - intersection
            assert found[r].item() == pytest.approx(intersection / union if intersection else 0, abs=1e-12)

    def test_no_rois(self):
        masks = blobs()[torch.zeros(0, dtype=torch.int64)]
        areas = areas_in_boxes(masks, torch.zeros(0, 4))
        assert areas.shape == (2, 0)
        nothing = torch.zeros(0, 28, 28, dtype=torch.bool)
        assert mask_iou_targets(nothing, nothing, *areas).shape == (0,)


class TestAreas:
    @pytest.mark.parametrize("kind", ["label map", "bitmaps", "polygons"])
    def test_count_pixels_whose_centres_lie_in_the_box(self, kind):
        masks = blobs(2, sigma=4)
        bitmaps = masks.to_bitmasks().tensor
        boxes = jittered(masks.get_bounding_boxes().tensor, amount=1.2)
        boxes[0] = torch.tensor([-30, -20, 400, 500])
        boxes[1] = torch.tensor([20, 20, 20, 20])
        boxes[2] = torch.tensor([300, 20, 400, 60])
        boxes[3] = torch.tensor([40, 60, 20, 30])
        boxes[4:8] = boxes[4:8].round() + 0.5  # edges through centres
        masks = {"label map": masks, "bitmaps": BitMasks(bitmaps), "polygons": as_polygons(bitmaps)}[kind]
        whole, inside = areas_in_boxes(masks, boxes)
        assert torch.equal(whole, bitmaps.sum((1, 2)).float())
        assert (inside[0], inside[1:4].tolist()) == (whole[0], [0, 0, 0])
        for mask, (x0, y0, x1, y1), count in zip(bitmaps, boxes.tolist(), inside.tolist(), strict=True):
            ys, xs = (each + 0.5 for each in mask.nonzero(as_tuple=True))
            assert count == ((x0 <= xs) & (xs < x1) & (y0 <= ys) & (ys < y1)).sum()
        assert 0.1 < (inside / whole).mean() < 0.9

    @pytest.mark.parametrize("soft", [False, True])
    def test_rois_that_share_bitmaps(self, soft):
        masks = blobs(2)
        index = torch.arange(60) % (len(masks) - 2)
        boxes = jittered(masks.get_bounding_boxes().tensor[index])
        shared = IndexedBitMasks(masks.to_bitmasks().tensor, index)
        found = areas_in_boxes(SoftMasks(shared) if soft else shared, boxes)
        assert torch.equal(found, areas_in_boxes(masks[index], boxes))

    def test_objects_without_pixels(self):
        box = torch.tensor([[0.0, 0, 5, 5]])
        empty = LabelMapMasks(torch.zeros(9, 9, dtype=torch.int32), torch.tensor([7], dtype=torch.int32))
        for masks in (empty, empty.to_bitmasks(), PolygonMasks([[]])):
            assert areas_in_boxes(masks, box).tolist() == [[0], [0]]

    def test_other_types_are_refused(self):
        with pytest.raises(TypeError, match="type list"):
            areas_in_boxes([1], torch.zeros(1, 4))
