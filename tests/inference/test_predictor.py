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
from detectron2.structures import Boxes, Instances
from omegaconf import OmegaConf
from torch import nn

from maskrcnn_plus.config import detectron2_config, get_config, skip_pretrained
from maskrcnn_plus.data import InstanceMapper
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.masks.rle_masks import RLEMasks


class PlantedModel(nn.Module):
    """Returns `scores` (and classes 0, 1, ...) in this order, on boxes whose left edge tells which is which."""

    def __init__(self, scores: list[float], masks: str = ""):
        super().__init__()
        self.scores, self.masks = list(scores), masks
        self.weight = nn.Parameter(torch.zeros(4, 3, 3, 3))
        self.batches = []

    def forward(self, batch):
        self.batches.append(batch)
        return [{"instances": self.detect(example)} for example in batch]

    def detect(self, example):
        count = len(self.scores)
        size = (example["height"], example["width"])
        instances = Instances(size)
        instances.scores = torch.tensor(self.scores)
        instances.pred_classes = torch.arange(count)
        instances.pred_boxes = Boxes(torch.arange(count)[:, None] + torch.tensor([[0.0, 0.0, 5.0, 5.0]]))
        masks = torch.zeros(count, *size, dtype=torch.bool)
        for k in range(count):
            masks[k, k] = True
        if self.masks == "dense":
            instances.pred_masks = masks
        if self.masks == "rle":
            instances.pred_masks_rle = RLEMasks.from_dense(masks)
        return instances


def planted_config(scores, mapper=None, **extra):
    mapper = mapper or L(DatasetMapper)(is_train=False, augmentations=[], image_format="RGB")
    return OmegaConf.create(
        {"model": L(PlantedModel)(scores=scores), "dataloader": {"test": {"mapper": mapper}}, **extra},
        flags={"allow_objects": True},
    )


def instance_mapper(**options):
    return L(InstanceMapper)(is_train=False, augmentations=[], **options)


@pytest.fixture
def image_file(tmp_path):
    path = tmp_path / "image.png"
    pixels = np.random.default_rng(0).integers(0, 256, (48, 60, 3), dtype=np.uint8)
    cv2.imwrite(str(path), pixels)
    return str(path)


@pytest.fixture(scope="module")
def tiny_mask_rcnn():
    """LazyConfig of a Mask R-CNN with a ResNet-18 and narrow heads, random weights and no score threshold."""
    cfg = detectron2_config("common/models/mask_rcnn_fpn.py")
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

    found = Predictor(tiny_mask_rcnn, str(tmp_path / "weights.pth")).predict(image_file)

    assert len(found) == len(expected) > 3
    assert found.image_size == (48, 60)
    assert set(found.get_fields()) == {"pred_boxes", "scores", "pred_classes", "pred_masks_rle"}
    assert found.scores.diff().le(0).all()
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=1e-3, atol=1e-2)
    assert (found.pred_masks_rle.to_dense() == expected.pred_masks).float().mean() > 0.99


def test_objects_come_sorted_with_all_their_fields(image_file):
    found = Predictor(planted_config([0.2, 0.9, 0.5, 0.9]), "random", score_threshold=None)(image_file)
    assert found.pred_classes.tolist() == [1, 3, 2, 0]
    assert found.pred_boxes.tensor[:, 0].tolist() == [1, 3, 2, 0]


@pytest.mark.parametrize(("threshold", "kept"), [(0.0, 3), (0.5, 2), (0.51, 1), (1.0, 0)])
def test_score_threshold_keeps_scores_of_at_least_it(image_file, threshold, kept):
    assert len(Predictor(planted_config([0.5, 0.8, 0.1]), "random", score_threshold=threshold)(image_file)) == kept


