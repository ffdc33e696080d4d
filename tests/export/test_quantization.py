"""What of a graph is put into 8 bits, and how near it stays to float32."""

import numpy as np
import pytest
import torch
from torch import nn

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'maskrcnn_plus[export]'")
pytest.importorskip("nncf", reason="NNCF is not installed: pip install 'maskrcnn_plus[export]'")

from maskrcnn_plus.export import hybrid_parts, quantization  # noqa: E402
from maskrcnn_plus.export.quantization import depthwise_layers, end_layers, quantize  # noqa: E402


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection, of channels that differ by a factor of 300 in range."""

    def __init__(self, groups: int = 24) -> None:
        super().__init__()
        self.expand, self.depthwise = nn.Conv2d(3, 24, 1), nn.Conv2d(24, 24, 3, padding=1, groups=groups)
        self.project, self.output = nn.Conv2d(24, 8, 1), nn.Conv2d(8, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        scale = torch.logspace(-2.5, 0, 24)
        with torch.no_grad():
            self.depthwise.weight.mul_(scale[:, None, None, None])
            self.depthwise.bias.mul_(scale)
            self.project.weight.div_(scale[None, :, None, None])

    def forward(self, x):
        x = self.depthwise(self.expand(x.permute(0, 3, 1, 2)).relu()).relu()
        return self.output(self.norm(self.project(x)))


def convert(network: nn.Module):
    return hybrid_parts._translate(network.eval(), [torch.rand(1, 16, 16, 3)], [openvino.PartialShape([-1, -1, -1, 3])])


@pytest.fixture
def graph():
    torch.manual_seed(0)
    return convert(InvertedResidual())


def name_parts(names):
    return {name.split("/")[0].removeprefix("__module.") for name in names}


def test_depthwise_layers_are_they_and_what_reads_them(graph):
    assert name_parts(depthwise_layers(graph)) == {"depthwise", "project"}  # not "output": a normalisation is between
    assert depthwise_layers(convert(InvertedResidual(groups=4))) == []  # grouped, of several channels each
    assert name_parts(end_layers(graph)) == {"expand", "output"}


def test_each_convolution_is_followed_by_its_bias_as_a_constant(graph):
    layers = [each for each in graph.get_ops() if each.get_type_name() in ("Convolution", "GroupConvolution")]
    assert len(layers) == 4
    for layer in layers:
        (reader,) = layer.output(0).get_target_inputs()
        assert reader.get_node().get_type_name() == "Add"
        assert reader.get_node().input_value(1).get_node().get_type_name() == "Constant"


def test_channels_of_different_ranges_survive_8_bits(graph, monkeypatch):
    rng = np.random.default_rng(0)
    inputs = [[rng.random((1, 16, 16, 3), np.float32)] for _ in range(8)]
    core = openvino.Core()

    def run(model):
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return np.stack([compiled(each)[0] for each in inputs])

    expected = run(graph)

    def error(model):
        return np.sqrt(((run(model) - expected) ** 2).mean()) / expected.std()

    quantized = quantize(graph, inputs, half_range=True)
    assert any(each.get_type_name() == "FakeQuantize" for each in quantized.get_ops())
    monkeypatch.setattr(quantization, "depthwise_layers", lambda _: [])
    everything = quantize(graph, inputs, half_range=True)
    assert error(quantized) < 0.03
    assert error(everything) > 2 * error(quantized)
