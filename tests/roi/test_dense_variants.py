"""The nuclei configs with soft mask targets and with Soft-NMS train and detect."""

import pytest
import torch
from detectron2.config import instantiate
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from maskrcnn_plus.config import get_config, skip_pretrained
from maskrcnn_plus.masks.label_masks import LabelMapMasks
from maskrcnn_plus.roi.dense_heads import DenseCascadeROIHeads, DenseROIHeads


@pytest.mark.parametrize(
    ("name", "heads", "method"),
    [
        ("variants/soft_nms", StandardROIHeads, "gaussian"),
        ("variants/soft_targets", DenseROIHeads, ""),
        ("mask_rcnn_plus", DenseCascadeROIHeads, ""),
    ],
)
def test_variant_trains_and_detects(name, heads, method):
    torch.manual_seed(0)
    cfg = get_config(f"nuclei/{name}")
    skip_pretrained(cfg)
    model = instantiate(cfg.model)
    label_map = torch.zeros(128, 128, dtype=torch.int32)
    label_map[20:50, 10:40], label_map[70:100, 60:100] = 1, 2
    masks = LabelMapMasks(label_map, torch.tensor([1, 2]))
    boxes = Boxes(torch.tensor([[10.0, 20, 40, 50], [60, 70, 100, 100]]))
    instances = Instances((128, 128), gt_boxes=boxes, gt_classes=torch.zeros(2).long(), gt_masks=masks)
    image = torch.randint(0, 256, (3, 128, 128), dtype=torch.uint8)
    with EventStorage():
        losses = model.train()([{"image": image, "instances": instances}])
        sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    predictor = model.roi_heads.box_predictor
    predictor = predictor[-1] if isinstance(predictor, torch.nn.ModuleList) else predictor
    assert (type(model.roi_heads), getattr(predictor, "soft_nms_method", "")) == (heads, method)
    predictor.test_score_thresh = 0.0
    with torch.no_grad():
        (output,) = model.eval()([{"image": image}])
    assert 0 < len(output["instances"]) <= cfg.dataset.max_objects
    assert len(output["instances"].pred_masks_rle) == len(output["instances"])