def test_the_config_s_threshold_holds_unless_another_is_given(image_file):
    cfg = planted_config([0.5, 0.8, 0.1], dataset={"score_threshold": 0.6})
    counts = [len(Predictor(cfg, "random", score_threshold=chosen)(image_file)) for chosen in (None, 0.0, 0.5)]
    assert counts == [1, 3, 2]
    with pytest.raises(ValueError, match="score_threshold is 60"):
        Predictor(planted_config([0.5], dataset={"score_threshold": 60}), "random")


@pytest.mark.parametrize("weights", [None, ""])
def test_a_prediction_without_weights_is_refused_unless_it_is_wanted(weights, caplog):
    cfg = planted_config([0.5], train={"init_checkpoint": "zoo://model"})
    with pytest.raises(ValueError, match=r"weights are missing.*zoo://model.*random"):
        Predictor(cfg, weights)
    assert caplog.text == ""
    Predictor(cfg, "random")
    assert "random" in caplog.text


@pytest.mark.parametrize("masks", ["dense", "rle"])
def test_masks_are_selected_with_their_objects(image_file, masks):
    cfg = planted_config([0.5, 0.8, 0.1])
    cfg.model.masks = masks
    found = Predictor(cfg, "random", score_threshold=0.3)(image_file)
    assert "pred_masks" not in found.get_fields()
    assert [mask.any(1).nonzero().item() for mask in found.pred_masks_rle.to_dense()] == [1, 0]


def test_model_sees_the_mapper_s_image_in_evaluation_mode(image_file):
    predictor = Predictor(planted_config([0.5]), "random")
    predictor(image_file)
    seen = predictor.model.batches[0][0]["image"]
    assert not predictor.model.training
    assert np.array_equal(seen.permute(1, 2, 0).numpy(), cv2.imread(image_file)[:, :, ::-1])
    assert predictor.model.weight.is_contiguous(memory_format=torch.channels_last)


def test_batches_hold_images_that_are_padded_alike():
    predictor = Predictor(planted_config([0.5], instance_mapper()), "random")
    predictor.model.backbone = nn.Identity()
    predictor.model.backbone.size_divisibility = 32
    sizes = [(20, 30), (33, 40), (32, 32), (1, 1), (64, 64), (30, 20)]
    results = predictor.predict([np.zeros(size, np.uint8) for size in sizes], batch_size=2)
    assert [result.image_size for result in results] == sizes
    shapes = [[tuple(example["image"].shape[1:]) for example in batch] for batch in predictor.model.batches]
    assert shapes == [[(20, 30), (32, 32)], [(33, 40), (64, 64)], [(1, 1), (30, 20)]]
    assert predictor.predict([]) == []


