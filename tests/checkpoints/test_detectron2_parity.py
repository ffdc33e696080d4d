"""Detectron2's zoo models and the same weights through our loader, into stock parts and into ours: the same detections.

The zoo's weights cannot be had here, so they are seeded random ones, written in the zoo's file layouts.
"""

import pickle
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.postprocessing import detector_postprocess

from maskrcnn_plus.checkpoints import load_weights
from maskrcnn_plus.config import detectron2_config, get_config, skip_pretrained
from maskrcnn_plus.roi import PyramidROIAlign

R50_1X = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
R50_3X = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
R50_C4 = "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml"
X101 = "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x.yaml"
CASCADE = "Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml"
# Standard deviation of the outputs of the prediction layers, so that there are scores, boxes and masks of all kinds.
SPREAD = {"objectness_logits": 2.0, "anchor_deltas": 0.3, "cls_score": 3.0, "bbox_pred": 0.5, "predictor": 2.0}


def zoo_model(name, rpn="RPN"):
    cfg = detectron2_config(name)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = rpn
    # Fewer than the zoo's 1000 and 100, for time.
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 40 if name == R50_C4 else 150
    cfg.TEST.DETECTIONS_PER_IMAGE = 32
    return build_model(cfg).eval()


def images(sizes=((160, 213), (192, 128))):
    """Smooth random pictures in 0..255, of two sizes, with the originals' sizes to which detections go back."""
    generator = torch.Generator().manual_seed(7)
    coarse = [torch.rand(1, 3, h // 16, w // 16, generator=generator) for h, w in sizes]
    pictures = [
        F.interpolate(c, size, mode="bicubic").clamp(0, 1)[0] * 255 for c, size in zip(coarse, sizes, strict=True)
    ]
    return [{"image": p, "height": p.shape[1] + 40, "width": p.shape[2] + 30} for p in pictures]


@torch.no_grad()
def randomise(model, seed, folded=False):
    """Weights that a trained model could have; `folded`: batch norms have mean 0 and variance 1."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.uniform_(0.3, 0.9)
            module.bias.normal_(0, 0.1)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            if folded:
                module.running_mean.zero_()
                module.running_var.fill_(1)
    scaled = set()

    def scale_once(module, inputs, output):
        if module in scaled:
            return output
        scaled.add(module)
        channels = output.transpose(0, 1).flatten(1)  # [C, all]
        factor = SPREAD[names[module]] / channels.std(dim=1)  # [C]
        module.weight.mul_(factor.reshape(-1, *[1] * (module.weight.dim() - 1)))  # [C, 1, ...]
        module.bias.copy_((module.bias - channels.mean(dim=1)) * factor)
        return module.forward(*inputs)

    names = {module: name.split(".")[-1] for name, module in model.named_modules() if name.split(".")[-1] in SPREAD}
    hooks = [module.register_forward_hook(scale_once) for module in names]
    model.inference(images()[:1], do_postprocess=False)
    for hook in hooks:
        hook.remove()
    return model


@torch.no_grad()
def detections(model):
    """Per image: boxes, scores, classes, mask probabilities [N, 1, 28, 28] and pasted masks [N, H, W]."""
    results = []
    for picture, raw in zip(images(), model.inference(images(), do_postprocess=False), strict=True):
        boxes = raw.pred_boxes.tensor.clone()  # scaled in place by the next line
        pasted = detector_postprocess(raw, picture["height"], picture["width"])
        results.append((boxes, raw.scores, raw.pred_classes, raw.pred_masks, pasted.pred_masks))
    return results


def assert_same(actual, expected, tolerance):
    assert all(len(boxes) >= 30 for boxes, *_ in expected)
    assert len({int(c) for _, _, classes, *_ in expected for c in classes}) >= 10
    for (boxes, scores, classes, probs, masks), (*continuous, classes_e, probs_e, masks_e) in zip(
        actual, expected, strict=True
    ):
        assert torch.equal(classes, classes_e)
        for value, reference in zip((boxes, scores, probs), (*continuous, probs_e), strict=True):
            torch.testing.assert_close(value, reference, rtol=0, atol=tolerance)
        # A pixel whose probability is the threshold to within the tolerance may fall on either side.
        different = (masks != masks_e).flatten(1).sum(1)
        assert (different <= (0 if tolerance == 0 else 2)).all(), different


def use_our_poolers(model):
    heads = model.roi_heads
    names = [name for name, module in heads.named_children() if isinstance(module, ROIPooler)]
    assert names
    for name in names:
        stock, first = getattr(heads, name), getattr(heads, name).level_poolers[0]
        ours = PyramidROIAlign(
            output_size=first.output_size,
            scales=[pooler.spatial_scale for pooler in stock.level_poolers],
            sampling_ratio=first.sampling_ratio,
            canonical_box_size=stock.canonical_box_size,
            canonical_level=stock.canonical_level,
        )
        setattr(heads, name, ours)
    return model


def assert_same_weights(actual, expected):
    actual, expected = actual.state_dict(), expected.state_dict()
    assert actual.keys() == expected.keys()
    assert [name for name in actual if not torch.equal(actual[name], expected[name])] == []


def write_zoo_file(model, path):
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    path.write_bytes(pickle.dumps({"model": state, "__author__": "Detectron2 Model Zoo"}))


@pytest.mark.parametrize("name", [R50_1X, R50_C4, X101, CASCADE])
def test_zoo_files_give_the_zoo_s_detections(tmp_path, name):
    path = tmp_path / "model_final.pkl"
    model = randomise(zoo_model(name), seed=0)
    write_zoo_file(model, path)
    expected = detections(model)
    stock = zoo_model(name)
    load_weights(stock, str(path), strict=True)
    assert_same_weights(stock, model)  # and so the same outputs
    ours = use_our_poolers(zoo_model(name, rpn="BatchedRPN"))
    load_weights(ours, str(path), strict=True)
    assert_same(detections(ours), expected, tolerance=1e-4)


def test_the_shipped_config_gives_the_zoo_s_detections(tmp_path):
    path = tmp_path / "model_final.pkl"
    model = randomise(zoo_model(R50_3X), seed=1)
    write_zoo_file(model, path)
    cfg = get_config("zoo/detectron2_mask_rcnn_r50_fpn")
    skip_pretrained(cfg)
    cfg.model.proposal_generator.post_nms_topk = (1000, 150)  # as above
    cfg.dataset.max_objects = 32
    ours = instantiate(cfg.model).eval()
    load_weights(ours, str(path), strict=True)
    assert_same(detections(ours), detections(model), tolerance=1e-4)
    assert cfg.model.input_format == "BGR"


CAFFE2 = [  # Detectron2's name -> that of Detectron (2018)
    (r"backbone\.bottom_up\.stem\.conv1\.norm\.", "res_conv1_bn_"),
    (r"backbone\.bottom_up\.stem\.conv1\.", "conv1_"),
    (r"backbone\.bottom_up\.(res\d)\.(\d+)\.", r"\1_\2_"),
    (r"^(res.*_)shortcut\.", r"\1branch1_"),
    (r"^(res.*_)conv1\.", r"\1branch2a_"),
    (r"^(res.*_)conv2\.", r"\1branch2b_"),
    (r"^(res.*_)conv3\.", r"\1branch2c_"),
    (r"^(res.*_)norm\.", r"\1bn_"),
    (r"bn_weight$", "bn_s"),
    (r"backbone\.fpn_lateral2\.", "fpn_inner_res2_2_sum_lateral_"),
    (r"backbone\.fpn_lateral3\.", "fpn_inner_res3_3_sum_lateral_"),
    (r"backbone\.fpn_lateral4\.", "fpn_inner_res4_5_sum_lateral_"),
    (r"backbone\.fpn_lateral5\.", "fpn_inner_res5_2_sum_"),
    (r"backbone\.fpn_output2\.", "fpn_res2_2_sum_"),
    (r"backbone\.fpn_output3\.", "fpn_res3_3_sum_"),
    (r"backbone\.fpn_output4\.", "fpn_res4_5_sum_"),
    (r"backbone\.fpn_output5\.", "fpn_res5_2_sum_"),
    (r"proposal_generator\.rpn_head\.conv\.", "conv_rpn_fpn2_"),
    (r"proposal_generator\.rpn_head\.objectness_logits\.", "rpn_cls_logits_fpn2_"),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.", "rpn_bbox_pred_fpn2_"),
    (r"roi_heads\.box_head\.fc1\.", "fc6_"),
    (r"roi_heads\.box_head\.fc2\.", "fc7_"),
    (r"roi_heads\.box_predictor\.(cls_score|bbox_pred)\.", r"\1_"),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.", r"_[mask]_fcn\1_"),
    (r"roi_heads\.mask_head\.deconv\.", "conv5_mask_"),
    (r"roi_heads\.mask_head\.predictor\.", "mask_fcn_logits_"),
    (r"_weight$", "_w"),
    (r"_bias$", "_b"),
]


def to_caffe2(state):
    """Detectron's names; the background first, with rows of its own everywhere."""
    blobs = {}
    for name, tensor in state.items():
        if name.endswith(("running_mean", "running_var")):
            continue
        background = torch.full_like(tensor[:4], 9.0)
        if "cls_score" in name:
            tensor = torch.cat([tensor[-1:], tensor[:-1]])
        elif "bbox_pred" in name:
            tensor = torch.cat([background, tensor])
        elif "mask_head.predictor" in name:
            tensor = torch.cat([background[:1], tensor])
        for pattern, replacement in CAFFE2:
            name = re.sub(pattern, replacement, name)
        blobs[name] = tensor.numpy()
        blobs[f"{name}_momentum"] = np.zeros(1, np.float32)
    return blobs


def test_caffe2_files_give_the_same_detections_and_weights_as_in_detectron2(tmp_path):
    path = tmp_path / "model_final.pkl"
    model = randomise(zoo_model(R50_1X), seed=2, folded=True)
    blobs = to_caffe2(model.state_dict())
    assert not any("." in name for name in blobs)
    path.write_bytes(pickle.dumps({"blobs": blobs, "cfg": "MODEL: {}"}, protocol=2))
    stock, detectron2_s = zoo_model(R50_1X), zoo_model(R50_1X)
    report = load_weights(stock, str(path), strict=True)
    DetectionCheckpointer(detectron2_s).load(str(path))
    assert_same_weights(stock, detectron2_s)
    assert_same(detections(stock), detections(model), tolerance=0)
    assert report.left_over == []
    assert report.transformed["roi_heads.box_predictor.cls_score.weight"] == "row of the background moved last"
    assert report.transformed["roi_heads.mask_head.predictor.bias"] == "rows of the background dropped"
    assert "mean 0" in report.transformed["backbone.bottom_up.res2.0.conv1.norm.running_mean"]
