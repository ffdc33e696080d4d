"""An exported folder as a model: the config of its checkpoint, with graphs in the places of networks."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from maskrcnn_plus.data.classes import Classes
from maskrcnn_plus.device import SATURATES, saturates
from maskrcnn_plus.inference.exported_parts import ExportedPart, install_part
from maskrcnn_plus.inference.openvino_graph import Graph
from maskrcnn_plus.model_folder import ModelDescription, ModelFolderError, read_model_folder
from maskrcnn_plus.plain_data import from_plain

__all__ = ["REST", "exported_classes", "load_exported", "open_tensors"]

REST = "rest.safetensors"
"""Parameters and buffers of what stays in PyTorch."""


def load_exported(model: nn.Module, folder: str | os.PathLike, precision: str | None = None) -> None:
    """Put the graphs of a folder into a model, in place, and load what stays in PyTorch.

    Args:
        model: of the folder's config, on the CPU; its numbers are of no use.
        folder: of `maskrcnn_plus.export.hybrid`.
        precision: in which graphs compute what is not quantised, "float32" (default) or "bfloat16".

    Raises:
        UserError: the folder is damaged, or of another model.
    """
    described, folder = read_model_folder(folder, "hybrid"), Path(folder)
    parts = _parts(described, folder)
    for part in parts:
        install_part(model, part, Graph(folder / part.file, precision or "float32", part.rows or None))
    if described.precision == "int8" and not described.details.get("safe_range") and saturates():
        logging.getLogger(__name__).warning(
            f"{folder} was quantised to the full range of 8 bits, for a CPU that sums it exactly. {SATURATES} Export "
            "the model on this machine."
        )
    wanted = open_tensors(model, [name for part in parts for name in (part.module, part.head) if name])
    try:
        stored = load_file(folder / REST)
    except (OSError, SafetensorError) as error:
        raise ModelFolderError(f"{folder / REST} cannot be read: {error}") from error
    wrong = wanted.keys() ^ stored.keys() | {n for n in wanted.keys() & stored if wanted[n].shape != stored[n].shape}
    if wrong:
        raise ModelFolderError(
            f"{folder} does not fit the config's model, which differs in {', '.join(sorted(wrong)[:5])}: an exported "
            "model takes changes of dataset, of dataloader.test.mapper and of thresholds alone."
        )
    for name, tensor in wanted.items():
        tensor.data.copy_(stored[name])


def exported_classes(folder: str | os.PathLike) -> Classes:
    """The classes of an exported model."""
    described = read_model_folder(folder, "hybrid", check_files=False)
    return Classes(list(described.class_names), described.category_ids and list(described.category_ids))


def open_tensors(model: nn.Module, replaced: Sequence[str]) -> dict[str, Tensor]:
    """Parameters and buffers, those that no checkpoint holds too, of all but some modules."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: each for name, each in tensors.items() if not any(name.startswith(f"{r}.") for r in replaced)}


def _parts(described: ModelDescription, folder: Path) -> list[ExportedPart]:
    """The parts, with the hashes of their files."""
    try:
        parts = [from_plain(each, ExportedPart) for each in described.details["parts"]]
        files = [(part.file, str(Path(part.file).with_suffix(".bin"))) for part in parts]
        hashes = ["".join(described.files[name].sha256 for name in pair) for pair in files]
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFolderError(f"{folder}: details.parts of its model.json cannot be: {error}") from error
    return [replace(part, sha256=each) for part, each in zip(parts, hashes, strict=True)]
