"""Whether the model that a checkpoint describes has about the size of the file, before memory is taken for it."""

from __future__ import annotations

import itertools
import os

import torch
from omegaconf import DictConfig

from maskrcnn_plus.build import build
from maskrcnn_plus.config import skip_pretrained
from maskrcnn_plus.errors import ConfigError, UserError
from maskrcnn_plus.weights.conversion import WeightsError

_TIMES, _MORE = 8, 2**26  # bytes of a float32 model for a byte of a compressed or quantised file, and beside that


def check_model_size(cfg: DictConfig, path: str) -> None:
    """Refuse a model that is far larger than the file that its weights are in.

    It is built without memory, on PyTorch's device "meta". A model that cannot be built there is not judged.

    Args:
        cfg: of a description, with its classes settled; it is changed.
        path: of the checkpoint, or the folder of an exported model.

    Raises:
        WeightsError: the model is larger, or its parts do not fit.
    """
    skip_pretrained(cfg)
    try:
        with torch.device("meta"):
            model = build(cfg, "model")
    except (ConfigError, NotImplementedError, RuntimeError):
        return
    except UserError as error:
        raise WeightsError(f"{path} is refused: {error}") from error
    tensors = itertools.chain(model.parameters(), model.buffers())
    needed, stored = sum(each.numel() * each.element_size() for each in tensors), _stored_bytes(path)
    if needed > _TIMES * stored + _MORE:
        raise WeightsError(
            f"{path} is refused: it describes a model of {needed / 1e9:.3g} GB, but holds {stored / 1e9:.3g} GB."
        )


def _stored_bytes(path: str) -> int:
    if not os.path.isdir(path):
        return os.path.getsize(path)
    return sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())
