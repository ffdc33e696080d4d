"""The config that weights are for: theirs, or the zoo's."""

import pytest
import torch
import torchvision
from omegaconf import OmegaConf

from maskrcnn_plus.checkpoints.choice import choose_config
from maskrcnn_plus.checkpoints.description import DESCRIPTION, NoDescriptionError, describe
from maskrcnn_plus.config import get_config, load_config
from maskrcnn_plus.inference.predictor import Predictor

MMDET = ["backbone.conv1.weight", "rpn_head.rpn_conv.weight", "roi_head.bbox_head.fc_cls.weight"]
DETECTRON2 = ["backbone.bottom_up.res4.5.conv1.weight", "roi_heads.box_predictor.cls_score.weight"]


def save(path, names, rows=81, **metadata):
    """A file of tensors of these names."""
    torch.save({"model": {name: torch.zeros(rows, 1) for name in names}, **metadata}, path)
    return str(path)


def plain(cfg):
    return OmegaConf.to_container(cfg.model)


@pytest.mark.parametrize("version", ["", "_v2"])
def test_torchvisions_detectors_of_coco_predict_without_a_config(tmp_path, version, caplog):
    builder = getattr(torchvision.models.detection, f"maskrcnn_resnet50_fpn{version}")
    path = str(tmp_path / "mine.pth")
    torch.save(builder(weights=None, weights_backbone=None).state_dict(), path)
    name = f"zoo/torchvision_mask_rcnn_r50_fpn{version}"
    cfg = choose_config(None, path)
    assert plain(cfg) == plain(get_config(name))
    assert list(cfg.dataset.thing_classes) == list(get_config(name).dataset.thing_classes)
    assert f"{path} is taken for a detector of torchvision, of the config {name}" in caplog.text
    predictor = Predictor(path, device="cpu")  # every tensor of the model is in the file
    assert predictor.score_threshold == 0.5
    assert predictor.class_names[:2] == ["person", "bicycle"]


def test_torchvisions_detectors_of_other_classes_need_their_names(tmp_path):
    model = torchvision.models.detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    with pytest.raises(NoDescriptionError, match=r"--config-file zoo/torchvision_mask_rcnn_r50_fpn .*thing_classes"):
        choose_config(None, str(tmp_path / "mine.pth"))


@pytest.mark.parametrize(
    ("text", "name"),
    [("backbone=dict(style='caffe')", "zoo/mmdet_mask_rcnn_r50_caffe_fpn"), ("", "zoo/mmdet_mask_rcnn_r50_fpn")],
)
def test_mmdetections_detectors_bring_their_classes(tmp_path, text, name):
    path = save(tmp_path / "mine.pth", MMDET, meta={"cfg": text, "dataset_meta": {"classes": ("bolt", "nut")}})
    cfg = choose_config(None, path, ["dataset.score_threshold=0.25"])
    assert plain(cfg) == plain(load_config(name, ["dataset.thing_classes=[bolt,nut]"]))
    assert cfg.dataset.thing_classes == ["bolt", "nut"]
    assert cfg.dataset.score_threshold == 0.25


def test_models_of_detectron2s_zoo(tmp_path):
    path = save(tmp_path / "model_final.pth", DETECTRON2, __author__="Detectron2 Model Zoo")
    assert plain(choose_config(None, path)) == plain(get_config("zoo/detectron2_mask_rcnn_r50_fpn"))


@pytest.mark.parametrize(("rows", "metadata"), [(81, {}), (4, {"__author__": "Detectron2 Model Zoo"})])
def test_detectron2s_checkpoints_of_unknown_classes_need_a_config(tmp_path, rows, metadata):
    path = save(tmp_path / "model_final.pth", DETECTRON2, rows, **metadata)
    with pytest.raises(NoDescriptionError, match=r"does not say which config.*It may be a detector of Detectron2"):
        choose_config(None, path)


def test_classification_networks_are_no_detectors(tmp_path):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(NoDescriptionError, match="does not say which config"):
        choose_config(None, str(tmp_path / "resnet.pth"))


def test_a_description_and_a_config_file_come_first(tmp_path):
    described = get_config("nuclei/mask_rcnn_lite0_fpn")
    path = save(tmp_path / "model.pth", DETECTRON2, **{DESCRIPTION: describe(described, class_names=["nucleus"])})
    assert choose_config(None, path).model.backbone.bottom_up.name == "tf_efficientnet_lite0"
    other = choose_config("zoo/detectron2_mask_rcnn_r50_fpn", path)
    assert plain(other) == plain(get_config("zoo/detectron2_mask_rcnn_r50_fpn"))
