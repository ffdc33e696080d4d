"""A model as OpenVINO graphs with this package's operators between them: the folder that `Predictor` opens.

The folder holds `model.json`, a graph a part, and in `rest.safetensors` what stays in PyTorch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.export.describe import describe_model
from maskrcnn_plus.export.hybrid_parts import Candidate, convert, find_parts
from maskrcnn_plus.inference.exported import REST, open_tensors
from maskrcnn_plus.inference.openvino_graph import import_openvino
from maskrcnn_plus.inference.optimize import fold_batch_norms
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.mask_heads.mask_iou import SplitMaskHead
from maskrcnn_plus.model_folder import ModelDescription, write_model_folder

__all__ = ["HybridModel"]

_ROWS = (3, 5)  # of the examples of RoIs


class HybridModel:
    """The graphs of a model, in memory.

    Attributes:
        predictor: the model in PyTorch, its batch norms folded.
        description: what its checkpoint says of itself.
        candidates: the parts, the body first, by the name of the module.
        graphs: of each, an `openvino.Model` in float32.
        staying: sentences on parts that stay in PyTorch.
    """

    def __init__(self, predictor: Predictor, description: Mapping[str, Any]) -> None:
        """Convert all parts that can be converted, and compare each with PyTorch.

        Args:
            predictor: on the CPU, made with `optimize=False`; its batch norms are folded.
            description: of its checkpoint, see `maskrcnn_plus.checkpoints.description.describe`.

        Raises:
            UserError: naming a part that cannot be exported, or OpenVINO is missing.
        """
        self.predictor, self.description = predictor, description
        model = predictor.model
        found, self.staying = find_parts(model)
        self.candidates: dict[str, Candidate] = {each.part.module: each for each in found}
        replaced = [name for each in found for name in (each.part.module, each.part.head) if name]
        self._rest = {name: tensor.detach().clone() for name, tensor in open_tensors(model, replaced).items()}
        fold_batch_norms(model)
        self.graphs = {name: convert(each, _examples(model, each)) for name, each in self.candidates.items()}

    def write(
        self,
        folder: str | Path,
        precision: str,
        quantized: Mapping[str, Any] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> ModelDescription:
        """Write the folder; what is in it of an earlier export is replaced.

        Args:
            folder: made where it is not there.
            precision: "fp32"; "fp16", weights of half the size, computed in float32; or "int8".
            quantized: graphs that take the place of those in float32, by module.
            details: of the export, plain data for `model.json`.

        Raises:
            OSError: a file cannot be written.
        """
        openvino, folder = import_openvino(), Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        parts, files = [], [REST]
        for name, candidate in self.candidates.items():
            graph = (quantized or {}).get(name)
            kind = precision if precision != "int8" else "fp32" if graph is None else "int8"
            path = folder / candidate.part.file
            openvino.save_model(self.graphs[name] if graph is None else graph, path, compress_to_fp16=kind == "fp16")
            files += [path.name, path.with_suffix(".bin").name]
            parts.append(replace(candidate.part, precision=kind))
        rest = {key: value.contiguous() for key, value in self._rest.items()}
        write_atomically(folder / REST, safetensors.torch.save(rest))  # `save_file` lets nobody else read it
        hybrid = {
            "parts": [asdict(part) for part in parts],
            "description": json.dumps(self.description),
            **(details or {}),
        }
        packages = ("openvino", "nncf") if precision == "int8" else ("openvino",)
        described = describe_model(
            self.predictor, "hybrid", precision, inside_graph=False, nms_inside=False, packages=packages, details=hybrid
        )
        return write_model_folder(folder, described, files)


def _examples(model: nn.Module, candidate: Candidate) -> list[list[Tensor]]:
    """Inputs of different sizes: of a body, images; of the others, RoIs."""
    generator = torch.Generator().manual_seed(0)
    if candidate.part.kind == "body":
        grain, channels = max(model.backbone.size_divisibility, 32), len(model.pixel_mean)
        sizes = ((1, 2, 3), (2, 3, 2), (1, 5, 4))
        return [[torch.randn(n, channels, h * grain, w * grain, generator=generator)] for n, h, w in sizes]
    heads = model.roi_heads
    is_mask = candidate.part.module.startswith(("roi_heads.mask_head", "roi_heads.mask_pooler"))
    pooler = heads.mask_pooler if is_mask else heads.box_pooler
    names = heads.mask_in_features if is_mask else heads.box_in_features
    channels = model.backbone.output_shape()[names[0]].channels
    inputs = [[torch.randn(rows, channels, *pooler.output_size, generator=generator)] for rows in _ROWS]
    if candidate.num_inputs == 2:  # features and masks
        side = _mask_side(heads.mask_head.mask_head, inputs[0][0])
        inputs = [[each, torch.rand(len(each), 1, side, side, generator=generator)] for (each,) in inputs]
    return inputs


@torch.no_grad()
def _mask_side(mask_head: nn.Module, x: Tensor) -> int:
    if isinstance(mask_head, SplitMaskHead):
        return mask_head.mask_outputs(x)["pred_mask_logits"].shape[-1]
    return mask_head.layers(x).shape[-1]
