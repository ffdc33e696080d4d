"""GRoIE: RoIAlign of every level, a shared layer, a sum, and a layer on the sum; its non-local block."""

import copy

import pytest
import torch
from detectron2.structures import Boxes
from torch.nn import functional as F

from maskrcnn_plus.config import get_config
from maskrcnn_plus.inference.optimize import optimize_for_inference
from maskrcnn_plus.ops.roi_align import roi_align
from maskrcnn_plus.ops.roi_align_reference import roi_align_reference
from maskrcnn_plus.ops.winograd import WinogradConv2d
from maskrcnn_plus.roi.generic import GenericRoIExtractor, NonLocalBlock

SCALES = (1 / 4, 1 / 8, 1 / 16)


def pyramid(images=2, channels=6, size=64, dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(images, channels, int(size * s), int(size * s), dtype=dtype) for s in SCALES]


def boxes(*counts, size=64, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    made = []
    for count in counts:
        corner = torch.rand(count, 2, generator=generator, dtype=dtype) * size * 0.8
        side = 2 ** (torch.rand(count, 2, generator=generator, dtype=dtype) * 5)
        made.append(Boxes(torch.zeros(count, 4)))
        made[-1].tensor = torch.cat([corner, corner + side], dim=1)  # Boxes would make it float32
    return made


def make(scales=SCALES, channels=6, size=7, dtype=torch.float64, seed=2, **options):
    """An extractor whose last layer is no identity."""
    torch.manual_seed(seed)
    extractor = GenericRoIExtractor(size, scales, 2, in_channels=channels, **options).to(dtype)
    for parameter in extractor.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return extractor


def align(feature, box_lists, scale, size=7, sampling_ratio=2, aligned=True):
    return roi_align(feature, [each.tensor for each in box_lists], size, scale, sampling_ratio, aligned)


@pytest.mark.parametrize("pooler_type", ["ROIAlign", "ROIAlignV2"])
@pytest.mark.parametrize("size", [7, (3, 5)])
def test_one_level_without_layers_is_roi_align(pooler_type, size):
    feature, box_lists = pyramid()[1], boxes(5, 3)
    extractor = GenericRoIExtractor(size, SCALES[1:2], 0, pooler_type, in_channels=6, pre_kernel=0, post="none")
    expected = align(feature, box_lists, SCALES[1], size, 0, pooler_type == "ROIAlignV2")
    assert expected.shape[:2] == (8, 6)
    assert torch.equal(extractor([feature], box_lists), expected)
    assert list(extractor.state_dict()) == []


def test_levels_without_layers_add_up_for_boxes_of_every_size():
    features, box_lists = pyramid(), boxes(20, 11)
    extractor = GenericRoIExtractor(7, SCALES, 2, in_channels=6, pre_kernel=0, post="none")
    expected = sum(align(*each) for each in zip(features, [box_lists] * 3, SCALES, strict=True))
    torch.testing.assert_close(extractor(features, box_lists), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("pre_kernel", [0, 1, 3, 5])
@pytest.mark.parametrize("post", ["none", "conv", "non_local"])
def test_equals_the_formula_box_by_box(pre_kernel, post):
    features, box_lists = pyramid(), boxes(3, 2)
    extractor = make(pre_kernel=pre_kernel, post=post, post_kernel=5)
    state = extractor.state_dict()
    rows = [(image, *box.tolist()) for image, each in enumerate(box_lists) for box in each.tensor]
    expected = []
    for row in rows:
        roi = torch.tensor([row], dtype=torch.float64)
        total = torch.zeros(1, 6, 7, 7, dtype=torch.float64)
        for feature, scale in zip(features, SCALES, strict=True):
            level = roi_align_reference(feature, roi, (7, 7), scale, 2, True)
            if pre_kernel:
                level = F.conv2d(level, state["pre.weight"], state["pre.bias"], padding=pre_kernel // 2).clamp(min=0)
            total += level
        if post == "conv":
            total = F.conv2d(total, state["post.weight"], state["post.bias"], padding=2).clamp(min=0)
        elif post == "non_local":
            total = non_local_loop(state, total[0], "post.")[None]
        expected.append(total)
    torch.testing.assert_close(extractor(features, box_lists), torch.cat(expected), atol=1e-6, rtol=0)


def non_local_loop(state, x, prefix=""):
    """Wang et al., Eq. 1, 4, 5 and 6, for one map [C, P, Q], position by position."""

    def linear(name, vector):
        return state[f"{prefix}{name}.weight"][:, :, 0, 0] @ vector + state[f"{prefix}{name}.bias"]

    positions = x.flatten(1).T  # [P * Q, C]
    output = torch.empty_like(positions)
    for i, x_i in enumerate(positions):
        similarity = [torch.exp(linear("theta", x_i) @ linear("phi", x_j)) for x_j in positions]
        y = sum(f * linear("g", x_j) for f, x_j in zip(similarity, positions, strict=True)) / sum(similarity)
        output[i] = linear("out", y) + x_i
    return output.T.reshape(x.shape)


def test_non_local_block_equals_the_formula_and_its_gradients_are_right():
    torch.manual_seed(0)
    block = NonLocalBlock(4).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(3, 4, 2, 3, dtype=torch.float64)
    expected = torch.stack([non_local_loop(block.state_dict(), each) for each in x])
    assert (expected - x).abs().min() > 1e-4
    torch.testing.assert_close(block(x), expected, atol=1e-10, rtol=0)
    assert torch.autograd.gradcheck(block, x.requires_grad_())


def test_non_local_block_is_the_identity_at_first_and_learns():
    torch.manual_seed(0)
    block, x = NonLocalBlock(8), torch.randn(2, 8, 3, 3)
    assert torch.equal(block(x), x)
    optimizer = torch.optim.SGD(block.parameters(), 0.1)
    before = copy.deepcopy(block.state_dict())
    for _ in range(3):
        optimizer.zero_grad()
        (block(x) - 2 * x).square().mean().backward()
        optimizer.step()
    moved = [name for name, value in block.state_dict().items() if not torch.equal(value, before[name])]
    assert set(moved) >= {f"{layer}.weight" for layer in ("theta", "phi", "g", "out")}


@pytest.mark.parametrize("post", ["none", "conv", "non_local"])
@pytest.mark.parametrize("counts", [(4, 3), (0, 3), (0, 0)])
def test_gradients_reach_every_parameter_and_map(post, counts):
    features = [feature.requires_grad_() for feature in pyramid()]
    extractor = make(post=post).train()
    output = extractor(features, boxes(*counts))
    assert output.shape == (sum(counts), 6, 7, 7)
    output.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in extractor.named_parameters()}
    gradients.update({f"map {index}": feature.grad for index, feature in enumerate(features)})
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    gradients.pop("post.phi.bias", None)  # adds the same to all logits of a softmax: nothing to learn
    assert all((gradient != 0).any() == (sum(counts) > 0) for gradient in gradients.values())


def test_a_pixel_and_500_boxes_are_finite_and_as_each_alone():
    features = pyramid(1, dtype=torch.float32)
    extractor = make(dtype=torch.float32).eval()
    (many,) = boxes(500, dtype=torch.float32)
    many.tensor[0] = torch.tensor([10.0, 10.0, 11.0, 11.0])
    many.tensor[1] = torch.tensor([10.0, 10.0, 10.0, 10.0])
    with torch.no_grad():
        together = extractor(features, [many])
        alone = torch.cat([extractor(features, [many[i]]) for i in range(0, 500, 50)])
        first = extractor(features, [many[:2]])
    assert together.shape == (500, 6, 7, 7)
    assert together.isfinite().all()
    torch.testing.assert_close(together[::50], alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together[:2], first, atol=1e-4, rtol=1e-4)


def test_no_image_gives_no_features():
    features = [feature[:0] for feature in pyramid()]
    assert make()(features, []).shape == (0, 6, 7, 7)


def test_names_in_the_state_dict_are_stable():
    convs = [f"{layer}.{kind}" for layer in ("pre", "post") for kind in ("weight", "bias")]
    block = [f"post.{layer}.{kind}" for layer in ("theta", "phi", "g", "out") for kind in ("weight", "bias")]
    assert sorted(make().state_dict()) == sorted(["pre.weight", "pre.bias", *block])
    assert sorted(make(post="conv").state_dict()) == sorted(convs)
    assert sorted(make(pre_kernel=0).state_dict()) == sorted(block)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_as_one_graph(backend):
    features, extractor = pyramid(dtype=torch.float32), make(dtype=torch.float32)
    rois = torch.tensor([[0, 3, 4, 20, 30], [1, 8, 8, 60, 50]], dtype=torch.float32)
    expected = extractor.extract(features, rois)
    compiled = torch.compile(extractor.extract, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(features, rois), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pre_kernel", [3, 5])
def test_bfloat16_and_channels_last_stay_close(pre_kernel):
    features, box_lists = pyramid(dtype=torch.float32), boxes(6, 4, dtype=torch.float32)
    extractor = make(dtype=torch.float32, pre_kernel=pre_kernel).eval()
    for parameter in extractor.post.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    with torch.no_grad():
        expected = extractor(features, box_lists)
        last = [feature.contiguous(memory_format=torch.channels_last) for feature in features]
        torch.testing.assert_close(extractor(last, box_lists), expected, atol=1e-4, rtol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            narrow = extractor(features, box_lists)
    assert (narrow - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("pre_kernel", [3, 5])
def test_optimised_for_inference_gives_the_same(pre_kernel):
    features, box_lists = pyramid(channels=32, dtype=torch.float32), boxes(6, 4, dtype=torch.float32)
    extractor = make(channels=32, dtype=torch.float32, pre_kernel=pre_kernel, post="conv").eval()
    with torch.no_grad():
        expected = extractor(features, box_lists)
        fast = optimize_for_inference(copy.deepcopy(extractor))
        taken = [name for name in ("pre", "post") if WinogradConv2d.takes(getattr(extractor, name))]
        assert [name for name in ("pre", "post") if type(getattr(fast, name)) is WinogradConv2d] == taken
        scale = expected.abs().max()
        torch.testing.assert_close(fast(features, box_lists) / scale, expected / scale, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooler_type": "ROIPool"}, "pooler_type"),
        ({"scales": ()}, "scales"),
        ({"scales": (0.25, 0.0)}, "scales"),
        ({"output_size": 0}, "output_size"),
        ({"output_size": (7, 7, 7)}, "output_size"),
        ({"pre_kernel": 4}, "pre_kernel"),
        ({"pre_kernel": -1}, "pre_kernel"),
        ({"post": "attention"}, "post must be"),
        ({"post_kernel": 0}, "post_kernel"),
        ({"in_channels": 1}, "at least 2 channels"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    arguments = {"output_size": 7, "scales": SCALES, "sampling_ratio": 0, "in_channels": 6}
    with pytest.raises(ValueError, match=message):
        GenericRoIExtractor(**{**arguments, **changes})


def test_inputs_that_do_not_fit_are_refused():
    extractor, features = make(), pyramid()
    with pytest.raises(ValueError, match="2 maps for 3 scales"):
        extractor(features[:2], boxes(1, 1))
    with pytest.raises(ValueError, match="boxes of 1 images, maps of 2"):
        extractor(features, boxes(1))
    bad = boxes(1, 1)
    bad[1].tensor[0, 2] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        extractor(features, bad)


@pytest.mark.parametrize("branch", ["box_pooler", "mask_pooler"])
def test_the_variant_uses_it_with_the_channels_of_the_neck(branch):
    cfg = get_config("nuclei/variants/groie")
    cfg.model.backbone.out_channels = 32
    pooler = cfg.model.roi_heads[branch]
    assert pooler._target_ is GenericRoIExtractor
    assert pooler.in_channels == 32