def test_batches_give_what_single_images_give(tiny_mask_rcnn):
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    predictor = Predictor(tiny_mask_rcnn, "random")
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((40, 60), (64, 64), (60, 40), (41, 60))]
    for alone, batched in zip(map(predictor.predict, images), predictor.predict(images, batch_size=4), strict=True):
        assert len(alone) == len(batched) > 3
        torch.testing.assert_close(batched.scores, alone.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(batched.pred_boxes.tensor, alone.pred_boxes.tensor, rtol=1e-4, atol=1e-3)


def test_optimized_model_gives_what_the_plain_one_gives(tiny_mask_rcnn, image_file):
    results = []
    for optimize in (True, False):
        torch.manual_seed(0)
        predictor = Predictor(tiny_mask_rcnn, "random", optimize=optimize)
        predictor.warm_up(32, 32)
        results.append(predictor(image_file))
    fast, plain = results
    assert len(fast) == len(plain) > 3
    torch.testing.assert_close(fast.scores, plain.scores, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(fast.pred_boxes.tensor, plain.pred_boxes.tensor, rtol=1e-4, atol=1e-3)
    assert fast.pred_masks_rle.to_dense().shape == (len(fast), 48, 60)


def test_compile_concerns_the_backbone_alone(tiny_mask_rcnn):
    predictor = Predictor(tiny_mask_rcnn, "random", compile=True)
    compiled = [name for name, module in predictor.model.named_modules() if module._compiled_call_impl is not None]
    assert compiled == ["backbone"]


def test_scale_of_an_image(tiny_mask_rcnn):
    predictor = Predictor(tiny_mask_rcnn, "random")  # shortest edge 96, at most 200
    assert predictor.get_scale(48, 60) == pytest.approx(2)
    assert predictor.get_scale(192, 100) == pytest.approx(96 / 100, rel=0.02)
    assert predictor.get_scale(100, 400) == pytest.approx(0.5)


def test_the_mapper_is_asked_once_for_the_scale_of_a_size(tiny_mask_rcnn):
    predictor, other = (Predictor(tiny_mask_rcnn, "random") for _ in range(2))
    asked = []
    augmentations = predictor.mapper.augmentations
    predictor.mapper.augmentations = lambda aug_input: (
        asked.append(aug_input.image.shape[:2]) or augmentations(aug_input)
    )
    assert predictor.get_scale(48, 60) == predictor.get_scale(48, 60) == pytest.approx(2)
    predictor.get_scale(60, 48)
    assert asked == [(48, 60), (60, 48)]
    other.mapper.augmentations = T.AugmentationList([])
    predictor.mapper = other.mapper
    assert predictor.get_scale(48, 60) == 1


def test_config_by_name():
    predictor = Predictor("demo/mask_rcnn_lite0_fpn", "random", device="cpu", score_threshold=0.9)
    assert predictor.class_names == list(get_config("demo/mask_rcnn_lite0_fpn").dataset.thing_classes)
    with pytest.raises(ValueError, match="no_such"):
        Predictor("no_such/config")


@pytest.mark.parametrize("name", ["nuclei/mask_rcnn_lite0_fpn", "nuclei/mask_rcnn_plus"])
def test_most_objects_are_those_of_the_last_box_predictor(name):
    cfg = get_config(name)
    skip_pretrained(cfg)
    cfg.dataset.max_objects = 7
    assert Predictor(cfg, "random", optimize=False).max_objects == 7


def test_channels_last_can_be_switched_off():
    predictor = Predictor(planted_config([0.5], train={"channels_last": False}), "random")
    assert not predictor.model.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("missing", ["model", "dataloader"])
def test_incomplete_config_is_named(missing):
    cfg = planted_config([0.5])
    del cfg[missing]
    with pytest.raises(ValueError, match=missing):
        Predictor(cfg, "random")


def test_part_that_cannot_be_built_is_named():
    cfg = planted_config([0.5])
    cfg.model.scores = 7
    with pytest.raises(ValueError, match="`model` cannot be built: TypeError"):
        Predictor(cfg, "random")


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"score_threshold is 1\.5"):
        Predictor(planted_config([0.5]), "random", score_threshold=1.5)
    with pytest.raises(ValueError, match="'gpu'"):
        Predictor(planted_config([0.5]), "random", device="gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_absent_gpu_is_an_error_and_auto_does_without():
    with pytest.raises(ValueError, match=r"train\.device.*no CUDA"):
        Predictor(planted_config([0.5], train={"device": "cuda"}), "random")
    assert Predictor(planted_config([0.5], train={"device": "auto"}), "random").device.type == "cpu"


def test_missing_and_foreign_weights_name_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.pth"):
        Predictor(planted_config([0.5]), str(tmp_path / "nowhere.pth"))
    torch.save({"model": {"other": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth"):
        Predictor(planted_config([0.5]), str(tmp_path / "other.pth"))


def test_class_names(tiny_mask_rcnn):
    assert Predictor(planted_config([0.5], dataset={"thing_classes": ["cell"]}), "random").class_names == ["cell"]
    assert Predictor(tiny_mask_rcnn, "random").class_names == ["class 0", "class 1"]
    wrong = OmegaConf.merge(tiny_mask_rcnn, {"dataset": {"thing_classes": ["cell"]}})
    with pytest.raises(ValueError, match="1 classes"):
        Predictor(wrong, "random")
