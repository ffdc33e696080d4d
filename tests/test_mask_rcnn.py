"""Masks are pasted as torchvision pastes them, and everything else is Detectron2's."""

import pytest
import torch
from detectron2.modeling.meta_arch import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import Boxes, Instances
from torch import nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from maskrcnn_plus.mask_rcnn import MaskRCNNPlus, paste_masks


class Backbone(nn.Module):
    size_divisibility = 32

    def forward(self, images):
        return {"p2": images}


class Heads(nn.Module):
    """Stands for RoI heads that find given boxes and masks in every image."""

    def __init__(self, boxes, probs):
        super().__init__()
        self.boxes, self.probs = boxes, probs

    def forward(self, images, features, proposals, targets):
        return [self.results(size) for size in images.image_sizes], {}

    def forward_with_given_boxes(self, features, instances):
        for each in instances:
            each.pred_masks = self.probs[: len(each)]
        return instances

    def results(self, size):
        result = Instances(size, pred_boxes=Boxes(self.boxes.clone()), scores=torch.linspace(0.9, 0.1, len(self.boxes)))
        if self.probs is not None:
            result.pred_masks = self.probs
        return result


def model(boxes, probs, cls=MaskRCNNPlus, **arguments):
    parts = dict(backbone=Backbone(), proposal_generator=lambda *_: (None, {}), roi_heads=Heads(boxes, probs))
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


@pytest.mark.parametrize(("num", "height", "width"), [(24, 61, 83), (24, 20, 200), (1, 1, 1), (0, 40, 50)])
def test_pasting_equals_torchvisions(num, height, width):
    boxes, probs = scene(num, height, width)
    expected = paste_masks_in_image(probs, boxes, (height, width))[:, 0] >= 0.5
    pasted = paste_masks(probs, boxes, height, width)
    assert pasted.dtype == torch.bool
    assert torch.equal(pasted, expected)
    assert num == 0 or pasted.any()


def test_model_scales_clips_and_pastes_as_torchvision_does():
    boxes, probs = scene(24, 60, 80)
    inputs = [{"image": torch.zeros(3, 60, 80), "height": 91, "width": 133}]
    (output,) = model(boxes, probs, mask_pasting="torchvision")(inputs)
    result = output["instances"]
    scaled = boxes * torch.tensor([133 / 80, 91 / 60, 133 / 80, 91 / 60])
    assert result.image_size == (91, 133)
    assert torch.allclose(result.pred_boxes.tensor, scaled)
    expected = paste_masks_in_image(probs, result.pred_boxes.tensor, (91, 133))[:, 0] >= 0.5
    assert torch.equal(result.pred_masks, expected)
    assert set(result.get_fields()) == {"pred_boxes", "scores", "pred_masks"}


def test_boxes_beyond_the_image_are_clipped_and_those_outside_go_with_their_masks():
    boxes = torch.tensor(
        [[-20.0, -5, 30, 200], [90, 10, 120, 30], [10, 10, 20, 20], [-9, -9, -1, -1], [79.99, 0, 99, 9]]
    )
    probs = torch.linspace(0.4, 0.9, 5)[:, None, None, None].expand(-1, 1, 28, 28)
    (output,) = model(boxes, probs, mask_pasting="torchvision")([{"image": torch.zeros(3, 60, 80)}])
    result = output["instances"]
    assert result.image_size == (60, 80)
    assert result.pred_boxes.tensor.tolist() == [[0, 0, 30, 60], [10, 10, 20, 20], [pytest.approx(79.99), 0, 80, 9]]
    assert result.pred_masks.flatten(1).any(1).tolist() == [False, True, True]  # probabilities 0.4, 0.65 and 0.9


def test_the_default_is_detectron2s_pasting_and_differs():
    boxes, probs = scene(12, 60, 80)
    inputs = [{"image": torch.zeros(3, 60, 80), "height": 90, "width": 120}]
    (default,) = model(boxes, probs)(inputs)
    (theirs,) = model(boxes, probs, cls=GeneralizedRCNN)(inputs)
    (other,) = model(boxes, probs, mask_pasting="torchvision")(inputs)
    assert torch.equal(default["instances"].pred_masks, theirs["instances"].pred_masks)
    assert not torch.equal(default["instances"].pred_masks, other["instances"].pred_masks)


def test_batches_given_boxes_no_postprocessing_and_models_without_masks():
    boxes, probs = scene(6, 60, 80)
    inputs = [{"image": torch.zeros(3, 60, 80), "height": 90, "width": 120}, {"image": torch.zeros(3, 64, 96)}]
    network = model(boxes, probs, mask_pasting="torchvision")
    sizes = [tuple(output["instances"].pred_masks.shape) for output in network(inputs)]
    assert sizes == [(6, 90, 120), (6, 64, 96)]
    raw = network.inference(inputs, do_postprocess=False)
    assert [tuple(each.pred_masks.shape) for each in raw] == [(6, 1, 28, 28)] * 2
    known = [Instances((60, 80), pred_boxes=Boxes(boxes[:2].clone())), Instances((64, 96), pred_boxes=Boxes(boxes[:0]))]
    sizes = [tuple(output["instances"].pred_masks.shape) for output in network.inference(inputs, known)]
    assert sizes == [(2, 90, 120), (0, 64, 96)]
    (output,) = model(boxes, None, mask_pasting="torchvision")(inputs[:1])
    assert set(output["instances"].get_fields()) == {"pred_boxes", "scores"}


def test_it_is_registered_and_refuses_an_unknown_pasting():
    assert META_ARCH_REGISTRY.get("MaskRCNNPlus") is MaskRCNNPlus
    with pytest.raises(ValueError, match='mask_pasting must be "detectron2" or "torchvision", got \'soft\''):
        model(*scene(1, 5, 5), mask_pasting="soft")
