"""The boundary-preserving head and its losses against the paper's formulas written out."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import BitMasks, Boxes, Instances
from scipy.ndimage import binary_erosion
from torch.nn import functional as F

from maskrcnn_plus.mask_heads import BoundaryMaskHead
from maskrcnn_plus.mask_heads.boundary import boundary_loss, dice_loss
from maskrcnn_plus.masks.label_masks import LabelMapMasks

SIZE = (60, 80)


def make(side=14, channels=6, num_classes=3, conv_dims=(8, 8, 8), seed=0, **options):
    torch.manual_seed(seed)
    shape = ShapeSpec(channels=channels, height=side, width=side)
    head = BoundaryMaskHead(shape, num_classes=num_classes, conv_dims=list(conv_dims), **options)
    for name, parameter in head.named_parameters():
        if "predictor" in name:  # logits far from 0
            torch.nn.init.normal_(parameter, std=0.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return head


def features(count, side=14, channels=6, dtype=torch.float32, seed=1):
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def training_instances(counts, num_classes=3, seed=0):
    """Boxes on a label image of blocks of 10 x 10 pixels, one image a count; masks partly outside of their boxes."""
    random = torch.Generator().manual_seed(seed)
    rows, columns = torch.arange(SIZE[0])[:, None] // 10, torch.arange(SIZE[1])[None] // 10
    label_map = (rows * 8 + columns + 1).int()  # 1 to 48
    images = []
    for count in counts:
        ids = torch.randint(1, 49, (count,), generator=random)
        corners = torch.stack([(ids - 1) % 8 * 10, (ids - 1) // 8 * 10], dim=1).float()
        corners = corners + torch.rand(count, 2, generator=random) * 8 - 4
        boxes = torch.cat([corners, corners + 6 + torch.rand(count, 2, generator=random) * 10], dim=1)
        each = Instances(SIZE, proposal_boxes=Boxes(boxes))
        if count:  # Detectron2 sets no masks on images without objects
            each.gt_masks = LabelMapMasks(label_map, ids)
            each.gt_classes = torch.randint(0, num_classes, (count,), generator=random)
        images.append(each)
    return images


def reference_outputs(state, x, stride, upsamples):
    """Fig. 3 of the paper, layer by layer, for a head with two convolutions in each branch and no norms."""

    def conv(name, y, step=1):
        weight = state[f"{name}.weight"]
        return F.conv2d(y, weight, state[f"{name}.bias"], stride=step, padding=weight.shape[-1] // 2).clamp(min=0)

    def predict(branch, y):
        for name in ("deconv", "deconv2")[:upsamples]:
            weight, bias = state[f"{branch}{name}.weight"], state[f"{branch}{name}.bias"]
            y = torch.einsum("rchw,cdij->rdhiwj", y, weight)  # a transposed convolution whose kernels do not overlap
            y = (y.flatten(4, 5).flatten(2, 3) + bias[:, None, None]).clamp(min=0)
        weight, bias = state[f"{branch}predictor.weight"], state[f"{branch}predictor.bias"]
        return torch.einsum("rchw,kc->rkhw", y, weight[:, :, 0, 0]) + bias[:, None, None]

    side = x.shape[-1] // stride
    mask = x.reshape(*x.shape[:2], side, stride, side, stride).mean((3, 5))
    mask = conv("mask_fcn2", conv("mask_fcn1", mask))
    boundary = conv("boundary_input", x, stride) + conv("mask_to_boundary", mask)
    boundary = conv("boundary_fcn2", conv("boundary_fcn1", boundary))
    mask = conv("mask_fusion", mask + conv("boundary_to_mask", boundary))
    return predict("", mask), predict("boundary_", boundary)


def reference_losses(mask_logits, boundary_logits, instances, dice_weight):
    """Pixel by pixel in Python numbers."""
    mask_terms, boundary_terms, dice_terms = [], [], []
    roi = 0
    for each in instances:
        if len(each) == 0:
            continue
        crops = each.gt_masks.to_bitmasks().crop_and_resize(each.proposal_boxes.tensor, mask_logits.shape[-1])
        for crop, label in zip(crops.numpy(), each.gt_classes.tolist(), strict=True):
            channel = label if mask_logits.shape[1] > 1 else 0
            overlap = sum_p = sum_t = 0.0
            for target, logits, terms in (
                (crop, mask_logits, mask_terms),
                (crop & ~binary_erosion(crop), boundary_logits, boundary_terms),
            ):
                for t, z in zip(
                    target.flatten().tolist(), logits[roi, channel].detach().flatten().tolist(), strict=True
                ):
                    p = 1 / (1 + math.exp(-z))
                    terms.append(-math.log(p if t else 1 - p))
                    if terms is boundary_terms:
                        overlap, sum_p, sum_t = overlap + p * t, sum_p + p, sum_t + t
            dice_terms.append(1 - (2 * overlap + 1) / (sum_p + sum_t + 1))
            roi += 1
    mask, boundary, dice = (sum(terms) / len(terms) for terms in (mask_terms, boundary_terms, dice_terms))
    return mask, boundary + dice_weight * dice


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize(
    ("side", "stride", "upsamples", "out"), [(14, 1, 1, 28), (28, 2, 1, 28), (14, 1, 0, 14), (28, 2, 2, 56)]
)
def test_outputs_and_losses_equal_the_formulas(side, stride, upsamples, out, num_classes):
    head = make(
        side=side,
        num_classes=num_classes,
        boundary_stride=stride,
        num_upsamples=upsamples,
        loss_weight=0.5,
        boundary_loss_weight=3.0,
        dice_weight=0.25,
    ).double()
    x = features(4, side, dtype=torch.float64)
    outputs = head.mask_outputs(x)
    mask, boundary = reference_outputs(head.state_dict(), x, stride, upsamples)
    assert outputs["pred_mask_logits"].shape == (4, num_classes, out, out)
    torch.testing.assert_close(outputs["pred_mask_logits"], mask, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(outputs["pred_boundary_logits"], boundary, atol=1e-6, rtol=1e-6)
    assert mask.std() > 0.05

    instances = training_instances([1, 0, 3])
    losses = head(x, instances)
    assert set(losses) == {"loss_mask", "loss_boundary"}
    mask_loss, edge_loss = reference_losses(mask, boundary, instances, 0.25)
    assert losses["loss_mask"].item() == pytest.approx(0.5 * mask_loss, abs=1e-6)
    assert losses["loss_boundary"].item() == pytest.approx(3.0 * edge_loss, abs=1e-6)


def test_dice_and_boundary_loss_at_their_ends():
    targets = torch.zeros(2, 4, 4, dtype=torch.float64)
    targets[0, 1] = 1
    right = (targets * 2 - 1) * 50
    assert dice_loss(right, targets).item() == pytest.approx(0, abs=1e-9)
    assert boundary_loss(right, targets).item() == pytest.approx(0, abs=1e-9)
    # All wrong: (0 + 1) / (12 + 4 + 1) and (0 + 1) / (16 + 0 + 1).
    assert dice_loss(-right, targets).item() == pytest.approx(16 / 17)
    half = boundary_loss(torch.zeros(2, 4, 4, dtype=torch.bfloat16), targets)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(math.log(2) + 1 - (5 / 13 + 1 / 9) / 2, abs=1e-6)


@pytest.mark.parametrize("norm", ["", "GN", "BN"])
@pytest.mark.parametrize("num_classes", [1, 3])
def test_gradients_reach_every_parameter(norm, num_classes):
    head = make(conv_dims=(32, 32, 32), conv_norm=norm, num_classes=num_classes)
    x = features(6).requires_grad_()
    sum(head(x, training_instances([2, 4])).values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert x.grad.abs().sum() > 0


def test_each_loss_reaches_through_the_fusion_to_the_other_branch():
    head = make()
    losses = head(features(4), training_instances([4]))
    (gradient,) = torch.autograd.grad(losses["loss_mask"], head.boundary_fcn2.weight, retain_graph=True)
    (other,) = torch.autograd.grad(losses["loss_boundary"], head.mask_fcn1.weight)
    assert gradient.abs().sum() > 0
    assert other.abs().sum() > 0


@pytest.mark.parametrize("counts", [[], [0], [0, 0]], ids=str)
@pytest.mark.parametrize("norm", ["", "GN"])
def test_nothing_to_train_on_is_a_zero_that_reaches_every_parameter(counts, norm):
    head = make(conv_dims=(32, 32, 32), conv_norm=norm)
    losses = head(features(0), training_instances(counts))
    assert [loss.item() for loss in losses.values()] == [0, 0]
    sum(losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() == 0, name


def test_one_pixel_and_vanishing_objects():
    label_map = torch.zeros(SIZE, dtype=torch.int32)
    label_map[5, 7] = 1
    boxes = torch.tensor([[7.0, 5, 8, 6], [0, 0, 60, 50], [7.2, 5.2, 7.2, 5.2], [-5, -5, -1, -1]])
    instances = Instances(
        SIZE,
        proposal_boxes=Boxes(boxes),
        gt_masks=LabelMapMasks(label_map, torch.ones(4, dtype=torch.int32)),
        gt_classes=torch.zeros(4, dtype=torch.int64),
    )
    head = make()
    losses = head(features(4), [instances])
    sum(losses.values()).backward()
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


def test_500_objects_equal_the_mean_of_their_parts():
    head = make(channels=3, conv_dims=(4, 4, 4)).eval()
    x, (instances,) = features(500, channels=3), training_instances([500])
    head.train()
    with torch.no_grad():
        whole = head(x, [instances])
        first, second = head(x[:250], [instances[:250]]), head(x[250:], [instances[250:]])
        split = head(x, [instances[:250], instances[250:]])
    for name, loss in whole.items():
        torch.testing.assert_close(loss, (first[name] + second[name]) / 2, atol=1e-5, rtol=0)
        torch.testing.assert_close(loss, split[name], atol=1e-6, rtol=0)


def test_label_maps_and_bitmaps_give_the_same_losses():
    head = make()
    x, (instances,) = features(5), training_instances([5])
    expected = head(x, [instances])
    instances.gt_masks = instances.gt_masks.to_bitmasks()
    assert isinstance(instances.gt_masks, BitMasks)
    found = head(x, [instances])
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"boundary_stride": 3}, "boundary_stride must be 1 or 2"),
        ({"num_upsamples": 3}, "num_upsamples 0, 1 or 2"),
        ({"side": 7, "boundary_stride": 2}, "even side, got 7 x 7"),
        ({"conv_dims": ()}, "conv_dims must not be empty"),
        ({"num_boundary_convs": 0}, "num_boundary_convs at least 1"),
        ({"dice_weight": -1.0}, "must not be negative"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_instances_that_do_not_fit_are_refused():
    head = make()
    with pytest.raises(ValueError, match="features of 3 RoIs, instances of 2"):
        head(features(3), training_instances([2]))
    instances = training_instances([2])
    instances[0].remove("gt_masks")
    with pytest.raises(ValueError, match="need the fields proposal_boxes and gt_masks; image 0"):
        head(features(2), instances)
