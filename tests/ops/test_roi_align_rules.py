"""The rules around the RoIAlign operator: what it refuses, the pyramid, torch.library, compilation, and fallbacks."""

import warnings

import pytest
import torch
from torchvision.ops import roi_align as torchvision_roi_align

from maskrcnn_plus.ops import extension
from maskrcnn_plus.ops.roi_align_reference import roi_align_reference
from maskrcnn_plus.roi import roi_align, roi_align_pyramid

needs_extension = pytest.mark.skipif(not extension.is_available(), reason=extension.why_missing())

X = torch.zeros(2, 3, 8, 8)
R = torch.tensor([[0, 1.0, 1, 4, 4], [1, 0, 0, 3, 3]])


@pytest.mark.parametrize(
    ("input", "rois", "message"),
    [
        (X, R.clone().index_fill_(0, torch.tensor([1]), torch.nan), "RoI 1 is not finite"),
        (X, torch.tensor([[0, 1.0, 1, torch.inf, 4]]), "RoI 0 is not finite"),
        (X, torch.cat([R, torch.tensor([[2, 0.0, 0, 1, 1]])]), r"batch index 2 of RoI 2 is outside \[0, 2\)"),
        (X, torch.cat([R, torch.tensor([[-1, 0.0, 0, 1, 1]])]), "batch index -1 of RoI 2"),
        (X, R[:, :4], r"\[K, 5\]"),
        (X[0], R, r"\[N, C, H, W\]"),
        (X.long(), R, "floating point"),
        (X, R.long(), "floating point"),
        (X, R.double(), "one type"),
        (X, R.half(), "one type"),
        (X, [R[:, 1:]], "1 lists of boxes for 2 images"),
        (X, [R[:, 1:], R], "boxes of image 1"),
        (X, R.to("meta"), "meta"),
    ],
)
def test_bad_input_is_refused_with_the_first_offending_box(input, rois, message):
    with pytest.raises((ValueError, TypeError), match=message):
        roi_align(input, rois, 7, 0.25)


@pytest.mark.parametrize("options", [{"output_size": 0}, {"output_size": (3, -1)}, {"spatial_scale": 0.0}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match="must be positive"):
        roi_align(X, R, **{"output_size": 7, **options})


def test_pyramid_equals_one_map_at_a_time():
    torch.manual_seed(0)
    features = [torch.randn(2, 6, 32 // 2**i, 40 // 2**i, requires_grad=True) for i in range(4)]
    rois = torch.cat([torch.randint(0, 2, (50, 1)).float(), torch.rand(50, 2) * 60, 70 + torch.rand(50, 2) * 60], dim=1)
    levels = torch.randint(0, 4, (50,))
    scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    output = roi_align_pyramid(features, rois, levels, 5, scales)
    expected = torch.zeros_like(output)
    for level in range(4):
        chosen = levels == level
        expected[chosen] = torchvision_roi_align(features[level], rois[chosen], 5, scales[level], 0, True)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)
    reference = torch.zeros_like(output)
    for level in range(4):
        reference[levels == level] = roi_align_reference(features[level], rois[levels == level], (5, 5), scales[level])
    torch.testing.assert_close(reference, expected, atol=1e-5, rtol=0)
    cotangent = torch.randn_like(output)
    gradients = [torch.autograd.grad(o, features, cotangent) for o in (output, expected)]
    for gradient, expected_gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-4, rtol=0)


@pytest.mark.usefixtures("_operators")
def test_pyramid_refuses_levels_that_do_not_fit():
    features = [torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 4, 4)]
    rois = torch.tensor([[0, 1.0, 1, 4, 4]])
    for levels, message in [
        (torch.tensor([2]), r"level 2 of RoI 0 is outside \[0, 2\)"),
        (torch.tensor([0, 1]), "one entry a RoI"),
        (None, "levels are needed"),
    ]:
        with pytest.raises(ValueError, match=message):
            roi_align_pyramid(features, rois, levels, 2, [0.25, 0.125])
    with pytest.raises(ValueError, match="feature map 1 differs"):
        roi_align_pyramid([features[0], features[1][:, :1]], rois, torch.tensor([0]), 2, [0.25, 0.125])
    with pytest.raises(ValueError, match="no feature map"):
        roi_align_pyramid([], rois, None, 2, [])


