"""The parts of a model that OpenVINO graphs can take the place of, as modules of tensors alone, and their conversion.

Shape shorthand: N images, L levels, R RoIs of all images, C channels, K classes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.modeling.roi_heads import BaseMaskRCNNHead
from torch import Tensor, nn

from maskrcnn_plus.errors import UserError
from maskrcnn_plus.export.parts import refuse_plain_vits
from maskrcnn_plus.inference.exported_parts import ExportedPart
from maskrcnn_plus.inference.openvino_graph import Graph, import_openvino
from maskrcnn_plus.mask_heads import MaskScoringHead
from maskrcnn_plus.mask_heads.mask_iou import SplitMaskHead
from maskrcnn_plus.roi.generic import GenericRoIExtractor
from maskrcnn_plus.rpn import BatchedRPN, IoUAwareRPN, IoUAwareRPNHead

__all__ = ["Candidate", "convert", "find_parts"]

_BOX_ROWS, _MASK_ROWS = 512, 32
_TOLERANCE = 1e-3


@dataclass
class Candidate:
    """A part before its conversion.

    Attributes:
        part: what becomes of it.
        original: the module that it stands for.
        network: the same with tensors in and a tuple of tensors out, channels last where they have four dimensions.
        seen_by: the module whose first inputs are those of the graph.
        num_inputs: of the graph.
    """

    part: ExportedPart
    original: nn.Module
    network: nn.Module
    seen_by: nn.Module
    num_inputs: int = 1


def find_parts(model: nn.Module) -> tuple[list[Candidate], list[str]]:
    """What of a model can become graphs.

    Args:
        model: in evaluation mode.

    Returns:
        The candidates, the body first, and a sentence on each part with weights that stays in PyTorch.

    Raises:
        UserError: naming a backbone that cannot be exported.
    """
    refuse_plain_vits(model.backbone)
    found, staying = [_body(model)], []
    if not found[0].part.head:
        staying.append(f"{type(model.proposal_generator).__name__} stays in PyTorch")
    heads = model.roi_heads
    for name in ("box_pooler", "mask_pooler"):
        pooler = getattr(heads, name, None)
        if isinstance(pooler, GenericRoIExtractor):
            layers = {each: getattr(pooler, each) for each in ("pre", "post")}
            learned = {each: layer for each, layer in layers.items() if any(True for _ in layer.parameters())}
            found += [_rows(f"roi_heads.{name}.{each}", layer, _MASK_ROWS) for each, layer in learned.items()]
    box_head = heads.box_head
    if isinstance(box_head, nn.ModuleList):
        found += [_rows(f"roi_heads.box_head.{k}", head, _BOX_ROWS) for k, head in enumerate(box_head)]
    else:
        found.append(_rows("roi_heads.box_head", box_head, _BOX_ROWS))
    mask_head, name = getattr(heads, "mask_head", None), "roi_heads.mask_head"
    seen_by = mask_head
    if isinstance(mask_head, MaskScoringHead):
        iou_head = mask_head.mask_iou_head
        found.append(replace(_rows(f"{name}.mask_iou_head", iou_head, _MASK_ROWS), num_inputs=2))
        seen_by, mask_head, name = iou_head, mask_head.mask_head, f"{name}.mask_head"
    is_stock = isinstance(mask_head, BaseMaskRCNNHead) and type(mask_head).forward is BaseMaskRCNNHead.forward
    if is_stock or isinstance(mask_head, SplitMaskHead):
        part = ExportedPart(name, "masks", f"{name}.xml", rows=_MASK_ROWS)
        found.append(Candidate(part, mask_head, _MaskNetwork(mask_head, is_stock), seen_by))
    elif mask_head is not None:
        staying.append(f"{type(mask_head).__name__} stays in PyTorch")
    return found, staying


def convert(candidate: Candidate, examples: Sequence[Sequence[Tensor]]) -> Any:
    """Make an `openvino.Model` of dynamic sizes of a part, and compare what both give.

    Args:
        candidate: the part.
        examples: inputs of its original module, of different sizes; the graph is traced with the first.

    Raises:
        UserError: naming the module, where it cannot be converted or the graph gives something else.
    """
    openvino, name = import_openvino(), f"{candidate.part.module} ({type(candidate.original).__name__})"
    inputs = [_channels_last(each) for each in examples[0]]
    is_body = candidate.part.kind == "body"
    shapes = []
    for each in inputs:  # sizes of images and numbers of RoIs are free
        sizes = [-1, -1, -1, each.shape[3]] if is_body else [-1, *each.shape[1:]]
        shapes.append(openvino.PartialShape(sizes))
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer; the comparison below is what counts
            graph = _translate(candidate.network, inputs, shapes)
    except Exception as error:  # whatever tracer and converter make of a network
        lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")] or [type(error).__name__]
        reason = next((line for line in lines if line.startswith("No conversion rule")), lines[0])
        if "Exception:" in lines[:-1]:  # of the network itself, in the words of OpenVINO's tracer
            reason = lines[lines.index("Exception:") + 1]
        raise UserError(f"{name} cannot be exported to OpenVINO: {reason[:300]}") from error
    for index, output in enumerate(graph.outputs):
        output.get_tensor().set_names({f"output_{index}"})
    run = Graph(graph, rows=candidate.part.rows or None)
    for example in examples:
        difference = _largest_difference(candidate, run, example)
        if not difference <= _TOLERANCE:
            sizes = ", ".join(str(list(each.shape)) for each in example)
            traced = ", ".join(str(list(each.shape)) for each in examples[0])
            why = f"relative difference {difference:.1e}"
            if math.isinf(difference):
                why = f"its trace holds for {traced} alone"
            raise UserError(
                f"{name} cannot be exported to OpenVINO: for an input of {sizes} the graph gives something else than "
                f"PyTorch ({why})."
            )
    return graph


def _translate(network: nn.Module, inputs: Sequence[Tensor], shapes: Sequence[Any]) -> Any:
    """`openvino.convert_model` without the reports of use that it sends, from a process for each."""
    from openvino import Type
    from openvino._offline_transformations import apply_moc_transformations
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(network, example_input=tuple(inputs))  # must live as long as what is loaded
    loaded = frontend.load(decoder)
    for place, shape in zip(loaded.get_inputs(), shapes, strict=True):
        loaded.set_partial_shape(place, shape)
        loaded.set_element_type(place, Type.f32)
    graph = frontend.convert(loaded)
    # As `convert_model` does it: shapes become constants, so that quantisation sees each convolution with its bias.
    apply_moc_transformations(graph, cf=True)
    return graph


@torch.no_grad()
def _largest_difference(candidate: Candidate, run: Graph, example: Sequence[Tensor]) -> float:
    """In proportion to the largest value of each output; infinite where shapes differ."""
    expected = [_channels_first(each) for each in candidate.network(*map(_channels_last, example))]
    try:
        found = run(*example)
    except RuntimeError:  # of shapes that the trace has fixed
        return float("inf")
    if [each.shape for each in found] != [each.shape for each in expected]:
        return float("inf")
    pairs = zip(found, expected, strict=True)
    changes = [float((a - b).abs().max() / b.abs().max().clamp(min=1e-6)) for a, b in pairs if b.numel()]
    return max(changes, default=0.0)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 2, 3, 1).contiguous() if tensor.dim() == 4 else tensor


def _channels_first(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 3, 1, 2) if tensor.dim() == 4 else tensor


def _body(model: nn.Module) -> Candidate:
    part = ExportedPart("backbone", "body", "body.xml", outputs=tuple(model.backbone.output_shape()))
    rpn, head = model.proposal_generator, None
    if type(rpn) in (RPN, BatchedRPN, IoUAwareRPN) and type(rpn.rpn_head) in (StandardRPNHead, IoUAwareRPNHead):
        head = rpn.rpn_head
        lists = 3 if isinstance(head, IoUAwareRPNHead) else 2
        part = replace(part, head="proposal_generator.rpn_head", head_outputs=lists)
    network = _BodyNetwork(model.backbone, part.outputs, head, rpn.in_features)
    return Candidate(part, model.backbone, network, model.backbone)


def _rows(name: str, module: nn.Module, rows: int) -> Candidate:
    return Candidate(ExportedPart(name, "rows", f"{name}.xml", rows=rows), module, _RowsNetwork(module), module)


class _BodyNetwork(nn.Module):
    """[N, H, W, C] -> maps, then the predictions of the RPN's head."""

    def __init__(
        self, backbone: nn.Module, names: Sequence[str], head: nn.Module | None, in_features: Sequence[str]
    ) -> None:
        super().__init__()
        self.backbone, self.names, self.head, self.in_features = backbone, names, head, in_features

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.backbone(_channels_first(images))
        outputs = [maps[name] for name in self.names]
        if self.head is not None:
            outputs += [each for list_ in self.head([maps[name] for name in self.in_features]) for each in list_]
        return tuple(each.permute(0, 2, 3, 1) for each in outputs)


class _RowsNetwork(nn.Module):
    """Tensors of RoIs -> one of RoIs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        output = self.module(*map(_channels_first, inputs))
        return (output.permute(0, 2, 3, 1) if output.dim() == 4 else output,)


class _MaskNetwork(nn.Module):
    """[R, h, w, C] -> mask logits [R, S, S, K]."""

    def __init__(self, head: nn.Module, is_stock: bool) -> None:
        super().__init__()
        self.head, self.is_stock = head, is_stock

    def forward(self, x: Tensor) -> tuple[Tensor]:
        x = _channels_first(x)
        logits = self.head.layers(x) if self.is_stock else self.head.mask_outputs(x)["pred_mask_logits"]
        return (logits.permute(0, 2, 3, 1),)
