"""The zoo's configs find what torchvision's own models find, from the image file to the masks.

The weights are random, as none can be downloaded here, but spread like trained ones, as in the benchmark of inference.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.config import instantiate
from PIL import Image
from torchvision.transforms.functional import to_tensor

from maskrcnn_plus.checkpoints import load_weights
from maskrcnn_plus.config import get_config

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT.parent / "shared" / "data" / "coco_tiny" / "images"
# Of the network's input, its proposals and detections: 800, 1333, 1000 and 100 take ten times as long.
MIN_SIZE, MAX_SIZE, NUM_PROPOSALS, NUM_DETECTIONS = 256, 427, 200, 50


@pytest.fixture(scope="module")
def random_weights():
    path = ROOT / "tools" / "benchmarks" / "random_weights.py"
    spec = importlib.util.spec_from_file_location("random_weights_under_test", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def images():
    paths = sorted(IMAGES.glob("*.jpg"))[:2]
    if len(paths) < 2:
        pytest.skip(f"there are no COCO images in {IMAGES}")
    return paths


@pytest.mark.parametrize("version", ["", "_v2"])
@torch.inference_mode()
def test_same_detections(version, images, random_weights, tmp_path):
    build = getattr(torchvision.models.detection, f"maskrcnn_resnet50_fpn{version}")
    theirs = build(
        weights=None,
        weights_backbone=None,
        min_size=MIN_SIZE,
        max_size=MAX_SIZE,
        rpn_post_nms_top_n_test=NUM_PROPOSALS,
        box_detections_per_img=NUM_DETECTIONS,
    ).eval()
    random_weights.randomise(theirs, read(images[0]), seed=0)
    torch.save(theirs.state_dict(), tmp_path / "model.pth")

    cfg = get_config(f"zoo/torchvision_mask_rcnn_r50_fpn{version}")
    resize = cfg.dataloader.test.mapper.augmentations[0]
    resize.short_edge_length, resize.max_size = MIN_SIZE, MAX_SIZE
    cfg.model.proposal_generator.post_nms_topk = (NUM_PROPOSALS, NUM_PROPOSALS)
    cfg.dataset.max_objects = NUM_DETECTIONS
    mapper, ours = instantiate(cfg.dataloader.test.mapper), instantiate(cfg.model).eval()
    report = load_weights(ours, str(tmp_path / "model.pth"), class_names=cfg.dataset.thing_classes, strict=True)
    assert report.fraction == 1

    for path in images:
        (expected,) = theirs([read(path)])
        (found,) = ours([mapper({"file_name": str(path)})])
        assert len(expected["boxes"]) >= 30
        assert_same(found["instances"], expected, random_weights.THING_IDS, path.name)


def read(path):
    with Image.open(path) as image:
        return to_tensor(image.convert("RGB"))


def assert_same(found, expected, thing_ids, name):
    """Every detection has its own partner of the same class, box, score and mask."""
    assert found.image_size == tuple(expected["masks"].shape[-2:])
    assert len(found) == len(expected["boxes"]), name
    distances = (found.pred_boxes.tensor[None] - expected["boxes"][:, None]).abs().amax(dim=2)  # [theirs, ours]
    distances[thing_ids[found.pred_classes][None] != expected["labels"][:, None]] = torch.inf
    distance, partner = distances.min(dim=1)
    assert distance.max() < 0.05, f"{name}: {distance.max()} px"
    assert sorted(partner.tolist()) == list(range(len(found))), name
    score_error = (found.scores[partner] - expected["scores"]).abs().max()
    assert score_error < 1e-4, f"{name}: {score_error}"
    a, b = found.pred_masks_rle[partner].to_dense().flatten(1), expected["masks"][:, 0].flatten(1) >= 0.5
    union = (a | b).sum(1)
    iou = torch.where(union > 0, (a & b).sum(1) / union, 1.0)
    assert iou.min() >= 0.999, f"{name}: {iou.min()}"
    assert b.any(1).float().mean() > 0.9  # there is something to compare
