"""The zoo's configs find what torchvision's own models find, from the image file to the masks.

The weights are random, as none can be downloaded here, but spread like trained ones: batch norms with statistics, and
heads whose outputs vary from place to place. Logits of the classes that COCO never annotated are low, as training
makes them.
"""

from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.config import instantiate
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image
from torch import nn
from torchvision.transforms.functional import to_tensor

from maskrcnn_plus.checkpoints import load_weights
from maskrcnn_plus.config import get_config

IMAGES = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco_tiny" / "images"
THING_IDS = torch.tensor([category["id"] for category in COCO_CATEGORIES if category["isthing"]])
# Of the network's input, its proposals and detections: 800, 1333, 1000 and 100 take ten times as long.
MIN_SIZE, MAX_SIZE, NUM_PROPOSALS, NUM_DETECTIONS = 256, 427, 200, 50


@pytest.fixture(scope="module")
def images():
    paths = sorted(IMAGES.glob("*.jpg"))[:5]
    if len(paths) < 5:
        pytest.skip(f"there are no COCO images in {IMAGES}")
    return paths


@pytest.mark.parametrize("version", ["", "_v2"])
@torch.inference_mode()
def test_same_detections(version, images, tmp_path):
    build = getattr(torchvision.models.detection, f"maskrcnn_resnet50_fpn{version}")
    theirs = build(
        weights=None,
        weights_backbone=None,
        min_size=MIN_SIZE,
        max_size=MAX_SIZE,
        rpn_post_nms_top_n_test=NUM_PROPOSALS,
        box_detections_per_img=NUM_DETECTIONS,
    ).eval()
    randomise(theirs, read(images[0]), seed=0)
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
        assert_same(found["instances"], expected, path.name)


def read(path):
    with Image.open(path) as image:
        return to_tensor(image.convert("RGB"))


def assert_same(found, expected, name):
    """Every detection has its own partner of the same class, box, score and mask."""
    assert found.image_size == tuple(expected["masks"].shape[-2:])
    assert len(found) == len(expected["boxes"]), name
    distances = (found.pred_boxes.tensor[None] - expected["boxes"][:, None]).abs().amax(dim=2)  # [theirs, ours]
    distances[THING_IDS[found.pred_classes][None] != expected["labels"][:, None]] = torch.inf
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


def randomise(model, image, seed):
    """Give a torchvision model random weights under which it finds many objects of many classes in the image."""
    random = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            # Residual branches add less, so that the features stay of one magnitude.
            low = 0.1 if name.endswith("bn3") else 0.7
            module.weight.copy_(low + 0.5 * torch.rand(module.weight.shape, generator=random))
            module.running_var.copy_(0.5 + torch.rand(module.weight.shape, generator=random))
            module.running_mean.copy_(0.1 * torch.randn(module.weight.shape, generator=random))
            module.bias.copy_(0.1 * torch.randn(module.weight.shape, generator=random))
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            inputs = module.in_channels if isinstance(module, nn.ConvTranspose2d) else module.weight[0].numel()
            module.weight.copy_((2 / inputs) ** 0.5 * torch.randn(module.weight.shape, generator=random))
            if module.bias is not None:
                module.bias.copy_(0.1 * torch.randn(module.bias.shape, generator=random))

    def spread(layer, inputs, std, offset=0.0):
        """Scale and shift each output of the last layer of a head to `std` and about `offset` over the inputs."""
        outputs = torch.cat([layer(x).transpose(0, 1).flatten(1) for x in inputs], dim=1)
        scale = std / outputs.std(dim=1)
        layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
        noise = 0.3 * torch.randn(scale.shape, generator=random)
        layer.bias.copy_((layer.bias - outputs.mean(dim=1)) * scale + noise + offset)

    batch, _ = model.transform([image])
    features = model.backbone(batch.tensors)
    hidden = [model.rpn.head.conv(feature) for feature in features.values()]
    spread(model.rpn.head.cls_logits, hidden, std=2.0)
    spread(model.rpn.head.bbox_pred, hidden, std=0.3)

    heads, (height, width) = model.roi_heads, batch.image_sizes[0]
    corners = torch.rand(60, 2, 2, generator=random).sort(dim=1).values.flatten(1)
    boxes = [corners * torch.tensor([width, height, width, height])]
    hidden = [heads.box_head(heads.box_roi_pool(features, boxes, batch.image_sizes))]
    spread(heads.box_predictor.cls_score, hidden, std=2.5)
    spread(heads.box_predictor.bbox_pred, hidden, std=1.0)
    unused = sorted(set(range(1, 91)) - set(THING_IDS.tolist()))
    heads.box_predictor.cls_score.bias[unused] -= 10
    hidden = heads.mask_head(heads.mask_roi_pool(features, boxes, batch.image_sizes))
    hidden = [heads.mask_predictor.relu(heads.mask_predictor.conv5_mask(hidden))]
    spread(heads.mask_predictor.mask_fcn_logits, hidden, std=1.5, offset=1.0)
