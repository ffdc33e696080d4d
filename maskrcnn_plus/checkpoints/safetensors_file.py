"""A trained checkpoint as a safetensors file: half the size, without a training's states, and it still knows itself.

Format: https://huggingface.co/docs/safetensors. What a checkpoint says of itself is JSON in the file's metadata, under
`maskrcnn_plus.weights.files.ABOUT`; `read_file` gives it back under the keys of a checkpoint.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.checkpoints.description import DESCRIPTION, read_description
from maskrcnn_plus.checkpoints.sources import local_path
from maskrcnn_plus.weights.conversion import WeightsError
from maskrcnn_plus.weights.files import ABOUT, read_weights

__all__ = ["write_safetensors"]

_PLACE = re.compile(r"[/\\]")


def write_safetensors(source: str, path: str | Path, score_threshold: float | None = None) -> None:
    """Write the weights of a checkpoint, the averaged ones where it has some, for prediction and to train on from.

    Kernels and matrices become float16. Vectors (biases, statistics of norms) stay as they are: they are small, and
    running variances have a wider range than float16.

    The description is kept but for what says where the training's files were.

    Args:
        source: a checkpoint that describes itself, see `read_description`.
        path: of the file to write.
        score_threshold: `dataset.score_threshold` from now on; None keeps it.

    Raises:
        WeightsError: it does not describe itself, or its numbers do not fit float16.
        OSError: the file cannot be written.
    """
    description = _without_places(read_description(source), source)
    if score_threshold is not None:
        description["config"]["dataset"]["score_threshold"] = score_threshold
    file = read_weights(local_path(source))
    tensors = {name: _narrow(tensor, name, source) for name, tensor in file.tensors.items()}
    about = {key: file.metadata[key] for key in ("class_names", "category_ids") if file.metadata.get(key)}
    about[DESCRIPTION] = description
    text = json.dumps(about)
    if json.loads(text) != about:  # keys that are numbers
        raise WeightsError(f"{source}: what it says of itself cannot be written as JSON.")
    write_atomically(path, safetensors.torch.save(tensors, {"format": "pt", ABOUT: text}), durable=True)


def _narrow(tensor: Tensor, name: str, source: str) -> Tensor:
    """A tensor as it is stored, which shares no memory with others."""
    if not (tensor.is_floating_point() and name.endswith("weight") and tensor.dim() > 1):
        return tensor.clone(memory_format=torch.contiguous_format)
    half = tensor.to(torch.float16, memory_format=torch.contiguous_format, copy=True)
    if not torch.isfinite(half).all():
        raise WeightsError(f"{source}: numbers of {name} are not finite, or too large for float16.")
    return half


def _without_places(description: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A description with what a prediction and a training from it need, and no folder of the machine it was made on."""
    config = description["config"]
    dataset = {
        key: value
        for key, value in (config.get("dataset") or {}).items()
        if key == "thing_classes" or not any(map(_PLACE.search, _texts(value)))
    }
    train = {key: value for key, value in (config.get("train") or {}).items() if key in ("device", "channels_last")}
    try:
        test = {"mapper": config["dataloader"]["test"]["mapper"]}
        kept = {"model": _without_files(config["model"]), "dataloader": {"test": test}}
    except (KeyError, TypeError) as error:
        raise WeightsError(f"{source} does not describe a model and its images ({error} is missing).") from error
    metrics = (description.get("metrics") or {}).items()
    metrics = {key: value for key, value in metrics if isinstance(value, int | float) and math.isfinite(value)}
    return {**description, "config": {**kept, "dataset": dataset, "train": train}, "metrics": metrics}


def _without_files(value: Any) -> Any:
    """A model's config without the files that its parts started from, which are not read again."""
    if isinstance(value, list):
        return [_without_files(item) for item in value]
    if isinstance(value, dict):
        return {
            key: "" if key == "weights" and isinstance(item, str) else _without_files(item)
            for key, item in value.items()
        }
    return value


def _texts(value: Any) -> list[str]:
    """All texts in plain data."""
    if isinstance(value, dict | list):
        return [text for item in (value.values() if isinstance(value, dict) else value) for text in _texts(item)]
    return [value] if isinstance(value, str) else []
