"""The model that follows from weights: recognised by their tensors, and described by themselves."""

import pytest
import torch
import torchvision
from omegaconf import OmegaConf

from maskrcnn_plus.apps.finetune.plan import Plan
from maskrcnn_plus.apps.finetune.weights import choose_start
from maskrcnn_plus.checkpoints.description import DESCRIPTION, describe
from maskrcnn_plus.config import get_config
from maskrcnn_plus.weights.conversion import WeightsError


def plan_for(path):
    plan = Plan("common/any_data", ["dataset.thing_classes=[x]"])
    choose_start(plan, None if path is None else str(path))
    return plan


def save(path, names):
    """A file of tensors of these names."""
    torch.save({name: torch.zeros(1) for name in names}, path)
    return path


def test_without_any_the_backbone_starts_from_its_own():
    plan = plan_for(None)
    assert plan.model_of is None
    assert plan.get("train.init_checkpoint") == ""
    assert "ImageNet" in plan.lines()[0]


@pytest.mark.parametrize("version", ["", "_v2"])
def test_torchvisions_detectors(tmp_path, version):
    model = getattr(torchvision.models.detection, f"maskrcnn_resnet50_fpn{version}")(
        weights=None, weights_backbone=None
    )
    path = save(tmp_path / "weights.pth", model.state_dict())
    assert plan_for(path).model_of == f"zoo/torchvision_mask_rcnn_r50_fpn{version}"


@pytest.mark.parametrize(
    ("file", "config"), [("x", "mmdet_mask_rcnn_r50_fpn"), ("caffe", "mmdet_mask_rcnn_r50_caffe_fpn")]
)
def test_mmdetections_detectors(tmp_path, file, config):
    path = save(
        tmp_path / f"{file}.pth",
        ["backbone.conv1.weight", "rpn_head.rpn_conv.weight", "roi_head.bbox_head.fc_cls.weight"],
    )
    assert plan_for(path).model_of == f"zoo/{config}"


@pytest.mark.parametrize(
    ("block", "config"), [("res4.5", "zoo/detectron2_mask_rcnn_r50_fpn"), ("res4.22", "coco/mask_rcnn_r101_fpn_3x")]
)
def test_detectron2s_detectors(tmp_path, block, config):
    path = save(
        tmp_path / "model.pth", [f"backbone.bottom_up.{block}.conv1.weight", "roi_heads.mask_head.deconv.weight"]
    )
    plan = plan_for(path)
    assert plan.model_of == config
    assert plan.get("train.init_checkpoint") == str(path)
    assert OmegaConf.to_container(plan.cfg.model) == OmegaConf.to_container(get_config(config).model)


def test_classification_networks_are_for_the_backbone_alone(tmp_path):
    model = torchvision.models.resnet18(weights=None)
    plan = plan_for(save(tmp_path / "resnet.pth", model.state_dict()))
    assert plan.model_of is None
    assert plan.get("train.init_checkpoint").endswith("resnet.pth")


def test_checkpoints_of_this_package_bring_their_model(tmp_path):
    cfg = get_config("nuclei/mask_rcnn_lite0_fpn")
    cfg.model.roi_heads.batch_size_per_image = 77
    path = tmp_path / "model_best.pth"
    torch.save({"model": {"a": torch.zeros(1)}, DESCRIPTION: describe(cfg, ["nucleus"])}, path)
    plan = plan_for(path)
    assert plan.get("model.roi_heads.batch_size_per_image") == 77
    plan.write(tmp_path / "config.py", [])
    assert get_config(str(tmp_path / "config.py")).model.roi_heads.batch_size_per_image == 77


def test_parts_of_somebody_elses_are_named(tmp_path):
    description = describe(get_config("nuclei/mask_rcnn_lite0_fpn"), ["nucleus"])
    description["config"]["model"]["roi_heads"]["mask_head"]["_target_"] = "my_heads.MyMaskHead"
    torch.save({"model": {"a": torch.zeros(1)}, DESCRIPTION: description}, tmp_path / "own.pth")
    with pytest.raises(WeightsError, match=r"own\.pth.*my_heads\.MyMaskHead"):
        plan_for(tmp_path / "own.pth")


def test_files_that_are_no_weights_are_named(tmp_path):
    (tmp_path / "notes.pth").write_text("no weights")
    with pytest.raises(WeightsError, match=r"notes\.pth"):
        plan_for(tmp_path / "notes.pth")


def test_a_checkpoint_that_brings_objects_to_one_diameter_says_which(tmp_path):
    path = tmp_path / "model_best.pth"
    described = describe(get_config("nuclei/generalist"), ["nucleus"])
    torch.save({"model": {"a": torch.zeros(1)}, DESCRIPTION: described}, path)
    plan = plan_for(path)
    assert plan.diameter == 28
    assert plan.get("dataloader.test.mapper.augmentations.0.scale") == plan.get("dataset.scale")  # its own is fixed
    assert plan_for(None).diameter is None
