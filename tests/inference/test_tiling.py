"""Prediction by tiles: with a stand-in whose images are label images, and with the real predictor."""

from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from detectron2.structures import Boxes, Instances

from maskrcnn_plus.config import get_config
from maskrcnn_plus.data.images import ImageReadError
from maskrcnn_plus.data.pixels import intensity_range
from maskrcnn_plus.data.windows import open_windows
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.inference.tiling import Tiling, plan_tiling, predict_tiled, tile_starts
from maskrcnn_plus.masks.label_map import label_map_to_rles
from maskrcnn_plus.masks.measure import rle_boxes
from maskrcnn_plus.masks.rle_masks import RLEMasks


class LabelPredictor:
    """Takes grey values for labels: an exact predictor, which sees what lies in its tile. Label k has class k % 3."""

    def __init__(self, limit=None):
        self.mapper = SimpleNamespace(channels=1, augmentations=None)
        self.model = SimpleNamespace()
        self.max_objects = limit
        self.seen = []

    def get_scale(self, height, width):
        return 1.0

    def intensity_range(self, image):
        return None

    def predict(self, image, *, intensity_range=None):
        assert intensity_range is None
        self.seen.append(image.shape)
        image = image.reduced(1)
        labels = image[:, :, 0].astype(np.int32)
        ids = np.unique(labels[labels > 0])
        rles = label_map_to_rles(labels, ids)
        return Instances(
            labels.shape,
            pred_boxes=Boxes(torch.from_numpy(rle_boxes(rles))),
            scores=torch.full((len(ids),), 0.75),
            pred_classes=torch.from_numpy(ids % 3).long(),
            pred_masks_rle=RLEMasks(rles, labels.shape),
        )


def discs(height, width, seed):
    rng = np.random.default_rng(seed)
    labels = np.zeros((height, width), dtype=np.uint16)
    y, x = np.mgrid[:height, :width]
    for label in range(1, 61):
        cx, cy, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(2, 25)
        inside = (x - cx) ** 2 + (y - cy) ** 2 <= r * r
        if not labels[inside].any():  # one piece each, some touch
            labels[inside] = label
    return labels


def assert_same(instances, labels):
    ids = np.unique(labels[labels > 0])
    expected = sorted((rle["counts"], int(k % 3)) for rle, k in zip(label_map_to_rles(labels, ids), ids, strict=True))
    found = zip(instances.pred_masks_rle, instances.pred_classes.tolist(), strict=True)
    assert sorted((rle["counts"], kind) for rle, kind in found) == expected
    assert instances.image_size == labels.shape
    np.testing.assert_allclose(instances.pred_boxes.tensor.numpy(), rle_boxes(list(instances.pred_masks_rle)))


@pytest.mark.parametrize("options", [dict(tile=(32, 32), compression="zlib"), dict(rowsperstrip=9), dict()])
def test_an_image_on_disk_is_predicted_as_its_array_and_its_truth(tmp_path, options):
    labels = discs(230, 171, seed=1)
    path = tmp_path / "labels.tif"
    tifffile.imwrite(path, labels, photometric="minisblack", **options)
    predictor = LabelPredictor()
    for source in (path, str(path), labels):
        assert_same(predict_tiled(predictor, source, tile_size=80, overlap=30), labels)
    assert set(predictor.seen) == {(80, 80, 1)}
    assert len(predictor.seen) == 3 * 4 * 3


def test_a_page_of_a_stack(tmp_path):
    stack = np.stack([discs(120, 100, seed) for seed in range(3)])
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack", metadata={"axes": "ZYX"})
    with open_windows(tmp_path / "stack.tif", page=2) as windows:
        assert_same(predict_tiled(LabelPredictor(), windows, tile_size=64, overlap=20), stack[2])


def test_small_narrow_and_empty_images():
    for height, width in ((1, 1), (40, 300), (300, 40), (64, 64), (65, 64)):
        labels = discs(height, width, seed=height)
        predictor = LabelPredictor()
        assert_same(predict_tiled(predictor, labels, tile_size=64, overlap=20), labels)
        assert len(set(predictor.seen)) == 1
    assert len(predict_tiled(LabelPredictor(), np.zeros((100, 200), dtype=np.uint16), tile_size=64)) == 0


