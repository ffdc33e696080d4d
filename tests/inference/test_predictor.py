"""The predictor, on a tiny Detectron2 Mask R-CNN and on a model that returns planted objects."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.layers import ShapeSpec
from detectron2.model_zoo import get_config
from detectron2.structures import Boxes, Instances
from omegaconf import OmegaConf
from torch import nn

from maskrcnn_plus.inference.predictor import Predictor


class PlantedModel(nn.Module):
    """Returns `scores` (and classes 0, 1, ...) in this order, on boxes whose left edge tells which is which."""

    def __init__(self, scores: list[float], rle: bool = False):
        super().__init__()
        self.scores, self.rle = list(scores), rle
        self.weight = nn.Parameter(torch.zeros(4, 3, 3, 3))
        self.seen = []

    def forward(self, batch):
        (example,) = batch
        self.seen.append(example)
        count = len(self.scores)
        instances = Instances((example["height"], example["width"]))
        instances.scores = torch.tensor(self.scores)
        instances.pred_classes = torch.arange(count)
        instances.pred_boxes = Boxes(torch.arange(count)[:, None] + torch.tensor([[0.0, 0.0, 5.0, 5.0]]))
        if self.rle:
            instances.pred_masks_rle = [f"mask {k}" for k in range(count)]
        return [{"instances": instances}]


def planted_config(scores, **extra):
    mapper = L(DatasetMapper)(is_train=False, augmentations=[], image_format="RGB")
    return OmegaConf.create(
        {"model": L(PlantedModel)(scores=scores), "dataloader": {"test": {"mapper": mapper}}, **extra},
        flags={"allow_objects": True},
    )


@pytest.fixture
def image_file(tmp_path):
    path = tmp_path / "image.png"
    pixels = np.random.default_rng(0).integers(0, 256, (48, 60, 3), dtype=np.uint8)
    cv2.imwrite(str(path), pixels)
    return str(path)


@pytest.fixture(scope="module")
def tiny_mask_rcnn():
    """LazyConfig of a Mask R-CNN with a ResNet-18 and narrow heads, random weights and no score threshold."""
    cfg = get_config("common/models/mask_rcnn_fpn.py")
    model = cfg.model
    model.backbone.bottom_up.stages.depth = 18
    del model.backbone.bottom_up.stages.stride_in_1x1  # for bottleneck blocks
    model.backbone.out_channels = 16
    model.proposal_generator.head.in_channels = 16
    model.proposal_generator.post_nms_topk = (50, 20)
    model.roi_heads.num_classes = 2
    model.roi_heads.box_head.input_shape = L(ShapeSpec)(channels=16, height=7, width=7)
    model.roi_heads.box_head.fc_dims = [16]
    model.roi_heads.box_predictor.input_shape = L(ShapeSpec)(channels=16)
    model.roi_heads.box_predictor.test_score_thresh = 0.0
    model.roi_heads.mask_head.input_shape = L(ShapeSpec)(channels=16, height=14, width=14)
    model.roi_heads.mask_head.conv_dims = [16, 16]
    mapper = L(DatasetMapper)(
        is_train=False,
        augmentations=[L(T.ResizeShortestEdge)(short_edge_length=96, max_size=200)],
        image_format="BGR",
    )
    return OmegaConf.create(
        {"model": model, "dataloader": {"test": {"mapper": mapper}}, "train": {"device": "cpu"}},
        flags={"allow_objects": True},
    )


def test_equals_a_direct_run_of_the_model(tiny_mask_rcnn, image_file, tmp_path):
    torch.manual_seed(0)
    model = instantiate(tiny_mask_rcnn.model).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    with torch.no_grad():
        example = instantiate(tiny_mask_rcnn.dataloader.test.mapper)({"file_name": image_file})
        expected = model([example])[0]["instances"]

    found = Predictor(tiny_mask_rcnn, str(tmp_path / "weights.pth"))(image_file)

    assert len(found) == len(expected) > 3
    assert found.image_size == (48, 60)
    assert found.pred_masks.shape == (len(found), 48, 60)
    assert found.scores.diff().le(0).all()
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=1e-3, atol=1e-2)
    assert (found.pred_masks == expected.pred_masks).float().mean() > 0.99


def test_objects_come_sorted_with_all_their_fields(image_file):
    found = Predictor(planted_config([0.2, 0.9, 0.5, 0.9]), score_threshold=None)(image_file)
    assert found.pred_classes.tolist() == [1, 3, 2, 0]
    assert found.pred_boxes.tensor[:, 0].tolist() == [1, 3, 2, 0]


@pytest.mark.parametrize(("threshold", "kept"), [(0.0, 3), (0.5, 2), (0.51, 1), (1.0, 0)])
def test_score_threshold_keeps_scores_of_at_least_it(image_file, threshold, kept):
    assert len(Predictor(planted_config([0.5, 0.8, 0.1]), score_threshold=threshold)(image_file)) == kept


def test_masks_as_rle_are_selected_with_their_objects(image_file):
    cfg = planted_config([0.5, 0.8, 0.1])
    cfg.model.rle = True
    found = Predictor(cfg, score_threshold=0.3)(image_file)
    assert found.pred_masks_rle == ["mask 1", "mask 0"]


def test_model_sees_the_mapper_s_image_in_evaluation_mode(image_file):
    predictor = Predictor(planted_config([0.5]))
    predictor(image_file)
    seen = predictor.model.seen[0]["image"]
    assert not predictor.model.training
    assert np.array_equal(seen.permute(1, 2, 0).numpy(), cv2.imread(image_file)[:, :, ::-1])
    assert predictor.model.weight.is_contiguous(memory_format=torch.channels_last)


def test_channels_last_can_be_switched_off():
    predictor = Predictor(planted_config([0.5], train={"channels_last": False}))
    assert not predictor.model.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("missing", ["model", "dataloader"])
def test_incomplete_config_is_named(missing):
    cfg = planted_config([0.5])
    del cfg[missing]
    with pytest.raises(ValueError, match=missing):
        Predictor(cfg)


def test_part_that_cannot_be_built_is_named():
    cfg = planted_config([0.5])
    cfg.model.scores = 7
    with pytest.raises(ValueError, match="`model` cannot be built: TypeError"):
        Predictor(cfg)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"score_threshold is 1\.5"):
        Predictor(planted_config([0.5]), score_threshold=1.5)
    with pytest.raises(ValueError, match="'gpu'"):
        Predictor(planted_config([0.5]), device="gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_absent_gpu_is_an_error_and_auto_does_without():
    with pytest.raises(ValueError, match=r"train\.device.*no CUDA"):
        Predictor(planted_config([0.5], train={"device": "cuda"}))
    assert Predictor(planted_config([0.5], train={"device": "auto"})).device.type == "cpu"


def test_missing_and_foreign_weights_name_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.pth"):
        Predictor(planted_config([0.5]), str(tmp_path / "nowhere.pth"))
    torch.save({"model": {"other": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth"):
        Predictor(planted_config([0.5]), str(tmp_path / "other.pth"))


def test_class_names(tiny_mask_rcnn):
    assert Predictor(planted_config([0.5], dataset={"thing_classes": ["cell"]})).class_names == ["cell"]
    assert Predictor(tiny_mask_rcnn).class_names == ["class 0", "class 1"]
    wrong = OmegaConf.merge(tiny_mask_rcnn, {"dataset": {"thing_classes": ["cell"]}})
    with pytest.raises(ValueError, match="1 classes"):
        Predictor(wrong)
