"""The description of a Predictor has the values of its config, and refuses what it has no words for."""

import pytest
from detectron2.data import transforms as T
from small_models import build_predictor, small_config, torchvision_config

from maskrcnn_plus.errors import UserError
from maskrcnn_plus.export.describe import describe_model
from maskrcnn_plus.model_folder import Resize


def test_values_are_those_of_the_config():
    cfg = small_config("nuclei/mask_rcnn_plus", max_objects=77)
    cfg.dataset.score_threshold, cfg.dataset.channels = 0.4, [1, 0, 2]
    found = describe_model(build_predictor(cfg), "whole", "fp32", packages=["numpy"])
    pre, post = found.preprocessing, found.postprocessing
    assert found.class_names == ("kind 0",)
    assert pre.resize == Resize("scale", 1.3, max_size=4096)
    assert (pre.percentiles, pre.select, pre.color_order) == ((1.0, 99.8), (1, 0, 2), "RGB")
    assert (pre.channels, pre.pad_to_multiple, pre.eight_bit) == (3, 32, False)
    assert (post.max_objects, post.score_threshold, post.max_covered, post.min_mask_area) == (77, 0.4, 0.5, 20)
    assert post.mask_pasting == "detectron2"
    assert post.has_masks
    assert {"torch", "detectron2", "maskrcnn_plus", "numpy"} == found.packages.keys()


def test_torchvisions_rules():
    found = describe_model(build_predictor(torchvision_config()), "whole", "fp32")
    assert found.preprocessing.resize == Resize("torchvision", short_side=90, max_size=150)
    assert found.postprocessing.mask_pasting == "torchvision"


def test_what_cannot_be_described_is_refused():
    predictor = build_predictor(small_config("nuclei/mask_rcnn_lite0_fpn"))
    predictor.mapper.augmentations.augs.append(T.RandomFlip())
    with pytest.raises(UserError, match=r"dataloader\.test\.mapper\.augmentations \(ScaleImage, RandomFlip\)"):
        describe_model(predictor, "whole", "fp32")
    predictor.mapper.augmentations.augs = [T.ResizeShortestEdge((60, 80), sample_style="range")]
    with pytest.raises(UserError, match="one resizing to one size"):
        describe_model(predictor, "whole", "fp32")
    predictor.mapper = len
    with pytest.raises(UserError, match=r"dataloader\.test\.mapper is a builtin_function_or_method"):
        describe_model(predictor, "whole", "fp32")
    predictor.model.roi_heads.box_predictor.test_topk_per_image = -1
    with pytest.raises(UserError, match=r"test_topk_per_image is -1.*dataset\.max_objects"):
        describe_model(predictor, "whole", "fp32")