def test_tile_starts_cover_with_the_overlap_and_are_as_few_as_can_be():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        tile = int(rng.integers(32, 200))
        overlap, length = int(rng.integers(0, tile // 2 + 1)), int(rng.integers(1, 1500))
        grain = int(rng.integers(1, (tile - overlap) + 1)) if rng.random() < 0.5 else 1
        starts = tile_starts(length, Tiling(tile, overlap, 1.0, grain))
        assert starts[0] == 0
        assert all(start % grain == 0 for start in starts)
        assert max(length - tile, 0) <= starts[-1] < max(length - tile, 0) + grain
        steps = np.diff(starts)
        assert (steps > 0).all()
        assert (steps <= tile - overlap).all()
        assert len(starts) == 1 or (len(starts) - 2) * ((tile - overlap) // grain * grain) + tile < length


def test_the_limit_of_detections_is_reported(caplog):
    labels = np.arange(1, 26, dtype=np.uint16).reshape(5, 5).repeat(8, axis=0).repeat(8, axis=1)
    predict_tiled(LabelPredictor(limit=26), labels, tile_size=40)
    assert not caplog.records
    predict_tiled(LabelPredictor(limit=25), labels, tile_size=40)
    assert "1 of 1 tiles the model found 25 objects" in caplog.text


def test_bad_arguments_and_images(tmp_path):
    labels = discs(100, 100, seed=0)
    for options in (dict(tile_size=31), dict(tile_size=64, overlap=33), dict(overlap=-1), dict(scale=0)):
        with pytest.raises(ValueError, match=f"{list(options)[-1]} is {list(options.values())[-1]}"):
            predict_tiled(LabelPredictor(), labels, **options)
    (tmp_path / "bad.tif").write_bytes(b"II*\0 nothing")
    with pytest.raises(ImageReadError, match=r"bad\.tif"):
        predict_tiled(LabelPredictor(), tmp_path / "bad.tif")
    tifffile.imwrite(tmp_path / "five.tif", np.zeros((5, 40, 40), dtype=np.uint8), photometric="minisblack")
    with pytest.raises(ImageReadError, match=r"five\.tif: the image has 5 channels where 1 are wanted"):
        predict_tiled(LabelPredictor(), tmp_path / "five.tif")
    with pytest.raises(ValueError, match="2\\*\\*32"):
        predict_tiled(LabelPredictor(), np.broadcast_to(np.uint8(0), (2**16, 2**16)))


def test_an_interrupt_passes_and_closes_the_file(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", discs(100, 100, 0), photometric="minisblack", tile=(32, 32))
    predictor = LabelPredictor()

    def interrupted(image, **options):
        raise KeyboardInterrupt

    predictor.predict = interrupted
    with open_windows(tmp_path / "a.tif") as windows:
        file = windows._pages[0].parent.filehandle
        with pytest.raises(KeyboardInterrupt):
            predict_tiled(predictor, windows, tile_size=64)
        assert not file.closed
    assert file.closed


@pytest.fixture(scope="module")
def real():
    """An untrained model that finds something in most places."""
    torch.manual_seed(0)
    config = get_config("nuclei/mask_rcnn_lite0_fpn")
    config.model.backbone.bottom_up.weights = None
    config.model.roi_heads.box_predictor.test_topk_per_image = 20
    config.model.roi_heads.box_predictor.test_score_thresh = 0.0
    config.train.device = "cpu"
    return Predictor(config, "random", score_threshold=0)


def test_the_predictor_knows_its_limit_of_objects(real):
    assert real.max_objects == 20


def test_one_tile_gives_what_the_predictor_gives(real, tmp_path):
    image = np.random.default_rng(0).integers(100, 5000, (70, 90), dtype=np.uint16)
    path = str(tmp_path / "image.tif")
    tifffile.imwrite(path, image, photometric="minisblack")
    alone, tiled = real.predict(path), predict_tiled(real, path)
    kept = torch.from_numpy(np.array([rle["counts"] != "" for rle in alone.pred_masks_rle])) & (
        alone.pred_masks_rle.areas() > 0
    )
    assert kept.sum() > 3
    torch.testing.assert_close(tiled.scores, alone.scores[kept])
    torch.testing.assert_close(tiled.pred_boxes.tensor, alone.pred_boxes.tensor[kept])
    assert list(tiled.pred_masks_rle) == list(alone.pred_masks_rle[kept])


def test_tiles_see_the_grey_values_of_the_whole_image(real):
    image = np.random.default_rng(1).integers(0, 100, (150, 150), dtype=np.uint16)
    image[:75] += 1000
    seen = []
    predictor = SimpleNamespace(
        mapper=real.mapper,
        model=real.model,
        max_objects=real.max_objects,
        get_scale=real.get_scale,
        intensity_range=real.intensity_range,
    )

    def predict(tile, *, intensity_range=None):
        pixels = tile.reduced(1)
        image = real.mapper.prepare(pixels, limits=intensity_range)
        seen.append((real.mapper.make_example(image)["image"], intensity_range))
        with open_windows(np.zeros_like(pixels)) as blank:
            return LabelPredictor().predict(blank)

    predictor.predict = predict
    predict_tiled(predictor, image, tile_size=75, overlap=0)
    assert {limits for _, limits in seen} == {intensity_range(image, (1.0, 99.8))}
    assert [limits for _, limits in seen] == [real.intensity_range(image)] * 4
    means = [float(tile.mean()) for tile, _ in seen]
    assert min(means[:2]) > 200  # the upper tiles are bright, the lower are dark
    assert max(means[2:]) < 50


def test_scale_and_sizes_come_from_the_config(real):
    # 64 px are three strides of 32 at this scale; 1024 / 1.5 px are nearest to 11 times that. Anchors up to 272 px
    # would ask for a larger overlap than a fifth.
    assert plan_tiling(real) == Tiling(704, 140, 1.5, grain=64)
    assert plan_tiling(real, scale=1.0).grain == 32
    assert plan_tiling(real, scale=1.2345).grain == 1
    assert plan_tiling(real, tile_size=80, overlap=20).grain == 1
    assert plan_tiling(real, tile_size=3000).overlap == np.ceil((272 / 1.5 + 4) / 0.9)
    assert plan_tiling(real, tile_size=400, overlap=10, scale=3).scale == 3

    shrinking = LabelPredictor()
    shrinking.get_scale = lambda height, width: 800 / min(height, width)
    plan = plan_tiling(shrinking)
    assert (plan.scale, plan.tile_size, plan.overlap) == (1.0, 800, 160)
    assert plan_tiling(shrinking, scale=2.0).tile_size == 400


def test_a_given_scale_reaches_the_network(real, monkeypatch):
    sizes = []
    forward = real.model.forward
    monkeypatch.setattr(
        real.model, "forward", lambda batch: (sizes.append(tuple(batch[0]["image"].shape[1:])), forward(batch))[1]
    )
    image = np.random.default_rng(2).integers(0, 255, (64, 96), dtype=np.uint8)
    found = predict_tiled(real, image, scale=2.5)
    assert sizes == [(160, 240)]
    assert found.image_size == (64, 96)
    assert found.pred_boxes.tensor[:, 2].max() <= 96
    predict_tiled(real, image)
    assert sizes[1] == (96, 144)
