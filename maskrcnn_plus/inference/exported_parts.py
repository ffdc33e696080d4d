"""Parts of a model that run as OpenVINO graphs, each with the interface of the module that it replaces.

What lies between them stays as it is: anchors, the choice of proposals, RoIAlign, box predictors, NMS, mask pasting.

Shape shorthand: N images, L levels, R RoIs of all images, C channels, K classes, S side of a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference
from detectron2.structures import Instances
from torch import Tensor, nn

from maskrcnn_plus.errors import UserError
from maskrcnn_plus.inference.openvino_graph import Graph

__all__ = ["ExportedPart", "install_part"]


@dataclass(frozen=True)
class ExportedPart:
    """A graph and the modules that it stands for.

    Attributes:
        module: name in the model.
        kind: "body", the backbone with its neck and, where `head` names it, the RPN's head; "rows", a module that makes
            one tensor of RoIs' tensors; "masks", a mask head.
        file: name of the .xml file.
        precision: of its weights: "fp32", "fp16" or "int8".
        sha256: of the files, so that results of other weights are told apart.
        outputs: of a body, the names of its maps.
        head: of a body, the name of the RPN's head; "" without.
        head_outputs: number of lists, of L maps each, that this head gives.
        rows: most RoIs at once, so that their features stay near the core.
    """

    module: str
    kind: Literal["body", "rows", "masks"]
    file: str
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    sha256: str = ""
    outputs: tuple[str, ...] = ()
    head: str = ""
    head_outputs: int = 0
    rows: int = 0


class _Body(nn.Module):
    """A backbone with its neck. Its first map carries what the RPN's head predicts."""

    def __init__(self, graph: Graph, part: ExportedPart, backbone: nn.Module) -> None:
        super().__init__()
        self.graph, self.part = graph, part
        self.size_divisibility = backbone.size_divisibility
        self.padding_constraints = getattr(backbone, "padding_constraints", {})
        self._shapes = backbone.output_shape()

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each map."""
        return self._shapes

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """[N, C, H, W], normalised and padded -> maps [N, C_l, H_l, W_l] by name."""
        outputs = self.graph(images)
        names = self.part.outputs
        maps = dict(zip(names, outputs, strict=False))
        for each in maps.values():
            each.rpn_predictions = outputs[len(names) :]
        return maps


class _BodysHead(nn.Module):
    """The RPN's head, whose predictions the body made."""

    def __init__(self, part: ExportedPart) -> None:
        super().__init__()
        self.part = part

    def forward(self, features: Sequence[Tensor]) -> list[list[Tensor]]:
        """L maps [N, C, H_l, W_l] of the body -> lists of L predictions each."""
        flat, levels = features[0].rpn_predictions, len(features)
        return [flat[k * levels : (k + 1) * levels] for k in range(self.part.head_outputs)]


class _Rows(nn.Module):
    """A module that makes one tensor of RoIs' tensors."""

    def __init__(self, graph: Graph, part: ExportedPart) -> None:
        super().__init__()
        self.graph, self.part = graph, part

    def forward(self, *inputs: Tensor) -> Tensor:
        """Tensors of R rows -> one of R rows."""
        return self.graph(*inputs)[0]


class _MaskHead(nn.Module):
    """A mask head, alone or within one that scores its masks."""

    def __init__(self, graph: Graph, part: ExportedPart) -> None:
        super().__init__()
        self.graph, self.part = graph, part

    def mask_outputs(self, x: Tensor) -> dict[str, Tensor]:
        """[R, C, h, w] -> "pred_mask_logits" [R, K, S, S]."""
        return {"pred_mask_logits": self.graph(x)[0]}

    def mask_losses(self, outputs: dict[str, Tensor], instances: list[Instances]) -> dict[str, Tensor]:
        """An exported model does not train.

        Raises:
            UserError: always.
        """
        raise UserError("An exported model cannot be trained: train the checkpoint that it was made of.")

    def forward(self, x: Tensor, instances: list[Instances]) -> list[Instances]:
        """Add `pred_masks` [N, 1, S, S], probabilities, to the Instances of each image."""
        mask_rcnn_inference(self.mask_outputs(x)["pred_mask_logits"], instances)
        return instances


def install_part(model: nn.Module, part: ExportedPart, graph: Any) -> None:
    """Put a graph into the place of the modules that it stands for.

    Raises:
        UserError: the model has no such modules.
    """
    try:
        old = model.get_submodule(part.module)
        if part.kind == "body":
            _replace(model, part.module, _Body(graph, part, old))
            if part.head:
                _replace(model, part.head, _BodysHead(part))
        else:
            _replace(model, part.module, (_MaskHead if part.kind == "masks" else _Rows)(graph, part))
    except AttributeError as error:
        raise UserError(
            f"{part.file}: the config's model has no module {part.module} that it could replace."
        ) from error


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    model.get_submodule(name)
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)
