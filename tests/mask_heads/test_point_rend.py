"""PointRend with keywords: Detectron2's head, for label images, and with batches without foreground."""

import pytest
import torch
from detectron2.config import get_cfg, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_mask_head
from detectron2.projects.point_rend import PointRendMaskHead, add_pointrend_config
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

from maskrcnn_plus.config import get_config, skip_pretrained
from maskrcnn_plus.mask_heads.point_rend import PointRendHead
from maskrcnn_plus.masks.label_masks import LabelMapMasks

SIZE = 64
SQUARES = torch.tensor([[4.0, 4, 30, 28], [33, 8, 60, 50], [10, 40, 11, 41]])
SHAPE = {"p2": ShapeSpec(channels=8, stride=4)}
SMALL = {"conv_dim": 8, "fc_dim": 16, "num_fc": 1, "point_fc_dim": 16, "num_point_fc": 2, "train_points": 20}


def make(num_classes=2, **options):
    torch.manual_seed(0)
    return PointRendHead(SHAPE, num_classes=num_classes, **{**SMALL, **options})


def features(images):
    torch.manual_seed(1)
    return {"p2": torch.randn(images, 8, SIZE // 4, SIZE // 4)}


def rois(count, masks="labels"):
    """Boxes shifted by a pixel from the first `count` squares, which are the masks."""
    squares = SQUARES[:count]
    label_map = torch.zeros(SIZE, SIZE, dtype=torch.int32)
    for index, (x0, y0, x1, y1) in enumerate(squares.int().tolist()):
        label_map[y0:y1, x0:x1] = index + 1
    made = Instances((SIZE, SIZE))
    made.proposal_boxes = made.pred_boxes = Boxes(squares + 1)
    made.gt_classes = made.pred_classes = torch.arange(count) % 2
    labels = LabelMapMasks(label_map, torch.arange(1, count + 1))
    corners = [[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in squares.tolist()]
    made.gt_masks = {"labels": labels, "bits": labels.to_bitmasks(), "polygons": PolygonMasks(corners)}[masks]
    return made


def losses_of(head, batch):
    torch.manual_seed(2)
    with EventStorage():
        return head(features(len(batch)), batch)


def yacs_config(name):
    cfg = get_cfg()
    add_pointrend_config(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.POINT_HEAD.NUM_CLASSES = 2
    mask_head, points = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.POINT_HEAD
    mask_head.NAME, mask_head.POINT_HEAD_ON, mask_head.POOLER_TYPE = name, True, ""
    mask_head.CONV_DIM, mask_head.FC_DIM, mask_head.NUM_FC = 8, 16, 1
    points.FC_DIM, points.NUM_FC, points.TRAIN_NUM_POINTS = 16, 2, 20
    return cfg


def test_the_pooler_that_yacs_configs_have_is_refused_with_its_key():
    with pytest.raises(ValueError, match=r'set MODEL\.ROI_MASK_HEAD\.POOLER_TYPE to ""'):
        build_mask_head(yacs_config("PointRendHead"), ShapeSpec(channels=16, width=14, height=14))


@pytest.mark.parametrize("train", [True, False])
def test_is_detectron2s_head_by_keywords_and_by_name(train):
    heads = [make()]
    for name in ("PointRendHead", "PointRendMaskHead"):
        cfg = yacs_config(name)
        cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION = 14
        heads.append(build_mask_head(cfg, SHAPE))
    assert [type(head) for head in heads] == [PointRendHead, PointRendHead, PointRendMaskHead]
    results = []
    for head in heads:
        head.load_state_dict(heads[0].state_dict())
        outputs = losses_of(head.train(train), [rois(3, "bits"), rois(2, "bits")])
        results.append(list(outputs.values()) if train else [each.pred_masks for each in outputs])
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], atol=0, rtol=0)


def test_layers_have_detectron2s_names():
    layers = ["coarse_head.reduce_spatial_dim_conv", "coarse_head.fc1", "coarse_head.prediction"]
    layers += ["point_head.fc1", "point_head.fc2", "point_head.predictor"]
    assert sorted(make().state_dict()) == sorted(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))


@pytest.mark.parametrize("masks", ["labels", "polygons"])
def test_every_type_of_masks_gives_the_losses_of_bitmasks(masks):
    head = make().train()
    expected = losses_of(head, [rois(3, "bits"), rois(2, "bits")])
    batch = [rois(3, masks), rois(2, masks)]
    losses = losses_of(head, batch)
    assert losses.keys() == expected.keys() == {"loss_mask", "loss_mask_point"}
    for key, loss in losses.items():
        torch.testing.assert_close(loss, expected[key])
    assert not isinstance(batch[0].gt_masks, BitMasks)  # what the caller holds stays


@pytest.mark.parametrize("counts", [(0,), (0, 0), (0, 2), (1,)])
def test_losses_are_connected_to_every_parameter(counts):
    head = make().train()
    losses = losses_of(head, [rois(count) for count in counts])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all((loss > 0) == (sum(counts) > 0) for loss in losses.values())
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert any(parameter.grad.any() for parameter in head.parameters()) == (sum(counts) > 0)


@pytest.mark.parametrize("counts", [(3, 2), (0, 1), (0,), (0, 0)])
def test_infers(counts):
    head = make(subdivision_steps=3).eval()
    with torch.no_grad():
        results = head(features(len(counts)), [rois(count) for count in counts])
    assert [len(each.pred_masks) for each in results] == list(counts)
    masks = torch.cat([each.pred_masks for each in results if len(each)]) if sum(counts) else None
    if masks is not None:
        assert masks.shape == (sum(counts), 1, 56, 56)
        assert ((masks > 0) & (masks < 1)).all()


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="conv_dim must be at most the 8 channels"):
        make(conv_dim=9)
    with pytest.raises(ValueError, match="in_features"):
        make(in_features=("p3",))


def test_the_variant_trains_on_label_images_and_infers():
    cfg = get_config("nuclei/variants/point_rend")
    skip_pretrained(cfg)
    cfg.dataset.num_classes = 2
    cfg.dataset.max_objects = 9
    cfg.model.roi_heads.batch_size_per_image = 32
    torch.manual_seed(0)
    model = instantiate(cfg.model).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    truth = Instances((SIZE, SIZE), gt_boxes=Boxes(SQUARES), **{k: rois(3).get(k) for k in ("gt_classes", "gt_masks")})
    image = torch.rand(3, SIZE, SIZE) * 255
    for _ in range(2):
        optimizer.zero_grad()
        with EventStorage():
            losses = model([{"image": image, "instances": truth}])
        sum(losses.values()).backward()
        optimizer.step()
        assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(parameter.grad.any() for parameter in model.roi_heads.mask_head.parameters())
    model.eval()
    with torch.no_grad():
        (output,) = model([{"image": image}])
    assert 0 < len(output["instances"].pred_masks_rle) == len(output["instances"]) <= 9