@pytest.mark.usefixtures("_operators")
def test_operators_pass_opcheck():
    torch.manual_seed(0)
    rois = torch.tensor([[0, 1.0, 2, 30, 20], [1, -3, -4, 60, 10]])
    levels = torch.tensor([1, 0])
    for channels_last in (False, True):
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        features = [torch.randn(2, 3, s, s).to(memory_format=memory_format).requires_grad_() for s in (9, 5)]
        arguments = (features, rois, levels, [0.25, 0.125], 3, 2, 0, True, channels_last)
        results = torch.library.opcheck(torch.ops.maskrcnn_plus.roi_align, arguments)
        assert set(results.values()) == {"SUCCESS"}
        grad = torch.randn(2, 3, 3, 2, requires_grad=True)
        arguments = (grad, rois, levels, [0.25, 0.125], [2, 3, 9, 9, 2, 3, 5, 5], 0, True, channels_last)
        results = torch.library.opcheck(torch.ops.maskrcnn_plus.roi_align_backward, arguments)
        assert set(results.values()) == {"SUCCESS"}


@pytest.mark.usefixtures("_operators")
def test_compiles_to_one_graph_for_any_number_of_boxes():
    torch.manual_seed(0)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(
        lambda x, r: roi_align(x * 2, r, 3, 0.5).relu(), fullgraph=True, dynamic=True, backend=backend
    )
    input = torch.randn(1, 4, 12, 12)
    for count in (3, 5, 8):
        rois = torch.cat([torch.zeros(count, 1), torch.rand(count, 2) * 8, 10 + torch.rand(count, 2) * 8], dim=1)
        torch.testing.assert_close(compiled(input, rois), roi_align(input * 2, rois, 3, 0.5).relu())
    assert len(graphs) == 1


@pytest.mark.usefixtures("_operators")
def test_exports_with_a_dynamic_number_of_boxes():
    class Align(torch.nn.Module):
        def forward(self, x, rois):
            return roi_align(x, rois, 3, 0.5)

    input, rois = torch.randn(1, 4, 12, 12), torch.tensor([[0, 1.0, 2, 9, 12], [0, 3, 3, 20, 9], [0, 0, 0, 4, 4]])
    shapes = {"x": None, "rois": {0: torch.export.Dim("boxes")}}
    exported = torch.export.export(Align(), (input, rois), dynamic_shapes=shapes).module()
    for count in (1, 2, 3):
        assert torch.equal(exported(input, rois[:count]), roi_align(input, rois[:count], 3, 0.5))


def test_autocast_keeps_the_type_of_the_maps():
    torch.manual_seed(0)
    input = torch.randn(1, 4, 12, 12)
    rois = torch.tensor([[0, 1.0, 2, 9, 12]])
    expected = roi_align(input.bfloat16(), rois, 3, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(roi_align(input.bfloat16(), rois, 3, 0.5), expected)
        assert torch.equal(roi_align(input.bfloat16(), rois.bfloat16(), 3, 0.5), expected)
        assert roi_align(input, rois, 3, 0.5).dtype == torch.float32


@pytest.mark.usefixtures("_operators")
def test_autocast_widens_maps_of_different_types_and_differentiates():
    torch.manual_seed(0)
    features = [torch.randn(1, 4, 12, 12).bfloat16().requires_grad_(), torch.randn(1, 4, 6, 6, requires_grad=True)]
    rois, levels = torch.tensor([[0, 1.0, 2, 9, 12], [0, 0, 0, 20, 20]]), torch.tensor([0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        output = roi_align_pyramid(features, rois, levels, 3, [0.5, 0.25])
    expected = roi_align_pyramid([features[0].float(), features[1]], rois, levels, 3, [0.5, 0.25])
    assert output.dtype == torch.float32
    assert torch.equal(output, expected)
    gradients = torch.autograd.grad(output.sum(), features)
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16, torch.float32]
    torch.testing.assert_close(gradients[1], torch.autograd.grad(expected.sum(), features[1])[0])


def test_without_the_extension_torchvision_stands_in_with_one_warning(monkeypatch, request):
    torch.manual_seed(0)
    features = [torch.randn(1, 4, 12, 12, requires_grad=True), torch.randn(1, 4, 6, 6)]
    rois = torch.tensor([[0, 1.0, 2, 9, 12], [0, 0, 0, 20, 20]])
    levels = torch.tensor([1, 0])
    expected = roi_align_pyramid(features, rois, levels, 3, [0.5, 0.25])
    single = roi_align(features[0], rois, 3, 0.5)
    request.getfixturevalue("without_kernels")
    monkeypatch.setattr(extension, "_why_missing", "it was left out")
    monkeypatch.setattr(extension, "_warned", False)
    with pytest.warns(UserWarning, match="it was left out"):
        fallback = roi_align_pyramid(features, rois, levels, 3, [0.5, 0.25])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(roi_align(features[0], rois, 3, 0.5), single, atol=1e-5, rtol=0)
    torch.testing.assert_close(fallback, expected, atol=1e-5, rtol=0)
    assert torch.autograd.grad(fallback.sum(), features[0])[0].abs().sum() > 0
