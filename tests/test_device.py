"""Memory formats of models."""

import torch
from torch import nn

from maskrcnn_plus.device import use_channels_last


def test_kernels_become_channels_last_whatever_stands_beside_them():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv3d(3, 4, 3), nn.Linear(3, 4))
    model.register_buffer("table", torch.randn(2, 3, 4, 5))
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert use_channels_last(model) is model
    for tensor in (model[0].weight, model.table):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert model[1].weight.is_contiguous()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_with_keypoints_stays_as_it_is():
    """Detectron2's `keypoint_rcnn_loss` views its logits."""
    model = nn.Module()
    model.conv, model.roi_heads = nn.Conv2d(3, 4, 3), nn.Identity()
    model.roi_heads.keypoint_on = True
    assert use_channels_last(model).conv.weight.is_contiguous()
