"""The variants of the nuclei config with other necks, RoI features and box heads train, and infer, on label images."""

import copy

import pytest
import torch
from detectron2.config import instantiate
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNConvFCHead
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

from maskrcnn_plus.config import get_config, skip_pretrained
from maskrcnn_plus.inference.optimize import optimize_for_inference
from maskrcnn_plus.masks.label_masks import LabelMapMasks
from maskrcnn_plus.necks import PAFPN
from maskrcnn_plus.roi import PyramidROIAlign
from maskrcnn_plus.roi.generic import GenericRoIExtractor

VARIANTS = ["cascade_box_head", "groie", "pafpn"]
SIZE = 96


def load(name, classes=1):
    """The variant with few proposals and detections."""
    cfg = get_config(f"nuclei/variants/{name}")
    skip_pretrained(cfg)
    cfg.dataset.num_classes = classes
    cfg.dataset.max_objects = 9
    cfg.model.proposal_generator.pre_nms_topk = (60, 60)
    cfg.model.proposal_generator.post_nms_topk = (30, 30)
    cfg.model.roi_heads.batch_size_per_image = 32
    return cfg


def build(name, classes=1):
    torch.manual_seed(0)
    return instantiate(load(name, classes).model)


def example(objects):
    """An image of squares, each with its own grey level; the first covers one pixel."""
    image = torch.full((3, SIZE, SIZE), 20.0)
    label_map = torch.zeros(SIZE, SIZE, dtype=torch.int32)
    boxes = []
    for index in range(objects):
        y, x, side = 24 * (index // 4), 24 * (index % 4), 1 if index == 0 else 14 + index % 5
        label_map[y : y + side, x : x + side] = index + 1
        image[:, y : y + side, x : x + side] = 120 + 10 * index
        boxes.append([x, y, x + side, y + side])
    instances = Instances((SIZE, SIZE))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.arange(objects) % 2
    instances.gt_masks = LabelMapMasks(label_map, torch.arange(1, objects + 1))
    return {"image": image, "instances": instances, "height": SIZE, "width": SIZE}


def train_step(model, batch):
    model.zero_grad()
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    return losses


@pytest.mark.parametrize("name", VARIANTS)
def test_two_iterations_reach_every_parameter_and_the_model_infers(name):
    model = build(name, classes=2).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(2):
        losses = train_step(model, [example(12), example(1)])
        assert all(loss.isfinite() for loss in losses.values())
        assert all(loss > 0 for loss in losses.values())
        optimizer.step()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    # phi's bias adds the same to all logits of a softmax: nothing to learn.
    heads = [key for key in gradients if key.startswith("roi_heads.") and not key.endswith("phi.bias")]
    assert len(heads) > 10
    assert [key for key in heads if not gradients[key].any()] == []

    model.eval()
    with torch.no_grad():
        (output,) = model([{"image": example(12)["image"], "height": 48, "width": 64}])
    found = output["instances"]
    assert found.image_size == (48, 64)
    assert 0 < len(found) <= 9
    assert len(found.pred_masks_rle) == len(found)
    assert found.pred_boxes.tensor.isfinite().all()
    assert ((found.scores > 0) & (found.scores <= 1)).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_images_without_objects_keep_the_losses_connected(name):
    model = build(name).train()
    losses = train_step(model, [example(0)])
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_mask"] == 0
    trained = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert [key for key, gradient in trained.items() if gradient is None or not gradient.isfinite().all()] == []


@pytest.mark.parametrize("name", VARIANTS)
def test_optimised_for_inference_gives_the_same(name):
    model = build(name).eval()
    for module in model.modules():
        if hasattr(module, "out") and hasattr(module, "phi"):  # a non-local block starts as the identity
            torch.nn.init.normal_(module.out.weight, std=0.1)
    torch.nn.init.normal_(model.roi_heads.mask_head.predictor.weight, std=0.1)
    fast = optimize_for_inference(copy.deepcopy(model))
    image = (example(12)["image"][None] - 127.5) / 127.5
    proposals = Instances((SIZE, SIZE))
    proposals.proposal_boxes = Boxes(example(12)["instances"].gt_boxes.tensor + torch.tensor([-1.0, -2, 2, 1]))
    results = []
    with torch.no_grad():
        features = model.backbone(image)
        for key, feature in fast.backbone(image).items():
            torch.testing.assert_close(feature, features[key], atol=1e-4 * features[key].abs().max().item(), rtol=0)
        for each in (model, fast):
            images = ImageList.from_tensors([image[0]])
            results.append(each.roi_heads(images, features, [copy.deepcopy(proposals)])[0][0])
    plain, quick = results
    assert len(plain) == len(quick) > 3
    torch.testing.assert_close(quick.pred_boxes.tensor, plain.pred_boxes.tensor, atol=1e-3, rtol=0)
    torch.testing.assert_close(quick.scores, plain.scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(quick.pred_masks, plain.pred_masks, atol=1e-4, rtol=0)


def test_the_cascade_has_three_heads_of_its_own_at_rising_ious():
    cfg = load("cascade_box_head", classes=5)
    with torch.device("meta"):
        heads = instantiate(cfg.model.roi_heads)
    assert type(heads) is CascadeROIHeads
    assert type(heads.box_pooler) is PyramidROIAlign
    assert [type(head) for head in heads.box_head] == [FastRCNNConvFCHead] * 3
    weights = [parameter for head in (heads.box_head, heads.box_predictor) for parameter in head.parameters()]
    assert len({id(weight) for weight in weights}) == 3 * (4 + 4)
    assert [predictor.box2box_transform.weights[0] for predictor in heads.box_predictor] == [10, 20, 30]
    assert [matcher.thresholds[1] for matcher in heads.proposal_matchers] == [0.5, 0.6, 0.7]
    assert {predictor.num_classes for predictor in heads.box_predictor} == {heads.num_classes} == {5}
    assert {predictor.cls_score.out_features for predictor in heads.box_predictor} == {6}
    assert {predictor.bbox_pred.out_features for predictor in heads.box_predictor} == {4}
    assert {predictor.test_topk_per_image for predictor in heads.box_predictor} == {9}


@pytest.mark.parametrize("name", VARIANTS)
def test_differs_from_the_base_in_its_part_alone(name):
    cfg, base = get_config(f"nuclei/variants/{name}"), get_config("nuclei/mask_rcnn_lite0_fpn")
    assert {key for key in cfg.train if cfg.train[key] != base.train[key]} == {"output_dir"}
    cfg.train.output_dir = base.train.output_dir  # the loader has `train` too
    for key in ("dataloader", "dataset", "optimizer", "lr_multiplier"):
        assert cfg[key] == base[key]
    changed = {key for key in cfg.model if cfg.model[key] != base.model[key]}
    assert changed == ({"backbone"} if name == "pafpn" else {"roi_heads"})


@pytest.mark.parametrize(
    ("name", "part", "kind"),
    [
        ("pafpn", "backbone", PAFPN),
        ("groie", "roi_heads.box_pooler", GenericRoIExtractor),
        ("groie", "roi_heads.mask_pooler", GenericRoIExtractor),
    ],
)
def test_the_part_is_there(name, part, kind):
    with torch.device("meta"):
        model = instantiate(load(name).model)
    assert type(model.get_submodule(part)) is kind
