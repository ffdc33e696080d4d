"""Results are those of Detectron2's GeneralizedRCNN, with masks as RLEs, pasted by either library's rule."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import Backbone, build_model
from detectron2.modeling.meta_arch import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.visualizer import Visualizer
from torch import nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from maskrcnn_plus.config import add_config, detectron2_config
from maskrcnn_plus.evaluation import COCOMaskEvaluator
from maskrcnn_plus.mask_rcnn import MaskRCNNPlus
from maskrcnn_plus.masks.label_map import masks_to_rles
from maskrcnn_plus.masks.rle_masks import RLEMasks, add_dense_masks


class ImageAsFeatures(Backbone):
    size_divisibility = 32

    def forward(self, images):
        return {"p2": images}


class Heads(nn.Module):
    """Stands for RoI heads that find given boxes and masks in every image."""

    def __init__(self, boxes, probs):
        super().__init__()
        self.boxes, self.probs = boxes, probs

    def forward(self, images, features, proposals, targets):
        if self.training:
            return [], {"loss_mask": features["p2"].sum() * len(targets)}
        return [self.results(size) for size in images.image_sizes], {}

    def forward_with_given_boxes(self, features, instances):
        for each in instances:
            each.pred_masks = self.probs[: len(each)]
        return instances

    def results(self, size):
        result = Instances(size, pred_boxes=Boxes(self.boxes.clone()), scores=torch.linspace(0.9, 0.1, len(self.boxes)))
        result.pred_classes = torch.arange(len(self.boxes)) % 2
        if self.probs is not None:
            result.pred_masks = self.probs
        return result


def model(boxes, probs, cls=MaskRCNNPlus, **arguments):
    parts = dict(backbone=ImageAsFeatures(), proposal_generator=lambda *_: (None, {}), roi_heads=Heads(boxes, probs))
    return cls(**parts, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3, **arguments).eval()


def scene(num, height, width, seed=0):
    """Boxes within height x width, a third of them at its borders, some thinner than a pixel, and soft masks."""
    random = torch.Generator().manual_seed(seed)
    corners = torch.rand(num, 2, 2, generator=random).sort(dim=1).values.flatten(1)
    boxes = corners * torch.tensor([width, height, width, height])
    boxes[: num // 6, :2] = 0
    boxes[num // 6 : num // 3, 2:] = torch.tensor([width, height]).float()
    boxes[num // 3 : num // 3 + 3, 2] = boxes[num // 3 : num // 3 + 3, 0] + 0.3
    return boxes, torch.rand(num, 1, 28, 28, generator=random)


def paste_of_torchvision(probs, boxes, size):
    return paste_masks_in_image(probs, boxes, size)[:, 0] >= 0.5


@pytest.mark.parametrize(("num", "height", "width"), [(24, 61, 83), (24, 20, 200), (1, 1, 1), (0, 40, 50)])
@pytest.mark.parametrize("to_size", [1, 1.7, 0.6])
def test_results_equal_detectron2s(num, height, width, to_size):
    boxes, probs = scene(num, height, width)
    size = (max(int(height * to_size), 1), max(int(width * to_size), 1))
    inputs = [{"image": torch.zeros(3, height, width), "height": size[0], "width": size[1]}]
    (theirs,), (ours,), (both,) = (
        model(boxes, probs, cls=GeneralizedRCNN)(inputs),
        model(boxes, probs, dense_masks=False)(inputs),
        model(boxes, probs)(inputs),
    )
    theirs, ours, both = theirs["instances"], ours["instances"], both["instances"]
    assert ours.image_size == theirs.image_size == size
    assert set(ours.get_fields()) == {"pred_boxes", "scores", "pred_classes", "pred_masks_rle"}
    for name in ("scores", "pred_classes"):
        assert torch.equal(ours.get(name), theirs.get(name))
    assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
    assert isinstance(ours.pred_masks_rle, RLEMasks)
    assert list(ours.pred_masks_rle) == masks_to_rles(theirs.pred_masks)
    for dense in (both.pred_masks, add_dense_masks(ours).pred_masks):
        assert dense.dtype == torch.bool
        assert torch.equal(dense, theirs.pred_masks.bool())
    assert num < 2 or theirs.pred_masks.any()


def test_torchvisions_pasting_scales_clips_and_pastes_as_torchvision_does():
    boxes, probs = scene(24, 60, 80)
    inputs = [{"image": torch.zeros(3, 60, 80), "height": 91, "width": 133}]
    (output,) = model(boxes, probs, mask_pasting="torchvision")(inputs)
    (default,) = model(boxes, probs)(inputs)
    result = output["instances"]
    scaled = boxes * torch.tensor([133 / 80, 91 / 60, 133 / 80, 91 / 60])
    assert result.image_size == (91, 133)
    assert torch.allclose(result.pred_boxes.tensor, scaled)
    expected = paste_of_torchvision(probs, result.pred_boxes.tensor, (91, 133))
    assert torch.equal(result.pred_masks_rle.to_dense(), expected)
    assert not torch.equal(default["instances"].pred_masks_rle.to_dense(), expected)


@pytest.mark.parametrize("pasting", ["detectron2", "torchvision"])
def test_boxes_beyond_the_image_are_clipped_and_those_outside_go_with_their_masks(pasting):
    boxes = torch.tensor(
        [[-20.0, -5, 30, 200], [90, 10, 120, 30], [10, 10, 20, 20], [-9, -9, -1, -1], [79.99, 0, 99, 9]]
    )
    probs = torch.linspace(0.4, 0.9, 5)[:, None, None, None].expand(-1, 1, 28, 28)
    (output,) = model(boxes, probs, mask_pasting=pasting)([{"image": torch.zeros(3, 60, 80)}])
    result = output["instances"]
    assert result.image_size == (60, 80)
    assert result.pred_boxes.tensor.tolist() == [[0, 0, 30, 60], [10, 10, 20, 20], [pytest.approx(79.99), 0, 80, 9]]
    areas = result.pred_masks_rle.areas().tolist()  # probabilities 0.4, 0.65 and 0.9
    assert areas[0] == 0
    assert areas[1] >= 100


@pytest.mark.parametrize("pasting", ["detectron2", "torchvision"])
def test_batches_given_boxes_no_postprocessing_and_models_without_masks(pasting):
    boxes, probs = scene(6, 60, 80)
    inputs = [{"image": torch.zeros(3, 60, 80), "height": 90, "width": 120}, {"image": torch.zeros(3, 64, 96)}]
    network = model(boxes, probs, mask_pasting=pasting)
    masks = [output["instances"].pred_masks_rle for output in network(inputs)]
    assert [(len(each), *each.image_size) for each in masks] == [(6, 90, 120), (6, 64, 96)]
    raw = network.inference(inputs, do_postprocess=False)
    assert all(torch.equal(each.pred_masks, probs) for each in raw)
    known = [Instances((60, 80), pred_boxes=Boxes(boxes[:2].clone())), Instances((64, 96), pred_boxes=Boxes(boxes[:0]))]
    given = [output["instances"].pred_masks_rle for output in network.inference(inputs, known)]
    assert list(given[0]) == list(masks[0][:2])
    assert (len(given[1]), given[1].image_size) == (0, (64, 96))
    (output,) = model(boxes, None, mask_pasting=pasting)(inputs[:1])
    assert set(output["instances"].get_fields()) == {"pred_boxes", "scores", "pred_classes"}


def test_a_huge_image_takes_no_dense_masks():
    """A dense array of 60 masks of 30,000 x 30,000 pixels would take 54 GB."""
    boxes, probs = scene(60, 60, 80)
    inputs = [{"image": torch.zeros(3, 60, 80), "height": 30_000, "width": 30_000}]
    (output,) = model(boxes / 50, probs, dense_masks=False)(inputs)
    assert output["instances"].pred_masks_rle.image_size == (30_000, 30_000)
    assert output["instances"].pred_masks_rle.areas().sum() > 60


def test_detectron2s_evaluator_and_visualizer_take_dense_masks(tmp_path):
    boxes, probs = scene(24, 60, 80)
    image, name = {"image": torch.zeros(3, 60, 80), "height": 90, "width": 120, "image_id": 7}, "dense_for_detectron2"
    (theirs,) = model(boxes, probs, cls=GeneralizedRCNN)([image])
    (ours,) = model(boxes, probs)([image])
    (lean,) = model(boxes, probs, dense_masks=False)([image])
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": number % 2, "iscrowd": 0, "segmentation": rle}
        for number, (box, rle) in enumerate(
            zip((boxes * 1.5).tolist(), masks_to_rles(theirs["instances"].pred_masks.roll(2, 1)), strict=True)
        )
        if number % 3
    ]
    entry = {"file_name": "7.png", "image_id": 7, "height": 90, "width": 120, "annotations": annotations}
    DatasetCatalog.register(name, lambda: [entry])
    MetadataCatalog.get(name).thing_classes = ["a", "b"]
    try:
        figures = []
        for output in (theirs, ours):
            evaluator = COCOEvaluator(
                name, ("bbox", "segm"), False, str(tmp_path), max_dets_per_image=100, use_fast_impl=False
            )
            evaluator.reset()
            evaluator.process([image], [output])
            figures.append(evaluator.evaluate())
        judge = COCOMaskEvaluator(name)
        judge.process([image], [lean])
        own = judge.evaluate()
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert repr(figures[0]) == repr(figures[1])
    assert 0 < figures[0]["segm"]["AP"] < 100
    for task in ("bbox", "segm"):
        assert own[task]["AP"] == pytest.approx(figures[0][task]["AP"], abs=1e-9)

    drawings = []
    for output in (theirs, ours):
        np.random.seed(0)  # noqa: NPY002 - Detectron2 draws colours from the global generator
        visualizer = Visualizer(np.zeros((90, 120, 3), np.uint8), MetadataCatalog.get("__unused"))
        drawings.append(visualizer.draw_instance_predictions(output["instances"]).get_image())
    assert drawings[0].any()
    assert np.array_equal(*drawings)


def test_training_is_detectron2s():
    boxes, probs = scene(3, 60, 80)
    inputs = [{"image": torch.ones(3, 64, 96), "instances": Instances((64, 96), gt_boxes=Boxes(boxes))}]
    ours, theirs = (model(boxes, probs, cls=cls).train()(inputs) for cls in (MaskRCNNPlus, GeneralizedRCNN))
    assert ours == theirs == {"loss_mask": 3 * 64 * 96}


def test_yacs_configs_can_name_it():
    cfg = detectron2_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = "MaskRCNNPlus", "meta"
    with torch.device("meta"):
        network = build_model(cfg)
    assert META_ARCH_REGISTRY.get("MaskRCNNPlus") is type(network) is MaskRCNNPlus
    assert (network.mask_pasting, network.dense_masks, network.max_covered) == ("detectron2", True, 1.0)
    assert network.min_mask_area == 0
    add_config(cfg)
    cfg.MODEL.MAX_COVERED, cfg.MODEL.MIN_MASK_AREA = 0.5, 20
    cfg.MODEL.MASK_PASTING, cfg.MODEL.DENSE_MASKS = "torchvision", False
    with torch.device("meta"):
        network = build_model(cfg)
    assert (network.max_covered, network.min_mask_area) == (0.5, 20)
    assert (network.mask_pasting, network.dense_masks) == ("torchvision", False)


@pytest.mark.parametrize(("max_covered", "kept"), [(1.0, [0, 1, 2, 3]), (0.5, [0, 1, 3]), (0.96, [0, 1, 2, 3])])
def test_a_detection_that_better_ones_cover_goes(max_covered, kept):
    """The third lies about the first, which covers 40 of its 42 columns; the fourth is the first, of another class."""
    boxes = torch.tensor([[0.0, 0, 40, 40], [60, 60, 80, 80], [0, 0, 42, 40], [0, 0, 40, 40]])
    network = model(boxes, torch.ones(4, 1, 28, 28), max_covered=max_covered)
    (output,) = network([{"image": torch.zeros(3, 80, 96)}])
    found = output["instances"]
    network.max_covered = 1.0
    (output,) = network([{"image": torch.zeros(3, 80, 96)}])
    assert torch.equal(found.scores, output["instances"].scores[kept])
    assert list(found.pred_masks_rle) == [output["instances"].pred_masks_rle[k] for k in kept]
    network.max_covered = max_covered
    given = [Instances((80, 96), pred_boxes=Boxes(boxes), scores=torch.ones(4), pred_classes=torch.zeros(4).long())]
    (output,) = network.inference([{"image": torch.zeros(3, 80, 96)}], given)
    assert len(output["instances"]) == 4  # what is given is not dropped


@pytest.mark.parametrize("min_mask_area", [0, 1, 24, 25, 26, 10**6])
@pytest.mark.parametrize("size", [(80, 96), (160, 192)])
def test_detections_of_few_pixels_of_the_result_go(min_mask_area, size):
    boxes = torch.tensor([[0.0, 0, 5, 5], [60, 60, 80, 80], [20, 20, 24, 26], [50, 10, 54, 12]])
    probs = torch.ones(4, 1, 28, 28)
    probs[3] = 0  # a box without a mask
    inputs = [{"image": torch.zeros(3, 80, 96), "height": size[0], "width": size[1]}]
    (whole,), (output,) = (model(boxes, probs, **kw)(inputs) for kw in ({}, {"min_mask_area": min_mask_area}))
    areas = add_dense_masks(whole["instances"]).pred_masks.sum(dim=(1, 2))
    assert len(areas) == 4
    assert torch.equal(output["instances"].scores, whole["instances"].scores[areas >= min_mask_area])
    given = [Instances((80, 96), pred_boxes=Boxes(boxes), scores=torch.ones(4), pred_classes=torch.zeros(4).long())]
    (output,) = model(boxes, probs, min_mask_area=min_mask_area).inference(inputs, given)
    assert len(output["instances"]) == 4  # what is given is not dropped


def test_refuses_an_unknown_pasting():
    with pytest.raises(ValueError, match='mask_pasting must be "detectron2" or "torchvision", got \'soft\''):
        model(*scene(1, 5, 5), mask_pasting="soft")
    with pytest.raises(ValueError, match="max_covered must be in"):
        model(*scene(1, 5, 5), max_covered=1.5)
    with pytest.raises(ValueError, match="min_mask_area must be at least 0 pixels, got -1"):
        model(*scene(1, 5, 5), min_mask_area=-1)
